package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

func (a *Admission) delete(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if headerOf(header, schemas.HeaderOptions) != "" {
		return reply{}, apierrors.NewBadRequest("header " + schemas.HeaderOptions + ": the options of a delete are its body")
	}
	opts, err := readDeleteOptions(body)
	if err != nil {
		return reply{}, err
	}
	w, err := write{kind: kind, call: call}.withID(header, body)
	if err != nil {
		return reply{}, err
	}
	return a.deleteWith(ctx, w, opts)
}

// deleteWith deletes one object.
func (a *Admission) deleteWith(ctx context.Context, w write, opts metav1.DeleteOptions) (reply, error) {
	w.dryRun = w.dryRun || len(opts.DryRun) > 0
	if err := mayDelete(w.kind, w.call.Name); err != nil {
		return reply{}, err
	}
	return a.once(ctx, w, func() (reply, error) {
		for try := 0; again(ctx, try); try++ {
			old, err := a.current(w.kind, w.call.Namespace, w.call.Name)
			if r, found, lookErr := a.repeated(ctx, w, false); found || lookErr != nil {
				return r, lookErr
			}
			if err != nil {
				return reply{}, err
			}
			if err := preconditions(w.kind, old, opts.Preconditions); err != nil {
				return reply{}, err
			}
			stored, deleted, err := a.deleteOnce(ctx, w, old, opts)
			if errors.Is(err, bus.ErrConflict) {
				if err := pause(ctx, try); err != nil {
					return reply{}, err
				}
				continue
			}
			if err != nil {
				return reply{}, err
			}
			return w.reply(stored, deleted)
		}
		return reply{}, conflict(w.kind, w.call.Name, a.store.View().Get(w.kind.Resource, w.call.Namespace, w.call.Name))
	})
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

// deleteOnce marks or removes one reading of the object, and returns it as it
// is now, or was last. The error wraps bus.ErrConflict where it is no longer
// what is stored.
func (a *Admission) deleteOnce(ctx context.Context, w write, old schemas.Object, opts metav1.DeleteOptions) (o schemas.Object, deleted bool, err error) {
	marked, remove := lifecycle.MarkDeleted(old, opts, a.now())
	if remove {
		if w.dryRun {
			return old, true, nil
		}
		return old, true, a.remove(w.context(ctx, ""), w.kind, old)
	}
	if marked == old || w.dryRun {
		return marked, false, nil
	}
	stored, err := a.store.Update(w.context(ctx, ""), marked)
	if err != nil && !errors.Is(err, bus.ErrConflict) {
		err = storeError(err, w.kind, old.GetName(), old)
	}
	return stored, false, err
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
