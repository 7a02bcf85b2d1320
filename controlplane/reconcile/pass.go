package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gantry.dev/bus"
	"gantry.dev/schemas"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Result is what a pass did.
type Result struct {
	// Done are the writes that took effect.
	Done []Write
	// Events are the outcome's events that became true.
	Events []Event
	// Again says that a status is to be written which was left for the next pass.
	Again bool
	// RequeueAfter is the outcome's.
	RequeueAfter time.Duration
}

// Pass reconciles one key once. Statuses are written only when nothing else
// is left to write: what the pass itself does makes them old at once, and a
// status that waits for the next pass saves a write to disk. After an error
// they are written nonetheless, or a fault that lasts would hide them. With
// holdStatus they are always left. At most inFlight writes are on the way at a
// time.
func Pass(ctx context.Context, store bus.Store, claims *Claims, c Controller, key string, now time.Time, inFlight int, holdStatus bool) (Result, error) {
	out := c.Reconcile(key, store.View(), now)
	writes := Diff(out, now)
	if err := permitted(claims, c.Name, writes); err != nil {
		return Result{}, err
	}
	r := Result{RequeueAfter: out.RequeueAfter}
	var deeds, removals, statuses []Write
	for _, w := range writes {
		switch {
		case w.Op == OpStatus:
			statuses = append(statuses, w)
		case w.Deletes:
			removals = append(removals, w)
		default:
			deeds = append(deeds, w)
		}
	}
	// What is new comes before what is old goes.
	done, err := execute(ctx, store, deeds, inFlight)
	r.Done = append(r.Done, done...)
	if err == nil {
		done, err = execute(ctx, store, removals, inFlight)
		r.Done = append(r.Done, done...)
	}
	switch {
	case len(statuses) == 0:
	case err == nil && (holdStatus || len(r.Done) > 0):
		r.Again = true
	default:
		var statusErr error
		done, statusErr = execute(ctx, store, statuses, inFlight)
		r.Done = append(r.Done, done...)
		err = errors.Join(err, statusErr)
	}
	r.Events = told(out.Events, r.Done)
	if err != nil && !moved(err) && ctx.Err() == nil {
		r.Events = append(r.Events, failed(out, err)...)
	}
	return r, err
}

// writeError names the write that failed.
type writeError struct {
	write Write
	cause error
}

func (e *writeError) Error() string {
	return fmt.Sprintf("%s %s: %v", e.write.Op, e.write.Key, e.cause)
}

func (e *writeError) Unwrap() error { return e.cause }

// failed tells the owner of a record that it could not be made.
func failed(out Outcome, err error) []Event {
	var we *writeError
	if !errors.As(err, &we) || we.write.Op != OpCreate {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(we.write.Object)
	if ref == nil {
		return nil
	}
	for _, o := range out.Own {
		if o.GetUID() == ref.UID {
			return []Event{{
				Involved: o, Type: corev1.EventTypeWarning, Reason: "FailedCreate",
				Message: fmt.Sprintf("Error creating %s %s: %v", we.write.Object.GetObjectKind().GroupVersionKind().Kind, we.write.Object.GetName(), we.cause),
			}}
		}
	}
	return nil
}

func permitted(claims *Claims, name string, writes []Write) error {
	for _, w := range writes {
		resource := schemas.KindOf(w.Object).Resource
		if !w.Deletes && !claims.allows(name, resource, w.Op == OpStatus) {
			return fmt.Errorf("%s %s: %s has not claimed it", w.Op, w.Key, name)
		}
	}
	return nil
}

// execute does the writes side by side, begins none after the first that
// failed, and returns those that took effect. With an inFlight of one they are
// done here and in order.
func execute(ctx context.Context, store bus.Store, writes []Write, inFlight int) ([]Write, error) {
	if inFlight == 1 || len(writes) < 2 {
		for i, w := range writes {
			if err := write(ctx, store, w); err != nil {
				return writes[:i], err
			}
		}
		return writes, nil
	}
	var mu sync.Mutex
	var done []Write
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(inFlight)
	for _, w := range writes {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			// With ctx, not gctx: a write on its way is better finished than
			// left in doubt because its neighbour failed.
			if err := write(ctx, store, w); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			done = append(done, w)
			return nil
		})
	}
	err := g.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return done, err
}

func write(ctx context.Context, store bus.Store, w Write) error {
	var err error
	switch w.Op {
	case OpCreate:
		_, err = store.Create(ctx, w.Object)
	case OpRemove:
		err = store.Delete(ctx, w.Object)
		if errors.Is(err, bus.ErrNotFound) {
			return nil
		}
	default:
		_, err = store.Update(ctx, w.Object)
	}
	if err != nil {
		return &writeError{write: w, cause: err}
	}
	return nil
}

// told are the events whose writes were done.
func told(events []Event, done []Write) []Event {
	if len(done) == 0 {
		return nil
	}
	keys := make(map[string]bool, len(done))
	for _, w := range done {
		keys[w.Key] = true
	}
	var out []Event
	for _, e := range events {
		if e.After == "" || keys[e.After] {
			out = append(out, e)
		}
	}
	return out
}

// moved says that an error only means that the view was behind: the same
// question asked again soon has another answer.
func moved(err error) bool {
	return errors.Is(err, bus.ErrConflict) || errors.Is(err, bus.ErrExists) || errors.Is(err, bus.ErrNotFound)
}
