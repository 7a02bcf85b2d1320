package replicaset

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// New is the controller of ReplicaSets.
func New() reconcile.Controller {
	return reconcile.Controller{
		Name:      "replicaset",
		Reads:     []string{schemas.ReplicaSets, schemas.Pods},
		Writes:    []string{schemas.Pods + "@ReplicaSet", schemas.ReplicaSets + "/status"},
		Wakes:     wakes,
		Reconcile: reconcileKey,
	}
}

func wakes(c bus.Change, view bus.View) []string {
	if c.Resource == schemas.ReplicaSets {
		o := c.Object()
		return []string{reconcile.Key(o.GetNamespace(), o.GetName())}
	}
	var keys []string
	for _, o := range []schemas.Object{c.Old, c.New} {
		if o == nil {
			continue
		}
		if key := reconcile.ControllerKey(o, "ReplicaSet"); key != "" {
			keys = append(keys, key)
		}
	}
	if newOrphan(c) {
		keys = append(keys, adopters(c.New, view)...)
	}
	return keys
}

// newOrphan says that a pod has become one that a set could adopt. A bare pod
// whose status changes stays what it was, and wakes nobody.
func newOrphan(c bus.Change) bool {
	if c.New == nil || len(c.New.GetLabels()) == 0 || metav1.GetControllerOfNoCopy(c.New) != nil {
		return false
	}
	return c.Old == nil || metav1.GetControllerOfNoCopy(c.Old) != nil || !maps.Equal(c.Old.GetLabels(), c.New.GetLabels())
}

// adopters are the sets that a pod without controller could belong to.
func adopters(pod schemas.Object, view bus.View) []string {
	var keys []string
	for _, o := range view.List(schemas.ReplicaSets, pod.GetNamespace()) {
		rs, ok := o.(*appsv1.ReplicaSet)
		if !ok {
			continue
		}
		if s, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil && !s.Empty() && s.Matches(labels.Set(pod.GetLabels())) {
			keys = append(keys, reconcile.Key(rs.Namespace, rs.Name))
		}
	}
	return keys
}

func reconcileKey(key string, view bus.View, now time.Time) reconcile.Outcome {
	namespace, name, _ := strings.Cut(key, "/")
	rs, ok := view.Get(schemas.ReplicaSets, namespace, name).(*appsv1.ReplicaSet)
	if !ok {
		return reconcile.Outcome{} // its pods are the garbage collector's
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil || selector.Empty() {
		return reconcile.Outcome{} // admission refuses both
	}

	var out reconcile.Outcome
	pods := claim(rs, selector, view, &out)
	var active []*corev1.Pod
	for _, p := range pods {
		if Active(p) {
			active = append(active, p)
		}
	}
	if rs.DeletionTimestamp == nil && !terminating(view, namespace) {
		switch want := int(replicas(rs)); {
		case len(active) < want:
			create(rs, active, pods, want-len(active), view, &out)
		case len(active) > want:
			remove(rs, surplus(active, len(active)-want, rs.Spec.MinReadySeconds, now), &out)
		}
	}
	updated := rs.DeepCopy()
	status(updated, pods, active, now, &out)
	out.Keep(rs, updated)
	return out
}

// claim returns the pods that the set owns, among them those that it adopts by
// this outcome, and lets go of those that no longer match.
func claim(rs *appsv1.ReplicaSet, selector labels.Selector, view bus.View, out *reconcile.Outcome) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, o := range reconcile.Dependents(view, schemas.Pods, rs.UID) {
		p, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		if selector.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		} else if rs.DeletionTimestamp == nil {
			released := p.DeepCopy()
			released.OwnerReferences = reconcile.WithoutOwner(p.OwnerReferences, rs.UID)
			out.Keep(p, released)
		}
	}
	if rs.DeletionTimestamp != nil {
		return pods
	}
	for _, o := range reconcile.Orphans(view, schemas.Pods, rs.Namespace, selector) {
		p, ok := o.(*corev1.Pod)
		if !ok || !Active(p) {
			continue
		}
		adopted := p.DeepCopy()
		adopted.OwnerReferences = append(adopted.OwnerReferences, owner(rs))
		out.Keep(p, adopted)
		pods = append(pods, p)
	}
	return pods
}

// create adds n new pods to the outcome.
func create(rs *appsv1.ReplicaSet, active, pods []*corev1.Pod, n int, view bus.View, out *reconcile.Outcome) {
	slots := newSlots(active, pods)
	for range n {
		slot, incarnation, name := slots.next(rs, view)
		pod := podOf(rs, slot, incarnation, name)
		out.Want = append(out.Want, pod)
		out.Events = append(out.Events, reconcile.Event{
			Involved: rs,
			Type:     corev1.EventTypeNormal,
			Reason:   "SuccessfulCreate",
			Message:  "Created pod: " + name,
			After:    schemas.KeyOf(pod),
		})
	}
}

// remove gives the pods up: they are owned and not wanted.
func remove(rs *appsv1.ReplicaSet, victims []*corev1.Pod, out *reconcile.Outcome) {
	for _, p := range victims {
		out.Drop(p)
		out.Events = append(out.Events, reconcile.Event{
			Involved: rs,
			Type:     corev1.EventTypeNormal,
			Reason:   "SuccessfulDelete",
			Message:  "Deleted pod: " + p.Name,
			After:    schemas.KeyOf(p),
		})
	}
}

func podOf(rs *appsv1.ReplicaSet, slot, incarnation int, name string) *corev1.Pod {
	t := rs.Spec.Template.DeepCopy()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace:       rs.Namespace,
		Name:            name,
		GenerateName:    rs.Name + "-",
		Labels:          t.Labels,
		Annotations:     t.Annotations,
		Finalizers:      t.Finalizers,
		OwnerReferences: []metav1.OwnerReference{owner(rs)},
	}, Spec: t.Spec}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[SlotAnnotation] = fmt.Sprint(slot)
	p.Annotations[IncarnationAnnotation] = fmt.Sprint(incarnation)
	p.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	return p
}

func owner(rs *appsv1.ReplicaSet) metav1.OwnerReference {
	return *metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

// Active pods count as replicas: they have not ended and are not ending.
func Active(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func terminating(view bus.View, namespace string) bool {
	ns := view.Get(schemas.Namespaces, "", namespace)
	return ns != nil && ns.GetDeletionTimestamp() != nil
}
