package pod

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/probe"
	"gantry.dev/nodeagent/runtime"
)

const (
	defaultParallel = 8
	parallelPulls   = 4
)

// Set holds the actors of all pods of the node.
type Set struct {
	cfg        Config
	ctx        context.Context
	slots      chan struct{}
	pullSlots  chan struct{}
	background sync.WaitGroup

	mu     sync.Mutex // guards what follows
	actors map[types.UID]*actor
	byName map[string]types.UID
}

// View is what the set tells of one pod.
type View struct {
	Want   Desired
	Record Record
	// Containers are the runs that have files; nil where the sandbox is gone.
	Containers []runtime.ContainerState
}

// New makes a set without pods. Its actors end with ctx; containers do not.
func New(ctx context.Context, cfg Config) *Set {
	if cfg.Parallel <= 0 {
		cfg.Parallel = defaultParallel
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Set{
		cfg: cfg, ctx: ctx,
		slots: make(chan struct{}, cfg.Parallel), pullSlots: make(chan struct{}, parallelPulls),
		actors: map[types.UID]*actor{}, byName: map[string]types.UID{},
	}
}

// Apply takes in what is newly wanted of a pod. Older revisions are ignored. A
// pod that is new to the set goes on from rec, which is zero for one that the
// node never had.
func (s *Set) Apply(want Desired, rec Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	if a, ok := s.actors[want.UID]; ok {
		a.change(want)
		return
	}
	key := want.Namespace + "/" + want.Name
	if old, ok := s.actors[s.byName[key]]; ok && !want.Removed {
		// Another pod of the same name: the one before no longer exists.
		old.change(Desired{UID: old.uid, Revision: want.Revision, Removed: true})
	}
	a := &actor{
		set: s, uid: want.UID, want: want, rec: rec, saved: rec.clone(),
		log:  s.cfg.Log.With().Str("pod", key).Str("uid", string(want.UID)).Logger(),
		wake: make(chan struct{}, 1), ready: map[probe.Key]bool{}, pulls: map[string]ImageSeen{},
		failures: map[string]Failure{}, images: map[string]heldImage{},
		view: View{Want: want, Record: rec},
	}
	a.pulling, a.stopPulls = context.WithCancel(s.ctx)
	s.actors[want.UID] = a
	if _, taken := s.byName[key]; !taken || !want.Removed {
		s.byName[key] = want.UID
	}
	s.background.Go(func() { a.run(s.ctx) })
}

// change makes want the newest word about the pod, unless it is an old one.
func (a *actor) change(want Desired) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !want.Removed && want.Revision < a.want.Revision || a.want.Removed {
		return
	}
	if want.Pod == nil {
		want.Pod = a.want.Pod
	}
	want.Namespace, want.Name = a.want.Namespace, a.want.Name
	want.Revision = max(want.Revision, a.want.Revision)
	for name, p := range a.pulls {
		// A new reference starts without the failures of the old one.
		if imageName(a.want, name) != imageName(want, name) && !p.Pulling {
			delete(a.pulls, name)
		}
	}
	a.want = want
	if want.Stopping() {
		a.stopPulls()
	}
	a.poke()
}

// Remove lets a pod end that the control plane no longer knows.
func (s *Set) Remove(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.actors[uid]; ok {
		a.change(Desired{UID: uid, Removed: true})
	}
}

// Wake makes the pod's actor look again. Unknown pods are ignored.
func (s *Set) Wake(uid types.UID) {
	s.mu.Lock()
	a := s.actors[uid]
	s.mu.Unlock()
	if a != nil {
		a.poke()
	}
}

// Verdict takes in what a probe found.
func (s *Set) Verdict(v probe.Verdict) {
	s.mu.Lock()
	a := s.actors[v.Key.UID]
	s.mu.Unlock()
	if a == nil {
		return
	}
	a.mu.Lock()
	for key := range a.ready {
		if key.Container == v.Key.Container && key.Attempt != v.Key.Attempt {
			delete(a.ready, key)
		}
	}
	a.ready[v.Key] = v.Ready
	want := a.want
	a.mu.Unlock()
	if v.Failure != "" {
		a.event(want, v.Key.Container, "Warning", "Unhealthy", "Readiness probe failed: "+v.Failure)
	}
	if v.Changed {
		a.poke()
	}
}

// Find tells of the pod with this name; uid may be empty.
func (s *Set) Find(namespace, name string, uid types.UID) (View, bool) {
	s.mu.Lock()
	a := s.actors[s.byName[namespace+"/"+name]]
	if uid != "" {
		a = s.actors[uid]
	}
	s.mu.Unlock()
	if a == nil {
		return View{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.view, true
}

// List tells of all pods, ordered by namespace and name.
func (s *Set) List() []View {
	s.mu.Lock()
	actors := make([]*actor, 0, len(s.actors))
	for _, a := range s.actors {
		actors = append(actors, a)
	}
	s.mu.Unlock()
	views := make([]View, 0, len(actors))
	for _, a := range actors {
		a.mu.Lock()
		views = append(views, a.view)
		a.mu.Unlock()
	}
	slices.SortFunc(views, func(x, y View) int {
		if c := strings.Compare(x.Want.Namespace, y.Want.Namespace); c != 0 {
			return c
		}
		return strings.Compare(x.Want.Name, y.Want.Name)
	})
	return views
}

// Wait returns when all actors have ended, which they do after the set's context.
func (s *Set) Wait() { s.background.Wait() }

func (s *Set) drop(a *actor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.actors, a.uid)
	a.mu.Lock()
	key := a.want.Namespace + "/" + a.want.Name
	a.mu.Unlock()
	if s.byName[key] == a.uid {
		delete(s.byName, key)
	}
}

// pull bounds how many images are fetched at once.
func (s *Set) pull(ctx context.Context, ref string) (image.Image, error) {
	select {
	case s.pullSlots <- struct{}{}:
	case <-ctx.Done():
		return image.Image{}, ctx.Err()
	}
	defer func() { <-s.pullSlots }()
	return s.cfg.Images.Pull(ctx, ref)
}

func (s *Set) acquire(ctx context.Context) bool {
	select {
	case s.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Set) release() { <-s.slots }
