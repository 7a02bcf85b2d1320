package admission

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// A write that carries a request's id (schemas.HeaderRequest) happens once: the
// id lies with what it stored, and who asks again under the same id is given
// what the first one was given. Each attempt at a write looks for the id after
// it has read the object. Where the id is not there then, it was not when the
// object was read, and what another attempt stores since makes ours a conflict.

// repeated answers a write that was done before. With ask it reads the bus,
// where another server's write may not have come to our view.
func (a *Admission) repeated(ctx context.Context, w write, ask bool) (r reply, found bool, err error) {
	if w.id == "" || w.dryRun || w.call.Name == "" {
		return reply{}, false, nil
	}
	was, found, err := a.store.WrittenBy(ctx, w.kind.Resource, w.call.Namespace, w.call.Name, w.id, ask)
	if err != nil || !found {
		return reply{}, false, err
	}
	if was.Object == nil && !was.Deleted {
		// The write is certain; what it stored has been pushed out by later ones.
		was.Object = a.store.View().Get(w.kind.Resource, w.call.Namespace, w.call.Name)
		was.Deleted = was.Object == nil
	}
	r, err = w.reply(was.Object, was.Deleted)
	r.result = was.Result
	return r, true, err
}

// once makes a write, and looks once more for its id where it fails in a way
// that its own first attempt may have caused.
func (a *Admission) once(ctx context.Context, w write, do func() (reply, error)) (reply, error) {
	r, err := do()
	if w.id == "" || !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
		return r, err
	}
	before, found, lookErr := a.repeated(ctx, w, true)
	switch {
	case lookErr != nil:
		// To say that the object exists, or is gone, might be to refuse what this
		// very request did.
		return reply{}, apierrors.NewTimeoutError(fmt.Sprintf("whether the write took place is not known (%v); ask again with the same %s", lookErr, schemas.HeaderRequest), 1)
	case found:
		return before, nil
	}
	return r, err
}

// context gives what is stored under it the request's id.
func (w write) context(ctx context.Context, result string) context.Context {
	if w.id == "" {
		return ctx
	}
	return bus.WithRequest(ctx, bus.Request{ID: w.id, Result: result})
}

// reply is the answer to a write that stored o, or deleted it.
func (w write) reply(o schemas.Object, deleted bool) (reply, error) {
	if w.answer != nil {
		return w.answer(o, deleted)
	}
	if deleted {
		return success(w.kind, w.call.Name, o)
	}
	body, err := json.Marshal(o)
	return reply{body: body}, err
}

// success is the Status of a call that has no object to answer with.
func success(kind schemas.Kind, name string, o schemas.Object) (reply, error) {
	details := &metav1.StatusDetails{Name: name, Group: kind.GVK.Group, Kind: kind.Resource}
	if o != nil {
		details.UID = o.GetUID()
	}
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Details: details,
	})
	return reply{body: body}, err
}
