package replicaset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// deletionCost is where users say which pods to give up first: the lowest.
const deletionCost = "controller.kubernetes.io/pod-deletion-cost"

// surplus picks n of the active pods to give up, in the order in which
// Kubernetes does: what does least for anybody goes first. In one thing it is
// stricter: a pod that is ready but not for long enough goes before one that
// is available, since a rollout that gives up the first counts on the second.
func surplus(active []*corev1.Pod, n int, minReadySeconds int32, now time.Time) []*corev1.Pod {
	onNode := map[string]int{}
	for _, p := range active {
		onNode[p.Spec.NodeName]++
	}
	available := func(p *corev1.Pod) bool {
		yes, _ := Available(p, minReadySeconds, now)
		return yes
	}
	sorted := slices.Clone(active)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		return cmp.Or(
			first(a.Spec.NodeName == "", b.Spec.NodeName == ""),
			cmp.Compare(phaseRank(a), phaseRank(b)),
			first(!ready(a), !ready(b)),
			first(!available(a), !available(b)),
			cmp.Compare(cost(a), cost(b)),
			// Of a node that holds several, one is spared more easily.
			cmp.Compare(onNode[b.Spec.NodeName], onNode[a.Spec.NodeName]),
			// Ready for a shorter time first, but only where that differs by a
			// factor: a second between two old pods says nothing about them.
			cmp.Compare(ageBucket(readySince(a), now), ageBucket(readySince(b), now)),
			cmp.Compare(restarts(b), restarts(a)),
			cmp.Compare(ageBucket(a.CreationTimestamp.Time, now), ageBucket(b.CreationTimestamp.Time, now)),
			b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
			cmp.Compare(b.Name, a.Name),
		)
	})
	return sorted[:n]
}

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phaseRank(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodPending, "":
		return 0
	case corev1.PodUnknown:
		return 1
	}
	return 2
}

func cost(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[deletionCost])
	if err != nil {
		return 0 // admission warns; Kubernetes counts it as none
	}
	return n
}

func restarts(p *corev1.Pod) int32 {
	var n int32
	for _, c := range p.Status.ContainerStatuses {
		n = max(n, c.RestartCount)
	}
	return n
}

func readyCondition(p *corev1.Pod) *corev1.PodCondition {
	i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	if i < 0 {
		return nil
	}
	return &p.Status.Conditions[i]
}

func ready(p *corev1.Pod) bool {
	c := readyCondition(p)
	return c != nil && c.Status == corev1.ConditionTrue
}

func readySince(p *corev1.Pod) time.Time {
	if c := readyCondition(p); c != nil && c.Status == corev1.ConditionTrue {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

// ageBucket is the logarithm of an age; the zero time is no age.
func ageBucket(since, now time.Time) int {
	if since.IsZero() || !now.After(since) {
		return 0
	}
	return 1 + int(math.Log2(1+now.Sub(since).Seconds()))
}
