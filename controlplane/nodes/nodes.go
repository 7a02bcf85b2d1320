package nodes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/bus"
	"gantry.dev/controlplane/events"
	"gantry.dev/controlplane/follow"
	"gantry.dev/schemas"
)

// Source is the component of this role's own events.
const Source = "node-controller"

// agentSource is the component of what happens on a node.
const agentSource = "nodeagent"

// IndexNode finds pods by the node that they are bound to.
const IndexNode = "node"

const (
	// width bounds the writes on their way: each waits for a disk, and many wait
	// no longer than one.
	width = 64
	tick  = time.Second
)

// Indexes are those that the store must be opened with for this role.
func Indexes() map[string]bus.IndexFunc {
	return map[string]bus.IndexFunc{IndexNode: func(o schemas.Object) []string {
		if pod, ok := o.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
			return []string{pod.Spec.NodeName}
		}
		return nil
	}}
}

// Claims is what this role alone writes, for the register of writers.
func Claims() []string { return []string{"nodes", "nodes/status", "pods/status"} }

// Recorder takes events for people. It must not block.
type Recorder interface {
	Add(events.Entry)
}

// Nodes is the role. Reports may be given to it at any time, also before Run;
// they are acted upon once everything that is stored is known.
type Nodes struct {
	// Connected tells whether a node has a connection open. It may be nil, and
	// is set before Run.
	Connected func(node string) bool
	// Now is the clock; it is set before Run.
	Now func() time.Time

	store    bus.Store
	recorder Recorder
	log      zerolog.Logger
	lanes    *lanes

	mu     sync.Mutex
	ranges *ranges
	loaded chan struct{} // closed when all nodes and pods are known
	nodes  map[string]*agent
	pods   map[string]*podNews // by namespace/name; only pods with something to remember
}

// agent is what is known of one node beyond its object.
type agent struct {
	life
	lost   bool // as last decided
	report *schemas.NodeHealth
}

// podNews is what is known of one pod beyond its object.
type podNews struct {
	uid    types.UID
	seq    uint64
	report *schemas.PodHealth // nil once it is in the object
	gone   bool
	held   *corev1.PodCondition // the Ready condition before its node was lost
	orphan time.Time            // since when its node has not existed
	since  time.Time            // when its first report was looked at
}

// New makes the role; podCIDR is the range of all nodes together.
func New(store bus.Store, recorder Recorder, podCIDR string, log zerolog.Logger) (*Nodes, error) {
	r, err := newRanges(podCIDR)
	if err != nil {
		return nil, err
	}
	n := &Nodes{
		store: store, recorder: recorder, log: log, Now: time.Now, ranges: r,
		loaded: make(chan struct{}), nodes: map[string]*agent{}, pods: map[string]*podNews{},
	}
	n.lanes = newLanes(width, n.work, n.workFailed)
	return n, nil
}

// Run works until ctx ends and then waits for the writes on their way.
func (n *Nodes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { n.watchLives(ctx) })
	err := follow.Run(ctx, n.store, []string{schemas.Nodes, schemas.Pods}, func() {
		n.begin()
		close(n.loaded)
		n.lanes.open(ctx)
	}, n.take)
	wg.Wait()
	n.lanes.close()
	return err
}

// Quiet tells whether nothing is being worked on.
func (n *Nodes) Quiet() bool { return n.lanes.idle() }

// Ready is closed when everything that is stored is known.
func (n *Nodes) Ready() <-chan struct{} { return n.loaded }

// begin gives every node that was there a fresh start: that nobody heard of it
// while there was no control plane is not its fault. One that was lost stays so
// until it is heard of.
func (n *Nodes) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.Now()
	for _, o := range n.store.View().List(schemas.Nodes, "") {
		node := o.(*corev1.Node)
		a := n.agent(node.Name)
		a.lost = isLost(node)
		if a.seen.IsZero() && !a.lost {
			a.seen = now
			a.instance, a.host = node.Annotations[AnnotationInstance], node.Annotations[AnnotationHost]
		}
	}
}

func isLost(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Reason == reasonUnknown
		}
	}
	return false
}

func (n *Nodes) agent(name string) *agent {
	a := n.nodes[name]
	if a == nil {
		a = &agent{}
		n.nodes[name] = a
	}
	return a
}

