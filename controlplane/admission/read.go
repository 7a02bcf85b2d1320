package admission

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// maxReply bounds the items of one answer in bytes, below the bus's message
// size of 1 MiB. A single object may take all of it.
const maxReply = schemas.MaxObjectBytes

func (a *Admission) get(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if len(body) > 0 {
		if err := a.reachGet(ctx, kind, body); err != nil {
			return reply{}, err
		}
	}
	o, err := a.current(kind, call.Namespace, call.Name)
	if err != nil {
		return reply{}, err
	}
	data, err := a.encoded.of(o)
	return reply{body: data}, err
}

// reachGet follows the options of a get: with a resourceVersion the answer is
// not older than it.
func (a *Admission) reachGet(ctx context.Context, kind schemas.Kind, body []byte) error {
	var opts metav1.GetOptions
	if err := decodeOptions(body, &opts, "GetOptions"); err != nil {
		return err
	}
	_, err := a.reach(ctx, kind, opts.ResourceVersion)
	return err
}

// reach reads a resourceVersion and waits until the view has come to it; it
// returns 0 where none is said.
func (a *Admission) reach(ctx context.Context, kind schemas.Kind, version string) (uint64, error) {
	if version == "" || version == "0" {
		return 0, nil
	}
	revision, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion: invalid resource version %q", version))
	}
	err = a.store.Reach(ctx, kind.Resource, revision)
	if errors.Is(err, bus.ErrTooOld) {
		timeout := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", revision, bus.RevisionOf(a.store.View(), kind.Resource)), 1)
		timeout.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
		return 0, timeout
	}
	return revision, err
}

// selection is which objects a list or watch is about.
type selection struct {
	namespace string
	labels    labels.Selector
	fields    fields.Selector
}

const (
	// maxSelector bounds a selector in bytes, maxRequirements its terms: each
	// object of a list is held against all of them.
	maxSelector     = 16 << 10
	maxRequirements = 256
)

func selectionOf(kind schemas.Kind, call schemas.Call, opts *metav1.ListOptions) (selection, error) {
	s := selection{namespace: call.Namespace}
	var err error
	for name, text := range map[string]string{"labelSelector": opts.LabelSelector, "fieldSelector": opts.FieldSelector} {
		if len(text) > maxSelector {
			return s, apierrors.NewBadRequest(fmt.Sprintf("%s: it has %d bytes, more than the limit of %d", name, len(text), maxSelector))
		}
	}
	if s.labels, err = labels.Parse(opts.LabelSelector); err != nil {
		return s, apierrors.NewBadRequest(fmt.Sprintf("labelSelector %q: %v", opts.LabelSelector, err))
	}
	if s.fields, err = fields.ParseSelector(opts.FieldSelector); err != nil {
		return s, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector %q: %v", opts.FieldSelector, err))
	}
	if terms, _ := s.labels.Requirements(); max(len(terms), len(s.fields.Requirements())) > maxRequirements {
		return s, apierrors.NewBadRequest(fmt.Sprintf("a selector may have %d terms", maxRequirements))
	}
	known := fieldsOf(kind.New())
	for _, r := range s.fields.Requirements() {
		if _, ok := known[r.Field]; !ok {
			var names []string
			for n := range known {
				names = append(names, n)
			}
			sort.Strings(names)
			return s, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector %q: field label not supported: %s; %s have %v", opts.FieldSelector, r.Field, kind.Resource, names))
		}
	}
	if call.Name != "" {
		s.fields = fields.AndSelectors(s.fields, fields.OneTermEqualSelector("metadata.name", call.Name))
	}
	return s, nil
}

// matches takes nil for what is not there.
func (s selection) matches(o schemas.Object) bool {
	if o == nil || s.namespace != "" && o.GetNamespace() != s.namespace {
		return false
	}
	if !s.labels.Empty() && !s.labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	return s.fields.Empty() || s.fields.Matches(fieldsOf(o))
}

// fieldsOf is what a field selector can ask of an object, as in Kubernetes.
func fieldsOf(o schemas.Object) fields.Set {
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	switch o := o.(type) {
	case *corev1.Pod:
		set["spec.nodeName"] = o.Spec.NodeName
		set["spec.restartPolicy"] = string(o.Spec.RestartPolicy)
		set["spec.schedulerName"] = o.Spec.SchedulerName
		set["spec.hostNetwork"] = strconv.FormatBool(o.Spec.HostNetwork)
		set["status.phase"] = string(o.Status.Phase)
		set["status.podIP"] = o.Status.PodIP
		set["status.nominatedNodeName"] = o.Status.NominatedNodeName
	case *corev1.Node:
		set["spec.unschedulable"] = strconv.FormatBool(o.Spec.Unschedulable)
	case *corev1.Namespace:
		set["status.phase"] = string(o.Status.Phase)
	case *corev1.Service:
		set["spec.clusterIP"] = o.Spec.ClusterIP
		set["spec.type"] = string(o.Spec.Type)
	case *corev1.Event:
		set["involvedObject.kind"] = o.InvolvedObject.Kind
		set["involvedObject.namespace"] = o.InvolvedObject.Namespace
		set["involvedObject.name"] = o.InvolvedObject.Name
		set["involvedObject.uid"] = string(o.InvolvedObject.UID)
		set["involvedObject.apiVersion"] = o.InvolvedObject.APIVersion
		set["involvedObject.resourceVersion"] = o.InvolvedObject.ResourceVersion
		set["involvedObject.fieldPath"] = o.InvolvedObject.FieldPath
		set["reason"] = o.Reason
		set["type"] = o.Type
		set["source"] = o.Source.Component
		set["reportingComponent"] = o.ReportingController
	}
	return set
}

