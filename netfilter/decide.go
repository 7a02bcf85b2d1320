package netfilter

import "net/netip"

// Packet is the first packet of a connection; later ones follow its verdict.
type Packet struct {
	Protocol Protocol
	From, To netip.AddrPort
	// Local packets come from the node itself, others from a pod or from
	// outside.
	Local bool
	// ToNode says that the destination is the node itself once translated.
	ToNode bool
}

// Verdict is what becomes of a packet.
type Verdict struct {
	// Refused is how the sender learns that nobody is there: Reset,
	// Unreachable, or 0 for a packet that goes on.
	Refused Verb
	// To is where it goes.
	To netip.AddrPort
	// From is the source address that the receiver sees. It is the zero value
	// where the kernel picks one of the node's (Masqueraded).
	From        netip.Addr
	Masqueraded bool
}

// Decide says what a ruleset does to a packet when every draw of a random
// number yields random (taken modulo the slots). It follows the chains rule
// by rule, knows nothing of what they are for, and so can judge Compile.
func Decide(r Ruleset, p Packet, random int) Verdict {
	w := walk{rules: r, packet: p, random: random, out: Verdict{To: p.To, From: p.From.Addr()}}
	if p.Local {
		w.hook("nat", "output")
		w.hook("filter", "output")
	} else {
		w.hook("nat", "prerouting")
		if p.ToNode {
			w.hook("filter", "input")
			return w.out
		}
		w.hook("filter", "forward")
	}
	w.hook("nat", "postrouting")
	return w.out
}

type walk struct {
	rules  Ruleset
	packet Packet
	random int
	out    Verdict
}

func (w *walk) hook(kind, hook string) {
	for _, c := range w.rules.Chains {
		if c.Hook == hook && c.Type == kind && w.out.Refused == 0 {
			w.chain(c)
		}
	}
}

// chain says whether a rule ended the walk of the hook.
func (w *walk) chain(c Chain) bool {
	for _, r := range c.Rules {
		if w.matches(r) && w.do(r) {
			return true
		}
	}
	return false
}

func (w *walk) matches(r Rule) bool {
	switch {
	case r.From.IsValid() && !r.From.Contains(w.out.From):
		return false
	case r.To.IsValid() && !r.To.Contains(w.out.To.Addr()):
		return false
	case r.NotTo.IsValid() && r.NotTo.Contains(w.out.To.Addr()):
		return false
	case r.Proto != 0 && r.Proto != w.packet.Protocol:
		return false
	case r.Hairpin:
		_, in := w.rules.Hairpin[w.out.From]
		return in && w.out.From == w.out.To.Addr()
	}
	return true
}

func (w *walk) do(r Rule) bool {
	switch r.Do {
	case Jump:
		for _, c := range w.rules.Chains {
			if c.Name == r.Chain {
				return w.chain(c)
			}
		}
	case Spread:
		f := Frontend{w.out.To.Addr(), w.packet.Protocol, w.out.To.Port()}
		slots := w.rules.Spread[Target{f, r.Slots}]
		if i := w.random % r.Slots; i < len(slots) && slots[i].IsValid() {
			w.out.To = slots[i]
			return true
		}
	case SNAT:
		w.out.From = r.Addr
		return true
	case Masquerade:
		w.out.From, w.out.Masqueraded = netip.Addr{}, true
		return true
	case Reset, Unreachable:
		w.out.Refused = r.Do
		return true
	}
	return false
}
