// Package lifecycle says how API objects begin and end: the fields that a new
// object starts with, the marks of one that is being deleted, and when it may
// go. Admission and the controllers share it, so both mean the same by a delete.
package lifecycle

import (
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// PrepareCreate makes a new object complete: defaults, what Kubernetes derives
// from them, generation 1, and the status that it starts with in place of
// whatever it brought. It changes the object in place and leaves
// creationTimestamp to the store, and the UID too but for a Job, whose selector
// names it.
func PrepareCreate(o schemas.Object) {
	schemas.Default(o)
	if _, ok := o.(*batchv1.Job); ok && o.GetUID() == "" {
		o.SetUID(types.UID(uuid.NewString()))
	}
	schemas.Derive(o)
	o.SetSelfLink("")
	o.SetDeletionTimestamp(nil)
	o.SetDeletionGracePeriodSeconds(nil)
	o.SetGeneration(0)
	if counts(o) {
		o.SetGeneration(1)
	}
	switch o := o.(type) {
	case *corev1.Pod:
		o.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(&o.Spec)}
		if len(o.Spec.SchedulingGates) > 0 {
			o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
				Reason: corev1.PodReasonSchedulingGated, Message: "Scheduling is blocked due to non-empty scheduling gates"}}
		}
	case *appsv1.Deployment:
		o.Status = appsv1.DeploymentStatus{}
	case *appsv1.ReplicaSet:
		o.Status = appsv1.ReplicaSetStatus{}
	case *appsv1.StatefulSet:
		o.Status = appsv1.StatefulSetStatus{}
	case *appsv1.DaemonSet:
		o.Status = appsv1.DaemonSetStatus{}
	case *corev1.ReplicationController:
		o.Status = corev1.ReplicationControllerStatus{}
	case *batchv1.Job:
		o.Status = batchv1.JobStatus{}
	case *batchv1.CronJob:
		o.Status = batchv1.CronJobStatus{}
	case *policyv1.PodDisruptionBudget:
		o.Status = policyv1.PodDisruptionBudgetStatus{}
	case *autoscalingv2.HorizontalPodAutoscaler:
		o.Status = autoscalingv2.HorizontalPodAutoscalerStatus{}
	case *corev1.ResourceQuota:
		o.Status = corev1.ResourceQuotaStatus{}
	case *corev1.PersistentVolume:
		o.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
	case *corev1.PersistentVolumeClaim:
		o.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
	case *corev1.Service:
		o.Status = corev1.ServiceStatus{}
	case *corev1.Namespace:
		o.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
		o.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	}
}

// counts says that a kind's generation counts the changes of its spec.
func counts(o schemas.Object) bool {
	switch o.(type) {
	case *corev1.Pod, *appsv1.Deployment, *appsv1.ReplicaSet, *appsv1.StatefulSet, *appsv1.DaemonSet, *corev1.ReplicationController,
		*corev1.PodTemplate, *batchv1.Job, *batchv1.CronJob, *policyv1.PodDisruptionBudget, *networkingv1.NetworkPolicy:
		return true
	}
	return false
}

// PrepareUpdate keeps in updated what a writer of the spec may not change:
// identity, deletion marks, status; fills in what one who does not know of it
// leaves out; and counts the generation up where the spec differs from old's.
// It changes updated in place and leaves its resourceVersion alone.
func PrepareUpdate(updated, old schemas.Object) {
	schemas.Default(updated)
	schemas.DeriveUpdate(updated, old)
	updated.SetSelfLink("")
	updated.SetUID(old.GetUID())
	updated.SetCreationTimestamp(old.GetCreationTimestamp())
	updated.SetDeletionTimestamp(old.GetDeletionTimestamp())
	updated.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	updated.SetGeneration(old.GetGeneration())
	if keepStatus(updated, old) && counts(updated) {
		updated.SetGeneration(old.GetGeneration() + 1)
	}
}

