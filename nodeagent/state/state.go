package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/schemas"
)

// Keys of the log.
const (
	keyMeta    = "meta"
	keyNetwork = "network"
	keyPod     = "pod/"    // + uid: a PodRecord
	keyRecord  = "record/" // + uid: a pod.Record
	keyRoute   = "route/"  // + namespace/name: a RouteRecord
)

// Meta is what a state directory is known by.
type Meta struct {
	ClusterID string `json:"clusterID"`
	Node      string `json:"node"`
	// Revision is the newest revision of the cluster's objects ever told.
	Revision uint64 `json:"revision"`
	// Seq is above every sequence number that was given to a report.
	Seq uint64 `json:"seq"`
}

// Store is the state of one node. Its methods are safe for concurrent use.
type Store struct {
	// Instance tells two directories apart that claim the same node.
	Instance string

	lock *os.File
	log  *log

	mu   sync.Mutex
	meta Meta
}

// Loaded is what a state directory held when it was opened.
type Loaded struct {
	Pods    map[types.UID]schemas.PodRecord
	Records map[types.UID]pod.Record
	Routes  map[string]schemas.RouteRecord
	Network *schemas.NetworkRecord // nil where none was told yet
}

// Open takes the directory, which it makes if need be. The state belongs to
// one node of one cluster, and is refused to any other; clusterID is empty
// where the credentials do not say. ErrLocked says that another agent has it.
func Open(dir, clusterID, node string, l zerolog.Logger) (*Store, Loaded, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, Loaded{}, fmt.Errorf("make state directory: %w", err)
	}
	held, err := lock(dir)
	if err != nil {
		return nil, Loaded{}, err
	}
	s := &Store{lock: held}
	loaded, err := s.open(dir, clusterID, node, l)
	if err != nil {
		return nil, Loaded{}, errors.Join(err, s.Close())
	}
	return s, loaded, nil
}

func (s *Store) open(dir, clusterID, node string, l zerolog.Logger) (Loaded, error) {
	id, err := instance(dir)
	if err != nil {
		return Loaded{}, err
	}
	s.Instance = id
	out := Loaded{
		Pods: map[types.UID]schemas.PodRecord{}, Records: map[types.UID]pod.Record{},
		Routes: map[string]schemas.RouteRecord{},
	}
	s.log, err = openLog(dir, l, func(key string, value json.RawMessage) {
		if err := out.take(key, value, &s.meta); err != nil {
			l.Error().Err(err).Str("key", key).Msg("a record of the state cannot be read: skipped")
		}
	})
	if err != nil {
		return Loaded{}, err
	}
	if s.meta.ClusterID != "" && clusterID != "" && s.meta.ClusterID != clusterID || s.meta.Node != "" && s.meta.Node != node {
		return Loaded{}, fmt.Errorf("state in %s belongs to node %q of cluster %s, the credentials are for node %q of cluster %s: "+
			"give another --state-dir, or remove what is there with 'nodeagent reset'", dir, s.meta.Node, s.meta.ClusterID, node, clusterID)
	}
	s.meta.Node = node
	if clusterID != "" {
		s.meta.ClusterID = clusterID
	}
	return out, s.log.put(keyMeta, s.meta)
}

func (l *Loaded) take(key string, value json.RawMessage, meta *Meta) error {
	switch key {
	case keyMeta:
		return json.Unmarshal(value, meta)
	case keyNetwork:
		return json.Unmarshal(value, &l.Network)
	}
	if uid, ok := strings.CutPrefix(key, keyPod); ok {
		return add(l.Pods, types.UID(uid), value)
	}
	if uid, ok := strings.CutPrefix(key, keyRecord); ok {
		return add(l.Records, types.UID(uid), value)
	}
	if name, ok := strings.CutPrefix(key, keyRoute); ok {
		return add(l.Routes, name, value)
	}
	return errors.New("no such kind of record")
}

func add[K comparable, V any](to map[K]V, key K, value json.RawMessage) error {
	var v V
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	to[key] = v
	return nil
}

// Close gives the directory back.
func (s *Store) Close() error {
	var err error
	if s.log != nil {
		err = s.log.close()
	}
	return errors.Join(err, s.lock.Close())
}

// Meta returns what is known of the cluster.
func (s *Store) Meta() Meta {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta
}

// Advance notes a newer revision; an older one changes nothing.
func (s *Store) Advance(revision uint64) error {
	return s.change(func(m *Meta) { m.Revision = max(m.Revision, revision) })
}

// Join notes the cluster where the credentials did not name it.
func (s *Store) Join(clusterID string) error {
	return s.change(func(m *Meta) { m.ClusterID = clusterID })
}

// ReserveSeq notes that sequence numbers below seq may have been used.
func (s *Store) ReserveSeq(seq uint64) error {
	return s.change(func(m *Meta) { m.Seq = max(m.Seq, seq) })
}

func (s *Store) change(fn func(*Meta)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.meta
	if fn(&next); next == s.meta {
		return nil
	}
	if err := s.log.put(keyMeta, next); err != nil {
		return err
	}
	s.meta = next
	return nil
}

// PutPod keeps what is wanted of a pod.
func (s *Store) PutPod(r schemas.PodRecord) error { return s.log.put(keyPod+string(r.UID), r) }

// PutRoute keeps how a Service is routed.
func (s *Store) PutRoute(r schemas.RouteRecord) error {
	return s.log.put(keyRoute+r.Namespace+"/"+r.Name, r)
}

// DeleteRoute drops a Service.
func (s *Store) DeleteRoute(namespace, name string) error {
	return s.log.delete(keyRoute + namespace + "/" + name)
}

// PutNetwork keeps the node's part of the network.
func (s *Store) PutNetwork(r schemas.NetworkRecord) error { return s.log.put(keyNetwork, r) }

// Save keeps what is remembered of a pod.
func (s *Store) Save(uid types.UID, rec pod.Record) error {
	return s.log.put(keyRecord+string(uid), rec)
}

// Forget drops all that is known of a pod.
func (s *Store) Forget(uid types.UID) error {
	return errors.Join(s.log.delete(keyPod+string(uid)), s.log.delete(keyRecord+string(uid)))
}

// Orphans are the records of pods that are no longer wanted by any PodRecord.
func (l Loaded) Orphans() map[types.UID]pod.Record {
	out := maps.Clone(l.Records)
	for uid := range l.Pods {
		delete(out, uid)
	}
	return out
}
