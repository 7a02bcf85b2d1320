package ringtest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// Node is an agent that pretends: what it is told to run is running and ready
// at once, what it is told to end is gone at once.
type Node struct {
	Name     string
	Instance string

	conn   *bus.NodeConn
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
	wake   chan struct{}
	work   chan func()

	mu      sync.Mutex
	network schemas.NetworkRecord
	pods    map[types.UID]*Pod
	routes  map[string]schemas.RouteRecord
	podPos  schemas.FeedPos
	rtePos  schemas.FeedPos
	heard   int
	gaps    int
	refused string
	slow    bool
	nextIP  byte
	seq     uint64
}

// Pod is one pod on a Node.
type Pod struct {
	Record schemas.PodRecord
	IP     string
	Phase  corev1.PodPhase
	Ready  bool
	Gone   bool
	// Exit is the code with which all containers have ended; nil while they run.
	Exit *int32
}

// StartNode connects an agent and lets it live until Stop. Capacity is what it
// reports to have.
func StartNode(ctx context.Context, creds schemas.NodeCredentials, instance string, capacity corev1.ResourceList, log zerolog.Logger) (*Node, error) {
	n := &Node{
		Name: creds.Node, Instance: instance, wake: make(chan struct{}, 1), work: make(chan func(), 4096),
		pods: map[types.UID]*Pod{}, routes: map[string]schemas.RouteRecord{}, seq: uint64(time.Now().UnixNano()),
	}
	n.ctx, n.cancel = context.WithCancel(ctx)
	var err error
	n.conn, err = bus.ConnectNode(n.ctx, creds, bus.NodeHandlers{
		Desired: n.hearPod, Route: n.hearRoute, Reconnected: n.ask,
		Network: func(r schemas.NetworkRecord) { n.mu.Lock(); n.network = r; n.mu.Unlock() },
	}, log)
	if err != nil {
		n.cancel()
		return nil, err
	}
	n.done.Go(n.beat)
	n.done.Go(func() {
		for {
			select {
			case <-n.ctx.Done():
				return
			case fn := <-n.work:
				fn()
			}
		}
	})
	n.work <- func() { n.reportNode(capacity) }
	return n, nil
}

// Stop ends the agent without a word, as a crash does.
func (n *Node) Stop() {
	n.cancel()
	n.conn.Close()
	n.done.Wait()
}

func (n *Node) ask() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// beat syncs when told to and with every heartbeat.
func (n *Node) beat() {
	t := time.NewTicker(2 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		case <-n.wake:
		}
		if err := n.sync(); err != nil && n.ctx.Err() == nil {
			time.AfterFunc(50*time.Millisecond, n.ask)
		}
	}
}

func (n *Node) sync() error {
	n.mu.Lock()
	req := schemas.SyncRequest{Instance: n.Instance, Host: "host-of-" + n.Instance, Pods: n.podPos, Routes: n.rtePos}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	reply, err := n.conn.Sync(ctx, req)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refused = ""
	if reply.Error != nil {
		n.refused = reply.Error.Message
		return fmt.Errorf("refused: %s", reply.Error.Message)
	}
	if reply.Network != nil {
		n.network = *reply.Network
	}
	if s := reply.Pods; s != nil && newer(s.Pos, n.podPos) {
		if s.Pos.Epoch != n.podPos.Epoch {
			n.later(n.reportAll)
		}
		n.podPos = s.Pos
		present := map[types.UID]bool{}
		for _, r := range s.Records {
			present[r.UID] = true
			n.take(r)
		}
		for uid := range n.pods {
			if !present[uid] {
				delete(n.pods, uid)
			}
		}
	}
	if s := reply.Routes; s != nil && newer(s.Pos, n.rtePos) {
		n.rtePos = s.Pos
		n.routes = map[string]schemas.RouteRecord{}
		for _, r := range s.Records {
			n.routes[r.Namespace+"/"+r.Name] = r
		}
	}
	return nil
}

func newer(a, b schemas.FeedPos) bool { return a.Epoch != b.Epoch || a.Seq >= b.Seq }

// advance moves a position on by one record; a record of the past or beyond a
// gap is reported as such.
func advance(pos *schemas.FeedPos, to schemas.FeedPos) (fresh, gap bool) {
	if to.Epoch != pos.Epoch || to.Seq > pos.Seq+1 {
		return false, true
	}
	if to.Seq <= pos.Seq {
		return false, false
	}
	pos.Seq = to.Seq
	return true, false
}

func (n *Node) hearPod(r schemas.PodRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heard++
	fresh, gap := advance(&n.podPos, r.Feed)
	if gap {
		n.gaps++
		n.ask()
	}
	if fresh {
		n.take(r)
	}
}

