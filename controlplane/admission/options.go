package admission

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

const (
	// defaultManager stands for who writes without saying so; Kubernetes takes
	// the client's user agent there.
	defaultManager = "unknown"
	// longestRequestID bounds HeaderRequest in bytes; a UUID has 36.
	longestRequestID = 128
	// maxDepth bounds the nesting of what is decoded here. No options or patches
	// of ours come near it, and objects have the same bound.
	maxDepth = 100
	// maxOptions bounds in bytes what is read here. No argument of a command can
	// be larger, and what goes on to a node fits into a message also where JSON
	// writes each byte as six.
	maxOptions = 128 << 10
)

// write is one call that changes objects, with what it said of how.
type write struct {
	kind schemas.Kind
	call schemas.Call
	// id is the request's and of one call alone (withID), empty where it has none.
	id      string
	dryRun  bool
	manager string // never empty
	force   bool
	// applied says that a server-side apply has settled who manages what already.
	applied bool
	// answer makes the answer of what was stored; nil answers the object itself.
	// deleted says that the write took it away; o is its last state then, and may
	// be nil where that is no longer known.
	answer func(o schemas.Object, deleted bool) (reply, error)
}

// headerOf is the first value of a header. Clients of the raw protocol write
// names as they like.
func headerOf(header map[string][]string, name string) string {
	if v := header[name]; len(v) > 0 {
		return v[0]
	}
	for k, v := range header {
		if len(v) > 0 && strings.EqualFold(k, name) {
			return v[0]
		}
	}
	return ""
}

// writeOptions is what the options of create, update and patch have in common.
type writeOptions struct {
	metav1.TypeMeta `json:",inline"`
	DryRun          []string `json:"dryRun"`
	FieldManager    string   `json:"fieldManager"`
	FieldValidation string   `json:"fieldValidation"`
	Force           *bool    `json:"force"`
}

// readWrite reads the options of a write from its headers. patch is the type
// of the patch, empty where the write is none.
func readWrite(kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte, patch types.PatchType) (write, error) {
	w := write{kind: kind, call: call}
	var o writeOptions
	if err := decodeOptions([]byte(headerOf(header, schemas.HeaderOptions)), &o, schemas.HeaderOptions); err != nil {
		return w, err
	}
	var errs field.ErrorList
	if patch == "" {
		if o.Force != nil {
			errs = append(errs, field.Forbidden(field.NewPath("force"), "may be given for a server-side apply only"))
		}
		errs = append(errs, metavalidation.ValidateUpdateOptions(&metav1.UpdateOptions{
			DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation})...)
	} else {
		errs = metavalidation.ValidatePatchOptions(&metav1.PatchOptions{
			DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation, Force: o.Force}, patch)
	}
	if v := o.FieldValidation; v != "" && v != metav1.FieldValidationStrict && len(errs) == 0 {
		errs = append(errs, field.NotSupported(field.NewPath("fieldValidation"), v, []string{metav1.FieldValidationStrict}))
	}
	if len(errs) > 0 {
		return w, invalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "PatchOptions"}, "", errs)
	}
	w.dryRun = len(o.DryRun) > 0
	w.manager = o.FieldManager
	if w.manager == "" {
		w.manager = defaultManager
	}
	w.force = o.Force != nil && *o.Force
	return w.withID(header, body)
}

// withID takes the request's id from the headers. The id is kept with a sum of
// what was asked for: a caller that gives one id to two calls by mistake must not
// be told that the second was made when only the first was.
func (w write) withID(header map[string][]string, body []byte) (write, error) {
	w.id = headerOf(header, schemas.HeaderRequest)
	if w.id == "" {
		return w, nil
	}
	if len(w.id) > longestRequestID || strings.ContainsFunc(w.id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return w, apierrors.NewBadRequest(fmt.Sprintf("header %s: want at most %d printable characters without spaces", schemas.HeaderRequest, longestRequestID))
	}
	sum := sha256.New()
	for _, part := range []string{
		w.call.Verb, w.call.Subresource, headerOf(header, schemas.HeaderContentType), headerOf(header, schemas.HeaderOptions), string(body),
	} {
		_, _ = fmt.Fprintf(sum, "%d %s", len(part), part) // a hash takes everything
	}
	w.id += "~" + base64.RawURLEncoding.EncodeToString(sum.Sum(nil)[:9])
	return w, nil
}

// decodeOptions reads a body of options strictly; an empty one means none.
func decodeOptions(body []byte, into any, what string) error {
	if len(body) == 0 {
		return nil
	}
	if len(body) > maxOptions {
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s may have %d bytes, and this has %d", what, maxOptions, len(body)))
	}
	strict, err := strictJSON(body, into)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("read %s: %v", what, err))
	}
	if len(strict) == 0 {
		return ofKind(into, what)
	}
	status := apierrors.NewBadRequest(fmt.Sprintf("read %s: %v", what, strict[0]))
	status.ErrStatus.Details = &metav1.StatusDetails{}
	for _, s := range strict[:min(len(strict), 16)] {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, cause(s))
	}
	return status
}

// ofKind refuses what says that it is something else: where all fields are
// optional, every object looks like empty options.
func ofKind(into any, what string) error {
	t, ok := into.(interface{ GetObjectKind() schema.ObjectKind })
	if !ok {
		return nil
	}
	switch got := t.GetObjectKind().GroupVersionKind().Kind; {
	case got == "", got == what:
		return nil
	case what == schemas.HeaderOptions && slices.Contains([]string{"CreateOptions", "UpdateOptions", "PatchOptions"}, got):
		return nil
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("read %s: it says that it is a %s", what, got))
	}
}

