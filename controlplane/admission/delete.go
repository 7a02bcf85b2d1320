package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"

	"gantry.dev/bus"
	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

// decodeOptions reads a body of options strictly; an empty one means none.
func decodeOptions(body []byte, into any, what string) error {
	if len(body) == 0 {
		return nil
	}
	strict, err := kjson.UnmarshalStrict(body, into)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("read %s: %v", what, err))
	}
	return nil
}

// readDeleteOptions reads the options that Gantry follows. The others (dryRun
// above all) must not be taken silently for what they are not.
func readDeleteOptions(body []byte) (metav1.DeleteOptions, error) {
	var known struct {
		metav1.TypeMeta    `json:",inline"`
		GracePeriodSeconds *int64                      `json:"gracePeriodSeconds"`
		Preconditions      *metav1.Preconditions       `json:"preconditions"`
		PropagationPolicy  *metav1.DeletionPropagation `json:"propagationPolicy"`
	}
	if err := decodeOptions(body, &known, "DeleteOptions"); err != nil {
		return metav1.DeleteOptions{}, err
	}
	opts := metav1.DeleteOptions{
		GracePeriodSeconds: known.GracePeriodSeconds, Preconditions: known.Preconditions, PropagationPolicy: known.PropagationPolicy,
	}
	if errs := metavalidation.ValidateDeleteOptions(&opts); len(errs) > 0 {
		return opts, apierrors.NewInvalid(schema.GroupKind{Kind: "DeleteOptions"}, "", errs)
	}
	return opts, nil
}

func (a *Admission) delete(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	opts, err := readDeleteOptions(body)
	if err != nil {
		return reply{}, err
	}
	if err := mayDelete(kind, call.Name); err != nil {
		return reply{}, err
	}
	for try := range attempts {
		old, err := a.current(kind, call.Namespace, call.Name)
		if err != nil {
			return reply{}, err
		}
		if err := preconditions(kind, old, opts.Preconditions); err != nil {
			return reply{}, err
		}
		r, err := a.deleteOnce(ctx, kind, old, opts)
		if !errors.Is(err, bus.ErrConflict) {
			return r, err
		}
		if err := pause(ctx, try); err != nil {
			return reply{}, err
		}
	}
	return reply{}, conflict(kind, call.Name, nil)
}

// mayDelete refuses what must stay, and what Gantry would write again at once.
func mayDelete(kind schemas.Kind, name string) error {
	switch kind.Resource {
	case schemas.Namespaces:
		if slices.Contains(immortal, name) {
			return forbidden(kind, name, "this namespace may not be deleted")
		}
	case schemas.EndpointSlices:
		return forbidden(kind, name, "Gantry alone writes %s: they follow their Service", kind.Resource)
	}
	return nil
}

func preconditions(kind schemas.Kind, o schemas.Object, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	gr, name := groupResource(kind), o.GetName()
	if p.UID != nil && *p.UID != o.GetUID() {
		return apierrors.NewConflict(gr, name, fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, o.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != o.GetResourceVersion() {
		return apierrors.NewConflict(gr, name, fmt.Errorf("precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, o.GetResourceVersion()))
	}
	return nil
}

// deleteOnce marks or removes one reading of the object. The error wraps
// bus.ErrConflict where it is no longer what is stored.
func (a *Admission) deleteOnce(ctx context.Context, kind schemas.Kind, old schemas.Object, opts metav1.DeleteOptions) (reply, error) {
	marked, remove := lifecycle.MarkDeleted(old, opts, a.now())
	if !remove {
		stored := old
		if marked != old {
			var err error
			if stored, err = a.store.Update(ctx, marked); err != nil {
				if errors.Is(err, bus.ErrConflict) {
					return reply{}, err
				}
				return reply{}, storeError(err, kind, old.GetName(), old)
			}
		}
		body, err := json.Marshal(stored)
		return reply{body: body}, err
	}
	if err := a.remove(ctx, kind, old); err != nil {
		return reply{}, err
	}
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: old.GetName(), Group: kind.GVK.Group, Kind: kind.Resource, UID: old.GetUID()},
	})
	return reply{body: body}, err
}

// remove takes an object out of the store, and gives back what it held.
func (a *Admission) remove(ctx context.Context, kind schemas.Kind, old schemas.Object) error {
	if err := a.store.Delete(ctx, old); err != nil {
		if errors.Is(err, bus.ErrConflict) {
			return err
		}
		return storeError(err, kind, old.GetName(), old)
	}
	if svc, ok := old.(*corev1.Service); ok {
		a.giveBack(svc)
	}
	return nil
}