// take notes what a change means for this role.
func (n *Nodes) take(c bus.Change) {
	switch o := c.Object().(type) {
	case *corev1.Node:
		n.mu.Lock()
		if c.New != nil {
			n.ranges.note(o.Name, o.Spec.PodCIDR)
		} else if a := n.nodes[o.Name]; a == nil || !a.alive(n.Now()) {
			// The range of an agent that is still there is given to it again:
			// its pods have their addresses out of it.
			n.ranges.release(o.Name)
		}
		n.mu.Unlock()
		if c.New == nil || c.Old == nil {
			n.wakePodsOf(o.Name)
		}
		if c.New == nil {
			// An agent that is still there registers anew.
			n.lanes.wake(nodeKey(o.Name))
		}
	case *corev1.Pod:
		n.takePod(o, c.New == nil)
	}
}

func (n *Nodes) takePod(pod *corev1.Pod, removed bool) {
	key := podKey(pod.Namespace, pod.Name)
	if removed {
		n.mu.Lock()
		if p := n.pods[key]; p != nil && p.uid == pod.UID {
			delete(n.pods, key)
		}
		n.mu.Unlock()
		return
	}
	n.mu.Lock()
	p := n.pods[key]
	pending := p != nil && p.uid == pod.UID && (p.report != nil || p.gone)
	n.mu.Unlock()
	if pending || pod.DeletionTimestamp != nil || pod.Spec.NodeName != "" && n.store.View().Get(schemas.Nodes, "", pod.Spec.NodeName) == nil {
		n.lanes.wake(key)
	}
}

func (n *Nodes) wakePodsOf(node string) {
	for _, o := range n.store.View().ByIndex(IndexNode, node) {
		n.lanes.wake(podKey(o.GetNamespace(), o.GetName()))
	}
}

const (
	nodePrefix = "node/"
	podPrefix  = "pod/"
)

func nodeKey(name string) string           { return nodePrefix + name }
func podKey(namespace, name string) string { return podPrefix + namespace + "/" + name }

// workFailed says when to try again: soon where the view was only behind.
func (n *Nodes) workFailed(key string, err error) time.Duration {
	if errors.Is(err, bus.ErrConflict) || errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrExists) {
		n.log.Debug().Err(err).Str("key", key).Msg("again on a newer view")
		return conflictDelay
	}
	n.log.Warn().Err(err).Str("key", key).Msg("write, trying again")
	return retryDelay
}

func (n *Nodes) work(ctx context.Context, key string) error {
	if name, ok := strings.CutPrefix(key, nodePrefix); ok {
		_, err := n.writeNode(ctx, name)
		return err
	}
	namespace, name, _ := strings.Cut(strings.TrimPrefix(key, podPrefix), "/")
	return n.writePod(ctx, key, namespace, name)
}

// watchLives notes when nodes fall silent. It looks at each node once a
// second, which at five thousand nodes is less than one timer for each would
// cost to move at every heartbeat.
func (n *Nodes) watchLives(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return
	case <-n.loaded:
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		n.checkLives()
	}
}

func (n *Nodes) checkLives() {
	now := n.Now()
	n.mu.Lock()
	var turned []string
	for name, a := range n.nodes {
		if !a.closed.IsZero() && n.Connected != nil && n.Connected(name) {
			a.closed = time.Time{} // it is back and will speak at its next heartbeat
		}
		if !a.seen.IsZero() && a.lost == a.alive(now) {
			a.lost = !a.lost
			turned = append(turned, name)
		}
	}
	n.mu.Unlock()
	slices.Sort(turned)
	for _, name := range turned {
		n.turned(name)
	}
}

// turned follows up on a node that was lost or came back.
func (n *Nodes) turned(name string) {
	n.lanes.wake(nodeKey(name))
	n.wakePodsOf(name)
}

