package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// lastApplied is where kubectl keeps what the last apply said; the same name
// lets its users go on.
const lastApplied = corev1.LastAppliedConfigAnnotation

// apply merges a manifest with what its last apply said and what is stored. It
// is the convenience for clients without a merge of their own; server-side
// apply is a patch.
func (a *Admission) apply(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if err := systemOnly(kind, call.Verb, call.Name); err != nil {
		return reply{}, err
	}
	w, err := readWrite(kind, call, header, body, "")
	if err != nil {
		return reply{}, err
	}
	d, err := manifest(kind, call, body)
	if err != nil {
		return reply{}, err
	}
	if d.Object.GetName() == "" {
		return reply{}, apierrors.NewBadRequest("apply needs metadata.name: generateName works with create only")
	}
	modified, err := asWritten(d)
	if err != nil {
		return reply{}, err
	}
	w.call.Name, w.call.Namespace = d.Object.GetName(), d.Object.GetNamespace()
	version := d.Object.GetResourceVersion()
	return a.upsert(ctx, w, func() (schemas.Object, error) {
		if version != "" {
			return nil, apierrors.NewNotFound(groupResource(kind), w.call.Name)
		}
		return fromMap(kind, modified)
	}, func(old schemas.Object) (schemas.Object, error) {
		if err := sameUID(kind, d.Object, old); err != nil {
			return nil, err
		}
		if version != "" && version != old.GetResourceVersion() {
			return nil, conflict(kind, old.GetName(), old)
		}
		return merged(kind, modified, old)
	})
}

// upsert creates an object where there is none, and changes it where there is.
func (a *Admission) upsert(ctx context.Context, w write, made func() (schemas.Object, error), change func(old schemas.Object) (schemas.Object, error)) (reply, error) {
	return a.once(ctx, w, func() (reply, error) {
		for try := 0; again(ctx, try); try++ {
			if a.store.View().Get(w.kind.Resource, w.call.Namespace, w.call.Name) == nil {
				r, found, err := a.repeated(ctx, w, false)
				if found || err != nil {
					return r, err
				}
				o, err := made()
				if err != nil {
					return reply{}, err
				}
				if r, err = a.insertChecked(ctx, w, o); !apierrors.IsAlreadyExists(err) {
					return r, err
				}
			} else if r, err := a.modify(ctx, w, specRules, change); !apierrors.IsNotFound(err) {
				return r, err
			}
			// It came or went meanwhile.
			if err := pause(ctx, try); err != nil {
				return reply{}, err
			}
		}
		return reply{}, conflict(w.kind, w.call.Name, nil)
	})
}

// asWritten is the manifest as a map, without what is Gantry's to say, with
// itself recorded in the annotation that the next apply compares with.
func asWritten(d schemas.Document) (map[string]any, error) {
	var m map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(d.JSON, &m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	delete(m, "status")
	meta, ok := m["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		m["metadata"] = meta
	}
	for _, key := range []string{"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
		"managedFields", "selfLink", "uid", "resourceVersion"} {
		delete(meta, key)
	}
	meta["name"] = d.Object.GetName()
	if ns := d.Object.GetNamespace(); ns != "" {
		meta["namespace"] = ns
	}
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		annotations = map[string]any{}
		meta["annotations"] = annotations
	}
	delete(annotations, lastApplied)
	record, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(record) > apivalidation.TotalAnnotationSizeLimitB {
		return nil, tooLarge(schemas.KindOf(d.Object), d.Object.GetName(), fmt.Sprintf(
			"apply keeps the manifest in an annotation, which may have %d bytes, and this one has %d; use create or update, or server-side apply, which keeps none (gantry apply --server-side)",
			apivalidation.TotalAnnotationSizeLimitB, len(record)))
	}
	annotations[lastApplied] = string(record) + "\n"
	return m, nil
}

// merged is what applying modified makes of old.
func merged(kind schemas.Kind, modified map[string]any, old schemas.Object) (schemas.Object, error) {
	current, err := toMap(old)
	if err != nil {
		return nil, err
	}
	var original map[string]any
	if record := old.GetAnnotations()[lastApplied]; record != "" {
		// A record that cannot be read takes nothing out: kubectl fails here, but
		// then no apply could ever mend it.
		if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(record), &original); err != nil {
			original = nil
		}
	}
	return fromMap(kind, mergeApply(original, modified, current, reflect.TypeOf(old)))
}