// listReply is a list as Kubernetes writes it: <Kind>List with items, which
// are JSON already and follow the rest.
type listReply struct {
	Kind       string          `json:"kind"`
	APIVersion string          `json:"apiVersion"`
	Metadata   metav1.ListMeta `json:"metadata"`
	items      [][]byte
	revision   uint64 // that a continue token carries on
}

// encode puts the items into their place as they are: the encoder would read
// each of their bytes once more.
func (l listReply) encode() ([]byte, error) {
	head, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	size := len(head) + len(`,"items":[]`) + len(l.items)
	for _, item := range l.items {
		size += len(item)
	}
	out := append(make([]byte, 0, size), head[:len(head)-1]...)
	out = append(out, `,"items":[`...)
	for i, item := range l.items {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, item...)
	}
	return append(out, "]}"...), nil
}

// position is a continue token: where the next page begins, and the revision
// of the first page. Nothing of it is kept here. A page is of that revision as
// long as the changes since are remembered, and refused as expired afterwards,
// so the pages of a list are one moment's, and a watch from it misses nothing.
type position struct {
	Revision  uint64 `json:"rv"`
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"name"`
}

func (p position) token() (string, error) {
	data, err := json.Marshal(p)
	return base64.RawURLEncoding.EncodeToString(data), err
}

func readToken(token string) (position, error) {
	var p position
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return p, apierrors.NewBadRequest(fmt.Sprintf("continue: not a token of a list: %v", err))
	}
	return p, nil
}

func (a *Admission) list(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	opts, err := readListOptions(body, call.Verb)
	if err != nil {
		return reply{}, err
	}
	sel, err := selectionOf(kind, call, &opts)
	if err != nil {
		return reply{}, err
	}
	all, revision, err := a.listed(ctx, kind, call, opts)
	if err != nil {
		return reply{}, err
	}
	out := newList(kind, revision)
	size := 0
	for i, o := range all {
		if !sel.matches(o) {
			continue
		}
		item, err := a.encoded.of(o)
		if err != nil {
			return reply{}, fmt.Errorf("encode %s %s: %w", kind.Singular, o.GetName(), err)
		}
		full := opts.Limit > 0 && int64(len(out.items)) == opts.Limit
		if full || len(out.items) > 0 && size+len(item) > maxReply {
			if err := out.goOn(o); err != nil {
				return reply{}, err
			}
			if sel.labels.Empty() && sel.fields.Empty() {
				rest := int64(len(all) - i)
				out.Metadata.RemainingItemCount = &rest
			}
			break
		}
		size += len(item) + 1
		out.items = append(out.items, item)
	}
	data, err := out.encode()
	return reply{body: data}, err
}

// listed is what a list is about before it selects, at the revision that the
// options ask for.
func (a *Admission) listed(ctx context.Context, kind schemas.Kind, call schemas.Call, opts metav1.ListOptions) ([]schemas.Object, uint64, error) {
	exact := opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
		opts.ResourceVersionMatch == "" && opts.Limit > 0 && opts.ResourceVersion != "" && opts.ResourceVersion != "0"
	var from position
	revision, err := a.reach(ctx, kind, opts.ResourceVersion)
	if err != nil {
		return nil, 0, err
	}
	if opts.Continue != "" {
		if from, err = readToken(opts.Continue); err != nil {
			return nil, 0, err
		}
		// Another server's first page may be newer than what we have.
		if revision, err = a.reach(ctx, kind, strconv.FormatUint(from.Revision, 10)); err != nil {
			return nil, 0, err
		}
		exact = true
	}
	if !exact {
		revision = bus.RevisionOf(a.store.View(), kind.Resource)
	}
	all, err := a.store.ListAt(kind.Resource, call.Namespace, revision, bus.Place{Namespace: from.Namespace, Name: from.Name})
	if errors.Is(err, bus.ErrTooOld) {
		return nil, 0, expired(revision, err)
	}
	return all, revision, err
}
