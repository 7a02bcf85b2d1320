package reconcile

import (
	"sync"
	"time"
)

// queue hands out keys: each at most once at a time, and once more when it was
// added again while somebody held it. It has one lock and no goroutine.
type queue struct {
	mu      sync.Mutex
	waiting []string         // in order of arrival
	state   map[string]state // of every key that is waiting or held
	timers  map[string]timer // keys that come back later
	signal  chan struct{}    // capacity 1: something may be waiting
	closed  bool
}

type state int

const (
	queued    state = iota + 1
	held            // somebody works on it
	heldAgain       // and it was added again meanwhile
)

type timer struct {
	*time.Timer
	at time.Time
}

func newQueue() *queue {
	return &queue{
		state:  map[string]state{},
		timers: map[string]timer{},
		signal: make(chan struct{}, 1),
	}
}

// add makes a key due now.
func (q *queue) add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(key)
}

func (q *queue) addLocked(key string) {
	if q.closed {
		return
	}
	switch q.state[key] {
	case 0:
		q.state[key] = queued
		q.waiting = append(q.waiting, key)
		q.wake()
	case held:
		q.state[key] = heldAgain
	}
}

// addAfter makes a key due later. Of several times for one key the soonest holds.
func (q *queue) addAfter(key string, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	at := time.Now().Add(d)
	if t, ok := q.timers[key]; ok {
		if !t.at.After(at) {
			return
		}
		t.Stop()
	}
	q.timers[key] = timer{at: at, Timer: time.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if t, ok := q.timers[key]; ok && t.at.Equal(at) {
			delete(q.timers, key)
		}
		q.addLocked(key)
	})}
}

// take gives the next due key to the caller, who holds it until done; ok is
// false where none is due. Listen on signal, then take until it gives none.
func (q *queue) take() (key string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.waiting) == 0 {
		return "", false
	}
	key = q.waiting[0]
	q.waiting = q.waiting[1:]
	q.state[key] = held
	if len(q.waiting) > 0 {
		q.wake() // for another worker
	}
	return key, true
}

// done gives a key back.
func (q *queue) done(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	again := q.state[key] == heldAgain
	delete(q.state, key)
	if again {
		q.addLocked(key)
	}
}

// close stops all timers; nothing is handed out or accepted any more.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, t := range q.timers {
		t.Stop()
	}
	q.timers = nil
}

// idle says that nothing is due and nothing held; keys that come back later do
// not count.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.state) == 0
}

func (q *queue) wake() {
	select {
	case q.signal <- struct{}{}:
	default:
	}
}
