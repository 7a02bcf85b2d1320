package deployment

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of the conditions, as Kubernetes spells them.
const (
	reasonAvailable   = "MinimumReplicasAvailable"
	reasonUnavailable = "MinimumReplicasUnavailable"
	reasonNewSet      = "NewReplicaSetCreated"
	reasonFoundSet    = "FoundNewReplicaSet"
	reasonProgressing = "ReplicaSetUpdated"
	reasonComplete    = "NewReplicaSetAvailable"
	reasonTimedOut    = "ProgressDeadlineExceeded"
	reasonPaused      = "DeploymentPaused"
	reasonResumed     = "DeploymentResumed"
)

// status writes down what the sets report. stored is the Deployment as it was.
func (r *rollout) status(stored *appsv1.Deployment) {
	was := &stored.Status
	s := appsv1.DeploymentStatus{
		ObservedGeneration: stored.Generation,
		CollisionCount:     was.CollisionCount,
		Conditions:         slices.Clone(was.Conditions),
	}
	var terminating int32
	for _, rs := range r.all() {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if n := rs.Status.TerminatingReplicas; n != nil {
			terminating += *n
		}
	}
	s.TerminatingReplicas = &terminating
	if r.newest != nil {
		s.UpdatedReplicas = r.newest.Status.Replicas
	}
	s.UnavailableReplicas = max(0, total(r.all())-s.AvailableReplicas)

	available := appsv1.DeploymentCondition{
		Type: appsv1.DeploymentAvailable, Status: corev1.ConditionFalse,
		Reason: reasonUnavailable, Message: "Deployment does not have minimum availability.",
	}
	if s.AvailableReplicas >= desired(r.d)-maxUnavailable(r.d) {
		available.Status, available.Reason, available.Message = corev1.ConditionTrue, reasonAvailable, "Deployment has minimum availability."
	}
	r.set(&s, available)
	if r.d.DeletionTimestamp == nil {
		r.progress(stored, &s)
	}
	r.d.Status = s
}

// progress says how the rollout goes. It begins anew whenever the revision
// does: the annotation on the stored Deployment is the revision that the stored
// condition speaks of, since both are written at once.
func (r *rollout) progress(stored *appsv1.Deployment, s *appsv1.DeploymentStatus) {
	d := r.d.Spec.ProgressDeadlineSeconds
	if d == nil || *d == math.MaxInt32 { // the way to say that there is no deadline
		s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == appsv1.DeploymentProgressing })
		return
	}
	deadline := time.Duration(*d) * time.Second
	have := condition(s, appsv1.DeploymentProgressing)
	say := func(status corev1.ConditionStatus, reason, format string, args ...any) {
		r.set(s, appsv1.DeploymentCondition{
			Type: appsv1.DeploymentProgressing, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...),
		})
	}
	paused := have != nil && have.Reason == reasonPaused
	switch {
	case r.d.Spec.Paused && !paused:
		say(corev1.ConditionUnknown, reasonPaused, "Deployment is paused")
		return
	case r.d.Spec.Paused:
		return
	case paused:
		say(corev1.ConditionUnknown, reasonResumed, "Deployment is resumed")
		return
	case r.newest == nil:
		return
	case have == nil || stored.Annotations[revisionAnnotation] != r.d.Annotations[revisionAnnotation]:
		if r.newest.Annotations[historyAnnotation] != "" {
			say(corev1.ConditionTrue, reasonFoundSet, "Found new replica set %q", r.newest.Name)
		} else {
			say(corev1.ConditionTrue, reasonNewSet, "Created new replica set %q", r.newest.Name)
		}
		r.out.Requeue(deadline)
		return
	case have.Reason == reasonComplete && s.Replicas == s.UpdatedReplicas:
		return // a pod that is lost later is no rollout
	case r.completeBy(s):
		say(corev1.ConditionTrue, reasonComplete, "ReplicaSet %q has successfully progressed.", r.newest.Name)
		return
	case progressed(&stored.Status, s):
		// The clock of the deadline starts again: the condition is a new one.
		s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == appsv1.DeploymentProgressing })
		next := appsv1.DeploymentCondition{
			Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: reasonProgressing,
			Message:        fmt.Sprintf("ReplicaSet %q is progressing.", r.newest.Name),
			LastUpdateTime: r.stamp(), LastTransitionTime: r.stamp(),
		}
		if have.Status == next.Status {
			next.LastTransitionTime = have.LastTransitionTime
		}
		s.Conditions = append(s.Conditions, next)
		r.out.Requeue(deadline)
		return
	case have.Reason == reasonTimedOut:
		return
	}
	if wait := have.LastUpdateTime.Add(deadline).Sub(r.now); wait > 0 {
		r.out.Requeue(wait)
		return
	}
	say(corev1.ConditionFalse, reasonTimedOut, "ReplicaSet %q has timed out progressing.", r.newest.Name)
}

// completeBy is complete, seen from the status that is about to be written.
func (r *rollout) completeBy(s *appsv1.DeploymentStatus) bool {
	n := desired(r.d)
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && replicas(r.newest) == n
}

func progressed(was, is *appsv1.DeploymentStatus) bool {
	return is.UpdatedReplicas > was.UpdatedReplicas ||
		is.Replicas-is.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		is.ReadyReplicas > was.ReadyReplicas ||
		is.AvailableReplicas > was.AvailableReplicas
}

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	i := slices.IndexFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &s.Conditions[i]
}

// set puts a condition in its place; one that says the same stays as it is, so
// that nothing is written for it.
func (r *rollout) set(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	have := condition(s, c.Type)
	if have != nil && have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message {
		return
	}
	c.LastUpdateTime, c.LastTransitionTime = r.stamp(), r.stamp()
	if have != nil && have.Status == c.Status {
		c.LastTransitionTime = have.LastTransitionTime
	}
	if have != nil {
		*have = c
		return
	}
	s.Conditions = append(s.Conditions, c)
	slices.SortFunc(s.Conditions, func(a, b appsv1.DeploymentCondition) int { return cmp.Compare(a.Type, b.Type) })
}

// stamp is now as the store gives it back: in seconds.
func (r *rollout) stamp() metav1.Time { return metav1.NewTime(r.now.Truncate(time.Second)) }
