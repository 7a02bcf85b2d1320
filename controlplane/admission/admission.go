// Package admission is the API: it takes what users write, defaults and
// validates it, refuses what Gantry does not do, and stores it with
// compare-and-swap; it reads, lists and watches objects, and fetches logs.
// It keeps no state between two calls, so any number of replicas may serve.
package admission

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// Reservations give a thing out once across the cluster.
type Reservations interface {
	// Reserve takes the value for r, or returns who holds it with bus.ErrExists.
	// Repeating it for the same holder succeeds.
	Reserve(ctx context.Context, kind, value string, r schemas.Reservation) (bus.Held, error)
	// Release gives the value back if r holds it; otherwise it does nothing.
	Release(ctx context.Context, kind, value string, r schemas.Reservation) error
	// Reserved lists what is held of one kind.
	Reserved(ctx context.Context, kind string) ([]bus.Held, error)
}

// LogsFunc fetches one piece of a container's log from its node. An error that
// is an apierrors.APIStatus reaches the caller as it is.
type LogsFunc func(ctx context.Context, node string, req schemas.LogRequest) (body []byte, header map[string][]string, err error)

// Options are what New needs; all but Now must be set.
type Options struct {
	Store        bus.History
	Reservations Reservations
	// ServiceCIDR is where cluster IPs come from.
	ServiceCIDR netip.Prefix
	Logs        LogsFunc
	// Ask reaches the nodes for sessions and metrics.
	Ask AskFunc
	Log zerolog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Admission serves the API. Its methods are safe for concurrent use.
type Admission struct {
	store     bus.History
	addresses *addresses
	logs      LogsFunc
	ask       AskFunc
	log       zerolog.Logger
	now       func() time.Time
	encoded   encoded
	managers  managers
}

// New makes an Admission; Bootstrap is to be called before it serves.
func New(o Options) *Admission {
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &Admission{store: o.Store, logs: o.Logs, ask: o.Ask, log: o.Log, now: o.Now}
	a.addresses = &addresses{reservations: o.Reservations, cidr: o.ServiceCIDR, view: o.Store.View, now: o.Now}
	return a
}

// immortal namespaces exist from the start and cannot be deleted.
var immortal = []string{"default", "kube-system"}

// Bootstrap makes the namespaces that every cluster has and gives back the
// cluster IPs of Services that are gone. It may be repeated at will.
func (a *Admission) Bootstrap(ctx context.Context) error {
	for _, name := range immortal {
		if a.store.View().Get(schemas.Namespaces, "", name) != nil {
			continue
		}
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := a.insert(ctx, ns); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
	}
	if err := a.addresses.reclaim(ctx); err != nil {
		return fmt.Errorf("reclaim cluster IPs: %w", err)
	}
	return nil
}

// reply is the answer to a call that succeeded.
type reply struct {
	body     []byte
	result   string // HeaderResult
	warnings []string
	header   map[string][]string // further headers
}

func (r reply) headers() map[string][]string {
	h := r.header
	if h == nil {
		h = map[string][]string{}
	}
	if r.result != "" {
		h[schemas.HeaderResult] = []string{r.result}
	}
	for _, w := range r.warnings {
		h[schemas.HeaderWarning] = append(h[schemas.HeaderWarning], oneLine(w))
	}
	return h
}

// oneLine makes a text fit for a header.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Verbs is what Handle answers.
var Verbs = []string{
	schemas.VerbApply, schemas.VerbCreate, schemas.VerbGet, schemas.VerbList, schemas.VerbWatch,
	schemas.VerbUpdate, schemas.VerbPatch, schemas.VerbDelete, schemas.VerbDeleteCollection, schemas.VerbSchema, schemas.VerbLog,
	schemas.VerbExec, schemas.VerbAttach, schemas.VerbPortForward, schemas.VerbCopy, schemas.VerbSend, schemas.VerbRecv,
}

// Handle answers one call; its header may be nil. status is nil on success;
// otherwise out and outHeader are nil and status says what is wrong, as
// Kubernetes would.
func (a *Admission) Handle(ctx context.Context, call schemas.Call, header map[string][]string, body []byte) (out []byte, outHeader map[string][]string, status *metav1.Status) {
	r, err := a.answer(ctx, call, header, body)
	if err != nil {
		return nil, nil, statusOf(err)
	}
	return r.body, r.headers(), nil
}

func (a *Admission) answer(ctx context.Context, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if call.Verb == schemas.VerbSchema {
		return a.schema(call, body)
	}
	kind, ok := schemas.KindByResource(call.Resource)
	if !ok {
		return reply{}, unknownResource(call.Resource)
	}
	if kind.Refused != "" {
		return reply{}, refusedKind(kind)
	}
	if reads(call.Verb) && headerOf(header, schemas.HeaderOptions) != "" {
		// Left out silently, a selector in the wrong place would select everything.
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("header %s: is for writes; what %s takes is its body", schemas.HeaderOptions, call.Verb))
	}
	if !kind.Namespaced && call.Namespace != "" {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("%s have no namespace: use %q in its place", kind.Resource, schemas.AllNamespaces))
	}
	if sessionVerb(call.Verb) {
		if err := single(kind, call); err != nil {
			return reply{}, err
		}
		return a.session(ctx, kind, call, header, body)
	}
	switch call.Subresource {
	case "":
	case schemas.SubStatus:
		return a.status(ctx, kind, call, header, body)
	case schemas.SubScale:
		return a.scale(ctx, kind, call, header, body)
	case schemas.SubBinding:
		return a.binding(ctx, kind, call, header, body)
	case schemas.SubEviction:
		return a.eviction(ctx, kind, call, header, body)
	case schemas.SubMetrics:
		return a.metrics(ctx, kind, call, body)
	default:
		return reply{}, noSubresource(kind, call)
	}
	switch call.Verb {
	case schemas.VerbList:
		return a.list(ctx, kind, call, body)
	case schemas.VerbWatch:
		return a.watch(ctx, kind, call, body)
	case schemas.VerbCreate:
		return a.create(ctx, kind, call, header, body)
	case schemas.VerbApply:
		return a.apply(ctx, kind, call, header, body)
	case schemas.VerbDeleteCollection:
		return a.deleteCollection(ctx, kind, call, header, body)
	}
	// The rest is about one object that has to be named.
	if err := single(kind, call); err != nil {
		return reply{}, err
	}
	switch call.Verb {
	case schemas.VerbGet:
		return a.get(ctx, kind, call, body)
	case schemas.VerbUpdate:
		return a.update(ctx, kind, call, header, body)
	case schemas.VerbPatch:
		return a.patch(ctx, kind, call, header, body)
	case schemas.VerbDelete:
		return a.delete(ctx, kind, call, header, body)
	case schemas.VerbLog:
		return a.podLog(ctx, kind, call, body)
	}
	return reply{}, apierrors.NewBadRequest(fmt.Sprintf("no verb %q; there are %s", call.Verb, strings.Join(Verbs, ", ")))
}

// reads says that a verb changes no object.
func reads(verb string) bool {
	switch verb {
	case schemas.VerbGet, schemas.VerbList, schemas.VerbWatch, schemas.VerbLog:
		return true
	}
	return sessionVerb(verb)
}

// current reads an object from the view, as an error where there is none.
func (a *Admission) current(kind schemas.Kind, namespace, name string) (schemas.Object, error) {
	o := a.store.View().Get(kind.Resource, namespace, name)
	if o == nil {
		return nil, apierrors.NewNotFound(groupResource(kind), name)
	}
	return o, nil
}
