package admission

import (
	"context"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

// status serves the subresource by which an object's status is read and
// written, and nothing else of it. The body is the whole object.
func (a *Admission) status(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if !hasStatus(kind) {
		return reply{}, noSubresource(kind, call)
	}
	if err := verbOf(kind, call, schemas.VerbGet, schemas.VerbUpdate, schemas.VerbPatch); err != nil {
		return reply{}, err
	}
	if err := single(kind, call); err != nil {
		return reply{}, err
	}
	if call.Verb == schemas.VerbGet {
		return a.get(ctx, kind, call, body)
	}
	if err := systemOnly(kind, call.Verb+" of the status", call.Name); err != nil {
		return reply{}, err
	}
	if call.Verb == schemas.VerbUpdate {
		return a.update(ctx, kind, call, header, body)
	}
	return a.patch(ctx, kind, call, header, body)
}

// statusRules hold for a write of the status: all else stays as it is.
func statusRules(kind schemas.Kind, updated, old schemas.Object) ([]string, error) {
	lifecycle.PrepareStatusUpdate(updated, old)
	updated.SetResourceVersion(old.GetResourceVersion())
	if errs := append(schemas.ValidateUpdate(updated, old), schemas.ValidateStatus(updated, old)...); len(errs) > 0 {
		return nil, invalidObject(kind, old.GetName(), errs)
	}
	return nil, nil
}

// hasStatus says that objects of the kind have a status.
func hasStatus(kind schemas.Kind) bool {
	_, ok := reflect.TypeOf(kind.New()).Elem().FieldByName("Status")
	return ok
}

func noSubresource(kind schemas.Kind, call schemas.Call) error {
	err := apierrors.NewNotFound(groupResource(kind), call.Name)
	err.ErrStatus.Message = fmt.Sprintf("%s have no subresource %q", kind.Resource, call.Subresource)
	return err
}
