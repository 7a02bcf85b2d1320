// Package lifecycle says how API objects begin and end: the fields that a new
// object starts with, the marks of one that is being deleted, and when it may
// go. Admission and the controllers share it, so both mean the same by a delete.
package lifecycle

import (
	"reflect"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// PrepareCreate makes a new object complete: defaults, generation 1, and the
// status that it starts with in place of whatever it brought. It changes the
// object in place and leaves UID and creationTimestamp to the store.
func PrepareCreate(o schemas.Object) {
	schemas.Default(o)
	o.SetSelfLink("")
	o.SetDeletionTimestamp(nil)
	o.SetDeletionGracePeriodSeconds(nil)
	o.SetGeneration(0)
	switch o := o.(type) {
	case *corev1.Pod:
		o.Generation = 1
		o.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(&o.Spec)}
	case *appsv1.Deployment:
		o.Generation = 1
		o.Status = appsv1.DeploymentStatus{}
	case *appsv1.ReplicaSet:
		o.Generation = 1
		o.Status = appsv1.ReplicaSetStatus{}
	case *corev1.Service:
		o.Status = corev1.ServiceStatus{}
	case *corev1.Namespace:
		o.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
		o.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	}
}

// PrepareUpdate keeps in updated what a writer of the spec may not change:
// identity, deletion marks, status; and counts the generation up where the
// spec differs from old's. It changes updated in place and leaves its
// resourceVersion alone.
func PrepareUpdate(updated, old schemas.Object) {
	schemas.Default(updated)
	updated.SetSelfLink("")
	updated.SetUID(old.GetUID())
	updated.SetCreationTimestamp(old.GetCreationTimestamp())
	updated.SetDeletionTimestamp(old.GetDeletionTimestamp())
	updated.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	updated.SetGeneration(old.GetGeneration())
	same := true
	switch n := updated.(type) {
	case *corev1.Pod:
		o := old.(*corev1.Pod)
		n.Status = *o.Status.DeepCopy()
		same = equality.Semantic.DeepEqual(n.Spec, o.Spec)
	case *appsv1.Deployment:
		o := old.(*appsv1.Deployment)
		n.Status = *o.Status.DeepCopy()
		same = equality.Semantic.DeepEqual(n.Spec, o.Spec)
	case *appsv1.ReplicaSet:
		o := old.(*appsv1.ReplicaSet)
		n.Status = *o.Status.DeepCopy()
		same = equality.Semantic.DeepEqual(n.Spec, o.Spec)
	case *corev1.Service:
		n.Status = *old.(*corev1.Service).Status.DeepCopy()
	case *corev1.Namespace:
		o := old.(*corev1.Namespace)
		n.Spec = *o.Spec.DeepCopy()
		n.Status = *o.Status.DeepCopy()
	case *corev1.Node:
		n.Status = *old.(*corev1.Node).Status.DeepCopy()
	}
	if !same {
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
	return grace
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
	case *appsv1.Deployment, *appsv1.ReplicaSet:
		return true
	}
	return false
}

// QOSClass is Kubernetes' class of a pod by its containers' cpu and memory:
// Guaranteed where all limits equal the requests, BestEffort where there are none.
func QOSClass(s *corev1.PodSpec) corev1.PodQOSClass {
	none, guaranteed := true, len(s.Containers) > 0
	for i := range s.Containers {
		r := &s.Containers[i].Resources
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
	switch {
	case none:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
