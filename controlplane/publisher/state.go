package publisher

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// Facts are what the publisher is told once about the cluster.
type Facts struct {
	ClusterID   string
	PodCIDR     string // of all nodes
	ServiceCIDR string
	// Epoch names this life of the publisher; no other life has the same.
	Epoch string
}

// state is all that has been said, by node and by Service. Its changes are
// pure: each takes one change of an object and returns the messages that it
// comes to, numbered, in the order in which they must be sent. It is not safe
// for concurrent use.
type state struct {
	facts    Facts
	revision uint64 // of the newest change taken in

	feeds map[string]*feed  // by node
	pods  map[string]podRef // by namespace/name: where that pod was told
	nodes map[string]string // network record by node that exists, as JSON; "" without a range

	routes   map[string]*route // by namespace/name
	routeSeq uint64
	// routeKeys are the keys of the told routes in order; nil when it must be
	// made again.
	routeKeys []string
}

// feed is what one node has been told.
type feed struct {
	seq  uint64
	pods map[string]*told
	keys []string // in order; nil when it must be made again
}

type podRef struct {
	node string
	uid  types.UID
}

// told is the last word about a pod. The pod is the newest object whose
// compiled record says the same, so nothing is kept twice.
type told struct {
	pod      *corev1.Pod
	revision uint64
	seq      uint64
	sum      [sha256.Size]byte
	size     int
}

// route is a Service with what stands behind it, and what was said of it.
type route struct {
	service *corev1.Service
	slices  map[string]*discoveryv1.EndpointSlice
	said    *schemas.RouteRecord // nil while nothing was
	sum     [sha256.Size]byte
	size    int
}

func newState(facts Facts) *state {
	return &state{
		facts: facts, feeds: map[string]*feed{}, pods: map[string]podRef{},
		nodes: map[string]string{}, routes: map[string]*route{},
	}
}

// Apply takes in one change of an object.
func (s *state) Apply(c bus.Change) ([]bus.FeedWrite, error) {
	s.revision = max(s.revision, c.Revision)
	switch o := c.Object().(type) {
	case *corev1.Pod:
		if c.New == nil {
			return s.removePod(path(o), c.Revision)
		}
		return s.setPod(o)
	case *corev1.Node:
		return s.setNode(o, c.New == nil)
	case *corev1.Service:
		r := s.route(path(o))
		r.service = o
		if c.New == nil {
			r.service = nil
		}
		return s.tellRoute(path(o), c.Revision)
	case *discoveryv1.EndpointSlice:
		return s.setSlice(o, c)
	}
	return nil, nil
}

func (s *state) setPod(pod *corev1.Pod) ([]bus.FeedWrite, error) {
	key := path(pod)
	var out []bus.FeedWrite
	if had, ok := s.pods[key]; ok && (had.uid != pod.UID || had.node != pod.Spec.NodeName) {
		// The name was given to another pod. The node must end the old one
		// whether or not it hosts the new one.
		removed, err := s.removePod(key, revisionOf(pod))
		if err != nil {
			return nil, err
		}
		out = removed
	}
	if pod.Spec.NodeName == "" {
		return out, nil
	}
	record := CompilePod(s.facts.ClusterID, pod)
	content, err := json.Marshal(record.Pod)
	if err != nil {
		return nil, fmt.Errorf("compile pod %s: %w", key, err)
	}
	sum := sha256.Sum256(content)
	f := s.feed(pod.Spec.NodeName)
	t := f.pods[key]
	if t != nil && t.sum == sum {
		t.pod = pod
		return out, nil
	}
	if t == nil {
		f.keys = nil
	}
	f.seq++
	record.Feed = schemas.FeedPos{Epoch: s.facts.Epoch, Seq: f.seq}
	body, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("compile pod %s: %w", key, err)
	}
	f.pods[key] = &told{pod: pod, revision: record.Revision, seq: f.seq, sum: sum, size: len(body)}
	s.pods[key] = podRef{node: pod.Spec.NodeName, uid: pod.UID}
	return append(out, bus.FeedWrite{
		Node: pod.Spec.NodeName, Key: schemas.DesiredPodKey(pod.Spec.NodeName, pod.Namespace, pod.Name), Body: body,
	}), nil
}

// removePod says the last word about a pod, then takes its key away.
func (s *state) removePod(key string, revision uint64) ([]bus.FeedWrite, error) {
	ref, ok := s.pods[key]
	if !ok {
		return nil, nil
	}
	f := s.feeds[ref.node]
	t := f.pods[key]
	delete(s.pods, key)
	delete(f.pods, key)
	f.keys = nil
	f.seq++
	body, err := json.Marshal(schemas.PodRecord{
		ClusterID: s.facts.ClusterID,
		Node:      ref.node,
		Feed:      schemas.FeedPos{Epoch: s.facts.Epoch, Seq: f.seq},
		Revision:  max(revision, t.revision),
		Namespace: t.pod.Namespace,
		Name:      t.pod.Name,
		UID:       ref.uid,
		Removed:   true,
	})
	if err != nil {
		return nil, fmt.Errorf("compile removal of pod %s: %w", key, err)
	}
	bucketKey := schemas.DesiredPodKey(ref.node, t.pod.Namespace, t.pod.Name)
	return []bus.FeedWrite{{Node: ref.node, Key: bucketKey, Body: body}, {Node: ref.node, Key: bucketKey}}, nil
}

