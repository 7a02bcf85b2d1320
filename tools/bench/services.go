package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"gantry.dev/netfilter"
	"gantry.dev/netfilter/kernel"
)

// serviceChange compares the cost of one changed endpoint among 5,000 other
// Services with the same among 10, in netlink bytes and in time, from the
// changed record to the kernel's answer. The two tables stand side by side and
// are changed in turn.
func serviceChange(ctx context.Context, _ *Env) (_ []Sample, err error) {
	const few, many, rounds, perRound = 10, 5000, 7, 40
	var tables [2]*serviceTable
	for i, n := range []int{few, many} {
		t, err := newServiceTable(ctx, fmt.Sprintf("gantry-bench-%05d", n), n)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, t.close()) }()
		tables[i] = t
	}
	var byTime, byBytes []float64
	var times, bytes [2][]float64
	for range rounds {
		for i, t := range tables {
			took, sent, err := t.change(ctx, perRound)
			if err != nil {
				return nil, err
			}
			times[i], bytes[i] = append(times[i], took), append(bytes[i], sent)
		}
		last := len(times[0]) - 1
		byTime = append(byTime, times[1][last]/times[0][last])
		byBytes = append(byBytes, bytes[1][last]/bytes[0][last])
	}
	s := summary("service.change.growth", byTime)
	if m := median(byBytes); m > s.Value {
		s = summary("service.change.growth", byBytes)
	}
	s.Ours, s.PeerValue, s.PeerUnit = median(times[1]), median(times[0]), "us"
	s.Peer = fmt.Sprintf("ourselves: among %d other Services against among %d", many, few)
	s.Note = fmt.Sprintf("time %.3fx, netlink bytes %.3fx (%.0f against %.0f bytes a change)",
		median(byTime), median(byBytes), median(bytes[1]), median(bytes[0]))
	return []Sample{s}, nil
}

// serviceTable is a table with n Services of three endpoints and one more that
// changes, kept by the programmer that the agent uses.
type serviceTable struct {
	table      *kernel.Table
	programmer *kernel.Programmer
	stop       func()
	flip       int
}

func newServiceTable(ctx context.Context, name string, n int) (*serviceTable, error) {
	table, err := kernel.Open(kernel.Options{Table: name})
	if err != nil {
		return nil, err
	}
	t := &serviceTable{table: table, programmer: kernel.NewProgrammer(kernel.ProgrammerOptions{Kernel: table})}
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.programmer.Run(runCtx)
	}()
	t.stop = func() { cancel(); <-done }
	t.programmer.SetFrame(netfilter.Frame{
		Table: name, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), PodCIDR: netip.MustParsePrefix("10.42.0.0/16"),
	})
	all := []netfilter.Service{benchService(0, 3)}
	for i := range n {
		all = append(all, benchService(i+1, 3))
	}
	t.programmer.Replace(all)
	return t, t.programmer.Wait(ctx)
}

func (t *serviceTable) close() error {
	t.stop()
	return errors.Join(t.table.Remove(), t.table.Close())
}

func benchService(i, lastOctet int) netfilter.Service {
	s := netfilter.Service{
		Name:  fmt.Sprintf("default/s%d", i),
		IPs:   []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
		Ports: []netfilter.Port{{Protocol: netfilter.TCP, Port: 80}},
	}
	for e := range 3 {
		last := byte(e + 1)
		if e == 2 {
			last = byte(lastOctet)
		}
		s.Ports[0].Endpoints = append(s.Ports[0].Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, byte(i), last}), 8080))
	}
	return s
}

// change swaps one endpoint n times; it returns microseconds and netlink bytes
// per change.
func (t *serviceTable) change(ctx context.Context, n int) (micros, sent float64, err error) {
	before := t.table.Stats().Bytes
	start := time.Now()
	for range n {
		t.flip ^= 1
		t.programmer.Set(benchService(0, 3+t.flip))
		if err := t.programmer.Wait(ctx); err != nil {
			return 0, 0, err
		}
	}
	took := time.Since(start)
	return float64(took.Microseconds()) / float64(n), float64(t.table.Stats().Bytes-before) / float64(n), nil
}
