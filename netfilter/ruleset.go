package netfilter

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// Ruleset is one table of the kernel as a value. The zero value is no table.
//
// Its chains do not grow with Services: there is one rule for each size of
// map, and Services are elements of the maps only. So adding the 5,001st
// costs what adding the first did.
type Ruleset struct {
	Table  string
	Chains []Chain
	// Spread is what the maps hold. The slices are shared and never changed
	// in place; a slot without an endpoint is the zero value.
	Spread map[Target][]netip.AddrPort
	// Hairpin are the pods that may reach themselves through a Service.
	Hairpin map[netip.Addr]struct{}
	// Foreign describes what a table held that this package did not put
	// there. Compile never sets it; Diff answers it with a new table.
	Foreign []string
}

// Frontend is what clients of a Service connect to.
type Frontend struct {
	IP       netip.Addr
	Protocol Protocol
	Port     uint16
}

func (f Frontend) compare(g Frontend) int {
	if c := f.IP.Compare(g.IP); c != 0 {
		return c
	}
	if c := int(f.Protocol) - int(g.Protocol); c != 0 {
		return c
	}
	return int(f.Port) - int(g.Port)
}

// Target is a Frontend in one of the maps: the one with so many slots.
type Target struct {
	Frontend
	Slots int
}

// Chain is a chain with its rules. Hook is empty for one that is jumped to.
type Chain struct {
	Name     string
	Type     string // nat or filter
	Hook     string // prerouting, input, forward, output, postrouting
	Priority int
	Rules    []Rule
}

// Rule matches packets by all of its set fields and then does one thing.
type Rule struct {
	From    netip.Prefix // source in
	To      netip.Prefix // destination in
	NotTo   netip.Prefix // destination not in
	Proto   Protocol     // 0 for any
	Hairpin bool         // source and destination are one pair of the set

	Do    Verb
	Chain string     // of Jump
	Slots int        // of Spread: which map
	Addr  netip.Addr // of SNAT
}

// Verb is what a rule does to a packet that matches.
type Verb uint8

// Verbs.
const (
	Jump        Verb = iota + 1
	Spread           // destination from the map, by a random slot
	SNAT             // source becomes Addr
	Masquerade       // source becomes the node's address on the way out
	Reset            // reject, with a TCP reset
	Unreachable      // reject, with ICMP port unreachable
	Unknown          // in the kernel only: not a rule of this package
)

// Names within the table.
const (
	chainServices = "services"
	hairpinSet    = "hairpin"
	mapPrefix     = "endpoints"
)

// HairpinSet is the name of the set of pods that may reach themselves.
func HairpinSet() string { return hairpinSet }

// MapName is the name of the map with so many slots.
func MapName(slots int) string { return mapPrefix + strconv.Itoa(slots) }

// Classes are the sizes of the maps. A frontend lies in one of them: slots
// cost memory, so few endpoints take few slots.
func Classes() []int { return []int{1, 4, 16, 64, 256, 1024, 4096} }

const maxSlots = 4096

// slotsFor is the smallest class in which no endpoint's share differs from the
// fair one by more than a quarter. Between 1,281 and 4,096 endpoints the
// largest class is used all the same (no endpoint gets more than twice
// another's share); beyond that it holds 4,096 of them, picked by hash.
func slotsFor(endpoints int) int {
	for _, n := range Classes() {
		if n < endpoints {
			continue
		}
		low := n / endpoints
		high := low
		if n%endpoints != 0 {
			high++
		}
		if 4*high*endpoints <= 5*n && 4*low*endpoints >= 3*n {
			return n
		}
	}
	return maxSlots
}

// skeleton is the constant part of the table.
func skeleton(f Frame) []Chain {
	services := Chain{Name: chainServices}
	for _, n := range Classes() {
		services.Rules = append(services.Rules, Rule{Do: Spread, Slots: n})
	}
	toService := []Rule{{To: f.ServiceCIDR, Do: Jump, Chain: chainServices}}
	hairpin := Rule{Hairpin: true, Do: Masquerade}
	if f.Gateway.IsValid() {
		// The link to a pod has no address of its own, so masquerading would
		// pick one of the node's at random.
		hairpin = Rule{Hairpin: true, Do: SNAT, Addr: f.Gateway}
	}
	// Whatever still goes to a cluster IP after translation has no endpoint:
	// it is refused at once, where routing it on would let clients hang.
	refuse := []Rule{
		{To: f.ServiceCIDR, Proto: TCP, Do: Reset},
		{To: f.ServiceCIDR, Do: Unreachable},
	}
	return []Chain{
		services,
		{Name: "nat-prerouting", Type: "nat", Hook: "prerouting", Priority: -100, Rules: toService},
		{Name: "nat-output", Type: "nat", Hook: "output", Priority: -100, Rules: toService},
		{Name: "nat-postrouting", Type: "nat", Hook: "postrouting", Priority: 100, Rules: []Rule{
			hairpin,
			{From: f.PodCIDR, NotTo: f.PodCIDR, Do: Masquerade},
		}},
		{Name: "filter-input", Type: "filter", Hook: "input", Rules: refuse},
		{Name: "filter-forward", Type: "filter", Hook: "forward", Rules: refuse},
		{Name: "filter-output", Type: "filter", Hook: "output", Rules: refuse},
	}
}

// Endpoints lists the distinct endpoints behind a frontend, ordered.
func (r Ruleset) Endpoints(f Frontend) []netip.AddrPort {
	var out []netip.AddrPort
	for _, n := range Classes() {
		for _, e := range r.Spread[Target{f, n}] {
			if e.IsValid() {
				out = append(out, e)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// Clone returns a copy that Apply may change without touching r.
func (r Ruleset) Clone() Ruleset {
	r.Spread = maps.Clone(r.Spread)
	r.Hairpin = maps.Clone(r.Hairpin)
	return r
}

func sameSlots(a, b []netip.AddrPort) bool {
	if len(a) != len(b) {
		return false
	}
	if len(a) == 0 || &a[0] == &b[0] {
		return true
	}
	return slices.Equal(a, b)
}

func sameChains(a, b []Chain) bool {
	return slices.EqualFunc(a, b, func(c, d Chain) bool {
		return c.Name == d.Name && c.Type == d.Type && c.Hook == d.Hook &&
			c.Priority == d.Priority && slices.Equal(c.Rules, d.Rules)
	})
}

// Equal says that two rulesets are the same but for what is foreign in them.
func Equal(a, b Ruleset) bool {
	return a.Table == b.Table && sameChains(a.Chains, b.Chains) &&
		maps.EqualFunc(a.Spread, b.Spread, sameSlots) && maps.Equal(a.Hairpin, b.Hairpin)
}
