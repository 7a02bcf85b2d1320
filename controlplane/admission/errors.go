package admission

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

func groupResource(k schemas.Kind) schema.GroupResource {
	return schema.GroupResource{Group: k.GVK.Group, Resource: k.Resource}
}

func unknownResource(resource string) error {
	var names []string
	for _, k := range schemas.Kinds {
		if k.Refused == "" {
			names = append(names, k.Resource)
		}
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: fmt.Sprintf("Gantry has no resource %q; it has %s", resource, strings.Join(names, ", ")),
		Details: &metav1.StatusDetails{Kind: resource},
	}}
}

// refusedKind is the answer to a call about a kind that nothing acts on yet.
func refusedKind(kind schemas.Kind) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: fmt.Sprintf("%s are not supported by Gantry yet: %s; see docs/supported-fields.md", kind.Resource, kind.Refused),
		Details: &metav1.StatusDetails{Group: kind.GVK.Group, Kind: kind.Resource},
	}}
}

// statusOf is the answer that an error gives to the caller.
func statusOf(err error) *metav1.Status {
	var known apierrors.APIStatus
	if errors.As(err, &known) {
		s := known.Status()
		fill(&s)
		return &s
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		known = apierrors.NewTimeoutError("the store did not answer in time: a write may have taken place or not. "+
			"To repeat it is safe under the same "+schemas.HeaderRequest+" header: then it happens once. "+err.Error(), 1)
	case errors.Is(err, context.Canceled):
		known = apierrors.NewServiceUnavailable("the server is stopping; ask again: " + err.Error())
	default:
		known = apierrors.NewInternalError(err)
	}
	s := known.Status()
	fill(&s)
	return &s
}

// fill writes the kind and version that a status needs to be read as one, and
// sees that it fits into an answer.
func fill(s *metav1.Status) {
	s.Kind, s.APIVersion = "Status", "v1"
	s.Message = cut(s.Message, longestMessage)
	if s.Details == nil {
		return
	}
	// The details are the error's, which others may hold.
	d := *s.Details
	d.Name, d.Kind = cut(d.Name, longestName), cut(d.Kind, longestName)
	d.Causes = slices.Clone(d.Causes[:min(len(d.Causes), mostCauses)])
	for i := range d.Causes {
		d.Causes[i].Message, d.Causes[i].Field = cut(d.Causes[i].Message, longestCause), cut(d.Causes[i].Field, longestCause)
	}
	s.Details = &d
}

// What a refusal may hold, in bytes and causes. What a manifest says wrong comes
// back in it, twice, and a manifest may be nearly as large as an answer.
const (
	longestMessage = 16 << 10
	longestCause   = 1 << 10
	longestName    = 512
	mostCauses     = 50
)

// cut shortens a text and says so.
func cut(s string, longest int) string {
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + fmt.Sprintf("... (%d bytes more)", len(s)-longest)
}

// storeError says in the API's words what the store refused. o is what was to
// be written; current may be nil.
func storeError(err error, kind schemas.Kind, name string, current schemas.Object) error {
	switch gr := groupResource(kind); {
	case err == nil:
		return nil
	case errors.Is(err, bus.ErrNotFound):
		return apierrors.NewNotFound(gr, name)
	case errors.Is(err, bus.ErrExists):
		return apierrors.NewAlreadyExists(gr, name)
	case errors.Is(err, bus.ErrConflict):
		return conflict(kind, name, current)
	case errors.Is(err, bus.ErrTooLarge):
		return tooLarge(kind, name, err.Error())
	case errors.Is(err, bus.ErrForbidden):
		return apierrors.NewForbidden(gr, name, err)
	}
	return err
}

// conflict refuses a write because another came first. current is what is
// stored now, nil where that is not known.
func conflict(kind schemas.Kind, name string, current schemas.Object) error {
	why := "the object has been modified"
	if current != nil {
		why = fmt.Sprintf("the object has been modified and is now at resourceVersion %s", current.GetResourceVersion())
	}
	err := apierrors.NewConflict(groupResource(kind), name, errors.New(why+"; please apply your changes to the latest version and try again"))
	if current != nil {
		err.ErrStatus.Details.UID = current.GetUID()
		err.ErrStatus.Details.Causes = []metav1.StatusCause{{
			Type: causeCurrentRevision, Field: "metadata.resourceVersion", Message: current.GetResourceVersion(),
		}}
	}
	return err
}

// causeCurrentRevision is the cause of a conflict whose message is the
// resourceVersion that is stored.
const causeCurrentRevision metav1.CauseType = "CurrentResourceVersion"

func tooLarge(kind schemas.Kind, name, why string) error {
	err := apierrors.NewRequestEntityTooLargeError(fmt.Sprintf(
		"%s %q is too large: %s; an object may have at most %d bytes as JSON, its %s annotation included",
		kind.Resource, name, why, schemas.MaxObjectBytes, lastApplied))
	err.ErrStatus.Details = &metav1.StatusDetails{Name: name, Group: kind.GVK.Group, Kind: kind.Resource}
	return err
}

func invalidObject(kind schemas.Kind, name string, errs field.ErrorList) error {
	return invalid(kind.GVK.GroupKind(), name, errs)
}

// invalid is apierrors.NewInvalid for any number of errors: it takes time that
// grows with the square of what they say, and each may quote all of a manifest.
func invalid(kind schema.GroupKind, name string, errs field.ErrorList) error {
	more := len(errs) - mostCauses
	short := make(field.ErrorList, 0, min(len(errs), mostCauses))
	for _, e := range errs[:min(len(errs), mostCauses)] {
		if v, ok := e.BadValue.(string); ok && len(v) > longestCause {
			quoted := *e
			quoted.BadValue = cut(v, longestCause)
			e = &quoted
		}
		short = append(short, e)
	}
	err := apierrors.NewInvalid(kind, cut(name, longestName), short)
	if more > 0 {
		err.ErrStatus.Message = cut(err.ErrStatus.Message, longestMessage-128) + fmt.Sprintf(" and %d problems more", more)
	}
	return err
}

func forbidden(kind schemas.Kind, name, format string, args ...any) error {
	return apierrors.NewForbidden(groupResource(kind), name, fmt.Errorf(format, args...))
}

// decodeError is the answer to a body that is no object of ours: each problem
// becomes a cause with its field.
func decodeError(kind schemas.Kind, err error) error {
	var d *schemas.DecodeError
	if !errors.As(err, &d) {
		return apierrors.NewBadRequest(err.Error())
	}
	if d.TooLarge {
		return tooLarge(kind, d.Name, d.Problems[0].Detail)
	}
	status := apierrors.NewBadRequest(err.Error())
	details := &metav1.StatusDetails{Name: d.Name, Group: kind.GVK.Group, Kind: kind.Resource}
	for _, p := range d.Problems {
		details.Causes = append(details.Causes, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: p.Path, Message: p.Detail})
	}
	status.ErrStatus.Details = details
	return status
}
