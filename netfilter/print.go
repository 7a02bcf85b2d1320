package netfilter

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Print writes a ruleset as nft text: `nft -f` takes it. The zero value prints
// as nothing.
func Print(r Ruleset) string {
	if r.Table == "" {
		return ""
	}
	t := replace(Ruleset{}, r)
	var b strings.Builder
	printTable(&b, t)
	for _, f := range r.Foreign {
		fmt.Fprintf(&b, "# foreign: %s\n", f)
	}
	return b.String()
}

// String is the transaction as nft commands.
func (t Transaction) String() string {
	var b strings.Builder
	if t.Drop {
		fmt.Fprintf(&b, "delete table ip %s\n", t.Table)
	}
	if t.Create {
		printTable(&b, t)
		return b.String()
	}
	for _, c := range t.Slots {
		if s := slotText(c, false); s != "" {
			fmt.Fprintf(&b, "delete element ip %s %s { %s }\n", t.Table, MapName(c.Slots), s)
		}
	}
	for _, a := range t.HairpinDel {
		fmt.Fprintf(&b, "delete element ip %s %s { %s . %s }\n", t.Table, hairpinSet, a, a)
	}
	for _, c := range t.Slots {
		if s := slotText(c, true); s != "" {
			fmt.Fprintf(&b, "add element ip %s %s { %s }\n", t.Table, MapName(c.Slots), s)
		}
	}
	for _, a := range t.HairpinAdd {
		fmt.Fprintf(&b, "add element ip %s %s { %s . %s }\n", t.Table, hairpinSet, a, a)
	}
	return b.String()
}

// slotText lists the elements of a change that are to be added, or deleted.
func slotText(c SlotChange, add bool) string {
	var parts []string
	for i := range c.Slots {
		have, want, changed := c.Slot(i)
		if !changed {
			continue
		}
		key := fmt.Sprintf("%s . %s . %d . %d", c.IP, c.Protocol, c.Port, i)
		switch {
		case add && want.IsValid():
			parts = append(parts, fmt.Sprintf("%s : %s . %d", key, want.Addr(), want.Port()))
		case !add && have.IsValid():
			parts = append(parts, key)
		}
	}
	return strings.Join(parts, ", ")
}

func printTable(b *strings.Builder, t Transaction) {
	fmt.Fprintf(b, "table ip %s {\n", t.Table)
	byClass := map[int][]string{}
	for _, c := range t.Slots {
		if s := slotText(c, true); s != "" {
			byClass[c.Slots] = append(byClass[c.Slots], s)
		}
	}
	for _, n := range Classes() {
		fmt.Fprintf(b, "\tmap %s {\n\t\ttypeof ip daddr . meta l4proto . th dport . numgen random mod %d : ip daddr . th dport\n", MapName(n), n)
		if parts := byClass[n]; len(parts) > 0 {
			fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(parts, ",\n\t\t\t"))
		}
		b.WriteString("\t}\n")
	}
	fmt.Fprintf(b, "\tset %s {\n\t\ttypeof ip saddr . ip daddr\n", hairpinSet)
	if len(t.HairpinAdd) > 0 {
		var parts []string
		for _, a := range t.HairpinAdd {
			parts = append(parts, fmt.Sprintf("%s . %s", a, a))
		}
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(parts, ", "))
	}
	b.WriteString("\t}\n")
	for _, c := range t.Chains {
		fmt.Fprintf(b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.Hook, c.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
}

// String is the rule as nft text.
func (r Rule) String() string {
	var parts []string
	prefix := func(match string, p netip.Prefix) {
		if p.IsValid() {
			parts = append(parts, match+p.Masked().String())
		}
	}
	prefix("ip saddr ", r.From)
	prefix("ip daddr ", r.To)
	prefix("ip daddr != ", r.NotTo)
	if r.Proto != 0 {
		parts = append(parts, "meta l4proto "+r.Proto.String())
	}
	if r.Hairpin {
		parts = append(parts, "ip saddr . ip daddr @"+hairpinSet)
	}
	switch r.Do {
	case Jump:
		parts = append(parts, "jump "+r.Chain)
	case Spread:
		parts = append(parts, fmt.Sprintf("dnat ip to ip daddr . meta l4proto . th dport . numgen random mod %d map @%s", r.Slots, MapName(r.Slots)))
	case SNAT:
		parts = append(parts, "snat ip to "+r.Addr.String())
	case Masquerade:
		parts = append(parts, "masquerade fully-random")
	case Reset:
		parts = append(parts, "reject with tcp reset")
	case Unreachable:
		parts = append(parts, "reject with icmp port-unreachable")
	default:
		parts = append(parts, "# unknown")
	}
	return strings.Join(parts, " ")
}

// Frontends lists what the ruleset serves, ordered.
func (r Ruleset) Frontends() []Frontend {
	seen := map[Frontend]struct{}{}
	for t := range r.Spread {
		seen[t.Frontend] = struct{}{}
	}
	return slices.SortedFunc(maps.Keys(seen), Frontend.compare)
}
