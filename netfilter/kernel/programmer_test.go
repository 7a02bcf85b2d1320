package kernel

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"gantry.dev/netfilter"
)

// forgotten is a Conntrack that remembers what it was told to forget.
type forgotten struct {
	mu         sync.Mutex
	flows      []netfilter.Flow
	reconciled int
	fail       error
}

func (f *forgotten) Forget(_ context.Context, flows []netfilter.Flow) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flows = append(f.flows, flows...)
	err := f.fail
	f.fail = nil
	return err
}

func (f *forgotten) Reconcile(context.Context, netfilter.Frame, netfilter.Ruleset) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reconciled++
	return nil
}

func startProgrammer(t testing.TB, k Kernel, c Conntrack) *Programmer {
	t.Helper()
	p := NewProgrammer(ProgrammerOptions{Kernel: k, Conntrack: c, Interval: 5 * time.Millisecond, Log: zerolog.Nop()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return p
}

func wait(t testing.TB, p *Programmer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func holds(t testing.TB, k Kernel, in netfilter.Input) {
	t.Helper()
	have, err := k.Read()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(netfilter.Compile(in), have, rulesets); d != "" {
		t.Fatalf("kernel differs (-want +got):\n%s", d)
	}
}

// with replaces one Service of an input.
func with(in netfilter.Input, s netfilter.Service) netfilter.Input {
	for i := range in.Services {
		if in.Services[i].Name == s.Name {
			in.Services[i] = s
		}
	}
	return in
}

func TestNothingIsProgrammedBeforeInputsAreComplete(t *testing.T) {
	k := &Fake{}
	old := input(3, 2)
	if err := k.Apply(context.Background(), netfilter.Diff(netfilter.Ruleset{}, netfilter.Compile(old))); err != nil {
		t.Fatal(err)
	}
	p := startProgrammer(t, k, nil)
	p.SetFrame(frame)
	p.Set(service(0, 5))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Wait = %v before the Services are complete", err)
	}
	holds(t, k, old)
	p.Replace([]netfilter.Service{service(0, 5), service(1, 2)})
	wait(t, p)
	want := netfilter.Input{Frame: frame, Services: []netfilter.Service{service(0, 5), service(1, 2)}}
	holds(t, k, want)
	if n := len(k.Applied()); n != 2 {
		t.Errorf("%d transactions, want the old agent's and one more", n)
	}
}

func TestOneServiceAtATime(t *testing.T) {
	k, c := &Fake{}, &forgotten{}
	p := startProgrammer(t, k, c)
	p.Update(input(3, 2))
	wait(t, p)
	p.Set(service(3, 3))
	wait(t, p)
	holds(t, k, with(input(4, 2), service(3, 3)))
	p.Remove("test/s0")
	p.Remove("test/never-was")
	wait(t, p)
	if len(c.flows) != 1 || c.flows[0].Protocol != netfilter.UDP || c.flows[0].Port != 53 {
		t.Errorf("forgotten flows: %v, want the one of UDP port 53", c.flows)
	}
	if c.reconciled != 1 {
		t.Errorf("reconciled %d times, want once, at the start", c.reconciled)
	}
}

func TestFailedApplyReadsAgain(t *testing.T) {
	k := &Fake{}
	p := startProgrammer(t, k, nil)
	p.Update(input(3, 2))
	wait(t, p)
	k.FailNext(errors.New("no memory"))
	p.Set(service(1, 7))
	wait(t, p)
	if err := p.Err(); err != nil {
		t.Errorf("Err = %v after the retry", err)
	}
	holds(t, k, with(input(3, 2), service(1, 7)))
}

func TestFailedForgetReconciles(t *testing.T) {
	k, c := &Fake{}, &forgotten{fail: errors.New("conntrack busy")}
	p := startProgrammer(t, k, c)
	p.Update(input(3, 2))
	wait(t, p)
	p.Remove("test/s1")
	wait(t, p)
	if c.reconciled != 2 {
		t.Errorf("reconciled %d times, want again after the failure", c.reconciled)
	}
}

func TestForeignChangesAreRepaired(t *testing.T) {
	want := input(4, 3)
	for name, tamper := range map[string]func(*netfilter.Ruleset){
		"table deleted": func(r *netfilter.Ruleset) { *r = netfilter.Ruleset{} },
		"map flushed":   func(r *netfilter.Ruleset) { clear(r.Spread) },
		"chain emptied": func(r *netfilter.Ruleset) {
			r.Chains = append([]netfilter.Chain(nil), r.Chains...)
			r.Chains[1].Rules = nil
		},
		"chain added": func(r *netfilter.Ruleset) { r.Chains = append(r.Chains[:7:7], netfilter.Chain{Name: "mine"}) },
		"set added":   func(r *netfilter.Ruleset) { r.Foreign = []string{"set x"} },
	} {
		t.Run(name, func(t *testing.T) {
			k, c := &Fake{}, &forgotten{}
			p := startProgrammer(t, k, c)
			p.Update(want)
			wait(t, p)
			k.Tamper(tamper)
			eventually(t, "the repair", func() bool {
				have := k.Rules()
				return len(have.Foreign) == 0 && netfilter.Equal(have, netfilter.Compile(want))
			})
		})
	}
}

func TestFrameMayComeLast(t *testing.T) {
	k := &Fake{}
	p := startProgrammer(t, k, nil)
	p.Replace(input(2, 2).Services)
	p.SetFrame(frame)
	wait(t, p)
	holds(t, k, input(2, 2))
	moved := input(2, 2)
	moved.Gateway = moved.LocalPods[3]
	p.SetFrame(moved.Frame)
	wait(t, p)
	holds(t, k, moved)
}
