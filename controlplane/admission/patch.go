package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

const (
	// maxOperations bounds a JSON patch, as Kubernetes does.
	maxOperations = 10_000
	// operationsAtOnce are done between two looks at the clock: each may move a
	// list of some hundred thousand elements.
	operationsAtOnce = 500
	// maxComparisons bounds a strategic merge patch: some tenths of a second.
	maxComparisons = 4_000_000
)

// The library bounds what the operations "copy" may add up to by this variable
// alone. A patch of a few hundred bytes can double a value twenty times.
func init() { jsonpatch.AccumulatedCopySizeLimit = 2 * schemas.MaxObjectBytes }

func (a *Admission) patch(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if kind.Resource != schemas.Nodes {
		if err := systemOnly(kind, call.Verb, call.Name); err != nil {
			return reply{}, err
		}
	}
	p, err := readPatch(header, body)
	if err != nil {
		return reply{}, err
	}
	w, err := readWrite(kind, call, header, body, p.kind)
	if err != nil {
		return reply{}, err
	}
	if p.kind == types.ApplyPatchType {
		return a.serverSideApply(ctx, w, body)
	}
	return a.modify(ctx, w, rulesOf(call), func(old schemas.Object) (schemas.Object, error) {
		doc, err := json.Marshal(old)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", kind.Singular, old.GetName(), err)
		}
		if doc, err = p.apply(ctx, doc, kind.New()); err != nil {
			return nil, err
		}
		o, err := fromJSON(kind, doc)
		if err != nil {
			return nil, err
		}
		return o, sameUID(kind, o, old)
	})
}

// patch is one patch, read and found to be of its kind's form.
type patch struct {
	kind       types.PatchType
	operations jsonpatch.Patch // of a JSON patch
	body       []byte          // of the others
}

// readPatch reads what a patch is by its content type: without one an object
// is a merge patch and a list a JSON patch.
func readPatch(header map[string][]string, body []byte) (patch, error) {
	p := patch{body: body}
	if len(body) > schemas.MaxObjectBytes {
		return p, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patch has %d bytes, more than the limit of %d", len(body), schemas.MaxObjectBytes))
	}
	if !utf8.Valid(body) {
		return p, apierrors.NewBadRequest("the patch is not valid UTF-8")
	}
	said, _, _ := strings.Cut(headerOf(header, schemas.HeaderContentType), ";")
	trimmed := strings.TrimSpace(string(body[:min(len(body), 64)]))
	switch strings.TrimSpace(said) {
	case "", "application/json":
		p.kind = types.MergePatchType
		if strings.HasPrefix(trimmed, "[") {
			p.kind = types.JSONPatchType
		}
	case schemas.PatchJSON:
		p.kind = types.JSONPatchType
	case schemas.PatchMerge:
		p.kind = types.MergePatchType
	case schemas.PatchStrategic:
		p.kind = types.StrategicMergePatchType
	case schemas.PatchApply:
		p.kind = types.ApplyPatchType
		return p, nil // it is a manifest, and read as one
	default:
		return p, unsupportedPatch(said)
	}
	if p.kind != types.JSONPatchType {
		_, err := p.object()
		return p, err
	}
	return p, p.readOperations()
}

func unsupportedPatch(said string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: fmt.Sprintf("%s %q is no patch; there are %s, %s, %s and %s", schemas.HeaderContentType, said,
			schemas.PatchJSON, schemas.PatchMerge, schemas.PatchStrategic, schemas.PatchApply),
	}}
}

// object is the patch as a map of its own, which the merge may take apart.
func (p patch) object() (map[string]any, error) {
	name := "a merge patch, RFC 7386"
	if p.kind == types.StrategicMergePatchType {
		name = "a strategic merge patch"
	}
	var m map[string]any
	strict, err := strictJSON(p.body, &m)
	if err == nil && m == nil {
		err = errors.New("it is null")
	}
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the patch is not a JSON object (%s): %v", name, err))
	}
	return m, nil
}

func (p *patch) readOperations() error {
	var list []any
	strict, err := strictJSON(p.body, &list)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err == nil {
		p.operations, err = jsonpatch.DecodePatch(p.body)
	}
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("the patch is not a list of operations (a JSON patch, RFC 6902): %v", err))
	}
	if n := len(p.operations); n > maxOperations {
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patch has %d operations, more than the limit of %d", n, maxOperations))
	}
	return nil
}

// apply patches a JSON document. like is an empty value of the document's Go
// type, whose tags say how a strategic merge goes about its lists.
func (p patch) apply(ctx context.Context, doc []byte, like any) ([]byte, error) {
	switch p.kind {
	case types.JSONPatchType:
		return p.operate(ctx, doc)
	case types.StrategicMergePatchType:
		return p.strategic(doc, like)
	}
	change, err := p.object()
	if err != nil {
		return nil, err
	}
	var current map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(doc, &current); err != nil {
		return nil, fmt.Errorf("decode what is patched: %w", err)
	}
	return json.Marshal(mergePatch(current, change))
}

// operate does the operations of a JSON patch. What comes of some of them is
// never seen: all of them hold, or none.
func (p patch) operate(ctx context.Context, doc []byte) ([]byte, error) {
	for ops := p.operations; len(ops) > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(len(ops), operationsAtOnce)
		out, err := ops[:n].Apply(doc)
		if err != nil {
			return nil, unprocessable(err)
		}
		if len(out) > 2*schemas.MaxObjectBytes {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf(
				"the patch makes the object larger than %d bytes", schemas.MaxObjectBytes))
		}
		doc, ops = out, ops[n:]
	}
	return doc, nil
}

// unprocessable is the answer to a patch that is well-formed and does not fit.
func unprocessable(err error) error {
	var size *jsonpatch.AccumulatedCopySizeError
	if errors.As(err, &size) {
		return apierrors.NewRequestEntityTooLargeError("the patch copies too much: " + err.Error())
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: "the server rejected our request due to an error in our request: " + err.Error(),
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: metav1.CauseTypeUnexpectedServerResponse, Message: err.Error()}}},
	}}
}

// strategic merges lists by the keys that the Go types declare. The library
// panics on some patches that contradict the types.
func (p patch) strategic(doc []byte, like any) (out []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, apierrors.NewBadRequest(fmt.Sprintf("the strategic merge patch does not fit the object: %v", r))
		}
	}()
	change, err := p.object()
	if err != nil {
		return nil, err
	}
	var current map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(doc, &current); err != nil {
		return nil, fmt.Errorf("decode what is patched: %w", err)
	}
	// The library looks for each element among all others: 24,000 in 24,000 took
	// it most of a minute, which no context ends.
	said, longest := elements(change)
	_, there := elements(current)
	if longest = max(longest, there); said*longest > maxComparisons {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf(
			"the strategic merge patch has %d elements of lists to be found among %d: more than the limit of %d comparisons; patch fewer, or use %s, %s or %s",
			said, longest, maxComparisons, schemas.PatchJSON, schemas.PatchMerge, schemas.PatchApply))
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(current, change, like)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the strategic merge patch does not fit the object: %v", err))
	}
	return json.Marshal(merged)
}

// elements counts those of all lists in a value, and of the longest.
func elements(v any) (all, longest int) {
	count := func(v any) {
		a, l := elements(v)
		all, longest = all+a, max(longest, l)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, one := range v {
			count(one)
		}
	case []any:
		all, longest = len(v), len(v)
		for _, one := range v {
			count(one)
		}
	}
	return all, longest
}
