package kernel

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gantry.dev/netfilter"
)

// Kernel is what a Programmer programs: a Table, or a Fake.
type Kernel interface {
	Apply(context.Context, netfilter.Transaction) error
	Read() (netfilter.Ruleset, error)
	Changed() (bool, error)
}

// Conntrack forgets connections that still go where a Service no longer does.
type Conntrack interface {
	// Forget ends the UDP flows to exactly these endpoints.
	Forget(context.Context, []netfilter.Flow) error
	// Reconcile ends every UDP flow to the service range that goes elsewhere
	// than the ruleset sends it. The ruleset is the callee's.
	Reconcile(context.Context, netfilter.Frame, netfilter.Ruleset) error
}

// ProgrammerOptions configure a Programmer.
type ProgrammerOptions struct {
	Kernel    Kernel
	Conntrack Conntrack // may be nil
	// Interval is how often to look whether others changed the table; 0 means
	// every second.
	Interval time.Duration
	Log      zerolog.Logger
}

// Programmer keeps the kernel at what it was told last. Updates that come
// while the kernel is busy are done in one transaction: one that deletes costs
// tens of milliseconds whatever its size. It does nothing before it was given
// both a frame and a complete list of Services, so a restart leaves the old
// rules in force until the new ones are known.
type Programmer struct {
	kernel    Kernel
	conntrack Conntrack
	interval  time.Duration
	log       zerolog.Logger
	wake      chan struct{}

	mu       sync.Mutex
	book     *netfilter.Book // nil before the frame is known
	frame    netfilter.Frame
	services map[string]netfilter.Service
	complete bool
	told     uint64 // count of updates
	done     uint64 // the count that the kernel has reached
	err      error  // why it has not
	moved    chan struct{}

	// Of Run alone.
	have      netfilter.Ruleset
	known     bool // have is what the kernel holds
	reconcile bool // conntrack may hold what no transaction told
	readTook  time.Duration
}

// NewProgrammer makes one; Run starts it.
func NewProgrammer(o ProgrammerOptions) *Programmer {
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	return &Programmer{
		kernel: o.Kernel, conntrack: o.Conntrack, interval: o.Interval, log: o.Log,
		wake:     make(chan struct{}, 1),
		services: map[string]netfilter.Service{},
		moved:    make(chan struct{}),
	}
}

// SetFrame tells the constant part. It may come before or after the Services.
func (p *Programmer) SetFrame(f netfilter.Frame) {
	p.change(func() {
		p.frame = f
		p.book = netfilter.NewBook(f)
		for _, s := range p.services {
			p.book.Set(s)
		}
	})
}

// Set adds or replaces one Service.
func (p *Programmer) Set(s netfilter.Service) {
	p.change(func() { p.set(s) })
}

// Remove takes one Service out; an unknown name is none.
func (p *Programmer) Remove(name string) {
	p.change(func() { p.remove(name) })
}

// Replace tells all Services there are: any other goes.
func (p *Programmer) Replace(all []netfilter.Service) {
	p.change(func() {
		keep := make(map[string]bool, len(all))
		for _, s := range all {
			keep[s.Name] = true
			p.set(s)
		}
		for name := range p.services {
			if !keep[name] {
				p.remove(name)
			}
		}
		p.complete = true
	})
}

// Update is SetFrame and Replace at once.
func (p *Programmer) Update(in netfilter.Input) {
	p.SetFrame(in.Frame)
	p.Replace(in.Services)
}

func (p *Programmer) set(s netfilter.Service) {
	p.services[s.Name] = s
	if p.book != nil {
		p.book.Set(s)
	}
}

func (p *Programmer) remove(name string) {
	delete(p.services, name)
	if p.book != nil {
		p.book.Remove(name)
	}
}