func (n *Node) hearRoute(r schemas.RouteRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fresh, gap := advance(&n.rtePos, r.Feed)
	if gap {
		n.ask()
	}
	if !fresh {
		return
	}
	if r.Removed {
		delete(n.routes, r.Namespace+"/"+r.Name)
		return
	}
	n.routes[r.Namespace+"/"+r.Name] = r
}

// take acts on one record; the lock is held.
func (n *Node) take(r schemas.PodRecord) {
	if r.Removed {
		delete(n.pods, r.UID)
		return
	}
	p := n.pods[r.UID]
	if p == nil {
		p = &Pod{Phase: corev1.PodRunning, Ready: !n.slow, IP: n.address()}
		n.pods[r.UID] = p
	}
	p.Record = r
	p.Gone = r.Pod.DeletionTimestamp != nil
	n.reportLater(p)
}

func (n *Node) address() string {
	n.nextIP++
	prefix, err := netip.ParsePrefix(n.network.PodCIDR)
	if err != nil {
		return ""
	}
	ip := prefix.Addr().As4()
	ip[3] = 1 + n.nextIP
	return netip.AddrFrom4(ip).String()
}

func (n *Node) later(fn func()) {
	select {
	case n.work <- fn:
	default: // a test that makes so much of it has failed anyway
	}
}

func (n *Node) reportLater(p *Pod) {
	h := n.health(p)
	n.later(func() { n.send(func(ctx context.Context) error { return n.conn.ReportPod(ctx, h) }) })
}

// send repeats a report until it is acknowledged.
func (n *Node) send(report func(context.Context) error) {
	for n.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(n.ctx, 3*time.Second)
		err := report(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-n.ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (n *Node) reportAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		n.reportLater(p)
	}
}

func (n *Node) health(p *Pod) schemas.PodHealth {
	n.seq++
	ready := corev1.ConditionFalse
	if p.Ready && p.Phase == corev1.PodRunning && !p.Gone {
		ready = corev1.ConditionTrue
	}
	began := metav1.NewTime(p.Record.Pod.CreationTimestamp.Time)
	status := corev1.PodStatus{
		Phase: p.Phase, PodIP: p.IP, PodIPs: []corev1.PodIP{{IP: p.IP}}, HostIP: "192.0.2.1", StartTime: &began,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: ready, LastTransitionTime: began},
			{Type: corev1.ContainersReady, Status: ready, LastTransitionTime: began},
		},
	}
	for _, c := range p.Record.Pod.Spec.Containers {
		state := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: began}}
		if p.Exit != nil {
			state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: *p.Exit, Reason: "Error", StartedAt: began, FinishedAt: began}}
		}
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: ready == corev1.ConditionTrue, State: state,
		})
	}
	return schemas.PodHealth{
		Node: n.Name, Instance: n.Instance, Namespace: p.Record.Namespace, Name: p.Record.Name, UID: p.Record.UID,
		Revision: p.Record.Revision, Seq: n.seq, ObservedAt: time.Now(), Status: status, Gone: p.Gone,
	}
}

func (n *Node) reportNode(capacity corev1.ResourceList) {
	n.mu.Lock()
	n.seq++
	h := schemas.NodeHealth{
		Node: n.Name, Instance: n.Instance, Seq: n.seq, ObservedAt: time.Now(),
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "AgentReady"}},
			NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64"},
		},
	}
	n.mu.Unlock()
	n.send(func(ctx context.Context) error { return n.conn.ReportNode(ctx, h) })
}

// Change changes a pod by name and reports it; false where it is not here.
func (n *Node) Change(name string, fn func(*Pod)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		if p.Record.Name == name {
			fn(p)
			n.reportLater(p)
			return true
		}
	}
	return false
}

// Event reports that something happened to a pod.
func (n *Node) Event(e schemas.PodEvent) {
	e.Node, e.Instance, e.Time = n.Name, n.Instance, time.Now()
	n.later(func() { n.send(func(ctx context.Context) error { return n.conn.ReportEvent(ctx, e) }) })
}

// Running are the names of the pods that the node runs, sorted.
func (n *Node) Running() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, p := range n.pods {
		if !p.Gone {
			out = append(out, p.Record.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Route is what the node was told of a Service; ok is false where nothing.
func (n *Node) Route(namespace, name string) (schemas.RouteRecord, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, ok := n.routes[namespace+"/"+name]
	return r, ok
}

// Heard counts the records about pods that were told over the feed.
func (n *Node) Heard() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heard
}

// Refused is why the control plane refuses the agent; empty while it does not.
func (n *Node) Refused() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refused
}

// PodCIDR is the node's own range.
func (n *Node) PodCIDR() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.network.PodCIDR
}

// Capacity is a resource list for tests.
func Capacity(cpu, memory, pods string) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory), corev1.ResourcePods: resource.MustParse(pods),
	}
}
