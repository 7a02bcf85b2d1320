package netfilter

import (
	"maps"
	"net/netip"
	"slices"
)

// Transaction is one atomic step from a Ruleset to another. It is a value:
// String prints it as nft commands.
type Transaction struct {
	Table string
	// Drop removes the table that is there, with all in it, first.
	Drop bool
	// Create makes the table with Chains and its empty maps and sets.
	Create bool
	Chains []Chain

	Slots      []SlotChange
	HairpinDel []netip.Addr
	HairpinAdd []netip.Addr

	// Stale are the endpoints that no longer stand behind a frontend. Nothing
	// in the table is to be done for them; whoever applies the transaction
	// must have the connections forgotten that would still go there.
	Stale []Flow
}

// SlotChange replaces the slots of one target. An invalid endpoint is an
// empty slot; Have and Want may be nil. Slots that are equal stay untouched.
type SlotChange struct {
	Target
	Have, Want []netip.AddrPort
}

// Flow is traffic to a frontend that goes to one endpoint.
type Flow struct {
	Frontend
	Endpoint netip.AddrPort
}

// Slot returns one slot of each side; ok is false where nothing changes.
func (c SlotChange) Slot(i int) (have, want netip.AddrPort, ok bool) {
	if i < len(c.Have) {
		have = c.Have[i]
	}
	if i < len(c.Want) {
		want = c.Want[i]
	}
	return have, want, have != want
}

// Empty says that there is nothing to tell the kernel.
func (t Transaction) Empty() bool {
	return !t.Drop && !t.Create && len(t.Slots) == 0 && len(t.HairpinDel) == 0 && len(t.HairpinAdd) == 0
}

// Diff is the transaction that leads from have to want. Where the constant
// part differs, the table is replaced whole: that is still one atomic step,
// and it is right whatever somebody made of the old one.
func Diff(have, want Ruleset) Transaction {
	seen := map[Frontend]struct{}{}
	for t := range have.Spread {
		seen[t.Frontend] = struct{}{}
	}
	for t := range want.Spread {
		seen[t.Frontend] = struct{}{}
	}
	return DiffAt(have, want, slices.SortedFunc(maps.Keys(seen), Frontend.compare))
}

// DiffAt is Diff for callers who know which frontends can differ.
func DiffAt(have, want Ruleset, frontends []Frontend) Transaction {
	if have.Table != want.Table || len(have.Foreign) > 0 || !sameChains(have.Chains, want.Chains) {
		return replace(have, want)
	}
	t := Transaction{Table: want.Table}
	for _, f := range frontends {
		changed := false
		for _, n := range Classes() {
			key := Target{f, n}
			h, w := have.Spread[key], want.Spread[key]
			if !sameSlots(h, w) {
				t.Slots = append(t.Slots, SlotChange{key, h, w})
				changed = true
			}
		}
		if changed {
			t.Stale = append(t.Stale, stale(have, want, f)...)
		}
	}
	// The frame rarely changes: comparing two sets of addresses is only worth
	// it where they are not the same map.
	t.HairpinDel = missing(have.Hairpin, want.Hairpin)
	t.HairpinAdd = missing(want.Hairpin, have.Hairpin)
	return t
}

func replace(have, want Ruleset) Transaction {
	t := Transaction{Table: want.Table, Drop: have.Table != "", Create: want.Table != ""}
	if want.Table == "" || (have.Table != "" && have.Table != want.Table) {
		// Two tables in one step: the caller asked for something this package
		// never makes. Drop the old one; the new one follows with the next Diff.
		t.Table, t.Create = have.Table, false
	}
	frontends := map[Frontend]struct{}{}
	for k := range have.Spread {
		frontends[k.Frontend] = struct{}{}
	}
	if t.Create {
		t.Chains = want.Chains
		for _, k := range slices.SortedFunc(maps.Keys(want.Spread), compareTargets) {
			t.Slots = append(t.Slots, SlotChange{Target: k, Want: want.Spread[k]})
		}
		t.HairpinAdd = missing(want.Hairpin, nil)
	}
	for _, f := range slices.SortedFunc(maps.Keys(frontends), Frontend.compare) {
		t.Stale = append(t.Stale, stale(have, want, f)...)
	}
	return t
}

func compareTargets(a, b Target) int {
	if c := a.compare(b.Frontend); c != 0 {
		return c
	}
	return a.Slots - b.Slots
}

func stale(have, want Ruleset, f Frontend) []Flow {
	var out []Flow
	still := want.Endpoints(f)
	for _, e := range have.Endpoints(f) {
		if _, found := slices.BinarySearchFunc(still, e, netip.AddrPort.Compare); !found {
			out = append(out, Flow{f, e})
		}
	}
	return out
}

func missing(from, in map[netip.Addr]struct{}) []netip.Addr {
	var out []netip.Addr
	for a := range from {
		if _, ok := in[a]; !ok {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Apply does to the value what the kernel does with the transaction. It
// changes the maps of r in place.
func (r *Ruleset) Apply(t Transaction) {
	if t.Drop {
		*r = Ruleset{}
	}
	if t.Create {
		r.Table, r.Chains = t.Table, t.Chains
		r.Spread, r.Hairpin = map[Target][]netip.AddrPort{}, map[netip.Addr]struct{}{}
	}
	for _, c := range t.Slots {
		if empty(c.Want) {
			delete(r.Spread, c.Target)
		} else {
			r.Spread[c.Target] = c.Want
		}
	}
	for _, a := range t.HairpinDel {
		delete(r.Hairpin, a)
	}
	for _, a := range t.HairpinAdd {
		r.Hairpin[a] = struct{}{}
	}
}

func empty(slots []netip.AddrPort) bool {
	return !slices.ContainsFunc(slots, netip.AddrPort.IsValid)
}