func (p *Programmer) change(f func()) {
	p.mu.Lock()
	f()
	p.told++
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Wait returns once all that was told before is in the kernel, or with the
// reason why it is not when ctx ends.
func (p *Programmer) Wait(ctx context.Context) error {
	p.mu.Lock()
	target := p.told
	p.mu.Unlock()
	for {
		p.mu.Lock()
		done, err, moved := p.done, p.err, p.moved
		p.mu.Unlock()
		if done >= target {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return fmt.Errorf("wait for packet rules: %w", ctx.Err())
		}
	}
}

// Err is why the kernel is not at what was told last; nil where it is, or is
// about to be.
func (p *Programmer) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// Reading a large table back costs time in proportion; where others keep
	// changing nftables, no more than this part of the time goes into it.
	readShare = 20
)

// Run programs the kernel until ctx ends. The rules stay in force after it.
func (p *Programmer) Run(ctx context.Context) {
	retry := firstRetry
	timer := time.NewTimer(p.interval)
	defer timer.Stop()
	for {
		look := false
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
			look = true
		}
		err := p.step(ctx, look)
		if ctx.Err() != nil {
			return
		}
		next := max(p.interval, readShare*p.readTook)
		if err != nil {
			p.log.Warn().Err(err).Dur("retry_in", retry).Msg("packet rules are not up to date")
			next = retry
			retry = min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		timer.Reset(next)
	}
}

// step brings the kernel to what is told. With look it first asks whether
// somebody else changed the table.
func (p *Programmer) step(ctx context.Context, look bool) error {
	p.mu.Lock()
	ready := p.book != nil && p.complete
	p.mu.Unlock()
	if !ready {
		return nil
	}
	err := p.observe(look)
	var told uint64
	if err == nil {
		told, err = p.program(ctx)
	}
	p.mu.Lock()
	p.err = err
	if err == nil {
		p.done = max(p.done, told)
	}
	close(p.moved)
	p.moved = make(chan struct{})
	p.mu.Unlock()
	return err
}

// observe makes sure that have is what the kernel holds.
func (p *Programmer) observe(look bool) error {
	if p.known && look {
		changed, err := p.kernel.Changed()
		if err != nil {
			p.known = false
			return err
		}
		if !changed {
			return nil
		}
	} else if p.known {
		return nil
	}
	start := time.Now()
	seen, err := p.kernel.Read()
	p.readTook = time.Since(start)
	if err != nil {
		p.known = false
		return err
	}
	if p.known {
		if len(seen.Foreign) == 0 && netfilter.Equal(seen, p.have) {
			return nil
		}
		p.log.Warn().Str("table", p.have.Table).Strs("foreign", seen.Foreign).
			Msg("another program changed our packet rules; putting them back")
	}
	p.have, p.known, p.reconcile = seen, true, true
	// What the book has touched is not all that differs now.
	p.mu.Lock()
	p.book.TouchAll(seen)
	p.mu.Unlock()
	return nil
}

// program does one transaction and returns the count of updates that it
// brought the kernel to.
func (p *Programmer) program(ctx context.Context) (uint64, error) {
	p.mu.Lock()
	told, frame := p.told, p.frame
	want := p.book.Ruleset()
	tx := netfilter.DiffAt(p.have, want, p.book.Touched())
	var all netfilter.Ruleset
	reconcile := p.reconcile || tx.Create
	if reconcile && p.conntrack != nil {
		all = want.Clone()
	}
	p.mu.Unlock()

	if err := p.kernel.Apply(ctx, tx); err != nil {
		p.known = false
		return 0, err
	}
	p.have.Apply(tx)
	if p.conntrack == nil {
		return told, nil
	}
	var err error
	switch {
	case reconcile:
		err = p.conntrack.Reconcile(ctx, frame, all)
	default:
		if udp := onlyUDP(tx.Stale); len(udp) > 0 {
			err = p.conntrack.Forget(ctx, udp)
		}
	}
	// The packets are right for new flows; old ones are gone through again.
	p.reconcile = err != nil
	if err != nil {
		return 0, fmt.Errorf("forget connections: %w", err)
	}
	return told, nil
}

// onlyUDP leaves TCP away: its connections end by themselves when the endpoint
// does, and until then belong to a process that may be finishing them.
func onlyUDP(flows []netfilter.Flow) []netfilter.Flow {
	var out []netfilter.Flow
	for _, f := range flows {
		if f.Protocol == netfilter.UDP {
			out = append(out, f)
		}
	}
	return out
}
