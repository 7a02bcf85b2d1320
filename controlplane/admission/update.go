package admission

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"gantry.dev/bus"
	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

func (a *Admission) update(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if kind.Resource != schemas.Nodes {
		if err := systemOnly(kind, call.Verb, call.Name); err != nil {
			return reply{}, err
		}
	}
	w, err := readWrite(kind, call, header, body, "")
	if err != nil {
		return reply{}, err
	}
	d, err := manifest(kind, call, body)
	if err != nil {
		return reply{}, err
	}
	return a.modify(ctx, w, rulesOf(call), func(old schemas.Object) (schemas.Object, error) {
		return d.Object.DeepCopyObject().(schemas.Object), sameUID(kind, d.Object, old)
	})
}

// rules complete an object that is to take old's place (identity, what only
// others write) and check it. They change updated in place.
type rules func(kind schemas.Kind, updated, old schemas.Object) (warnings []string, err error)

// rulesOf is what holds for a write of an object, or of its status.
func rulesOf(call schemas.Call) rules {
	if call.Subresource == schemas.SubStatus {
		return statusRules
	}
	return specRules
}

// specRules hold for all that users write but the status.
func specRules(kind schemas.Kind, updated, old schemas.Object) ([]string, error) {
	keepAssigned(updated, old)
	refused, warnings := schemas.Unsupported(updated)
	// What is stored already is no reason to refuse a change to something else.
	if len(refused) > 0 {
		known := map[string]bool{}
		before, _ := schemas.Unsupported(old)
		for _, e := range before {
			known[e.Error()] = true
		}
		kept := refused[:0]
		for _, e := range refused {
			if !known[e.Error()] {
				kept = append(kept, e)
			}
		}
		refused = kept
	}
	lifecycle.PrepareUpdate(updated, old)
	updated.SetResourceVersion(old.GetResourceVersion())
	if err := systemFields(kind, updated, old); err != nil {
		return nil, err
	}
	if errs := append(refused, schemas.ValidateUpdate(updated, old)...); len(errs) > 0 {
		return nil, invalidObject(kind, old.GetName(), errs)
	}
	return warnings, nil
}

// modify replaces an object by what change makes of it, under the rules. What
// change returns may carry a resourceVersion: where it is not that of what is
// stored, this is a conflict. Without one, or with that which change was given,
// it starts again when another writer came first.
func (a *Admission) modify(ctx context.Context, w write, check rules, change func(old schemas.Object) (schemas.Object, error)) (reply, error) {
	return a.once(ctx, w, func() (reply, error) {
		for try := 0; again(ctx, try); try++ {
			old, err := a.current(w.kind, w.call.Namespace, w.call.Name)
			if r, found, lookErr := a.repeated(ctx, w, false); found || lookErr != nil {
				return r, lookErr
			}
			if err != nil {
				return reply{}, err
			}
			updated, err := change(old)
			if err != nil {
				return reply{}, err
			}
			if v := updated.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
				return reply{}, conflict(w.kind, w.call.Name, old)
			}
			r, err := a.replace(ctx, w, check, updated, old)
			if !errors.Is(err, bus.ErrConflict) {
				return r, err
			}
			if err := pause(ctx, try); err != nil {
				return reply{}, err
			}
		}
		return reply{}, conflict(w.kind, w.call.Name, a.store.View().Get(w.kind.Resource, w.call.Namespace, w.call.Name))
	})
}

// replace checks updated against old and stores it. The error wraps
// bus.ErrConflict where old is not what is stored.
func (a *Admission) replace(ctx context.Context, w write, check rules, updated, old schemas.Object) (reply, error) {
	// Who manages what is the library's to read and to write: what a user sends of
	// it may be an order to forget it.
	said := updated.GetManagedFields()
	updated.SetManagedFields(old.GetManagedFields())
	warnings, err := check(w.kind, updated, old)
	if err != nil {
		return reply{}, err
	}
	updated.SetManagedFields(said)
	updated.SetResourceVersion(old.GetResourceVersion())
	if updated, err = a.track(w, updated, old); err != nil {
		return reply{}, err
	}
	if err := fits(w.kind, updated); err != nil {
		return reply{}, err
	}
	result, stored := configured, updated
	switch {
	case equality.Semantic.DeepEqual(updated, old):
		result, stored = unchanged, old
	case w.dryRun:
	case lifecycle.Removable(updated) && !lifecycle.Removable(old):
		// The last finalizer of a deleted object was taken off.
		if err := a.remove(w.context(ctx, result), w.kind, old); err != nil {
			return reply{}, err
		}
	default:
		if stored, err = a.store.Update(w.context(ctx, result), updated); err != nil {
			if errors.Is(err, bus.ErrConflict) {
				return reply{}, err
			}
			return reply{}, storeError(err, w.kind, old.GetName(), old)
		}
	}
	r, err := w.reply(stored, false)
	r.result, r.warnings = result, slices.Concat(r.warnings, warnings)
	return r, err
}

// keepAssigned carries over what Gantry filled in and a manifest leaves out.
func keepAssigned(updated, old schemas.Object) {
	switch n := updated.(type) {
	case *corev1.Service:
		if o := old.(*corev1.Service); n.Spec.ClusterIP == "" && len(n.Spec.ClusterIPs) == 0 {
			n.Spec.ClusterIP, n.Spec.ClusterIPs = o.Spec.ClusterIP, o.Spec.ClusterIPs
		}
	case *corev1.Pod:
		if o := old.(*corev1.Pod); n.Spec.NodeName == "" {
			n.Spec.NodeName = o.Spec.NodeName
		}
	}
}

// systemFields refuses changes to a system kind beyond what users may change.
func systemFields(kind schemas.Kind, updated, old schemas.Object) error {
	if !kind.SystemOnly {
		return nil
	}
	rest := updated.DeepCopyObject().(schemas.Object)
	rest.SetLabels(old.GetLabels())
	rest.SetAnnotations(old.GetAnnotations())
	rest.SetFinalizers(old.GetFinalizers())
	if n, ok := rest.(*corev1.Node); ok {
		n.Spec.Unschedulable = old.(*corev1.Node).Spec.Unschedulable
	}
	if changed := schemas.FirstDifference(rest, old); changed != "" {
		return forbidden(kind, old.GetName(), "%s is Gantry's to write; labels, annotations and spec.unschedulable may be changed", changed)
	}
	return nil
}
