// Package gc deletes what has lost its last owner, and lets objects that are
// being deleted go once their dependents are gone (foreground) or free (orphan).
package gc

import (
	"slices"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// unseenOwner is how old an object must be before an owner that was never seen
// counts as gone: whoever restores objects one by one may bring it later.
const unseenOwner = time.Minute

// New is the garbage collector. Its keys are ObjectKeys.
func New() reconcile.Controller {
	return reconcile.Controller{
		Name:  "gc",
		Reads: []string{"*"},
		Writes: []string{
			"*/metadata.finalizers[" + metav1.FinalizerDeleteDependents + "]",
			"*/metadata.finalizers[" + metav1.FinalizerOrphanDependents + "]",
			"*/metadata.ownerReferences[gone]",
		},
		Wakes:     wakes,
		Reconcile: reconcileKey,
	}
}

// Indexes are those that the collector looks dependents up in.
func Indexes() map[string]bus.IndexFunc { return reconcile.Indexes() }

func wakes(c bus.Change, view bus.View) []string {
	if c.Resource == schemas.Events {
		return nil // nobody owns them, they expire
	}
	var keys []string
	o := c.Object()
	if c.New != nil && (len(o.GetOwnerReferences()) > 0 || awaited(o)) && concerns(c) {
		keys = append(keys, schemas.KeyOf(o))
	}
	if c.New == nil || c.Old != nil && c.Old.GetUID() != c.New.GetUID() {
		// An owner has gone: each dependent asks for itself whether it may stay.
		for _, d := range view.ByIndex(reconcile.IndexOwner, string(c.Old.GetUID())) {
			keys = append(keys, schemas.KeyOf(d))
		}
	}
	if c.Old != nil {
		// A dependent has gone or changed its owners: an owner may wait for it.
		for _, ref := range c.Old.GetOwnerReferences() {
			if c.New != nil && slices.ContainsFunc(c.New.GetOwnerReferences(), func(n metav1.OwnerReference) bool { return equalRef(n, ref) }) {
				continue
			}
			if owner := find(view, c.Old.GetNamespace(), ref); owner != nil && awaited(owner) {
				keys = append(keys, schemas.KeyOf(owner))
			}
		}
	}
	return keys
}

// concerns leaves out the many changes of status, which change nobody's owners.
func concerns(c bus.Change) bool {
	if c.Old == nil || awaited(c.New) {
		return true
	}
	return !slices.EqualFunc(c.Old.GetOwnerReferences(), c.New.GetOwnerReferences(), equalRef)
}

func equalRef(a, b metav1.OwnerReference) bool { return a.UID == b.UID && blocks(a) == blocks(b) }

// awaited objects are being deleted and stay for what becomes of their dependents.
func awaited(o schemas.Object) bool {
	return has(o, metav1.FinalizerDeleteDependents) || has(o, metav1.FinalizerOrphanDependents)
}

func has(o schemas.Object, finalizer string) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), finalizer)
}

func reconcileKey(key string, view bus.View, now time.Time) reconcile.Outcome {
	resource, namespace, name, err := schemas.ParseObjectKey(key)
	if err != nil {
		return reconcile.Outcome{} // only this package makes the keys
	}
	o := view.Get(resource, namespace, name)
	if o == nil {
		return reconcile.Outcome{}
	}
	var out reconcile.Outcome
	switch {
	case has(o, metav1.FinalizerOrphanDependents):
		orphan(o, view, &out)
	case has(o, metav1.FinalizerDeleteDependents):
		deleteDependents(o, view, now, &out)
	}
	// It may have lost its own owners too; with finalizers of other owners'
	// making it could not go either way.
	if len(out.Own) == 0 {
		collect(o, view, now, &out)
	}
	return out
}

// orphan sets the dependents free, and in a pass that finds none lets the
// owner go. Nothing is freed and let go in one step, so a crash between the two
// leaves no dependent whose owner is gone.
func orphan(owner schemas.Object, view bus.View, out *reconcile.Outcome) {
	dependents := view.ByIndex(reconcile.IndexOwner, string(owner.GetUID()))
	if len(dependents) == 0 {
		without(owner, metav1.FinalizerOrphanDependents, out)
		return
	}
	for _, d := range dependents {
		free := copyOf(d)
		free.SetOwnerReferences(reconcile.WithoutOwner(d.GetOwnerReferences(), owner.GetUID()))
		out.Keep(d, free)
	}
}