func (s *state) setNode(object *corev1.Node, gone bool) ([]bus.FeedWrite, error) {
	key := schemas.DesiredNetworkKey(object.Name)
	had, known := s.nodes[object.Name]
	if gone {
		delete(s.nodes, object.Name)
		if had == "" {
			return nil, nil
		}
		return []bus.FeedWrite{{Node: object.Name, Key: key}}, nil
	}
	next := ""
	if record, ok := CompileNetwork(object, s.facts.PodCIDR, s.facts.ServiceCIDR); ok {
		body, err := json.Marshal(record)
		if err != nil {
			return nil, fmt.Errorf("compile network of node %s: %w", object.Name, err)
		}
		next = string(body)
	}
	s.nodes[object.Name] = next
	if known && had == next || !known && next == "" {
		return nil, nil
	}
	if next == "" {
		return []bus.FeedWrite{{Node: object.Name, Key: key}}, nil
	}
	return []bus.FeedWrite{{Node: object.Name, Key: key, Body: []byte(next)}}, nil
}

func (s *state) setSlice(o *discoveryv1.EndpointSlice, c bus.Change) ([]bus.FeedWrite, error) {
	var out []bus.FeedWrite
	// A slice may change the Service that it says it belongs to.
	if old, ok := c.Old.(*discoveryv1.EndpointSlice); ok && old != nil {
		was := servicePath(old)
		if r := s.routes[was]; r != nil && (c.New == nil || was != servicePath(o)) {
			delete(r.slices, old.Name)
			messages, err := s.tellRoute(was, c.Revision)
			if err != nil {
				return nil, err
			}
			out = messages
		}
	}
	if c.New == nil || servicePath(o) == "" {
		return out, nil
	}
	s.route(servicePath(o)).slices[o.Name] = o
	messages, err := s.tellRoute(servicePath(o), c.Revision)
	return append(out, messages...), err
}

// tellRoute says what a Service is now, where that is news.
func (s *state) tellRoute(key string, revision uint64) ([]bus.FeedWrite, error) {
	r := s.route(key)
	if r.service == nil {
		if len(r.slices) == 0 {
			delete(s.routes, key)
		}
		return s.removeRoute(r, revision)
	}
	behind := make([]*discoveryv1.EndpointSlice, 0, len(r.slices))
	for _, slice := range r.slices {
		behind = append(behind, slice)
	}
	record, ok := CompileRoute(s.facts.ClusterID, r.service, behind)
	if !ok {
		return s.removeRoute(r, revision)
	}
	var out []bus.FeedWrite
	if r.said != nil && r.said.UID != record.UID {
		removed, err := s.removeRoute(r, revision)
		if err != nil {
			return nil, err
		}
		out = removed
	}
	content := record
	content.Revision = 0
	plain, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("compile service %s: %w", key, err)
	}
	sum := sha256.Sum256(plain)
	if r.said != nil && r.sum == sum {
		return out, nil
	}
	if r.said == nil {
		s.routeKeys = nil
	} else {
		// A slice that went may have been the newest; a record never goes back.
		record.Revision = max(record.Revision, r.said.Revision)
	}
	s.routeSeq++
	record.Feed = schemas.FeedPos{Epoch: s.facts.Epoch, Seq: s.routeSeq}
	body, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("compile service %s: %w", key, err)
	}
	r.said, r.sum, r.size = &record, sum, len(body)
	return append(out, bus.FeedWrite{Key: schemas.RouteServiceKey(record.Namespace, record.Name), Body: body}), nil
}

func (s *state) removeRoute(r *route, revision uint64) ([]bus.FeedWrite, error) {
	if r.said == nil {
		return nil, nil
	}
	was := r.said
	r.said = nil
	s.routeKeys = nil
	s.routeSeq++
	body, err := json.Marshal(schemas.RouteRecord{
		ClusterID: s.facts.ClusterID,
		Feed:      schemas.FeedPos{Epoch: s.facts.Epoch, Seq: s.routeSeq},
		Revision:  max(revision, was.Revision),
		Namespace: was.Namespace,
		Name:      was.Name,
		UID:       was.UID,
		Removed:   true,
	})
	if err != nil {
		return nil, fmt.Errorf("compile removal of service %s/%s: %w", was.Namespace, was.Name, err)
	}
	key := schemas.RouteServiceKey(was.Namespace, was.Name)
	return []bus.FeedWrite{{Key: key, Body: body}, {Key: key}}, nil
}

func (s *state) feed(node string) *feed {
	f := s.feeds[node]
	if f == nil {
		f = &feed{pods: map[string]*told{}}
		s.feeds[node] = f
	}
	return f
}

func (s *state) route(key string) *route {
	r := s.routes[key]
	if r == nil {
		r = &route{slices: map[string]*discoveryv1.EndpointSlice{}}
		s.routes[key] = r
	}
	return r
}

func (f *feed) sortedKeys() []string {
	if f.keys == nil {
		f.keys = make([]string, 0, len(f.pods))
		for key := range f.pods {
			f.keys = append(f.keys, key)
		}
		slices.Sort(f.keys)
	}
	return f.keys
}

func (s *state) sortedRoutes() []string {
	if s.routeKeys == nil {
		s.routeKeys = make([]string, 0, len(s.routes))
		for key, r := range s.routes {
			if r.said != nil {
				s.routeKeys = append(s.routeKeys, key)
			}
		}
		slices.Sort(s.routeKeys)
	}
	return s.routeKeys
}

// path is how records are named and ordered in a snapshot.
func path(o schemas.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// servicePath is the path of the Service that a slice belongs to, or "".
func servicePath(s *discoveryv1.EndpointSlice) string {
	name := s.Labels[discoveryv1.LabelServiceName]
	if name == "" {
		return ""
	}
	return s.Namespace + "/" + name
}
