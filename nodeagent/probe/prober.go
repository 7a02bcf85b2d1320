package probe

import (
	"container/heap"
	"context"
	"hash/fnv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxAtOnce bounds how many probes run at the same time.
const maxAtOnce = 32

// Exec runs a command in a container and returns its exit code and output.
type Exec func(ctx context.Context, key Key, args []string, timeout time.Duration) (exitCode int, output []byte, err error)

// Prober runs all probes of the node.
type Prober struct {
	exec   Exec
	tell   func(Verdict)
	now    func() time.Time
	slots  chan struct{}
	wake   chan struct{} // capacity 1: the earliest entry changed
	probes sync.WaitGroup

	mu      sync.Mutex // guards what follows
	entries map[Key]*entry
	due     queue
}

// entry is one probe. It is in the queue unless it runs at the moment.
type entry struct {
	key       Key
	target    Target
	at        time.Time
	index     int // in the queue; -1 while it runs
	ready     bool
	successes int
	failures  int
}

// New makes a prober. tell is called from its goroutines, with every failure
// and every change, and must not block.
func New(exec Exec, tell func(Verdict)) *Prober {
	return &Prober{
		exec: exec, tell: tell, now: time.Now,
		slots: make(chan struct{}, maxAtOnce), wake: make(chan struct{}, 1),
		entries: map[Key]*entry{},
	}
}

// Watch begins to probe a run. For one that is watched already only the target
// is renewed.
func (p *Prober) Watch(key Key, target Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := p.entries[key]; ok {
		e.target.Probe, e.target.IP, e.target.Ports = target.Probe, target.IP, target.Ports
		return
	}
	e := &entry{key: key, target: target, ready: target.Ready, at: p.first(key, target)}
	p.entries[key] = e
	heap.Push(&p.due, e)
	p.poke()
}

// first is when the first probe is due. A run that is older than its initial
// delay is met again after a restart of the agent; those are spread over a
// period so that they do not come all at once.
func (p *Prober) first(key Key, t Target) time.Time {
	now := p.now()
	at := t.Started.Add(seconds(t.Probe.InitialDelaySeconds, 0))
	if at.After(now) || now.Sub(t.Started) < period(t.Probe) {
		return at
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(key.UID)) // never fails
	return now.Add(period(t.Probe) * time.Duration(h.Sum32()%256) / 256)
}

// Keep drops all probes of a pod except these.
func (p *Prober) Keep(uid types.UID, keys map[Key]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, e := range p.entries {
		if key.UID != uid || keys[key] {
			continue
		}
		delete(p.entries, key)
		if e.index >= 0 {
			heap.Remove(&p.due, e.index)
		}
	}
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) {
	defer p.probes.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := p.start(ctx)
		timer.Stop()
		if wait >= 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// start begins every probe that is due and returns how long the next one has,
// negative where there is none.
func (p *Prober) start(ctx context.Context) time.Duration {
	for {
		p.mu.Lock()
		if len(p.due) == 0 {
			p.mu.Unlock()
			return -1
		}
		e := p.due[0]
		if wait := e.at.Sub(p.now()); wait > 0 {
			p.mu.Unlock()
			return wait
		}
		heap.Pop(&p.due)
		target := e.target
		p.mu.Unlock()
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return -1
		}
		p.probes.Go(func() {
			began := p.now()
			err := p.once(ctx, e.key, target)
			<-p.slots
			if ctx.Err() == nil {
				p.finish(e, began, err)
			}
		})
	}
}

// finish counts one result, tells what it means and queues the next probe.
func (p *Prober) finish(e *entry, began time.Time, err error) {
	p.mu.Lock()
	if p.entries[e.key] != e {
		p.mu.Unlock()
		return
	}
	probe := e.target.Probe
	v := Verdict{Key: e.key}
	if err == nil {
		e.successes, e.failures = e.successes+1, 0
		if !e.ready && e.successes >= max(int(probe.SuccessThreshold), 1) {
			e.ready, v.Changed = true, true
		}
	} else {
		const threshold = 3
		limit := int(probe.FailureThreshold)
		if limit <= 0 {
			limit = threshold
		}
		e.successes, e.failures = 0, e.failures+1
		if e.ready && e.failures >= limit {
			e.ready, v.Changed = false, true
		}
		v.Failure = err.Error()
	}
	v.Ready = e.ready
	e.at = began.Add(period(probe))
	if now := p.now(); e.at.Before(now) {
		e.at = now
	}
	heap.Push(&p.due, e)
	p.poke()
	p.mu.Unlock()
	if v.Changed || v.Failure != "" {
		p.tell(v)
	}
}

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func period(probe *corev1.Probe) time.Duration {
	const usual = 10
	return seconds(probe.PeriodSeconds, usual)
}

func timeout(probe *corev1.Probe) time.Duration { return seconds(probe.TimeoutSeconds, 1) }

func seconds(n int32, fallback int32) time.Duration {
	if n <= 0 {
		n = fallback
	}
	return time.Duration(n) * time.Second
}

// queue orders entries by when they are due.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	e := x.(*entry)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	e.index = -1
	return e
}
