package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/rs/zerolog"

	"gantry.dev/netfilter"
)

var (
	frame = netfilter.Frame{
		Table:       "gtest",
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		PodCIDR:     netip.MustParsePrefix("10.244.0.0/16"),
		Gateway:     netip.MustParseAddr("10.244.1.1"),
		LocalPods:   netfilter.Addresses(netip.MustParsePrefix("10.244.1.0/28"), 100),
	}
	rulesets = cmp.Options{
		cmpopts.EquateEmpty(),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
)

func testTable(t testing.TB, ns netns, noOwner bool) *Table {
	t.Helper()
	k, err := Open(Options{Table: frame.Table, NetNS: int(ns.file.Fd()), NoOwner: noOwner, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// service makes the i-th Service, with so many endpoints.
func service(i, endpoints int) netfilter.Service {
	s := netfilter.Service{
		Name: fmt.Sprintf("test/s%d", i),
		IPs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
	}
	p := netfilter.Port{Protocol: netfilter.TCP, Port: 80}
	for e := range endpoints {
		p.Endpoints = append(p.Endpoints, netip.AddrPortFrom(
			netip.AddrFrom4([4]byte{10, 244, byte(2 + e>>8), byte(e)}), uint16(8000+i%1000)))
	}
	s.Ports = append(s.Ports, p, netfilter.Port{Protocol: netfilter.UDP, Port: 53, Endpoints: p.Endpoints[:min(1, endpoints)]})
	return s
}

func input(services, endpoints int) netfilter.Input {
	in := netfilter.Input{Frame: frame}
	for i := range services {
		in.Services = append(in.Services, service(i, endpoints))
	}
	return in
}

func apply(t testing.TB, k *Table, tx netfilter.Transaction) {
	t.Helper()
	if err := k.Apply(context.Background(), tx); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, k *Table) netfilter.Ruleset {
	t.Helper()
	r, err := k.Read()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What is written is read back the same, and nft shows it as Print does.
func TestReadReturnsWhatWasApplied(t *testing.T) {
	for _, noOwner := range []bool{false, true} {
		t.Run(fmt.Sprintf("noOwner=%v", noOwner), func(t *testing.T) {
			ns := newNetNS(t)
			k := testTable(t, ns, noOwner)
			if got := read(t, k); got.Table != "" {
				t.Fatalf("a fresh namespace has table %q", got.Table)
			}
			var have netfilter.Ruleset
			for _, endpoints := range []int{0, 1, 2, 3, 4, 3, 20, 100, 2, 0} {
				want := netfilter.Compile(input(5, endpoints))
				apply(t, k, netfilter.Diff(have, want))
				have = read(t, k)
				if d := cmp.Diff(want, have, rulesets); d != "" {
					t.Fatalf("%d endpoints: kernel differs (-want +got):\n%s", endpoints, d)
				}
				if changed, err := k.Changed(); err != nil || changed {
					t.Fatalf("Changed() = %v, %v after nobody else did anything", changed, err)
				}
			}
			if err := k.Remove(); err != nil {
				t.Fatal(err)
			}
			if err := k.Remove(); err != nil {
				t.Fatalf("second Remove: %v", err)
			}
			if out := ns.nft(t, "list", "ruleset"); out != "" {
				t.Fatalf("Remove left:\n%s", out)
			}
		})
	}
}

func TestNftTakesWhatPrintWrites(t *testing.T) {
	ns := newNetNS(t)
	want := netfilter.Compile(input(3, 3))
	text := netfilter.Print(want)
	if _, err := ns.run("sh", "-c", "nft -f - <<'EOF'\n"+text+"\nEOF"); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	k := testTable(t, ns, true)
	have := read(t, k)
	// nft writes short matches of its own, so rules are not the same; the maps are.
	if d := cmp.Diff(want.Spread, have.Spread, rulesets); d != "" {
		t.Errorf("maps differ (-want +got):\n%s", d)
	}
	tx := netfilter.Diff(want, netfilter.Compile(input(2, 2)))
	if _, err := ns.run("sh", "-c", "nft -f - <<'EOF'\n"+tx.String()+"\nEOF"); err != nil {
		t.Fatalf("%v\n%s", err, tx)
	}
}

// The bytes that Stats tells are those that the library encodes.
func TestStatsCountTheBytesSent(t *testing.T) {
	want := netfilter.Compile(input(40, 3))
	for name, tx := range map[string]netfilter.Transaction{
		"create": netfilter.Diff(netfilter.Ruleset{}, want),
		"change": netfilter.Diff(want, netfilter.Compile(input(20, 20))),
		"remove": netfilter.Diff(want, netfilter.Ruleset{}),
	} {
		t.Run(name, func(t *testing.T) {
			var sent uint64
			conn, err := nftables.New(nftables.WithTestDial(func(messages []netlink.Message) ([]netlink.Message, error) {
				for _, m := range messages {
					sent += uint64(16 + len(m.Data))
				}
				return nil, nil
			}))
			if err != nil {
				t.Fatal(err)
			}
			k := &Table{name: frame.Table}
			counted := k.queue(conn, tx, tx.Create)
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
			if counted != sent {
				t.Errorf("counted %d bytes, %d were sent", counted, sent)
			}
		})
	}
}
