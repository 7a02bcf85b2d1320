package netfilter

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gantry.dev/schemas"
)

var (
	testFrame = Frame{
		Table:       "gantry",
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		PodCIDR:     netip.MustParsePrefix("10.244.0.0/16"),
		Gateway:     netip.MustParseAddr("10.244.1.1"),
		LocalPods:   []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.3")},
	}
	compareNet = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	}
)

func pods(n int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(1 + i>>8), byte(i)}), 8080))
	}
	return out
}

func TestAddressesLeaveTheGatewayOut(t *testing.T) {
	got := Addresses(netip.MustParsePrefix("10.1.2.0/29"), 4)
	want := []netip.Addr{netip.MustParseAddr("10.1.2.2"), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.2.4"), netip.MustParseAddr("10.1.2.5")}
	if d := cmp.Diff(want, got, compareNet); d != "" {
		t.Error(d)
	}
}

func TestSlotsAreAsFewAsEvennessAllows(t *testing.T) {
	for endpoints, want := range map[int]int{1: 1, 2: 4, 3: 16, 4: 4, 5: 16, 6: 16, 7: 64, 8: 16, 16: 16,
		17: 64, 33: 256, 64: 64, 65: 256, 81: 1024, 128: 256, 256: 256, 257: 1024, 1000: 4096, 4096: 4096, 9000: 4096} {
		if got := slotsFor(endpoints); got != want {
			t.Errorf("slotsFor(%d) = %d, want %d", endpoints, got, want)
		}
	}
}

// Up to 1,280 endpoints no share is off by more than a quarter.
func TestLoadIsEven(t *testing.T) {
	for n := 1; n <= 1280; n++ {
		slots := assign(pods(n))
		share := map[netip.AddrPort]int{}
		for _, e := range slots {
			share[e]++
		}
		if len(share) != n {
			t.Fatalf("%d endpoints: %d have slots", n, len(share))
		}
		for e, s := range share {
			if 4*s*n > 5*len(slots) || 4*s*n < 3*len(slots) {
				t.Fatalf("%d endpoints over %d slots: %s has %d, the fair share is %.2f", n, len(slots), e, s, float64(len(slots))/float64(n))
			}
		}
	}
}

// Beyond the largest class some endpoints get nothing, the others one slot each.
func TestMoreEndpointsThanSlots(t *testing.T) {
	slots := assign(pods(6000))
	if len(slots) != maxSlots || !slices.ContainsFunc(slots, func(e netip.AddrPort) bool { return e.Addr().As4()[2] > 20 }) {
		t.Errorf("%d slots; the last pods have none", len(slots))
	}
	slices.SortFunc(slots, netip.AddrPort.Compare)
	if len(slices.Compact(slots)) != maxSlots {
		t.Error("an endpoint has two slots while others have none")
	}
}

// One endpoint more or less within a class changes about its own share of the
// slots, not all of them.
func TestAssignmentIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 300).Draw(t, "endpoints")
		all := pods(n + 1)
		gone := rapid.IntRange(0, n).Draw(t, "gone")
		fewer := slices.Delete(slices.Clone(all), gone, gone+1)
		before, after := assign(all), assign(fewer)
		if len(before) != len(after) {
			return // another class: everything moves
		}
		changed := 0
		for i := range before {
			if before[i] != after[i] {
				changed++
			}
		}
		share := len(before)/n + 1
		// Its own slots must change; the turns of the others shift a little.
		if limit := 3*share + len(before)/3; changed > limit {
			t.Fatalf("%d endpoints over %d slots: one more changed %d slots, share is %d", n, len(before), changed, share)
		}
		shuffled := slices.Clone(all)
		slices.Reverse(shuffled)
		if !slices.Equal(before, assign(shuffled)) {
			t.Fatal("the order of endpoints matters")
		}
	})
}