// PrepareStatusUpdate keeps in updated everything of old but the status, which
// is what a writer of the status may change. It changes updated in place. Kinds
// without a status it turns into old.
func PrepareStatusUpdate(updated, old schemas.Object) {
	n := reflect.ValueOf(updated).Elem()
	status := n.FieldByName("Status")
	rest := reflect.ValueOf(old.DeepCopyObject()).Elem()
	managed := updated.GetManagedFields()
	if status.IsValid() {
		rest.FieldByName("Status").Set(status)
	}
	n.Set(rest)
	updated.SetManagedFields(managed)
}

// keepStatus gives updated the status of old, and says whether their specs
// differ.
func keepStatus(updated, old schemas.Object) (changed bool) {
	differ := func(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }
	switch n := updated.(type) {
	case *corev1.Pod:
		o := old.(*corev1.Pod)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *appsv1.Deployment:
		o := old.(*appsv1.Deployment)
		n.Status = *o.Status.DeepCopy()
		// Its annotations go on to its ReplicaSets, so they are work, too.
		return differ(n.Spec, o.Spec) || differ(n.Annotations, o.Annotations)
	case *appsv1.ReplicaSet:
		o := old.(*appsv1.ReplicaSet)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *appsv1.StatefulSet:
		o := old.(*appsv1.StatefulSet)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *appsv1.DaemonSet:
		o := old.(*appsv1.DaemonSet)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *corev1.ReplicationController:
		o := old.(*corev1.ReplicationController)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *corev1.PodTemplate:
		return differ(n.Template, old.(*corev1.PodTemplate).Template)
	case *batchv1.Job:
		o := old.(*batchv1.Job)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *batchv1.CronJob:
		o := old.(*batchv1.CronJob)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *policyv1.PodDisruptionBudget:
		o := old.(*policyv1.PodDisruptionBudget)
		n.Status = *o.Status.DeepCopy()
		return differ(n.Spec, o.Spec)
	case *networkingv1.NetworkPolicy:
		return differ(n.Spec, old.(*networkingv1.NetworkPolicy).Spec)
	case *autoscalingv2.HorizontalPodAutoscaler:
		n.Status = *old.(*autoscalingv2.HorizontalPodAutoscaler).Status.DeepCopy()
	case *corev1.ResourceQuota:
		n.Status = *old.(*corev1.ResourceQuota).Status.DeepCopy()
	case *corev1.PersistentVolume:
		n.Status = *old.(*corev1.PersistentVolume).Status.DeepCopy()
	case *corev1.PersistentVolumeClaim:
		n.Status = *old.(*corev1.PersistentVolumeClaim).Status.DeepCopy()
	case *corev1.Service:
		o := old.(*corev1.Service)
		n.Status = *o.Status.DeepCopy()
		if n.Spec.Type != corev1.ServiceTypeLoadBalancer {
			n.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		}
	case *corev1.Namespace:
		o := old.(*corev1.Namespace)
		n.Spec = *o.Spec.DeepCopy()
		n.Status = *o.Status.DeepCopy()
	case *corev1.Node:
		n.Status = *old.(*corev1.Node).Status.DeepCopy()
	}
	return false
}

// MarkDeleted says what a delete makes of an object. With remove, it goes from
// the store at once; otherwise the returned copy, which carries the marks of
// deletion, replaces it (and is the object itself where it is marked already).
//
//   - A pod on a node gets a deletionTimestamp, its grace period from now, and
//     stays until the node reports that nothing of it is left. A grace period
//     of 0, asked for by name, removes it without waiting for the node.
//   - A namespace is Terminating until its content is gone and its finalizer
//     with it.
//   - An object with finalizers stays until the last of them is taken off.
//     Foreground and Orphan are such finalizers, which the garbage collector
//     takes off once the dependents are gone, or free.
//
// It is pure: o is not changed.
func MarkDeleted(o schemas.Object, opts metav1.DeleteOptions, now time.Time) (marked schemas.Object, remove bool) {
	m := o.DeepCopyObject().(schemas.Object)
	setPropagation(m, opts.PropagationPolicy)
	grace := gracePeriod(m, opts.GracePeriodSeconds)
	if at := m.GetDeletionTimestamp(); at == nil {
		t := metav1.NewTime(now.Add(time.Duration(grace) * time.Second).Truncate(time.Second))
		m.SetDeletionTimestamp(&t)
		m.SetDeletionGracePeriodSeconds(&grace)
	} else if had := m.GetDeletionGracePeriodSeconds(); had != nil && grace < *had && opts.GracePeriodSeconds != nil {
		// A second delete may only make it sooner, counted from the first.
		t := metav1.NewTime(at.Add(time.Duration(grace-*had) * time.Second))
		if earliest := metav1.NewTime(now.Truncate(time.Second)); t.Before(&earliest) {
			t = earliest
		}
		m.SetDeletionTimestamp(&t)
		m.SetDeletionGracePeriodSeconds(&grace)
	}
	if ns, ok := m.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	if Removable(m) {
		return m, true
	}
	if equality.Semantic.DeepEqual(m, o) {
		return o, false
	}
	return m, false
}

