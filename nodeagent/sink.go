package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/netfilter"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/state"
	"gantry.dev/schemas"
)

// Programmer puts Services into the kernel.
type Programmer interface {
	SetFrame(f netfilter.Frame)
	Set(s netfilter.Service)
	Remove(name string)
	Replace(all []netfilter.Service)
}

// sink hands what the control plane tells to disk and to those who act on it.
type sink struct {
	ctx     context.Context
	store   *state.Store
	pods    *pod.Set
	program Programmer
	setUp   func(context.Context, schemas.NetworkRecord) (netfilter.Frame, error)
	again   func() // report everything once more
	log     zerolog.Logger

	mu       sync.Mutex // guards what follows
	network  *schemas.NetworkRecord
	ready    bool // network is set up
	records  map[types.UID]pod.Record
	known    map[types.UID]told
	orphans  map[types.UID]pod.Desired
	over     map[types.UID]time.Time // forgotten pods, so that old word of them is not taken for new
	routes   map[string]schemas.RouteRecord
	complete bool
}

type told struct {
	revision uint64
	removed  bool
}

// overFor is how long a pod that is gone is remembered.
const overFor = time.Hour

// boot acts on what the disk holds, before the control plane is heard.
func (s *sink) boot(loaded state.Loaded, sandboxes map[types.UID]pod.Desired) {
	s.records = loaded.Records
	for uid := range loaded.Orphans() {
		s.orphans[uid] = pod.Desired{UID: uid}
	}
	for uid, d := range sandboxes {
		if _, ok := loaded.Pods[uid]; !ok {
			s.orphans[uid] = d
		}
	}
	if loaded.Network != nil {
		s.Network(*loaded.Network)
		for key, r := range loaded.Routes {
			s.routes[key] = r
		}
		s.RoutesComplete()
	}
	for uid, r := range loaded.Pods {
		s.known[uid] = told{r.Revision, r.Removed}
		s.pods.Apply(desired(r), loaded.Records[uid])
	}
}

func desired(r schemas.PodRecord) pod.Desired {
	return pod.Desired{
		UID: r.UID, Namespace: r.Namespace, Name: r.Name, Revision: r.Revision, Pod: r.Pod, Removed: r.Removed,
	}
}

// Pod implements feed.Sink.
func (s *sink) Pod(r schemas.PodRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, gone := s.over[r.UID]; gone {
		return
	}
	old, known := s.known[r.UID]
	_, isOrphan := s.orphans[r.UID]
	switch {
	case old.removed, known && !r.Removed && r.Revision <= old.revision:
		return
	case r.Removed && !known && !isOrphan:
		return
	}
	if r.Removed && r.Pod == nil {
		// On disk the end of a pod needs its grace and its containers' names.
		if view, ok := s.pods.Find(r.Namespace, r.Name, r.UID); ok {
			r.Pod = view.Want.Pod
		}
	}
	if r.Pod == nil && !r.Removed {
		s.log.Error().Str("pod", r.Namespace+"/"+r.Name).Msg("ignored a record without a pod")
		return
	}
	if err := s.store.PutPod(r); err != nil {
		// A full disk must not keep a pod from being stopped, nor from being run:
		// what is not on disk comes again with the next start.
		s.log.Error().Err(err).Str("pod", r.Namespace+"/"+r.Name).Msg("cannot keep the pod's record")
	}
	delete(s.orphans, r.UID)
	s.known[r.UID] = told{r.Revision, r.Removed}
	s.pods.Apply(desired(r), s.records[r.UID])
	delete(s.records, r.UID)
}

// Pods implements feed.Sink.
func (s *sink) Pods() []types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []types.UID
	for uid, t := range s.known {
		if !t.removed {
			out = append(out, uid)
		}
	}
	for uid := range s.orphans {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}

// Absent implements feed.Sink.
func (s *sink) Absent(uid types.UID) {
	s.mu.Lock()
	orphan, isOrphan := s.orphans[uid]
	t, known := s.known[uid]
	s.mu.Unlock()
	if !known && !isOrphan {
		return
	}
	r := schemas.PodRecord{UID: uid, Namespace: orphan.Namespace, Name: orphan.Name, Revision: t.revision, Removed: true}
	if view, ok := s.pods.Find("", "", uid); ok {
		r.Namespace, r.Name, r.Pod = view.Want.Namespace, view.Want.Name, view.Want.Pod
	}
	s.log.Info().Str("pod", r.Namespace+"/"+r.Name).Str("uid", string(uid)).Msg("the control plane no longer knows the pod: removing it")
	s.Pod(r)
}

