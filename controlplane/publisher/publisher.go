package publisher

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gantry.dev/bus"
	"gantry.dev/controlplane/follow"
	"gantry.dev/schemas"
)

const (
	retryDelay = 200 * time.Millisecond
	// attempts is how often one record is tried by itself before it is given up.
	// The nodes then see a gap and are told by the answer to their sync.
	attempts = 5
	// batch bounds the records that are sent without waiting between them.
	batch = 1024
)

// Bus is what the publisher writes to; *bus.Conn is one.
type Bus interface {
	ClearFeeds(ctx context.Context) error
	PutAll(ctx context.Context, writes []bus.FeedWrite) error
}

// Publisher is the role.
type Publisher struct {
	store bus.Store
	bus   Bus
	log   zerolog.Logger
	wake  chan struct{} // capacity 1

	mu       sync.Mutex
	state    *state
	pages    map[string]*frozen
	waiting  []bus.FeedWrite // compiled and not yet sent, in order
	sending  bool
	complete bool
	loaded   chan struct{}
	moved    chan struct{} // closed and made anew at every change taken in
	sent     uint64
}

// New makes a publisher with an epoch of its own; nothing is said before Run.
func New(store bus.Store, b Bus, cluster schemas.ClusterRecord, log zerolog.Logger) *Publisher {
	return &Publisher{
		store: store, bus: b, log: log, wake: make(chan struct{}, 1),
		state: newState(Facts{ClusterID: cluster.ID, PodCIDR: cluster.PodCIDR, ServiceCIDR: cluster.ServiceCIDR, Epoch: newEpoch()}),
		pages: map[string]*frozen{}, loaded: make(chan struct{}), moved: make(chan struct{}),
	}
}

func newEpoch() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return hex.EncodeToString(b[:])
}

// Run empties the buckets, says everything anew, and then every change, until
// ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	for {
		err := p.bus.ClearFeeds(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			break
		}
		p.log.Warn().Err(err).Msg("empty the feeds, trying again")
		pause(ctx, retryDelay)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.send(ctx) })
	return follow.Run(ctx, p.store, []string{schemas.Nodes, schemas.Pods, schemas.Services, schemas.EndpointSlices}, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.complete = true
		p.state.revision = max(p.state.revision, p.store.View().Revision())
		close(p.loaded)
		p.signal()
	}, p.take)
}

// Loaded is closed once everything that is stored has been compiled: only then
// may a node be answered.
func (p *Publisher) Loaded() <-chan struct{} { return p.loaded }

// Sync answers a node exactly as of now. It waits for Loaded and for the
// revision after, which is 0 where there is nothing to wait for.
func (p *Publisher) Sync(ctx context.Context, req schemas.SyncRequest, after uint64) (schemas.SyncReply, error) {
	select {
	case <-p.loaded:
	case <-ctx.Done():
		return schemas.SyncReply{}, ctx.Err()
	}
	for {
		p.mu.Lock()
		if p.state.revision >= after {
			defer p.mu.Unlock()
			return p.state.sync(req, p.pages), nil
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return schemas.SyncReply{}, ctx.Err()
		}
	}
}

// Quiet tells whether all that was compiled has been sent.
func (p *Publisher) Quiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.complete && len(p.waiting) == 0 && !p.sending
}

// Sent counts the messages sent, markers of deletion among them.
func (p *Publisher) Sent() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

func (p *Publisher) take(c bus.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	writes, err := p.state.Apply(c)
	if err != nil {
		// An object that was stored as JSON can be written as JSON.
		p.log.Error().Err(err).Msg("compile what nodes are told")
	}
	p.waiting = append(p.waiting, writes...)
	close(p.moved)
	p.moved = make(chan struct{})
	if len(writes) > 0 {
		p.signal()
	}
}

func (p *Publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// send sends what was compiled, in order, as soon as it is there. Before all is
// compiled nothing is sent: a node would hear half a truth.
func (p *Publisher) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for ctx.Err() == nil {
			writes := p.next()
			if len(writes) == 0 {
				break
			}
			p.put(ctx, writes)
			p.mu.Lock()
			p.sending = false
			p.sent += uint64(len(writes))
			p.mu.Unlock()
		}
	}
}

func (p *Publisher) next() []bus.FeedWrite {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.complete || len(p.waiting) == 0 {
		return nil
	}
	n := min(len(p.waiting), batch)
	out := p.waiting[:n:n]
	p.waiting = p.waiting[n:]
	if len(p.waiting) == 0 {
		p.waiting = nil
	}
	p.sending = true
	return out
}

// put sends records; where that fails, each by itself and again. A record said
// twice is old news the second time.
func (p *Publisher) put(ctx context.Context, writes []bus.FeedWrite) {
	err := p.bus.PutAll(ctx, writes)
	if err == nil || ctx.Err() != nil {
		return
	}
	p.log.Warn().Err(err).Int("records", len(writes)).Msg("tell nodes, trying again one by one")
	for _, w := range writes {
		for attempt := 1; ctx.Err() == nil; attempt++ {
			if err = p.bus.PutAll(ctx, []bus.FeedWrite{w}); err == nil {
				break
			}
			if attempt == attempts {
				p.log.Error().Err(err).Str("key", w.Key).Msg("a record could not be told; nodes will ask for it")
				break
			}
			pause(ctx, retryDelay)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
