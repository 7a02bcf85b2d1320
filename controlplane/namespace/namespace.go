// Package namespace ends namespaces: what a terminating one holds is deleted,
// and when nothing is left, the namespace itself goes.
package namespace

import (
	"slices"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	corev1 "k8s.io/api/core/v1"
)

// New is the controller of namespaces.
func New() reconcile.Controller {
	return reconcile.Controller{
		Name:      "namespace",
		Reads:     []string{"*"},
		Writes:    []string{schemas.Namespaces + "/spec.finalizers", schemas.Namespaces + "/status"},
		Wakes:     wakes,
		Reconcile: reconcileKey,
	}
}

func wakes(c bus.Change, view bus.View) []string {
	if c.Resource == schemas.Namespaces {
		return []string{c.Object().GetName()}
	}
	// Content matters only while its namespace is going: what is added to it
	// late, and what has gone at last.
	name := c.Object().GetNamespace()
	if name == "" || c.Resource == schemas.Events {
		return nil
	}
	if ns := view.Get(schemas.Namespaces, "", name); ns == nil || ns.GetDeletionTimestamp() == nil {
		return nil
	}
	if c.New != nil && c.Old != nil {
		return nil
	}
	return []string{name}
}

func reconcileKey(name string, view bus.View, now time.Time) reconcile.Outcome {
	ns, ok := view.Get(schemas.Namespaces, "", name).(*corev1.Namespace)
	if !ok {
		return reconcile.Outcome{}
	}
	var out reconcile.Outcome
	updated := ns.DeepCopy()
	out.Keep(ns, updated)
	if ns.DeletionTimestamp == nil {
		updated.Status.Phase = corev1.NamespaceActive
		return out
	}
	updated.Status.Phase = corev1.NamespaceTerminating
	content := false
	for _, kind := range schemas.Kinds {
		if !kind.Namespaced || kind.Resource == schemas.Events {
			continue // events expire by themselves, and come for as long as pods end
		}
		for _, o := range view.List(kind.Resource, name) {
			content = true
			out.Own = append(out.Own, o) // and not wanted
		}
	}
	if !content {
		updated.Spec.Finalizers = slices.DeleteFunc(updated.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	}
	return out
}
