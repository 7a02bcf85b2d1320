package scheduler

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is what the scheduler knows of the cluster: each node and what its
// pods take of it. It is kept up to date change by change; the cost of a
// change does not depend on how many nodes or pods there are, except that a
// node that appears or goes moves the names behind it in one slice. It is not
// safe for concurrent use.
type Snapshot struct {
	nodes map[string]*node
	names []*node // the nodes that exist, by name
	uses  map[types.UID]use
}

// node is one machine. It also exists for a name that pods are bound to before
// the Node object is there (object is nil then), so that nothing is forgotten
// between the two.
type node struct {
	name        string
	object      *corev1.Node
	allocatable Amount
	used        Amount
	// scoredCPU and scoredMemory are used with a typical size in place of no
	// request; they only ever compare nodes.
	scoredCPU, scoredMemory int64
	ports                   map[port]int
	pods                    int // uses that point here
}

// use is what one pod takes, frozen when it was counted, so that giving it
// back is exact whatever has become of the pod since.
type use struct {
	node                    string
	assumed                 bool
	request                 Amount
	scoredCPU, scoredMemory int64
	ports                   []port
}

// NewSnapshot is a cluster without nodes.
func NewSnapshot() *Snapshot {
	return &Snapshot{nodes: map[string]*node{}, uses: map[types.UID]use{}}
}

// Nodes is how many nodes there are.
func (s *Snapshot) Nodes() int { return len(s.names) }

// SetNode takes in a node as it is now.
func (s *Snapshot) SetNode(object *corev1.Node) {
	n := s.node(object.Name)
	if n.object == nil {
		i, _ := s.find(object.Name)
		s.names = slices.Insert(s.names, i, n)
	}
	n.object = object
	n.allocatable = amountOf(allocatable(object))
}

// RemoveNode forgets a node; what its pods take stays counted until they go.
func (s *Snapshot) RemoveNode(name string) {
	n := s.nodes[name]
	if n == nil || n.object == nil {
		return
	}
	n.object, n.allocatable = nil, Amount{}
	if i, ok := s.find(name); ok {
		s.names = slices.Delete(s.names, i, i+1)
	}
	s.drop(n)
}

// SetPod takes in a pod as it is now and returns the name of the node on which
// that freed something, or "". A pod that is not bound yet keeps what was
// assumed for it.
func (s *Snapshot) SetPod(pod *corev1.Pod) (freed string) {
	if Finished(pod) {
		return s.RemovePod(pod.UID)
	}
	if pod.Spec.NodeName == "" {
		return ""
	}
	return s.count(pod, pod.Spec.NodeName, false)
}

// RemovePod forgets a pod and returns the name of its node, or "".
func (s *Snapshot) RemovePod(uid types.UID) (freed string) {
	u, ok := s.uses[uid]
	if !ok {
		return ""
	}
	delete(s.uses, uid)
	n := s.nodes[u.node]
	n.take(u, -1)
	s.drop(n)
	return u.node
}

// Assume counts a pod on a node before the binding is stored, so that no other
// pod is given the same room meanwhile.
func (s *Snapshot) Assume(pod *corev1.Pod, nodeName string) { s.count(pod, nodeName, true) }

// Forget takes an assumption back and returns the node's name; it leaves alone
// a pod that has been seen bound.
func (s *Snapshot) Forget(uid types.UID) (freed string) {
	if u, ok := s.uses[uid]; !ok || !u.assumed {
		return ""
	}
	return s.RemovePod(uid)
}

// StillFits tells whether the assumption made for a pod would still be made:
// its node is there, takes pods, and is not over what it has.
func (s *Snapshot) StillFits(pod *corev1.Pod) bool {
	u, ok := s.uses[pod.UID]
	if !ok {
		return false
	}
	n := s.nodes[u.node]
	if n.object == nil {
		return false
	}
	n.take(u, -1)
	fits := len(refusals(n, demandOf(pod), true)) == 0
	n.take(u, 1)
	return fits
}

func (s *Snapshot) count(pod *corev1.Pod, nodeName string, assumed bool) (freed string) {
	next := use{node: nodeName, assumed: assumed, request: Request(pod), ports: hostPorts(pod)}
	next.scoredCPU, next.scoredMemory = scored(pod, next.request)
	if had, ok := s.uses[pod.UID]; ok {
		s.nodes[had.node].take(had, -1)
		if had.node != nodeName {
			freed = had.node
		}
	}
	s.uses[pod.UID] = next
	s.node(nodeName).take(next, 1)
	if freed != "" {
		s.drop(s.nodes[freed])
	}
	return freed
}

func (s *Snapshot) node(name string) *node {
	n := s.nodes[name]
	if n == nil {
		n = &node{name: name, ports: map[port]int{}}
		s.nodes[name] = n
	}
	return n
}

// drop lets go of a name that neither a node nor a pod stands behind.
func (s *Snapshot) drop(n *node) {
	if n.object == nil && n.pods == 0 {
		delete(s.nodes, n.name)
	}
}

func (s *Snapshot) find(name string) (int, bool) {
	return slices.BinarySearchFunc(s.names, name, func(n *node, name string) int {
		return strings.Compare(n.name, name)
	})
}

func (n *node) take(u use, times int64) {
	n.used.add(u.request, times)
	n.scoredCPU += u.scoredCPU * times
	n.scoredMemory += u.scoredMemory * times
	n.pods += int(times)
	for _, p := range u.ports {
		n.ports[p] += int(times)
		if n.ports[p] == 0 {
			delete(n.ports, p)
		}
	}
}

// Finished tells whether a pod has ended for good and so takes nothing.
func Finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func allocatable(object *corev1.Node) corev1.ResourceList {
	if len(object.Status.Allocatable) > 0 {
		return object.Status.Allocatable
	}
	return object.Status.Capacity
}

// ready tells whether the node's own Ready condition is True; a node that has
// not said so takes no pods.
func ready(object *corev1.Node) bool {
	for i := range object.Status.Conditions {
		if c := &object.Status.Conditions[i]; c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
