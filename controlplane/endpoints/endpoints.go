// Package endpoints keeps, for each Service with a selector, the EndpointSlices
// that say which pods answer for it, where, and whether they are ready.
package endpoints

import (
	"slices"
	"strings"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
)

// ManagedBy marks the slices that this controller writes.
const ManagedBy = "endpoints.gantry.dev"

// New is the controller of EndpointSlices.
func New() reconcile.Controller {
	return reconcile.Controller{
		Name:      "endpoints",
		Reads:     []string{schemas.Services, schemas.Pods, schemas.EndpointSlices},
		Writes:    []string{schemas.EndpointSlices},
		Wakes:     wakes,
		Reconcile: reconcileKey,
	}
}

func wakes(c bus.Change, view bus.View) []string {
	o := c.Object()
	switch c.Resource {
	case schemas.Services:
		return []string{reconcile.Key(o.GetNamespace(), o.GetName())}
	case schemas.EndpointSlices:
		if name := o.GetLabels()[discoveryv1.LabelServiceName]; name != "" && o.GetLabels()[discoveryv1.LabelManagedBy] == ManagedBy {
			return []string{reconcile.Key(o.GetNamespace(), name)}
		}
		return nil
	}
	before, _ := c.Old.(*corev1.Pod)
	after, _ := c.New.(*corev1.Pod)
	if !matters(before, after) {
		return nil
	}
	var keys []string
	for _, p := range []*corev1.Pod{before, after} {
		if p == nil {
			continue
		}
		for _, s := range selecting(p, view) {
			if key := reconcile.Key(s.Namespace, s.Name); !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// matters says whether a pod's change can be seen in a slice. Most of what a
// node reports cannot.
func matters(before, after *corev1.Pod) bool {
	if before == nil || after == nil {
		p := before
		if after != nil {
			p = after
		}
		return p != nil && eligible(p)
	}
	if before.UID != after.UID {
		return true
	}
	if !eligible(before) && !eligible(after) {
		return false
	}
	return eligible(before) != eligible(after) ||
		ready(before) != ready(after) ||
		(before.DeletionTimestamp == nil) != (after.DeletionTimestamp == nil) ||
		before.Spec.NodeName != after.Spec.NodeName ||
		!apiequality.Semantic.DeepEqual(before.Labels, after.Labels) ||
		!apiequality.Semantic.DeepEqual(before.Status.PodIPs, after.Status.PodIPs) ||
		before.Status.PodIP != after.Status.PodIP
}

// selecting are the Services that select a pod, found by its labels.
func selecting(p *corev1.Pod, view bus.View) []*corev1.Service {
	var out []*corev1.Service
	for k, v := range p.Labels {
		for _, o := range view.ByIndex(reconcile.IndexSelector, reconcile.LabelValue(schemas.Services, p.Namespace, k, v)) {
			s, ok := o.(*corev1.Service)
			if ok && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(p.Labels)) {
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func reconcileKey(key string, view bus.View, _ time.Time) reconcile.Outcome {
	namespace, name, _ := strings.Cut(key, "/")
	var out reconcile.Outcome
	for _, o := range view.ByIndex(reconcile.IndexLabel, reconcile.LabelValue(schemas.EndpointSlices, namespace, discoveryv1.LabelServiceName, name)) {
		if o.GetLabels()[discoveryv1.LabelManagedBy] == ManagedBy {
			out.Own = append(out.Own, o)
		}
	}
	s, ok := view.Get(schemas.Services, namespace, name).(*corev1.Service)
	if !ok || s.DeletionTimestamp != nil || len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName {
		return out // and no slice is wanted
	}
	ns := view.Get(schemas.Namespaces, "", namespace)
	for _, slice := range Slices(s, selected(s, view)) {
		if ns != nil && ns.GetDeletionTimestamp() != nil && !slices.ContainsFunc(out.Own, func(o schemas.Object) bool { return o.GetName() == slice.Name }) {
			continue // nothing new in a namespace that is going
		}
		out.Want = append(out.Want, slice)
	}
	return out
}

// selected are the pods that the Service selects and that may stand in a
// slice, ordered by name.
func selected(s *corev1.Service, view bus.View) []*corev1.Pod {
	// Every pair finds all the pods; one is looked up, the rest is compared.
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var key string
	for k := range s.Spec.Selector {
		if key == "" || k < key {
			key = k
		}
	}
	var pods []*corev1.Pod
	for _, o := range view.ByIndex(reconcile.IndexLabel, reconcile.LabelValue(schemas.Pods, s.Namespace, key, s.Spec.Selector[key])) {
		p, ok := o.(*corev1.Pod)
		if ok && selector.Matches(labels.Set(p.Labels)) && eligible(p) {
			pods = append(pods, p)
		}
	}
	return pods
}

// eligible pods have an address and have not ended. One that is ending stands
// in the slice until it is gone, so that its last connections can be served.
func eligible(p *corev1.Pod) bool {
	return p.Status.PodIP != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
