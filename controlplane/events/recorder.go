package events

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rs/zerolog"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
)

const (
	// waiting bounds the events that are not written yet. Events are for people;
	// where they come faster than the disk takes them, the rest is dropped and
	// counted in the log, and no work is held up.
	waiting = 4096
	writers = 4
	// variants is how many messages of one reason one object may have within
	// window before the next ones are summed up under one event.
	variants = 10
	window   = 10 * time.Minute
	// similarPrefix is what users of Kubernetes know such sums by.
	similarPrefix = "(combined from similar events): "
	writeTimeout  = 10 * time.Second
)

// Entry is one thing that happened to an object.
type Entry struct {
	Involved corev1.ObjectReference // FieldPath names the container, if any
	Source   corev1.EventSource
	Type     string // Normal or Warning
	Reason   string
	Message  string
	Time     time.Time
}

// Recorder writes events behind its callers' backs: Add never blocks. It is
// safe for concurrent use.
type Recorder struct {
	store bus.Store
	log   zerolog.Logger
	now   func() time.Time
	lanes [writers]chan Entry // the same event always takes the same lane

	mu      sync.Mutex
	told    map[kin]*spell
	swept   time.Time
	dropped uint64
}

// kin is what makes events similar.
type kin struct {
	uid                  types.UID
	field, reason, typ   string
	component, host, key string
}

// spell is the messages told of one kin lately.
type spell struct {
	messages map[string]bool
	until    time.Time
}

// New makes a recorder; nothing is written before Run.
func New(store bus.Store, log zerolog.Logger) *Recorder {
	r := &Recorder{store: store, log: log, now: time.Now, told: map[kin]*spell{}}
	for i := range r.lanes {
		r.lanes[i] = make(chan Entry, waiting/writers)
	}
	return r
}

// Record takes an event of a controller.
func (r *Recorder) Record(source string, e reconcile.Event) {
	r.Add(Entry{
		Involved: Reference(e.Involved), Source: corev1.EventSource{Component: source},
		Type: e.Type, Reason: e.Reason, Message: e.Message,
	})
}

// Reference says which object an event is about.
func Reference(o schemas.Object) corev1.ObjectReference {
	gvk := schemas.KindOf(o).GVK
	return corev1.ObjectReference{
		APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: o.GetNamespace(), Name: o.GetName(),
		UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(),
	}
}

// Add takes an event. An empty Time is now, an empty Type Normal.
func (r *Recorder) Add(e Entry) {
	if e.Time.IsZero() {
		e.Time = r.now()
	}
	if e.Type == "" {
		e.Type = corev1.EventTypeNormal
	}
	e.Message = r.sumUp(e)
	select {
	case r.lanes[laneOf(e)] <- e:
	default:
		r.mu.Lock()
		r.dropped++
		n := r.dropped
		r.mu.Unlock()
		r.log.Warn().Uint64("dropped", n).Str("reason", e.Reason).Msg("event dropped: they come faster than they are written")
	}
}

// Run writes until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, lane := range r.lanes {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case e := <-lane:
					r.write(ctx, e)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// Pending is how many events are still to be written.
func (r *Recorder) Pending() int {
	n := 0
	for _, lane := range r.lanes {
		n += len(lane)
	}
	return n
}

// sumUp is the message to store: its own for the first few of a kind, a common
// one for those that would go on for ever with another number in each.
func (r *Recorder) sumUp(e Entry) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if now.Sub(r.swept) > window {
		r.swept = now
		for k, s := range r.told {
			if now.After(s.until) {
				delete(r.told, k)
			}
		}
	}
	k := kin{uid: e.Involved.UID, field: e.Involved.FieldPath, reason: e.Reason, typ: e.Type, component: e.Source.Component,
		host: e.Source.Host, key: e.Involved.Namespace + "/" + e.Involved.Name}
	s := r.told[k]
	if s == nil || now.After(s.until) {
		s = &spell{messages: map[string]bool{}}
		r.told[k] = s
	}
	s.until = now.Add(window)
	if s.messages[e.Message] || len(s.messages) < variants {
		s.messages[e.Message] = true
		return e.Message
	}
	return similarPrefix + e.Message
}

func (r *Recorder) write(ctx context.Context, e Entry) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	for range 5 {
		err := r.writeOnce(ctx, e)
		if err == nil || ctx.Err() != nil {
			return
		}
		if !errors.Is(err, bus.ErrConflict) && !errors.Is(err, bus.ErrExists) && !errors.Is(err, bus.ErrNotFound) {
			r.log.Warn().Err(err).Str("reason", e.Reason).Str("object", e.Involved.Namespace+"/"+e.Involved.Name).Msg("write event")
			return
		}
	}
}

func (r *Recorder) writeOnce(ctx context.Context, e Entry) error {
	fresh := Compile(e)
	have, ok := r.store.View().Get(schemas.Events, fresh.Namespace, fresh.Name).(*corev1.Event)
	if !ok || have == nil {
		_, err := r.store.Create(ctx, fresh)
		return err
	}
	next := have.DeepCopy()
	next.Count = max(have.Count, 1) + 1
	next.Message = fresh.Message
	if fresh.LastTimestamp.After(next.LastTimestamp.Time) {
		next.LastTimestamp = fresh.LastTimestamp
	}
	_, err := r.store.Update(ctx, next)
	return err
}

// Compile is the event as it is stored the first time. Its name is computed,
// so telling it again finds it: events that are summed up share one.
func Compile(e Entry) *corev1.Event {
	message := e.Message
	if len(message) >= len(similarPrefix) && message[:len(similarPrefix)] == similarPrefix {
		message = similarPrefix
	}
	namespace := e.Involved.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // as Kubernetes keeps those of nodes
	}
	stamp := metav1.NewTime(e.Time.UTC().Truncate(time.Second))
	return &corev1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name: fmt.Sprintf("%.200s.%s", e.Involved.Name, reconcile.Hash(16, string(e.Involved.UID), e.Involved.Kind, e.Involved.FieldPath,
				e.Type, e.Reason, message, e.Source.Component, e.Source.Host)),
		},
		InvolvedObject: e.Involved, Source: e.Source, ReportingController: e.Source.Component, ReportingInstance: e.Source.Host,
		Type: e.Type, Reason: e.Reason, Message: e.Message, Count: 1,
		FirstTimestamp: stamp, LastTimestamp: stamp,
	}
}

func laneOf(e Entry) int {
	h := 0
	for _, c := range []byte(string(e.Involved.UID) + e.Involved.Name + e.Reason) {
		h = h*31 + int(c)
	}
	return int(uint(h) % writers)
}
