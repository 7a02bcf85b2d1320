package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"gantry.dev/netfilter"
)

// Fake is a Kernel in memory. It refuses what the real one refuses, so that a
// wrong idea of what is there shows.
type Fake struct {
	mu      sync.Mutex
	rules   netfilter.Ruleset
	changed bool
	fail    error
	applied []netfilter.Transaction
}

// Apply does the whole transaction or nothing.
func (f *Fake) Apply(ctx context.Context, t netfilter.Transaction) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.fail != nil {
		err := f.fail
		f.fail = nil
		return err
	}
	if t.Empty() {
		return nil
	}
	if err := f.check(t); err != nil {
		return err
	}
	if f.rules.Spread != nil {
		f.rules = f.rules.Clone()
	}
	f.rules.Apply(t)
	f.applied = append(f.applied, t)
	return nil
}

func (f *Fake) check(t netfilter.Transaction) error {
	if t.Drop && f.rules.Table == "" {
		return fmt.Errorf("delete table %s: not there", t.Table)
	}
	rules := f.rules
	if t.Drop {
		rules = netfilter.Ruleset{}
	}
	if !t.Create && !t.Drop && rules.Table == "" {
		return fmt.Errorf("change table %s: not there", t.Table)
	}
	for _, c := range t.Slots {
		there := rules.Spread[c.Target]
		for i := range c.Slots {
			have, want, changed := c.Slot(i)
			if !changed {
				continue
			}
			var is netip.AddrPort
			if i < len(there) {
				is = there[i]
			}
			if have.IsValid() && !is.IsValid() {
				return fmt.Errorf("delete slot %d of %v: not there", i, c.Target)
			}
			if !have.IsValid() && is.IsValid() && is != want {
				return fmt.Errorf("add slot %d of %v: already there", i, c.Target)
			}
		}
	}
	return nil
}

// Read returns a copy of what is there.
func (f *Fake) Read() (netfilter.Ruleset, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = false
	return f.rules.Clone(), nil
}

// Rules is Read for tests: it does not count as having seen what Tamper did.
func (f *Fake) Rules() netfilter.Ruleset {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rules.Clone()
}

// Changed says that Tamper was called since the last Read.
func (f *Fake) Changed() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed, nil
}

// Tamper is another program at work on our table.
func (f *Fake) Tamper(change func(*netfilter.Ruleset)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = f.rules.Clone()
	change(&f.rules)
	f.changed = true
}

// FailNext lets the next Apply fail and do nothing.
func (f *Fake) FailNext(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Applied lists the transactions that changed something.
func (f *Fake) Applied() []netfilter.Transaction {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]netfilter.Transaction(nil), f.applied...)
}