// Route implements feed.Sink.
func (s *sink) Route(r schemas.RouteRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.Namespace + "/" + r.Name
	old, known := s.routes[key]
	if known && r.Revision < old.Revision {
		return
	}
	if r.Removed {
		if !known || old.UID != r.UID && old.Revision > r.Revision {
			return
		}
		s.dropRoute(key)
		return
	}
	if known && old.Revision == r.Revision && sameRoute(old, r) {
		return
	}
	if err := s.store.PutRoute(r); err != nil {
		s.log.Error().Err(err).Str("service", key).Msg("cannot keep the route's record")
	}
	s.routes[key] = r
	if s.complete {
		if service, err := netfilter.ServiceOf(r); err != nil {
			s.log.Error().Err(err).Msg("cannot route a service")
		} else {
			s.program.Set(service)
		}
	}
}

func sameRoute(a, b schemas.RouteRecord) bool {
	same := func(x, y schemas.RoutePort) bool {
		return x.Name == y.Name && x.Protocol == y.Protocol && x.Port == y.Port && slices.Equal(x.Endpoints, y.Endpoints)
	}
	return a.UID == b.UID && slices.Equal(a.ClusterIPs, b.ClusterIPs) && slices.EqualFunc(a.Ports, b.Ports, same)
}

func (s *sink) dropRoute(key string) {
	r := s.routes[key]
	if err := s.store.DeleteRoute(r.Namespace, r.Name); err != nil {
		s.log.Error().Err(err).Str("service", key).Msg("cannot drop the route's record")
	}
	delete(s.routes, key)
	if s.complete {
		s.program.Remove(key)
	}
}

// Routes implements feed.Sink.
func (s *sink) Routes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.routes))
	for key := range s.routes {
		out = append(out, key)
	}
	return out
}

// RouteAbsent implements feed.Sink.
func (s *sink) RouteAbsent(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropRoute(key)
}

// RoutesComplete implements feed.Sink. Before the first time nothing is
// programmed, so that what an earlier agent left stays in force.
func (s *sink) RoutesComplete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.complete {
		return
	}
	s.complete = true
	all := make([]netfilter.Service, 0, len(s.routes))
	for _, r := range s.routes {
		service, err := netfilter.ServiceOf(r)
		if err != nil {
			s.log.Error().Err(err).Msg("cannot route a service")
			continue
		}
		all = append(all, service)
	}
	s.program.Replace(all)
}

// networkRetry is how long a network that could not be set up rests.
const networkRetry = 2 * time.Second

// Network implements feed.Sink.
func (s *sink) Network(r schemas.NetworkRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.PodCIDR == "" || s.ready && s.network != nil && *s.network == r {
		return
	}
	if s.network == nil || *s.network != r {
		if err := s.store.PutNetwork(r); err != nil {
			s.log.Error().Err(err).Msg("cannot keep the network's record")
		}
	}
	s.network, s.ready = &r, false
	frame, err := s.setUp(s.ctx, r)
	if err != nil {
		s.log.Error().Err(err).Msg("cannot set up the node's network; trying again")
		time.AfterFunc(networkRetry, func() {
			s.mu.Lock()
			again := !s.ready && s.network != nil && *s.network == r
			s.mu.Unlock()
			if again && s.ctx.Err() == nil {
				s.Network(r)
			}
		})
		return
	}
	s.ready = true
	s.program.SetFrame(frame)
	s.log.Info().Str("pods", r.PodCIDR).Str("services", r.ServiceCIDR).Msg("network is set up")
}

// Revision implements feed.Sink.
func (s *sink) Revision() uint64 { return s.store.Meta().Revision }

// Advance implements feed.Sink.
func (s *sink) Advance(revision uint64) {
	if err := s.store.Advance(revision); err != nil {
		s.log.Error().Err(err).Msg("cannot note the cluster's revision")
	}
}

// Joined implements feed.Sink.
func (s *sink) Joined(clusterID string) {
	if err := s.store.Join(clusterID); err != nil {
		s.log.Error().Err(err).Msg("cannot note the cluster's id")
	}
}

// NewEpoch implements feed.Sink.
func (s *sink) NewEpoch() { s.again() }

// Forget drops a pod of which nothing is left.
func (s *sink) Forget(uid types.UID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for old, at := range s.over {
		if now.Sub(at) > overFor {
			delete(s.over, old)
		}
	}
	s.over[uid] = now
	delete(s.known, uid)
	delete(s.records, uid)
	return s.store.Forget(uid)
}

// Save keeps what is remembered of a pod.
func (s *sink) Save(uid types.UID, rec pod.Record) error { return s.store.Save(uid, rec) }
