package kernel

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"gantry.dev/netfilter"
)

// programmed is a kernel with so many Services in it, kept by a Programmer.
func programmed(t testing.TB, services int) (*Table, *Programmer) {
	t.Helper()
	k := testTable(t, newNetNS(t), false)
	p := NewProgrammer(ProgrammerOptions{Kernel: k, Interval: time.Hour, Log: zerolog.Nop()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	p.Update(input(services, 3))
	wait(t, p)
	return k, p
}

// What a change of one Service costs does not depend on how many others there
// are: the same bytes go to the kernel.
func TestCostOfAChangeDoesNotGrow(t *testing.T) {
	cost := map[int][]uint64{}
	for _, services := range []int{10, 5000} {
		k, p := programmed(t, services)
		for _, change := range []func(){
			func() { p.Set(service(60000, 3)) }, // added
			func() { p.Set(service(60000, 4)) }, // one endpoint more, in another class
			func() { p.Set(service(60000, 5)) },
			func() { p.Set(service(60000, 6)) }, // one endpoint more in the same class
			func() { p.Set(service(60000, 0)) },
			func() { p.Remove("test/s60000") },
		} {
			change()
			wait(t, p)
			cost[services] = append(cost[services], k.Stats().LastBytes)
		}
	}
	for i := range cost[10] {
		if cost[10][i] != cost[5000][i] {
			t.Errorf("change %d: %d bytes among 10 Services, %d among 5,000", i, cost[10][i], cost[5000][i])
		}
	}
	t.Logf("bytes per change: %v", cost[5000])
}

// One transaction programs them all: there is no moment with half of them.
func TestTenThousandServicesInOneTransaction(t *testing.T) {
	k := testTable(t, newNetNS(t), false)
	want := netfilter.Compile(input(10000, 3))
	apply(t, k, netfilter.Diff(netfilter.Ruleset{}, want))
	if got := k.Stats().Applies; got != 1 {
		t.Errorf("%d transactions", got)
	}
	if !netfilter.Equal(read(t, k), want) {
		t.Error("the kernel holds something else")
	}
	apply(t, k, netfilter.Diff(want, netfilter.Compile(input(100, 3))))
	if !netfilter.Equal(read(t, k), netfilter.Compile(input(100, 3))) {
		t.Error("after removing nearly all the kernel holds something else")
	}
}

// BenchmarkUpdate measures one change from Set to the kernel's answer.
// bytes/op is what went over netlink.
func BenchmarkUpdate(b *testing.B) {
	for _, services := range []int{10, 5000} {
		for _, kind := range []struct {
			name   string
			change func(p *Programmer, i int)
		}{
			{"add", func(p *Programmer, i int) { p.Set(service(services+i, 3)) }},
			{"endpoint", func(p *Programmer, i int) { p.Set(service(services-1, 5+i%2)) }},
		} {
			b.Run(fmt.Sprintf("%s/services=%d", kind.name, services), func(b *testing.B) {
				k, p := programmed(b, services)
				ctx := context.Background()
				start := k.Stats().Bytes
				b.ResetTimer()
				for i := range b.N {
					kind.change(p, i)
					if err := p.Wait(ctx); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(k.Stats().Bytes-start)/float64(b.N), "bytes/op")
			})
		}
	}
}

// BenchmarkCold programs 10,000 Services into an empty kernel.
func BenchmarkCold(b *testing.B) {
	for range b.N {
		b.StopTimer()
		k := testTable(b, newNetNS(b), false)
		in := input(10000, 3)
		b.StartTimer()
		apply(b, k, netfilter.Diff(netfilter.Ruleset{}, netfilter.Compile(in)))
	}
}
