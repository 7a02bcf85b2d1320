package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// serverSideApply makes the fields of a manifest the manager's: it creates the
// object where there is none, takes out what the manager's last apply said and
// this one does not, and is refused where another manages a field that it
// would change, unless it is forced.
func (a *Admission) serverSideApply(ctx context.Context, w write, body []byte) (reply, error) {
	d, err := manifest(w.kind, w.call, body)
	if err != nil {
		return reply{}, err
	}
	applied, err := asApplied(d)
	if err != nil {
		return reply{}, err
	}
	w.applied = true
	change := func(old schemas.Object) (schemas.Object, error) {
		if err := sameUID(w.kind, d.Object, old); err != nil {
			return nil, err
		}
		return a.applyFields(w, old, applied)
	}
	if w.call.Subresource != "" {
		return a.modify(ctx, w, rulesOf(w.call), change)
	}
	return a.upsert(ctx, w, func() (schemas.Object, error) {
		// A Node may be changed by users, but not made.
		if err := systemOnly(w.kind, schemas.VerbCreate, w.call.Name); err != nil {
			return nil, err
		}
		// Kubernetes answers these alike: what is spoken of is not there.
		if v := d.Object.GetResourceVersion(); v != "" {
			return nil, apierrors.NewNotFound(groupResource(w.kind), w.call.Name)
		}
		if uid := d.Object.GetUID(); uid != "" {
			return nil, apierrors.NewConflict(groupResource(w.kind), w.call.Name,
				fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
		}
		none, err := oneVersion{}.New(w.kind.GVK)
		if err != nil {
			return nil, err
		}
		return a.applyFields(w, none, applied)
	}, change)
}

// asApplied is a manifest as its author wrote it: with the fields that it says,
// and no others.
func asApplied(d schemas.Document) (*unstructured.Unstructured, error) {
	if d.Object.GetManagedFields() != nil {
		return nil, apierrors.NewBadRequest("metadata.managedFields must be nil")
	}
	var said map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(d.JSON, &said); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	applied := &unstructured.Unstructured{Object: said}
	applied.SetName(d.Object.GetName())
	if ns := d.Object.GetNamespace(); ns != "" {
		applied.SetNamespace(ns)
	}
	applied.SetCreationTimestamp(metav1.Time{}) // kubectl and others send null
	return applied, nil
}

// applyFields is what applying a manifest makes of an object.
func (a *Admission) applyFields(w write, live runtime.Object, applied *unstructured.Unstructured) (schemas.Object, error) {
	fields, err := a.managers.of(w.kind, w.call.Subresource)
	if err != nil {
		return nil, err
	}
	out, err := fields.Apply(live.DeepCopyObject(), applied.DeepCopy(), w.manager, w.force)
	if apierrors.IsConflict(err) {
		if same := a.takesOver(w, fields, live, applied); same != nil {
			return same, nil
		}
	}
	if err != nil {
		return nil, applyError(w, err)
	}
	return applyResult(w.kind, out)
}

// takesOver is what the first server-side apply of an object makes of it, where
// it says no more than what is there: nil where anything would change. The
// library compares before defaults are filled in, so that a manifest which was
// applied the other way until now would be in conflict with itself about a
// value with a default inside, such as a fieldRef.
func (a *Admission) takesOver(w write, fields *managedfields.FieldManager, live runtime.Object, applied *unstructured.Unstructured) schemas.Object {
	was, ok := live.(schemas.Object)
	if !ok || len(was.GetManagedFields()) > 0 {
		return nil
	}
	forced, err := fields.Apply(live.DeepCopyObject(), applied.DeepCopy(), w.manager, true)
	if err != nil {
		return nil
	}
	out, err := applyResult(w.kind, forced)
	if err != nil {
		return nil
	}
	bare := out.DeepCopyObject().(schemas.Object)
	schemas.Default(bare)
	bare.SetManagedFields(nil)
	bare.SetResourceVersion(was.GetResourceVersion())
	if !equality.Semantic.DeepEqual(bare, was) {
		return nil
	}
	return out
}

// applyResult reads what the library made.
func applyResult(kind schemas.Kind, out runtime.Object) (schemas.Object, error) {
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode applied %s: %w", kind.Singular, err)
	}
	return fromJSON(kind, data)
}

// applyError is the answer to an apply that cannot be made: a conflict names
// its fields and their managers; all else that the library finds is the
// manifest's fault, such as a key given twice.
func applyError(w write, err error) error {
	var known *apierrors.StatusError
	if !errors.As(err, &known) {
		return apierrors.NewBadRequest(fmt.Sprintf("apply %s %q: %v", w.kind.Singular, w.call.Name, err))
	}
	if d := known.ErrStatus.Details; d != nil && d.Name == "" {
		d.Name, d.Group, d.Kind = w.call.Name, w.kind.GVK.Group, w.kind.Resource
	}
	return known
}

// applyScale applies a Scale: the manager comes to manage the replicas of the
// object itself.
func (a *Admission) applyScale(ctx context.Context, w write, body []byte) (reply, error) {
	w.applied = true
	return a.modify(ctx, w, specRules, func(old schemas.Object) (schemas.Object, error) {
		s, err := readScale(body, old, false)
		if err != nil {
			return nil, err
		}
		updated, err := a.applyFields(w, old, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": w.kind.GVK.GroupVersion().String(), "kind": w.kind.GVK.Kind,
			"metadata": map[string]any{"name": old.GetName(), "namespace": old.GetNamespace()},
			"spec":     map[string]any{"replicas": int64(s.Spec.Replicas)},
		}})
		if err != nil {
			return nil, err
		}
		updated.SetResourceVersion(s.ResourceVersion)
		return updated, nil
	})
}
