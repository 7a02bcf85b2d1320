package netfilter

import (
	"fmt"
	"net/netip"
	"slices"
)

// Compile says what the kernel should hold. What cannot be programmed is left
// out; Problems names it.
func Compile(in Input) Ruleset {
	b := NewBook(in.Frame)
	for _, s := range in.Services {
		b.Set(s)
	}
	return b.Ruleset()
}

// Problems says what of the input cannot be programmed, and why.
func Problems(in Input) []string {
	b := NewBook(in.Frame)
	var out []string
	for _, s := range in.Services {
		b.Set(s)
		for _, ip := range s.IPs {
			if !b.routable(ip) {
				out = append(out, fmt.Sprintf("service %s: cluster IP %s is not in %s", s.Name, ip, in.ServiceCIDR))
			}
		}
		for _, p := range s.Ports {
			if len(p.Endpoints) > maxSlots {
				out = append(out, fmt.Sprintf("service %s: port %d has %d endpoints, of which %d are used", s.Name, p.Port, len(p.Endpoints), maxSlots))
			}
		}
	}
	for f, names := range b.claims {
		if len(names) > 1 {
			out = append(out, fmt.Sprintf("%s %s:%d is claimed by services %v; %s has it", f.Protocol, f.IP, f.Port, names, names[0]))
		}
	}
	slices.Sort(out)
	return out
}

// Book keeps the Ruleset of an Input up to date one Service at a time, so that
// the work for one change does not grow with the number of Services. After
// any history it equals what Compile makes of the Services then in it. It is
// not safe for concurrent use.
type Book struct {
	frame    Frame
	rules    Ruleset
	services map[string]map[Frontend][]netip.AddrPort // slots
	// claims are the Services of a frontend, ordered by name: the first has
	// it. Two can meet while one gives an address up and another takes it.
	claims  map[Frontend][]string
	touched map[Frontend]struct{}
}

// NewBook starts a book without Services.
func NewBook(f Frame) *Book {
	b := &Book{
		frame: f,
		rules: Ruleset{
			Table:   f.Table,
			Chains:  skeleton(f),
			Spread:  map[Target][]netip.AddrPort{},
			Hairpin: map[netip.Addr]struct{}{},
		},
		services: map[string]map[Frontend][]netip.AddrPort{},
		claims:   map[Frontend][]string{},
		touched:  map[Frontend]struct{}{},
	}
	for _, a := range f.LocalPods {
		if a.Is4() {
			b.rules.Hairpin[a] = struct{}{}
		}
	}
	return b
}

// Ruleset is what the kernel should hold. It is shared with the book: Clone it
// to keep it past the next change.
func (b *Book) Ruleset() Ruleset { return b.rules }

// Touched returns the frontends that changed since it was last called.
func (b *Book) Touched() []Frontend {
	out := make([]Frontend, 0, len(b.touched))
	for f := range b.touched {
		out = append(out, f)
	}
	clear(b.touched)
	slices.SortFunc(out, Frontend.compare)
	return out
}

// TouchAll counts every frontend of the book and of another ruleset as touched:
// for callers who have lost track of what the kernel holds.
func (b *Book) TouchAll(other Ruleset) {
	for t := range b.rules.Spread {
		b.touched[t.Frontend] = struct{}{}
	}
	for t := range other.Spread {
		b.touched[t.Frontend] = struct{}{}
	}
}

// Names lists the Services in the book, ordered.
func (b *Book) Names() []string {
	out := make([]string, 0, len(b.services))
	for name := range b.services {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Set adds a Service or replaces the one of the same name.
func (b *Book) Set(s Service) {
	next := map[Frontend][]netip.AddrPort{}
	for _, ip := range s.IPs {
		if !b.routable(ip) {
			continue
		}
		for _, p := range s.Ports {
			f := Frontend{ip, p.Protocol, p.Port}
			if _, doubled := next[f]; !doubled {
				next[f] = assign(only4(p.Endpoints))
			}
		}
	}
	old := b.services[s.Name]
	b.services[s.Name] = next
	for f := range old {
		if _, still := next[f]; !still {
			b.unclaim(f, s.Name)
			b.settle(f)
		}
	}
	for f := range next {
		if _, had := old[f]; !had {
			at, found := slices.BinarySearch(b.claims[f], s.Name)
			if !found {
				b.claims[f] = slices.Insert(b.claims[f], at, s.Name)
			}
		}
		b.settle(f)
	}
}

// Remove takes a Service out; an unknown name is none.
func (b *Book) Remove(name string) {
	old := b.services[name]
	delete(b.services, name)
	for f := range old {
		b.unclaim(f, name)
		b.settle(f)
	}
}

func (b *Book) routable(ip netip.Addr) bool {
	return ip.Is4() && b.frame.ServiceCIDR.Contains(ip)
}

func (b *Book) unclaim(f Frontend, name string) {
	names := slices.DeleteFunc(b.claims[f], func(n string) bool { return n == name })
	if len(names) == 0 {
		delete(b.claims, f)
		return
	}
	b.claims[f] = names
}

// settle writes the slots of the Service that has the frontend.
func (b *Book) settle(f Frontend) {
	var want []netip.AddrPort
	if names := b.claims[f]; len(names) > 0 {
		want = b.services[names[0]][f]
	}
	for _, n := range Classes() {
		t := Target{f, n}
		have := b.rules.Spread[t]
		switch {
		case n != len(want) && have != nil:
			delete(b.rules.Spread, t)
			b.touched[f] = struct{}{}
		case n == len(want) && !sameSlots(have, want):
			b.rules.Spread[t] = want
			b.touched[f] = struct{}{}
		}
	}
}

func only4(endpoints []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(endpoints), func(e netip.AddrPort) bool {
		return !e.Addr().Is4() || e.Port() == 0
	})
}