// deleteDependents deletes what depends on the owner, in the foreground too
// where that has dependents of its own, and lets the owner go when nothing is
// left that blocks it.
func deleteDependents(owner schemas.Object, view bus.View, now time.Time, out *reconcile.Outcome) {
	blocked := false
	for _, d := range view.ByIndex(reconcile.IndexOwner, string(owner.GetUID())) {
		i := slices.IndexFunc(d.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == owner.GetUID() })
		if blocks(d.GetOwnerReferences()[i]) {
			blocked = true
		}
		if d.GetDeletionTimestamp() == nil {
			collect(d, view, now, out)
		}
	}
	if !blocked {
		without(owner, metav1.FinalizerDeleteDependents, out)
	}
}

// collect deletes an object that owners are named for and none of them is
// left. Owners that are being deleted in the foreground count as gone, since
// they only wait for this; where another owner remains, the references to
// those are dropped instead.
func collect(o schemas.Object, view bus.View, now time.Time, out *reconcile.Outcome) {
	refs := o.GetOwnerReferences()
	if len(refs) == 0 || o.GetDeletionTimestamp() != nil {
		return
	}
	var stay []metav1.OwnerReference
	foreground := false
	for _, ref := range refs {
		switch state, wait := ownerState(o, ref, view, now); state {
		case there:
			stay = append(stay, ref)
		case waiting:
			foreground = foreground || blocks(ref)
		case unknown:
			// Not enough is known to delete anything.
			if wait > 0 {
				out.Requeue(wait)
			}
			return
		}
	}
	switch {
	case len(stay) == len(refs):
	case len(stay) > 0:
		kept := copyOf(o)
		kept.SetOwnerReferences(stay)
		out.Keep(o, kept)
	case foreground && len(view.ByIndex(reconcile.IndexOwner, string(o.GetUID()))) > 0:
		policy := metav1.DeletePropagationForeground
		marked, remove := lifecycle.MarkDeleted(o, metav1.DeleteOptions{PropagationPolicy: &policy}, now)
		out.Own = append(out.Own, o)
		if !remove {
			out.Want = append(out.Want, marked)
		}
	default:
		out.Own = append(out.Own, o)
	}
}

type state int

const (
	there state = iota
	waiting
	gone
	unknown
)

// ownerState says what has become of an owner. The view is the whole of one
// ordered log, and a dependent can name a UID only after the owner had it: so
// an owner that is not there was there and is gone. Only where not even the
// mark of its deletion is left may it never have been, and is waited for.
func ownerState(o schemas.Object, ref metav1.OwnerReference, view bus.View, now time.Time) (s state, wait time.Duration) {
	kind, known := schemas.KindByGVK(ref.APIVersion, ref.Kind)
	if !known {
		return unknown, 0 // an owner of a kind that we cannot see is not gone
	}
	if owner := find(view, o.GetNamespace(), ref); owner != nil {
		if has(owner, metav1.FinalizerDeleteDependents) {
			return waiting, 0
		}
		return there, 0
	}
	namespace := o.GetNamespace()
	if !kind.Namespaced {
		namespace = ""
	}
	if view.Get(kind.Resource, namespace, ref.Name) != nil || view.Tombstone(kind.Resource, namespace, ref.Name) {
		return gone, 0
	}
	if wait := o.GetCreationTimestamp().Add(unseenOwner).Sub(now); wait > 0 {
		return unknown, wait
	}
	return gone, 0
}

// find is the owner that a reference of an object in the namespace names; nil
// where there is none of that UID.
func find(view bus.View, namespace string, ref metav1.OwnerReference) schemas.Object {
	kind, known := schemas.KindByGVK(ref.APIVersion, ref.Kind)
	if !known {
		return nil
	}
	if !kind.Namespaced {
		namespace = ""
	}
	if owner := view.Get(kind.Resource, namespace, ref.Name); owner != nil && owner.GetUID() == ref.UID {
		return owner
	}
	return nil
}

func blocks(ref metav1.OwnerReference) bool {
	return ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
}

// without takes a finalizer off; the diff removes what has none left.
func without(o schemas.Object, finalizer string, out *reconcile.Outcome) {
	free := copyOf(o)
	free.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer }))
	out.Keep(o, free)
}

func copyOf(o schemas.Object) schemas.Object {
	c, ok := o.DeepCopyObject().(schemas.Object)
	if !ok {
		panic("gc: a copy is of the same type")
	}
	return c
}
