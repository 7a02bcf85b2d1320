package replicaset

import (
	"time"

	"gantry.dev/controlplane/reconcile"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// status writes down what is seen, before this outcome's own deeds, and asks
// to be woken when the next ready pod will have been ready for long enough.
func status(rs *appsv1.ReplicaSet, pods, active []*corev1.Pod, now time.Time, out *reconcile.Outcome) {
	s := appsv1.ReplicaSetStatus{
		Replicas:           int32(len(active)),
		ObservedGeneration: rs.Generation,
		Conditions:         rs.Status.Conditions,
	}
	template := labels.SelectorFromSet(rs.Spec.Template.Labels)
	for _, p := range active {
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !ready(p) {
			continue
		}
		s.ReadyReplicas++
		if yes, wait := Available(p, rs.Spec.MinReadySeconds, now); yes {
			s.AvailableReplicas++
		} else {
			out.Requeue(wait)
		}
	}
	var terminatingPods int32
	for _, p := range pods {
		if p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			terminatingPods++
		}
	}
	s.TerminatingReplicas = &terminatingPods
	rs.Status = s
}

// Available says whether a pod has been ready for long enough, and if it is
// ready, how long that still takes.
func Available(p *corev1.Pod, minReadySeconds int32, now time.Time) (bool, time.Duration) {
	if !ready(p) {
		return false, 0
	}
	if minReadySeconds == 0 {
		return true, 0
	}
	wait := readySince(p).Add(time.Duration(minReadySeconds) * time.Second).Sub(now)
	return wait <= 0, max(wait, 0)
}
