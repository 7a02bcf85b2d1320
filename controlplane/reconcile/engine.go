package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gantry.dev/bus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

// workers is how many keys of one controller are worked on at a time. A worker
// mostly waits for writes, so it has nothing to do with processors.
const workers = 4

// inFlight bounds the writes that one pass has on the way at a time: many,
// since each waits for a disk, but not so many that one large set of pods
// shuts all others out.
const inFlight = 32

// statusEvery is the least time between two writes of one key's status. Where
// a hundred pods become ready one by one, people need not be told a hundred
// times; the first change is told at once, and the last one always is.
const statusEvery = 50 * time.Millisecond

// How long a key waits after its n-th failure in a row: base << n, at most limit.
const (
	errorBase     = 20 * time.Millisecond
	errorLimit    = time.Minute
	conflictBase  = time.Millisecond
	conflictLimit = 200 * time.Millisecond
)

// Recorder takes what people should know. It must not block.
type Recorder interface {
	Record(source string, e Event)
}

// Engine runs controllers over one store.
type Engine struct {
	store       bus.Store
	log         zerolog.Logger
	claims      *Claims
	recorder    Recorder // may be nil
	now         func() time.Time
	runners     []*runner
	dispatching atomic.Int64 // changes heard and not yet turned into keys
	passes      atomic.Uint64
	writes      atomic.Uint64
}

// runner is one controller with its keys.
type runner struct {
	Controller
	queue    *queue
	mu       sync.Mutex
	failures map[string]int       // in a row, by key
	told     map[string]time.Time // the last writes of statuses, by key
	owed     map[string]bool      // keys whose status was held back
}

// Option changes an Engine at its making.
type Option func(*Engine)

// WithClaims shares a register of writers with roles outside of the engine,
// so that a collision with them is refused as well.
func WithClaims(c *Claims) Option { return func(e *Engine) { e.claims = c } }

// WithRecorder says where events go. Without it they are dropped.
func WithRecorder(r Recorder) Option { return func(e *Engine) { e.recorder = r } }

// WithClock replaces time.Now.
func WithClock(now func() time.Time) Option { return func(e *Engine) { e.now = now } }

// New makes an engine. It refuses controllers of which two write the same
// thing, or one writes what a role in the shared register writes.
func New(store bus.Store, log zerolog.Logger, controllers []Controller, options ...Option) (*Engine, error) {
	e := &Engine{store: store, log: log, claims: &Claims{}, now: time.Now}
	for _, o := range options {
		o(e)
	}
	var errs []error
	for _, c := range controllers {
		if err := e.claims.Register(c.Name, c.Writes...); err != nil {
			errs = append(errs, err)
		}
		e.runners = append(e.runners, &runner{Controller: c, queue: newQueue(), failures: map[string]int{}, told: map[string]time.Time{}, owed: map[string]bool{}})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("start controllers: %w", err)
	}
	return e, nil
}

// Run works until ctx ends, beginning with every object that there is. Call it
// once, on the holder of the lease only. It returns nil when ctx has ended.
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	defer func() {
		for _, r := range e.runners {
			r.queue.close()
		}
	}()
	// The store calls back while it takes changes in: there they are only
	// noted, and Wakes, which reads the view, runs here.
	in := newInbox()
	g.Go(func() error { return e.dispatch(ctx, in) })
	for _, r := range e.runners {
		for range workers {
			g.Go(func() error { return e.work(ctx, r) })
		}
	}
	g.Go(func() error {
		err := e.store.Subscribe(ctx, true, func(c bus.Change) {
			e.dispatching.Add(1)
			in.put(c)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen for changes: %w", err)
		}
		// A Subscribe that returns at once goes on in the background.
		<-ctx.Done()
		return nil
	})
	return g.Wait()
}

// Quiet says that nothing is left to do or to try again until something
// changes or a time that a controller asked for comes.
func (e *Engine) Quiet() bool {
	if e.dispatching.Load() > 0 {
		return false
	}
	return !slices.ContainsFunc(e.runners, func(r *runner) bool { return !r.queue.idle() || r.busy() })
}

// Stats counts the passes made and the writes done since the start.
func (e *Engine) Stats() (passes, writes uint64) { return e.passes.Load(), e.writes.Load() }