// drawInput makes few names and addresses, so that they meet.
func drawInput(t *rapid.T, label string) Input {
	in := Input{Frame: testFrame}
	for i := range rapid.IntRange(0, 6).Draw(t, label+" services") {
		in.Services = append(in.Services, drawService(t, fmt.Sprintf("ns/s%d", i)))
	}
	return in
}

func drawService(t *rapid.T, name string) Service {
	s := Service{Name: name}
	for range rapid.IntRange(0, 2).Draw(t, "addresses") {
		s.IPs = append(s.IPs, netip.AddrFrom4([4]byte{10, 96, 0, byte(rapid.IntRange(1, 12).Draw(t, "address"))}))
	}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		p := Port{
			Protocol: rapid.SampledFrom([]Protocol{TCP, UDP}).Draw(t, "protocol"),
			Port:     uint16(rapid.IntRange(80, 82).Draw(t, "port")),
		}
		all := pods(20)
		for range rapid.IntRange(0, 9).Draw(t, "endpoints") {
			p.Endpoints = append(p.Endpoints, rapid.SampledFrom(all).Draw(t, "endpoint"))
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

// intended says, without any of the package's structures, which endpoints
// stand behind a frontend: those of the first Service by name that has it.
func intended(in Input, f Frontend) []netip.AddrPort {
	services := slices.Clone(in.Services)
	slices.SortFunc(services, func(a, b Service) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	for _, s := range services {
		for _, p := range s.Ports {
			if slices.Contains(s.IPs, f.IP) && p.Protocol == f.Protocol && p.Port == f.Port {
				out := slices.Clone(p.Endpoints)
				slices.SortFunc(out, netip.AddrPort.Compare)
				return slices.Compact(out)
			}
		}
	}
	return nil
}

func TestRulesetDoesWhatIsIntended(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t, "in")
		r := Compile(in)
		client := netip.MustParseAddrPort("10.244.9.9:40000")
		for last := range 14 {
			for port := uint16(79); port < 84; port++ {
				for _, proto := range []Protocol{TCP, UDP} {
					f := Frontend{netip.AddrFrom4([4]byte{10, 96, 0, byte(last)}), proto, port}
					want := intended(in, f)
					share := map[netip.AddrPort]int{}
					for random := range maxSlots {
						local := random%2 == 0
						v := Decide(r, Packet{Protocol: proto, From: client, To: netip.AddrPortFrom(f.IP, port), Local: local}, random)
						if len(want) == 0 {
							refusal := Unreachable
							if proto == TCP {
								refusal = Reset
							}
							if v.Refused != refusal {
								t.Fatalf("%v has no endpoints: %+v", f, v)
							}
							break
						}
						if v.Refused != 0 || !slices.Contains(want, v.To) {
							t.Fatalf("%v with endpoints %v: %+v", f, want, v)
						}
						share[v.To]++
					}
					for _, e := range want {
						if 4*share[e]*len(want) < 3*maxSlots || 4*share[e]*len(want) > 5*maxSlots {
							t.Fatalf("%v: %s gets %d of %d with %d endpoints", f, e, share[e], maxSlots, len(want))
						}
					}
				}
			}
		}
	})
}

func TestDiffLeadsFromAnythingToAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := Compile(drawInput(t, "have")), Compile(drawInput(t, "want"))
		switch rapid.IntRange(0, 6).Draw(t, "special") {
		case 0:
			have = Ruleset{}
		case 1:
			want = Ruleset{}
		case 2:
			have.Foreign = []string{"set x"}
		case 3:
			have.Chains = have.Chains[1:]
		case 4:
			delete(have.Hairpin, testFrame.LocalPods[0])
		}
		tx := Diff(have, want)
		got := have.Clone()
		got.Apply(tx)
		if !Equal(got, want) || len(got.Foreign) > 0 {
			t.Fatalf("after\n%s\nthere is\n%swant\n%s", tx, Print(got), Print(want))
		}
		if again := Diff(got, want); !again.Empty() || len(again.Stale) > 0 {
			t.Fatalf("a second difference: %s", again)
		}
		stale := map[Flow]bool{}
		for _, f := range tx.Stale {
			stale[f] = true
		}
		for _, f := range have.Frontends() {
			for _, e := range have.Endpoints(f) {
				if gone := !slices.Contains(want.Endpoints(f), e); gone != stale[Flow{f, e}] {
					t.Fatalf("%v to %s: gone is %v, stale is %v", f, e, gone, !gone)
				}
				delete(stale, Flow{f, e})
			}
		}
		if len(stale) > 0 {
			t.Fatalf("stale without having been there: %v", stale)
		}
	})
}

