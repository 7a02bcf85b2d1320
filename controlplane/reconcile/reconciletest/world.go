package reconciletest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxPasses is far more than any world here needs to come to rest.
const maxPasses = 100_000

// World runs controllers over a Store, one pass at a time, on a clock that
// only Advance moves. The same calls always lead to the same state.
type World struct {
	*Store
	// Choose picks the next of n waiting keys; nil takes the oldest.
	Choose func(n int) int
	// AfterPass is called after every pass; nil is not. Invariants go here.
	AfterPass func()
	// Events are all that were told.
	Events []reconcile.Event
	// InPass is true while a controller writes, so that a Fault may spare the
	// writes of users and nodes.
	InPass bool
	// Crashes counts the writes that a Fault crashed at.
	Crashes int

	clock       time.Time
	claims      *reconcile.Claims
	controllers []reconcile.Controller
	heard       []bus.Change
	waiting     []item
	later       map[item]time.Time
	cancel      context.CancelFunc
}

type item struct {
	controller int
	key        string
}

// NewWorld makes a world that begins at a fixed time. It panics where two
// controllers write the same thing.
func NewWorld(indexes map[string]bus.IndexFunc, controllers ...reconcile.Controller) *World {
	w := &World{
		Store:       NewStore(indexes),
		clock:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		claims:      &reconcile.Claims{},
		controllers: controllers,
	}
	w.Now = func() time.Time { return w.clock }
	for _, c := range controllers {
		if err := w.claims.Register(c.Name, c.Writes...); err != nil {
			panic(err)
		}
	}
	w.Restart()
	return w
}

// Restart forgets everything that is not in the store, as a crash does.
func (w *World) Restart() {
	if w.cancel != nil {
		w.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.heard, w.waiting, w.later = nil, nil, map[item]time.Time{}
	if err := w.Subscribe(ctx, true, func(c bus.Change) {
		if ctx.Err() == nil {
			w.heard = append(w.heard, c)
		}
	}); err != nil {
		panic(err) // the Store's Subscribe does not fail
	}
}

// Clock is the world's time.
func (w *World) Clock() time.Time { return w.clock }

// Advance moves the clock and settles.
func (w *World) Advance(d time.Duration) error {
	w.clock = w.clock.Add(d)
	return w.Settle()
}

// Settle makes passes until nothing is due. A pass that ends in ErrCrash
// restarts the world; one that ends in a conflict is made again; any other
// error ends Settle.
func (w *World) Settle() error {
	for n := 0; ; n++ {
		if n == maxPasses {
			return fmt.Errorf("no rest after %d passes; next is %v", n, w.waiting)
		}
		more, err := w.Step()
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}

// Step makes one pass; it is false where nothing is due.
func (w *World) Step() (bool, error) {
	w.wake()
	if len(w.waiting) == 0 {
		return false, nil
	}
	i := 0
	if w.Choose != nil {
		i = w.Choose(len(w.waiting))
	}
	next := w.waiting[i]
	w.waiting = slices.Delete(w.waiting, i, i+1)
	c := w.controllers[next.controller]
	w.InPass = true
	result, err := reconcile.Pass(context.Background(), w.Store, w.claims, c, next.key, w.clock, 1, false)
	w.InPass = false
	w.Events = append(w.Events, result.Events...)
	switch {
	case errors.Is(err, ErrCrash):
		w.Crashes++
		w.Restart()
	case errors.Is(err, bus.ErrConflict), errors.Is(err, bus.ErrExists), errors.Is(err, bus.ErrNotFound):
		w.enqueue(next)
	case err != nil:
		return false, fmt.Errorf("%s %s: %w", c.Name, next.key, err)
	default:
		if result.Again {
			w.enqueue(next)
		}
		if result.RequeueAfter > 0 {
			at := w.clock.Add(result.RequeueAfter)
			if old, ok := w.later[next]; !ok || at.Before(old) {
				w.later[next] = at
			}
		}
	}
	if w.AfterPass != nil {
		w.AfterPass()
	}
	return true, nil
}

// Dump is the whole state as JSON by ObjectKey, without what depends on when
// and in which order things were written: times, revisions, generations.
func (w *World) Dump() map[string]string {
	out := map[string]string{}
	for _, kind := range schemas.Kinds {
		for _, o := range w.View().List(kind.Resource, "") {
			o := copyOf(o)
			o.SetResourceVersion("")
			o.SetCreationTimestamp(metav1.Time{})
			data, err := json.Marshal(o)
			if err != nil {
				panic(err) // API types can be encoded
			}
			out[schemas.KeyOf(o)] = ephemeral.ReplaceAllString(string(data), "")
		}
	}
	return out
}

var ephemeral = regexp.MustCompile(`"[a-zA-Z]*(Time|Timestamp|eneration)":("[^"]*"|[0-9]+|null),?`)

// wake turns what was heard, and the time that has passed, into waiting keys.
func (w *World) wake() {
	heard := w.heard
	w.heard = nil
	for _, change := range heard {
		for i, c := range w.controllers {
			if !slices.Contains(c.Reads, change.Resource) && !slices.Contains(c.Reads, "*") {
				continue
			}
			for _, key := range c.Wakes(change, w.View()) {
				w.enqueue(item{i, key})
			}
		}
	}
	var due []item
	for it, at := range w.later {
		if !at.After(w.clock) {
			due = append(due, it)
			delete(w.later, it)
		}
	}
	slices.SortFunc(due, func(a, b item) int {
		if a.controller != b.controller {
			return a.controller - b.controller
		}
		return slices.Compare([]byte(a.key), []byte(b.key))
	})
	for _, it := range due {
		w.enqueue(it)
	}
}

func (w *World) enqueue(it item) {
	if !slices.Contains(w.waiting, it) {
		w.waiting = append(w.waiting, it)
	}
}

// Put creates the object, or replaces what is stored under its name.
func (w *World) Put(o schemas.Object) (schemas.Object, error) {
	kind := schemas.KindOf(o)
	old := w.View().Get(kind.Resource, o.GetNamespace(), o.GetName())
	if old == nil {
		return w.Create(context.Background(), o)
	}
	o = copyOf(o)
	o.SetResourceVersion(old.GetResourceVersion())
	o.SetUID(old.GetUID())
	o.SetCreationTimestamp(old.GetCreationTimestamp())
	return w.Update(context.Background(), o)
}
