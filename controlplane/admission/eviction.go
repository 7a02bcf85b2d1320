package admission

import (
	"context"

	policyv1 "k8s.io/api/policy/v1"

	"gantry.dev/schemas"
)

// eviction serves create of pods/eviction: a delete that disruption budgets
// may hold back. There are none yet, so it is a delete with a grace period.
func (a *Admission) eviction(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if kind.Resource != schemas.Pods {
		return reply{}, noSubresource(kind, call)
	}
	if err := verbOf(kind, call, schemas.VerbCreate); err != nil {
		return reply{}, err
	}
	var e struct {
		policyv1.Eviction `json:",inline"`
		DeleteOptions     rawJSON `json:"deleteOptions"`
	}
	if err := decodeOptions(body, &e, "Eviction"); err != nil {
		return reply{}, err
	}
	call, err := subject(kind, call, &e.ObjectMeta)
	if err != nil {
		return reply{}, err
	}
	opts, err := readDeleteOptions(e.DeleteOptions)
	if err != nil {
		return reply{}, err
	}
	w, err := readWrite(kind, call, header, body, "")
	if err != nil {
		return reply{}, err
	}
	w.answer = func(o schemas.Object, _ bool) (reply, error) { return success(kind, call.Name, o) }
	return a.deleteWith(ctx, w, opts)
}

// rawJSON is a part of a body that is read by itself.
type rawJSON []byte

func (r *rawJSON) UnmarshalJSON(data []byte) error {
	if string(data) != "null" {
		*r = append((*r)[:0], data...)
	}
	return nil
}