// A book with any history equals Compile of what is in it, and the frontends
// that it says it touched are enough for the difference.
func TestBookEqualsCompile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		book := NewBook(testFrame)
		now := map[string]Service{}
		kernel := book.Ruleset().Clone()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			name := fmt.Sprintf("ns/s%d", rapid.IntRange(0, 4).Draw(t, "service"))
			if rapid.Bool().Draw(t, "remove") {
				book.Remove(name)
				delete(now, name)
			} else {
				s := drawService(t, name)
				book.Set(s)
				now[name] = s
			}
			if rapid.Bool().Draw(t, "program") {
				kernel.Apply(DiffAt(kernel, book.Ruleset(), book.Touched()))
			}
		}
		in := Input{Frame: testFrame}
		for _, s := range now {
			in.Services = append(in.Services, s)
		}
		want := Compile(in)
		if !Equal(book.Ruleset(), want) {
			t.Fatalf("book holds\n%swant\n%s", Print(book.Ruleset()), Print(want))
		}
		kernel.Apply(DiffAt(kernel, book.Ruleset(), book.Touched()))
		if !Equal(kernel, want) {
			t.Fatalf("touched frontends were not enough: kernel holds\n%swant\n%s", Print(kernel), Print(want))
		}
	})
}

func TestDecide(t *testing.T) {
	at := netip.MustParseAddrPort
	in := Input{Frame: testFrame, Services: []Service{{
		Name: "ns/web", IPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []Port{{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{at("10.244.1.2:8080")}}},
	}}}
	r := Compile(in)
	for _, c := range []struct {
		desc   string
		packet Packet
		want   Verdict
	}{
		{"from another pod", Packet{Protocol: TCP, From: at("10.244.1.3:999"), To: at("10.96.0.1:80")},
			Verdict{To: at("10.244.1.2:8080"), From: netip.MustParseAddr("10.244.1.3")}},
		{"from the node", Packet{Protocol: TCP, From: at("10.244.1.1:999"), To: at("10.96.0.1:80"), Local: true},
			Verdict{To: at("10.244.1.2:8080"), From: netip.MustParseAddr("10.244.1.1")}},
		{"from itself", Packet{Protocol: TCP, From: at("10.244.1.2:999"), To: at("10.96.0.1:80")},
			Verdict{To: at("10.244.1.2:8080"), From: testFrame.Gateway}},
		{"another port", Packet{Protocol: TCP, From: at("10.244.1.3:999"), To: at("10.96.0.1:81")},
			Verdict{Refused: Reset, To: at("10.96.0.1:81"), From: netip.MustParseAddr("10.244.1.3")}},
		{"another protocol", Packet{Protocol: UDP, From: at("10.244.1.3:999"), To: at("10.96.0.1:80")},
			Verdict{Refused: Unreachable, To: at("10.96.0.1:80"), From: netip.MustParseAddr("10.244.1.3")}},
		{"pod to pod", Packet{Protocol: TCP, From: at("10.244.1.3:999"), To: at("10.244.7.7:80")},
			Verdict{To: at("10.244.7.7:80"), From: netip.MustParseAddr("10.244.1.3")}},
		{"pod to outside", Packet{Protocol: TCP, From: at("10.244.1.3:999"), To: at("192.0.2.1:80")},
			Verdict{To: at("192.0.2.1:80"), Masqueraded: true}},
		{"outside to pod", Packet{Protocol: TCP, From: at("192.0.2.1:999"), To: at("10.244.1.2:80")},
			Verdict{To: at("10.244.1.2:80"), From: netip.MustParseAddr("192.0.2.1")}},
		{"to the node itself", Packet{Protocol: TCP, From: at("10.244.1.2:999"), To: at("10.244.1.1:80"), ToNode: true},
			Verdict{To: at("10.244.1.1:80"), From: netip.MustParseAddr("10.244.1.2")}},
	} {
		t.Run(c.desc, func(t *testing.T) {
			if d := cmp.Diff(c.want, Decide(r, c.packet, 7), compareNet); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTransactionPrintsAsCommands(t *testing.T) {
	endpoint := netip.MustParseAddrPort("10.244.1.2:8080")
	service := func(endpoints ...netip.AddrPort) Input {
		return Input{Frame: testFrame, Services: []Service{{
			Name: "ns/web", IPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			Ports: []Port{{Protocol: TCP, Port: 80, Endpoints: endpoints}},
		}}}
	}
	for _, c := range []struct {
		desc       string
		have, want Input
		text       string
	}{
		{"nothing", service(endpoint), service(endpoint), ""},
		{"first endpoint", service(), service(endpoint),
			"add element ip gantry endpoints1 { 10.96.0.1 . tcp . 80 . 0 : 10.244.1.2 . 8080 }\n"},
		{"last endpoint", service(endpoint), service(),
			"delete element ip gantry endpoints1 { 10.96.0.1 . tcp . 80 . 0 }\n"},
		{"another endpoint", service(endpoint), service(netip.MustParseAddrPort("10.244.1.3:8080")),
			"delete element ip gantry endpoints1 { 10.96.0.1 . tcp . 80 . 0 }\n" +
				"add element ip gantry endpoints1 { 10.96.0.1 . tcp . 80 . 0 : 10.244.1.3 . 8080 }\n"},
	} {
		t.Run(c.desc, func(t *testing.T) {
			if d := cmp.Diff(c.text, Diff(Compile(c.have), Compile(c.want)).String()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestProblemsAreNamed(t *testing.T) {
	web := func(name, ip string) Service {
		return Service{Name: name, IPs: []netip.Addr{netip.MustParseAddr(ip)}, Ports: []Port{{Protocol: TCP, Port: 80}}}
	}
	got := Problems(Input{Frame: testFrame, Services: []Service{web("ns/b", "10.96.0.1"), web("ns/a", "10.96.0.1"), web("ns/c", "10.97.0.1")}})
	want := []string{
		"service ns/c: cluster IP 10.97.0.1 is not in 10.96.0.0/16",
		"tcp 10.96.0.1:80 is claimed by services [ns/a ns/b]; ns/a has it",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestServiceOfRouteRecord(t *testing.T) {
	r := schemas.RouteRecord{Namespace: "ns", Name: "web", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Ports: []schemas.RoutePort{
		{Protocol: "TCP", Port: 80, Endpoints: []schemas.RouteEndpoint{{IP: "10.244.1.2", Port: 8080}}},
		{Protocol: "SCTP", Port: 81},
		{Protocol: "UDP", Port: 53},
	}}
	got, err := ServiceOf(r)
	if err != nil {
		t.Fatal(err)
	}
	want := Service{Name: "ns/web", IPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []Port{
		{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:8080")}},
		{Protocol: UDP, Port: 53},
	}}
	if d := cmp.Diff(want, got, compareNet); d != "" {
		t.Error(d)
	}
	r.Ports[0].Endpoints[0].IP = "web-1"
	if _, err := ServiceOf(r); err == nil {
		t.Error("an endpoint without an address is taken")
	}
	r = schemas.RouteRecord{Namespace: "ns", Name: "headless", ClusterIPs: []string{"None"}}
	if got, err := ServiceOf(r); err != nil || len(got.IPs) != 0 {
		t.Errorf("headless: %v, %v", got, err)
	}
}
