// Package report tells the control plane what is true on the node: each pod's
// newest status until it is acknowledged, the node's own, and events as long
// as there is room for them.
package report

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/schemas"
)

// Sender carries reports. Each method returns once the control plane's stream
// has the report.
type Sender interface {
	ReportPod(ctx context.Context, h schemas.PodHealth) error
	ReportNode(ctx context.Context, h schemas.NodeHealth) error
	ReportEvent(ctx context.Context, e schemas.PodEvent) error
}

// Sequence gives numbers that never go back, across restarts and clock jumps.
type Sequence interface {
	// ReserveSeq notes that numbers below seq may have been used.
	ReserveSeq(seq uint64) error
}

const (
	senders     = 4
	sendTimeout = 10 * time.Second
	retryFirst  = 250 * time.Millisecond
	retryMax    = 10 * time.Second
	// calm is how long a report that is not urgent waits for a newer one.
	calm = 200 * time.Millisecond
	// burst and refill bound how often one pod is reported: a pod that flaps
	// costs one message per refill, whose content is then the newest.
	burst  = 10
	refill = time.Second
	// reserve is how many numbers are noted as used at a time, so that not
	// every report costs a write to disk.
	reserve = uint64(time.Minute)
)

// Reporter is the node's voice. Its methods do not block.
type Reporter struct {
	node string
	to   Sender
	seqs Sequence
	log  zerolog.Logger
	now  func() time.Time

	mu       sync.Mutex // guards what follows
	pods     map[types.UID]*podEntry
	seq      uint64
	reserved uint64
	node0    *schemas.NodeHealth
	nodeDue  bool
	events   eventQueue
	failures int

	ready chan types.UID // pods that are due; an entry is queued at most once
	nodes chan struct{}  // capacity 1
	tell  chan struct{}  // capacity 1: events are there
}

// podEntry is what is to be told of one pod.
type podEntry struct {
	health schemas.PodHealth
	acked  uint64 // Seq of the newest that arrived
	queued bool   // in ready, with a sender, or waiting for a timer
	timer  *time.Timer
	tokens float64
	filled time.Time
}

// New makes a reporter whose numbers begin above floor.
func New(node string, to Sender, seqs Sequence, floor uint64, log zerolog.Logger) *Reporter {
	return &Reporter{
		node: node, to: to, seqs: seqs, log: log, now: time.Now, seq: floor, reserved: floor,
		pods:   map[types.UID]*podEntry{},
		events: newEventQueue(),
		ready:  make(chan types.UID, 4096), nodes: make(chan struct{}, 1), tell: make(chan struct{}, 1),
	}
}

// Run sends until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case uid := <-r.ready:
					r.sendPod(ctx, uid)
				}
			}
		})
	}
	wg.Go(func() { r.runNode(ctx) })
	wg.Go(func() { r.runEvents(ctx) })
	wg.Wait()
}

// Pod takes in the newest truth about a pod; it replaces what was not sent yet.
func (r *Reporter) Pod(p pod.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.pods[p.Want.UID]
	if !ok {
		e = &podEntry{tokens: burst, filled: r.now()}
		r.pods[p.Want.UID] = e
	}
	e.health = schemas.PodHealth{
		Node: r.node, Namespace: p.Want.Namespace, Name: p.Want.Name, UID: p.Want.UID,
		Revision: p.Want.Revision, Seq: r.next(), ObservedAt: r.now().UTC(), Status: p.Status, Gone: p.Gone,
	}
	delay := time.Duration(0)
	if !p.Urgent {
		delay = calm
	}
	r.schedule(p.Want.UID, e, delay)
}

// Drop forgets a pod of which nothing is to be told any more.
func (r *Reporter) Drop(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.pods[uid]; ok {
		if e.timer != nil {
			e.timer.Stop()
		}
		delete(r.pods, uid)
	}
}

// Again tells everything once more: the control plane may have forgotten it.
func (r *Reporter) Again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, e := range r.pods {
		e.health.Seq = r.next()
		r.schedule(uid, e, 0)
	}
	if r.node0 != nil {
		r.nodeDue = true
		poke(r.nodes)
	}
}

// next is the next sequence number. The caller holds the lock.
func (r *Reporter) next() uint64 {
	r.seq = max(r.seq+1, uint64(r.now().UnixNano()))
	if r.seq >= r.reserved {
		r.reserved = r.seq + reserve
		if err := r.seqs.ReserveSeq(r.reserved); err != nil {
			r.log.Error().Err(err).Msg("cannot note the sequence number of reports")
		}
	}
	return r.seq
}

// schedule queues the pod after a delay, or sooner where it waits already and
// is now urgent. The caller holds the lock.
func (r *Reporter) schedule(uid types.UID, e *podEntry, delay time.Duration) {
	if e.timer != nil {
		if delay > 0 {
			return
		}
		e.timer.Stop()
		e.timer, e.queued = nil, false
	}
	if e.queued {
		return // whoever has it sends the newest
	}
	now := r.now()
	e.tokens = min(burst, e.tokens+float64(now.Sub(e.filled))/float64(refill))
	e.filled = now
	if e.tokens < 1 {
		delay = max(delay, time.Duration((1-e.tokens)*float64(refill)))
	}
	e.queued = true
	if delay <= 0 {
		e.tokens--
		r.push(uid)
		return
	}
	e.timer = time.AfterFunc(delay, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.pods[uid] != e || e.timer == nil {
			return
		}
		e.timer = nil
		e.tokens--
		r.push(uid)
	})
}

func (r *Reporter) push(uid types.UID) {
	select {
	case r.ready <- uid:
	default:
		// More pods than the channel holds: they come up again with a timer.
		e := r.pods[uid]
		e.queued = false
		e.tokens++
		time.AfterFunc(retryFirst, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.pods[uid] == e && !e.queued {
				r.schedule(uid, e, 0)
			}
		})
	}
}

func (r *Reporter) sendPod(ctx context.Context, uid types.UID) {
	r.mu.Lock()
	e, ok := r.pods[uid]
	if !ok {
		r.mu.Unlock()
		return
	}
	health := e.health
	r.mu.Unlock()

	err := r.try(ctx, func(ctx context.Context) error { return r.to.ReportPod(ctx, health) })

	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pods[uid] != e {
		return
	}
	e.queued = false
	if err == nil {
		e.acked = max(e.acked, health.Seq)
	}
	if e.acked < e.health.Seq && ctx.Err() == nil {
		r.schedule(uid, e, 0)
	}
}

// try sends once; after a failure it holds the sender back, longer each time,
// because what failed for one report will fail for the next.
func (r *Reporter) try(ctx context.Context, send func(context.Context) error) error {
	timed, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err := send(timed)
	r.mu.Lock()
	if err == nil {
		r.failures = 0
		r.mu.Unlock()
		return nil
	}
	r.failures++
	failures := r.failures
	r.mu.Unlock()
	if ctx.Err() != nil {
		return err
	}
	if failures == 1 || failures%100 == 0 {
		r.log.Warn().Err(err).Int("failures", failures).Msg("cannot report to the control plane; trying again")
	}
	wait := min(retryFirst<<min((failures-1)/senders, 10), retryMax)
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
	return err
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
