package image

import (
	"context"
	"sync"
)

// flight shares one piece of work among all who ask for the same key at the
// same time. Unlike x/sync's singleflight the work does not belong to whoever
// came first: it goes on as long as anybody waits, and is cancelled when the
// last one has left.
type flight[T any] struct {
	mu    sync.Mutex
	calls map[string]*call[T]
	work  sync.WaitGroup
}

type call[T any] struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	tellers []func(Progress)

	value T
	err   error
}

// do returns what fn returned, and whether another caller had started it. hear
// may be nil; it is called for all that fn tells, also when fn was started by
// another.
func (f *flight[T]) do(ctx context.Context, key string, hear func(Progress), fn func(ctx context.Context, tell func(Progress)) (T, error)) (value T, joined bool, err error) {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]*call[T]{}
	}
	c, joined := f.calls[key]
	if !joined {
		c = f.start(ctx, key, fn)
	}
	c.waiters++
	if hear != nil {
		c.tellers = append(c.tellers, hear)
	}
	f.mu.Unlock()

	select {
	case <-c.done:
		return c.value, joined, c.err
	case <-ctx.Done():
		f.leave(key, c)
		return value, joined, ctx.Err()
	}
}

// start is called with f.mu held.
func (f *flight[T]) start(ctx context.Context, key string, fn func(context.Context, func(Progress)) (T, error)) *call[T] {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[T]{done: make(chan struct{}), cancel: cancel}
	f.calls[key] = c
	f.work.Add(1)
	go func() {
		defer f.work.Done()
		defer cancel()
		value, err := fn(work, func(p Progress) { f.tell(c, p) })
		f.mu.Lock()
		c.value, c.err = value, err
		if f.calls[key] == c {
			delete(f.calls, key)
		}
		f.mu.Unlock()
		close(c.done)
	}()
	return c
}

func (f *flight[T]) tell(c *call[T], p Progress) {
	f.mu.Lock()
	tellers := c.tellers[:len(c.tellers):len(c.tellers)]
	f.mu.Unlock()
	for _, t := range tellers {
		t(p)
	}
}

// leave forgets the call when nobody waits any more, so that whoever asks next
// starts anew instead of joining work that is being cancelled. The last one
// stays until the work has cleaned up after itself.
func (f *flight[T]) leave(key string, c *call[T]) {
	f.mu.Lock()
	c.waiters--
	last := c.waiters == 0
	if last {
		c.cancel()
		if f.calls[key] == c {
			delete(f.calls, key)
		}
	}
	f.mu.Unlock()
	if last {
		<-c.done
	}
}

// stop cancels all work and waits until it has ended.
func (f *flight[T]) stop() {
	f.mu.Lock()
	for _, c := range f.calls {
		c.cancel()
	}
	f.mu.Unlock()
	f.work.Wait()
}