// Removable says that nothing holds an object which is being deleted: it has
// no finalizer, and if it is a pod, no node that might still run it. The nodes
// role sets a pod's grace period to 0 when its node has reported it gone.
func Removable(o schemas.Object) bool {
	if o.GetDeletionTimestamp() == nil || len(o.GetFinalizers()) > 0 {
		return false
	}
	switch o := o.(type) {
	case *corev1.Pod:
		grace := o.DeletionGracePeriodSeconds
		return o.Spec.NodeName == "" || grace == nil || *grace == 0
	case *corev1.Namespace:
		return len(o.Spec.Finalizers) == 0
	}
	return true
}

// longestGrace bounds a grace period, in seconds. Kubernetes has no bound, and
// beyond 292 years a clock's arithmetic ends in the past: the pod is killed at
// once then.
const longestGrace = 100 * 365 * 24 * 60 * 60

// gracePeriod is the time in seconds that a delete leaves the object; only
// pods have one.
func gracePeriod(o schemas.Object, asked *int64) int64 {
	pod, ok := o.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return 0
	}
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
		// 0 in the spec means "kill at once", not "forget the node": only the
		// caller may ask for that.
		if grace <= 0 {
			grace = 1
		}
	}
	if asked != nil {
		grace = *asked
		if grace < 0 {
			grace = 1
		}
	}
	return min(grace, longestGrace)
}

// setPropagation puts the finalizer of a foreground or orphaning delete on a
// kind that owns others, and takes off the one that a later delete overrides.
// No policy keeps what is there.
func setPropagation(o schemas.Object, policy *metav1.DeletionPropagation) {
	if policy == nil || !owns(o) {
		return
	}
	var want string
	switch *policy {
	case metav1.DeletePropagationForeground:
		want = metav1.FinalizerDeleteDependents
	case metav1.DeletePropagationOrphan:
		want = metav1.FinalizerOrphanDependents
	}
	fs := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool {
		return f == metav1.FinalizerDeleteDependents || f == metav1.FinalizerOrphanDependents
	})
	if want != "" {
		fs = append(fs, want)
	}
	if len(fs) == 0 {
		fs = nil
	}
	o.SetFinalizers(fs)
}

// owns says that other objects may name o as their owner and die with it.
func owns(o schemas.Object) bool {
	switch o.(type) {
	case *appsv1.Deployment, *appsv1.ReplicaSet, *appsv1.StatefulSet, *appsv1.DaemonSet, *corev1.ReplicationController,
		*batchv1.Job, *batchv1.CronJob:
		return true
	}
	return false
}

// QOSClass is Kubernetes' class of a pod by the cpu and memory of its budget,
// if it has one, or else of its containers, init containers too: Guaranteed
// where all limits equal the requests, BestEffort where there are none.
func QOSClass(s *corev1.PodSpec) corev1.PodQOSClass {
	none, guaranteed := true, len(s.Containers) > 0
	look := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, limited := r.Limits[name]
			request, requested := r.Requests[name]
			limited, requested = limited && !limit.IsZero(), requested && !request.IsZero()
			none = none && !limited && !requested
			if !limited || requested && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	if r := s.Resources; r != nil && len(r.Requests)+len(r.Limits) > 0 {
		look(r)
	} else {
		for _, list := range [][]corev1.Container{s.Containers, s.InitContainers} {
			for i := range list {
				look(&list[i].Resources)
			}
		}
	}
	switch {
	case none:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