// cause is a problem of strict decoding, with the field that it quotes.
func cause(err error) metav1.StatusCause {
	c := metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Message: err.Error()}
	if f, ok := err.(kjson.FieldError); ok { //nolint:errorlint // the list holds them as they are
		c.Field = f.FieldPath()
	}
	return c
}

// strictJSON reads one JSON value. strict holds unknown and doubled fields.
func strictJSON(body []byte, into any) (strict []error, err error) {
	if !utf8.Valid(body) {
		return nil, fmt.Errorf("not valid UTF-8")
	}
	if tooDeep(body) {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	return kjson.UnmarshalStrict(body, into)
}

// tooDeep says that a JSON text nests beyond maxDepth, before anything
// recurses into it.
func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// readDeleteOptions reads the options that Gantry follows; the others are
// refused by name, not taken silently for what they are not.
func readDeleteOptions(body []byte) (metav1.DeleteOptions, error) {
	var known struct {
		metav1.TypeMeta    `json:",inline"`
		GracePeriodSeconds *int64                      `json:"gracePeriodSeconds"`
		Preconditions      *metav1.Preconditions       `json:"preconditions"`
		PropagationPolicy  *metav1.DeletionPropagation `json:"propagationPolicy"`
		DryRun             []string                    `json:"dryRun"`
	}
	if err := decodeOptions(body, &known, "DeleteOptions"); err != nil {
		return metav1.DeleteOptions{}, err
	}
	opts := metav1.DeleteOptions{
		GracePeriodSeconds: known.GracePeriodSeconds, Preconditions: known.Preconditions,
		PropagationPolicy: known.PropagationPolicy, DryRun: known.DryRun,
	}
	if errs := metavalidation.ValidateDeleteOptions(&opts); len(errs) > 0 {
		return opts, invalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "DeleteOptions"}, "", errs)
	}
	return opts, nil
}

// readListOptions reads the options of a list or watch. Those that mean
// nothing to the verb are refused by name.
func readListOptions(body []byte, verb string) (metav1.ListOptions, error) {
	var opts metav1.ListOptions
	if err := decodeOptions(body, &opts, "ListOptions"); err != nil {
		return opts, err
	}
	refuse := func(name, why string) error {
		return apierrors.NewBadRequest(fmt.Sprintf("read ListOptions: %s: %s", name, why))
	}
	listing := verb != schemas.VerbWatch
	exact, notOlder := metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan
	match := opts.ResourceVersionMatch
	switch {
	case opts.Limit < 0:
		return opts, refuse("limit", "must not be negative")
	case opts.TimeoutSeconds != nil && *opts.TimeoutSeconds < 0:
		return opts, refuse("timeoutSeconds", "must not be negative")
	case match != "" && match != exact && match != notOlder:
		return opts, refuse("resourceVersionMatch", fmt.Sprintf("%q is not one of %s", match, []metav1.ResourceVersionMatch{exact, notOlder}))
	case listing && opts.Watch:
		return opts, refuse("watch", "a watch is a verb of its own")
	case listing && opts.SendInitialEvents != nil:
		return opts, refuse("sendInitialEvents", "is for a watch")
	case listing && opts.AllowWatchBookmarks:
		return opts, refuse("allowWatchBookmarks", "is for a watch")
	case listing && match != "" && opts.ResourceVersion == "":
		return opts, refuse("resourceVersionMatch", "may not be given without resourceVersion")
	case match != "" && opts.Continue != "":
		return opts, refuse("resourceVersionMatch", "may not be given with continue")
	case listing && match == exact && opts.ResourceVersion == "0":
		return opts, refuse("resourceVersionMatch", `"Exact" may not be given with resourceVersion "0"`)
	case opts.Continue != "" && opts.ResourceVersion != "" && opts.ResourceVersion != "0":
		return opts, refuse("resourceVersion", "may not be given with continue")
	case !listing && opts.Continue != "":
		return opts, refuse("continue", "a watch has no pages")
	case !listing && opts.SendInitialEvents == nil && match != "":
		return opts, refuse("resourceVersionMatch", "may not be given for a watch without sendInitialEvents")
	case !listing && opts.SendInitialEvents != nil && match != notOlder:
		return opts, refuse("resourceVersionMatch", fmt.Sprintf("sendInitialEvents wants %q", notOlder))
	}
	return opts, nil
}

// single refuses a call that names no object.
func single(kind schemas.Kind, call schemas.Call) error {
	what := call.Verb + " " + kind.Resource
	if call.Subresource != "" {
		what += "/" + call.Subresource
	}
	if call.Name == "" {
		return apierrors.NewBadRequest(what + ": the subject names no object")
	}
	if kind.Namespaced && call.Namespace == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s %q: the subject names no namespace", what, call.Name))
	}
	return nil
}

// verbOf refuses a verb that a subresource does not have.
func verbOf(kind schemas.Kind, call schemas.Call, has ...string) error {
	if slices.Contains(has, call.Verb) {
		return nil
	}
	err := methodNotAllowed(kind, call)
	if s, ok := err.(*apierrors.StatusError); ok { //nolint:errorlint // it was made here
		s.ErrStatus.Message = fmt.Sprintf("%s/%s has no verb %s; it has %s", kind.Resource, call.Subresource, call.Verb, strings.Join(has, ", "))
	}
	return err
}