// Admit takes a node's sign of life, as its sync requests are, and registers
// the node where it is not known. It refuses an instance that is not the
// holder of the name, and returns the revision at which the node is registered
// (0 where nothing had to be written).
func (n *Nodes) Admit(ctx context.Context, req schemas.SyncRequest) (revision uint64, err error) {
	select {
	case <-n.loaded:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	now := n.Now()
	n.mu.Lock()
	a := n.agent(req.Node)
	had := a.instance
	if err := a.admit(req.Instance, req.Host, now); err != nil {
		n.mu.Unlock()
		return 0, &HeldError{Node: req.Node, Cause: err}
	}
	back := a.lost
	a.lost = false
	n.mu.Unlock()
	node, _ := n.store.View().Get(schemas.Nodes, "", req.Node).(*corev1.Node)
	if node == nil {
		return n.register(ctx, req.Node)
	}
	if back {
		n.turned(req.Node)
	} else if had != req.Instance {
		n.lanes.wake(nodeKey(req.Node))
	}
	return 0, nil
}

// HeldError refuses an agent whose node name another agent holds.
type HeldError struct {
	Node  string
	Cause error
}

func (e *HeldError) Error() string { return fmt.Sprintf("node %q: %v", e.Node, e.Cause) }

// Unwrap returns the cause.
func (e *HeldError) Unwrap() error { return e.Cause }

func (n *Nodes) register(ctx context.Context, name string) (uint64, error) {
	for {
		rev, err := n.writeNode(ctx, name)
		if err == nil || ctx.Err() != nil {
			return rev, err
		}
		if !errors.Is(err, bus.ErrExists) && !errors.Is(err, bus.ErrConflict) {
			return 0, err
		}
		if node, _ := n.store.View().Get(schemas.Nodes, "", name).(*corev1.Node); node != nil {
			return revisionOf(node), nil
		}
		time.Sleep(time.Millisecond)
	}
}

// Disconnected notes that the last connection of a node's agent closed.
func (n *Nodes) Disconnected(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.nodes[node]; a != nil {
		a.gone(n.Now())
	}
}

// TakeNode takes a node's report of itself.
func (n *Nodes) TakeNode(h schemas.NodeHealth) {
	n.mu.Lock()
	a := n.agent(h.Node)
	if !a.holds(h.Instance) || a.report != nil && a.report.Instance == h.Instance && h.Seq <= a.report.Seq {
		n.mu.Unlock()
		return
	}
	if a.seen.IsZero() {
		// The first word of a node that nobody knew: there will be heartbeats.
		a.seen = n.Now()
	}
	if a.instance == "" && !h.Stopping {
		a.instance = h.Instance
	}
	a.report = &h
	if h.Stopping {
		a.release(h.Instance)
	}
	n.mu.Unlock()
	n.lanes.wake(nodeKey(h.Node))
}

// TakePod takes a node's report of one of its pods.
func (n *Nodes) TakePod(h schemas.PodHealth) {
	key := podKey(h.Namespace, h.Name)
	n.mu.Lock()
	if a := n.nodes[h.Node]; a != nil && !a.holds(h.Instance) {
		n.mu.Unlock()
		return
	}
	p := n.pods[key]
	if p == nil || p.uid != h.UID {
		p = &podNews{uid: h.UID}
		n.pods[key] = p
	}
	if h.Seq <= p.seq && p.seq != 0 {
		n.mu.Unlock()
		return
	}
	p.seq, p.report, p.gone = h.Seq, &h, h.Gone
	n.mu.Unlock()
	n.lanes.wake(key)
}

// TakeEvent takes word of something that happened to a pod.
func (n *Nodes) TakeEvent(e schemas.PodEvent) {
	n.mu.Lock()
	a := n.nodes[e.Node]
	refused := a != nil && !a.holds(e.Instance)
	n.mu.Unlock()
	if refused {
		return
	}
	ref := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: e.Namespace, Name: e.Pod, UID: e.UID}
	if e.Container != "" {
		ref.FieldPath = "spec.containers{" + e.Container + "}"
		if pod, ok := n.store.View().Get(schemas.Pods, e.Namespace, e.Pod).(*corev1.Pod); ok && pod.UID == e.UID {
			for i := range pod.Spec.InitContainers {
				if pod.Spec.InitContainers[i].Name == e.Container {
					ref.FieldPath = "spec.initContainers{" + e.Container + "}"
				}
			}
		}
	}
	n.recorder.Add(events.Entry{
		Involved: ref, Source: corev1.EventSource{Component: agentSource, Host: e.Node},
		Type: e.Type, Reason: e.Reason, Message: e.Message, Time: e.Time,
	})
}
