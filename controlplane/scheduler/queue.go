package scheduler

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// queue holds the pods that wait for a node: those to decide about, by
// priority and age, and those that fit nowhere, by shape.
//
// Pods of one shape ask for the same, so where one does not fit none does: the
// oldest stands for all of them. What changes on a node is tried on one pod of
// each shape, and only one that then finds a place lets the next one try. The
// work for a change so grows with the kinds of pods that wait and with the pods
// that it helps, not with the number that wait.
type queue struct {
	pods   map[types.UID]*waiter
	due    dueHeap
	shapes map[string]*shape
	count  uint64
}

// waiter is one pod without a node.
type waiter struct {
	pod    *corev1.Pod // the newest that was seen
	shape  string
	order  uint64 // of arrival
	index  int    // in due; -1 while it is not there
	parked *shape // where it is put away; nil while it is not
	busy   bool   // a binding is on its way
}

// shape is the pods that fit nowhere and ask for the same.
type shape struct {
	key    string
	demand demand
	order  []*waiter // oldest first; holds some that have left since
	live   int       // how many are parked here
	trial  *waiter   // the one that is due because something changed
	why    string
}

func newQueue() *queue {
	return &queue{pods: map[types.UID]*waiter{}, shapes: map[string]*shape{}}
}

// offer takes in a pod that needs a node, or its newer version. A pod whose
// demand has not changed keeps its place.
func (q *queue) offer(pod *corev1.Pod) {
	w := q.pods[pod.UID]
	key := shapeOf(pod)
	if w == nil {
		q.count++
		w = &waiter{order: q.count, index: -1, shape: key, pod: pod}
		q.pods[pod.UID] = w
		q.push(w)
		return
	}
	w.pod = pod
	if w.shape == key {
		return
	}
	q.leave(w)
	w.shape = key
	if !w.busy {
		q.push(w)
	}
}

// drop forgets a pod that is bound, over, or gone.
func (q *queue) drop(uid types.UID) {
	w := q.pods[uid]
	if w == nil {
		return
	}
	delete(q.pods, uid)
	if w.index >= 0 {
		heap.Remove(&q.due, w.index)
	}
	q.leave(w)
}

// next is the pod to decide about; ok is false where none is due.
func (q *queue) next() (*waiter, bool) {
	if len(q.due) == 0 {
		return nil, false
	}
	return heap.Pop(&q.due).(*waiter), true
}

// push makes a pod due.
func (q *queue) push(w *waiter) {
	if w.index < 0 && q.pods[w.pod.UID] == w {
		heap.Push(&q.due, w)
	}
}

// known is why pods of this shape fit nowhere, if that is known and nothing has
// changed since that could help.
func (q *queue) known(w *waiter) (why string, ok bool) {
	s := q.shapes[w.shape]
	if s == nil || s.trial != nil || s.live == 0 {
		return "", false
	}
	return s.why, true
}

// park puts a pod away until something changes. It returns the other pods of
// the shape whose message is another now.
func (q *queue) park(w *waiter, why string) (also []*waiter) {
	if q.pods[w.pod.UID] != w {
		return nil
	}
	s := q.shapes[w.shape]
	if s == nil {
		s = &shape{key: w.shape, demand: demandOf(w.pod)}
		q.shapes[w.shape] = s
	}
	if s.why != why {
		for _, other := range s.order {
			if other.parked == s && other != w {
				also = append(also, other)
			}
		}
	}
	s.why, s.trial = why, nil
	if w.parked == nil {
		s.live++
		w.parked = s
		s.order = append(s.order, w)
	}
	if len(s.order) > 2*s.live+16 {
		s.order = slices.DeleteFunc(s.order, func(w *waiter) bool { return w.parked != s })
	}
	return also
}

// helped makes the oldest pod of each shape due that fits the node as it is now.
func (q *queue) helped(n *node) {
	if n == nil || n.object == nil {
		return
	}
	for _, s := range q.shapes {
		if s.trial == nil && len(refusals(n, s.demand, false)) == 0 {
			q.try(s)
		}
	}
}

// placed lets the next pod of a shape try after one has found a node.
func (q *queue) placed(w *waiter) {
	if s := q.shapes[w.shape]; s != nil {
		if s.trial == w {
			s.trial = nil
		}
		q.try(s)
	}
}

// again makes one pod of every shape due, so that what is said of them is said
// anew.
func (q *queue) again() {
	for _, s := range q.shapes {
		q.try(s)
	}
}

func (q *queue) try(s *shape) {
	if s.trial != nil {
		return
	}
	for len(s.order) > 0 {
		w := s.order[0]
		s.order[0] = nil
		s.order = s.order[1:]
		if w.parked != s {
			continue
		}
		w.parked = nil
		s.live--
		s.trial = w
		q.push(w)
		return
	}
	delete(q.shapes, s.key)
}

// leave takes a pod out of its shape. Where it was the one that tries, the
// next one tries instead.
func (q *queue) leave(w *waiter) {
	s := q.shapes[w.shape]
	if s == nil {
		return
	}
	if w.parked == s {
		w.parked = nil
		s.live--
	}
	if s.trial == w {
		s.trial = nil
		q.try(s)
		return
	}
	if s.live == 0 && s.trial == nil {
		delete(q.shapes, s.key)
	}
}

// shapeOf is equal for pods that ask a node for the same.
func shapeOf(pod *corev1.Pod) string {
	request := Request(pod)
	b, err := json.Marshal(struct {
		Request     Amount
		Ports       []string
		Selector    map[string]string
		Tolerations []corev1.Toleration
	}{request, portNames(hostPorts(pod)), pod.Spec.NodeSelector, pod.Spec.Tolerations})
	if err != nil {
		// Cannot happen for these types; a pod alone in its shape is always right.
		return string(pod.UID)
	}
	return string(b)
}

func portNames(ports []port) []string {
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = fmt.Sprintf("%s/%s/%d", p.protocol, p.ip, p.number)
	}
	return out
}

// dueHeap orders pods by priority, then by arrival.
type dueHeap []*waiter

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	a, b := priority(h[i].pod), priority(h[j].pod)
	if a != b {
		return a > b
	}
	return h[i].order < h[j].order
}
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *dueHeap) Push(x any) {
	w := x.(*waiter)
	w.index = len(*h)
	*h = append(*h, w)
}
func (h *dueHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.index = -1
	return w
}

func priority(pod *corev1.Pod) int32 {
	if pod.Spec.Priority != nil {
		return *pod.Spec.Priority
	}
	return 0
}
