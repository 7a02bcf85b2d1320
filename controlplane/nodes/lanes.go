package nodes

import (
	"context"
	"sync"
	"time"
)

// lanes runs work for keys: many keys side by side, one key never twice at a
// time, and a key that is woken while its work runs is worked on once more. A
// wake-up carries nothing; the work finds the newest state itself.
type lanes struct {
	work func(ctx context.Context, key string) error
	// failed is told of an error and says when the key is tried again.
	failed func(key string, err error) time.Duration
	slots  chan struct{}

	mu    sync.Mutex
	ctx   context.Context
	state map[string]laneState // of keys that are running
	later map[string]*time.Timer
	wg    sync.WaitGroup
	over  bool
}

type laneState int

const (
	running laneState = iota + 1
	runningAgain
)

const (
	retryDelay    = 200 * time.Millisecond
	conflictDelay = 2 * time.Millisecond
)

func newLanes(width int, work func(context.Context, string) error, failed func(string, error) time.Duration) *lanes {
	return &lanes{
		work: work, failed: failed, slots: make(chan struct{}, width),
		state: map[string]laneState{}, later: map[string]*time.Timer{},
	}
}

// open lets work begin; wake-ups before it are kept.
func (l *lanes) open(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx = ctx
	for key := range l.state {
		l.wg.Go(func() { l.run(ctx, key) })
	}
}

// close waits for the work that is under way; the context given to open must
// have ended.
func (l *lanes) close() {
	l.mu.Lock()
	l.over = true
	for key, t := range l.later {
		t.Stop()
		delete(l.later, key)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *lanes) wake(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.state[key]; ok {
		l.state[key] = runningAgain
		return
	}
	if l.over {
		return
	}
	l.state[key] = runningAgain
	if l.ctx != nil {
		ctx := l.ctx
		l.wg.Go(func() { l.run(ctx, key) })
	}
}

// wakeAfter wakes the key later; of several times the first that was asked for
// holds.
func (l *lanes) wakeAfter(key string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.later[key]; ok || l.over {
		return
	}
	l.later[key] = time.AfterFunc(d, func() {
		l.mu.Lock()
		delete(l.later, key)
		l.mu.Unlock()
		l.wake(key)
	})
}

// idle tells whether no key is worked on; those that come later do not count.
func (l *lanes) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.state) == 0
}

func (l *lanes) run(ctx context.Context, key string) {
	for {
		l.mu.Lock()
		if l.state[key] == running || ctx.Err() != nil {
			delete(l.state, key)
			l.mu.Unlock()
			return
		}
		l.state[key] = running
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			continue
		case l.slots <- struct{}{}:
		}
		err := l.work(ctx, key)
		<-l.slots
		if err != nil && ctx.Err() == nil {
			l.wakeAfter(key, l.failed(key, err))
		}
	}
}
