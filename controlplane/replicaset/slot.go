package replicaset

import (
	"strconv"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// Annotations that say how a pod's name was computed.
const (
	// SlotAnnotation is the pod's place in its set, from 0.
	SlotAnnotation = "gantry.dev/slot"
	// IncarnationAnnotation counts the pods that had the place before.
	IncarnationAnnotation = "gantry.dev/incarnation"
)

// slots gives out names. Names are computed rather than drawn: the same set
// in the same state always asks for the same pod, so whoever asks second, after
// a crash or from a stale view, is refused by the store instead of doubling it.
type slots struct {
	taken        map[int]bool // by active pods
	incarnations map[int]int  // the next that no pod we see has had
	names        map[string]bool
	at           int
}

func newSlots(active, pods []*corev1.Pod) *slots {
	s := &slots{taken: map[int]bool{}, incarnations: map[int]int{}, names: map[string]bool{}}
	for _, p := range active {
		if slot, err := strconv.Atoi(p.Annotations[SlotAnnotation]); err == nil {
			s.taken[slot] = true
		}
	}
	for _, p := range pods {
		slot, err := strconv.Atoi(p.Annotations[SlotAnnotation])
		if err != nil {
			continue // adopted: it was never given a place
		}
		if n, err := strconv.Atoi(p.Annotations[IncarnationAnnotation]); err == nil && n >= s.incarnations[slot] {
			s.incarnations[slot] = n + 1
		}
	}
	return s
}

// next is the lowest free slot and a name for it that nothing has or had
// lately: a node may still be busy with a pod of that name.
func (s *slots) next(rs *appsv1.ReplicaSet, view bus.View) (slot, incarnation int, name string) {
	for s.taken[s.at] {
		s.at++
	}
	slot = s.at
	s.taken[slot] = true
	for incarnation = s.incarnations[slot]; ; incarnation++ {
		name = podName(rs, slot, incarnation)
		if !s.names[name] && view.Get(schemas.Pods, rs.Namespace, name) == nil && !view.Tombstone(schemas.Pods, rs.Namespace, name) {
			s.names[name] = true
			return slot, incarnation, name
		}
	}
}

func podName(rs *appsv1.ReplicaSet, slot, incarnation int) string {
	return reconcile.DerivedName(rs.Name, reconcile.Hash(5, string(rs.UID), strconv.Itoa(slot), strconv.Itoa(incarnation)))
}