func (e *Engine) dispatch(ctx context.Context, in *inbox) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-in.signal:
		}
		for _, change := range in.takeAll() {
			for _, r := range e.runners {
				if r.reads(change.Resource) {
					for _, key := range r.Wakes(change, e.store.View()) {
						r.queue.add(key)
					}
				}
			}
			e.dispatching.Add(-1)
		}
	}
}

func (r *runner) reads(resource string) bool {
	return slices.ContainsFunc(r.Reads, func(s string) bool { return s == resource || s == "*" })
}

func (e *Engine) work(ctx context.Context, r *runner) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.queue.signal:
		}
		for {
			key, ok := r.queue.take()
			if !ok {
				break
			}
			e.pass(ctx, r, key)
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}

func (e *Engine) pass(ctx context.Context, r *runner, key string) {
	defer r.queue.done(key)
	hold := r.holdStatus(key)
	result, err := Pass(ctx, e.store, e.claims, r.Controller, key, e.now(), inFlight, hold > 0)
	e.passes.Add(1)
	e.writes.Add(uint64(len(result.Done)))
	for _, w := range result.Done {
		e.log.Debug().Str("controller", r.Name).Str("key", key).Str("op", string(w.Op)).Str("object", w.Key).Msg("wrote")
	}
	if e.recorder != nil {
		for _, event := range result.Events {
			e.recorder.Record(r.Name, event)
		}
	}
	if err != nil && ctx.Err() == nil {
		e.failed(r, key, err)
		return
	}
	r.succeeded(key, result.Again)
	switch {
	case result.Again && hold > 0:
		r.queue.addAfter(key, hold)
	case result.Again:
		r.queue.add(key)
	case slices.ContainsFunc(result.Done, func(w Write) bool { return w.Op == OpStatus }):
		r.toldStatus(key)
	}
	if result.RequeueAfter > 0 {
		r.queue.addAfter(key, result.RequeueAfter)
	}
}

func (e *Engine) failed(r *runner, key string, err error) {
	r.mu.Lock()
	n := r.failures[key]
	r.failures[key]++
	r.mu.Unlock()
	if moved(err) {
		r.queue.addAfter(key, backOff(n, conflictBase, conflictLimit))
		e.log.Debug().Str("controller", r.Name).Str("key", key).Err(err).Msg("again on a newer view")
		return
	}
	wait := backOff(n, errorBase, errorLimit)
	r.queue.addAfter(key, wait)
	e.log.Warn().Str("controller", r.Name).Str("key", key).Err(err).Dur("retryAfter", wait).Msg("pass failed")
}

func (r *runner) succeeded(key string, owed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.failures, key)
	if owed {
		r.owed[key] = true
	} else {
		delete(r.owed, key)
	}
}

// holdStatus is how long a key's status must wait; zero or less is not at all.
func (r *runner) holdStatus(key string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.told[key]
	if !ok {
		return 0
	}
	return statusEvery - time.Since(last)
}

func (r *runner) toldStatus(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) > 1000 {
		maps.DeleteFunc(r.told, func(_ string, at time.Time) bool { return time.Since(at) > statusEvery })
	}
	r.told[key] = time.Now()
}

// busy says that keys come back which have something to write.
func (r *runner) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures) > 0 || len(r.owed) > 0
}

func backOff(n int, base, limit time.Duration) time.Duration {
	if n > 20 { // more would overflow, and limit is long since reached
		return limit
	}
	return min(base<<n, limit)
}

// inbox holds changes from when the store tells them until they are dispatched.
// It has no bound: the store must not be held up, and what it holds are
// pointers to what the view holds anyway.
type inbox struct {
	mu      sync.Mutex
	changes []bus.Change
	signal  chan struct{} // capacity 1
}

func newInbox() *inbox { return &inbox{signal: make(chan struct{}, 1)} }

func (in *inbox) put(c bus.Change) {
	in.mu.Lock()
	in.changes = append(in.changes, c)
	in.mu.Unlock()
	select {
	case in.signal <- struct{}{}:
	default:
	}
}

func (in *inbox) takeAll() []bus.Change {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := in.changes
	in.changes = nil
	return out
}
