package report

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

const (
	maxEvents = 2048
	maxSeen   = 4096
	// sameAfter is how soon an event with the same words is worth repeating.
	sameAfter = 10 * time.Second
	// eventTries bounds what one event may hold up: one that is refused for
	// itself must not silence the others.
	eventTries = 30
)

// eventQueue holds what is to be told; when it is full the oldest goes.
type eventQueue struct {
	items   []schemas.PodEvent
	dropped int
	seen    map[eventKey]time.Time
}

type eventKey struct {
	uid                        types.UID
	container, reason, message string
}

func newEventQueue() eventQueue { return eventQueue{seen: map[eventKey]time.Time{}} }

// add reports whether the event is worth telling.
func (q *eventQueue) add(e schemas.PodEvent) bool {
	key := eventKey{e.UID, e.Container, e.Reason, e.Message}
	if last, ok := q.seen[key]; ok && e.Time.Sub(last) < sameAfter && e.Time.Sub(last) > -sameAfter {
		return false
	}
	if len(q.seen) >= maxSeen {
		for k, at := range q.seen {
			if e.Time.Sub(at) >= sameAfter {
				delete(q.seen, k)
			}
		}
		if len(q.seen) >= maxSeen {
			clear(q.seen)
		}
	}
	q.seen[key] = e.Time
	if len(q.items) >= maxEvents {
		q.items = q.items[1:]
		q.dropped++
	}
	q.items = append(q.items, e)
	return true
}

func (q *eventQueue) take() (schemas.PodEvent, int, bool) {
	if len(q.items) == 0 {
		q.items = nil
		return schemas.PodEvent{}, 0, false
	}
	e, dropped := q.items[0], q.dropped
	q.items, q.dropped = q.items[1:], 0
	return e, dropped, true
}

// Event takes in something that happened.
func (r *Reporter) Event(e schemas.PodEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.events.add(e) {
		poke(r.tell)
	}
}

func (r *Reporter) runEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.tell:
		}
		for ctx.Err() == nil {
			r.mu.Lock()
			e, dropped, ok := r.events.take()
			r.mu.Unlock()
			if !ok {
				break
			}
			if dropped > 0 {
				r.log.Warn().Int("dropped", dropped).Msg("events were lost: more came than could be told")
			}
			for range eventTries {
				if r.try(ctx, func(ctx context.Context) error { return r.to.ReportEvent(ctx, e) }) == nil || ctx.Err() != nil {
					break
				}
			}
		}
	}
}
