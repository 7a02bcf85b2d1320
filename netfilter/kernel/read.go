package kernel

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"

	"gantry.dev/netfilter"
)

// Read returns what the kernel holds, in full. Without a table it returns the
// zero Ruleset. What is not of our making is told in Foreign.
func (k *Table) Read() (netfilter.Ruleset, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// The answers to several questions fit together only where nothing changed
	// between them. And a set that the kernel is just resizing, after many
	// changes, gives some elements twice and others not at all, without a
	// word: so an answer counts once it is given twice.
	var last *netfilter.Ruleset
	for range 10 {
		before, err := k.conn.GetGen()
		if err != nil {
			return netfilter.Ruleset{}, fmt.Errorf("read table %s: %w", k.name, err)
		}
		r, owned, readErr := k.read()
		after, err := k.conn.GetGen()
		if err != nil {
			return netfilter.Ruleset{}, fmt.Errorf("read table %s: %w", k.name, err)
		}
		if before.ID != after.ID {
			last = nil
			continue
		}
		if readErr != nil {
			return netfilter.Ruleset{}, readErr
		}
		if len(r.Spread) == 0 || last != nil && same(*last, r) {
			k.generation, k.owned = after.ID, owned
			return r, nil
		}
		last = &r
	}
	return netfilter.Ruleset{}, fmt.Errorf("read table %s: nftables keeps changing", k.name)
}

func same(a, b netfilter.Ruleset) bool {
	return len(a.Foreign) == len(b.Foreign) && netfilter.Equal(a, b)
}

func (k *Table) read() (netfilter.Ruleset, bool, error) {
	table, err := k.table()
	if err != nil || table == nil {
		return netfilter.Ruleset{}, false, err
	}
	r := netfilter.Ruleset{
		Table:   k.name,
		Spread:  map[netfilter.Target][]netip.AddrPort{},
		Hairpin: map[netip.Addr]struct{}{},
	}
	if table.Flags&nftables.TableFlagDormant != 0 {
		r.Foreign = append(r.Foreign, "the table is dormant")
	}
	if err := k.readChains(table, &r); err != nil {
		return netfilter.Ruleset{}, false, err
	}
	if err := k.readSets(table, &r); err != nil {
		return netfilter.Ruleset{}, false, err
	}
	return r, k.isOwner(table), nil
}

func (k *Table) readChains(table *nftables.Table, r *netfilter.Ruleset) error {
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("read chains of table %s: %w", k.name, err)
	}
	for _, c := range chains {
		if c.Table.Name != k.name {
			continue
		}
		chain := netfilter.Chain{Name: c.Name}
		if c.Hooknum != nil {
			chain.Type, chain.Priority = string(c.Type), int(*c.Priority)
			for name, hook := range hooks {
				if *hook == *c.Hooknum {
					chain.Hook = name
				}
			}
			if c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
				r.Foreign = append(r.Foreign, fmt.Sprintf("chain %s does not accept by default", c.Name))
			}
		}
		rules, err := k.conn.GetRules(table, c)
		if err != nil {
			return fmt.Errorf("read rules of chain %s of table %s: %w", c.Name, k.name, err)
		}
		for _, rule := range rules {
			chain.Rules = append(chain.Rules, decode(rule.Exprs))
		}
		r.Chains = append(r.Chains, chain)
	}
	return nil
}

func (k *Table) readSets(table *nftables.Table, r *netfilter.Ruleset) error {
	sets, err := k.conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("read sets of table %s: %w", k.name, err)
	}
	missing := map[string]bool{netfilter.HairpinSet(): true}
	for _, n := range netfilter.Classes() {
		missing[netfilter.MapName(n)] = true
	}
	for _, s := range sets {
		s.Table = table
		ours := missing[s.Name]
		delete(missing, s.Name)
		switch {
		case !ours:
			r.Foreign = append(r.Foreign, "set "+s.Name)
			continue
		case s.Name == netfilter.HairpinSet() && !s.IsMap && s.KeyType.Bytes == pairBytes:
			err = k.readPairs(s, r)
		case s.IsMap && s.KeyType.Bytes == keyBytes && s.DataType.Bytes == dataBytes:
			err = k.readMap(s, r)
		default:
			r.Foreign = append(r.Foreign, fmt.Sprintf("set %s has another type", s.Name))
		}
		if err != nil {
			return fmt.Errorf("read set %s of table %s: %w", s.Name, k.name, err)
		}
	}
	for name := range missing {
		r.Foreign = append(r.Foreign, fmt.Sprintf("set %s is missing", name))
	}
	return nil
}

func (k *Table) readPairs(s *nftables.Set, r *netfilter.Ruleset) error {
	elements, err := k.conn.GetSetElements(s)
	if err != nil {
		return err
	}
	for _, e := range elements {
		if len(e.Key) != pairBytes || [4]byte(e.Key[:4]) != [4]byte(e.Key[4:]) {
			r.Foreign = append(r.Foreign, fmt.Sprintf("element %x of set %s", e.Key, s.Name))
			continue
		}
		r.Hairpin[netip.AddrFrom4([4]byte(e.Key[:4]))] = struct{}{}
	}
	return nil
}

func (k *Table) readMap(s *nftables.Set, r *netfilter.Ruleset) error {
	elements, err := k.conn.GetSetElements(s)
	if err != nil {
		return err
	}
	slots, err := strconv.Atoi(strings.TrimLeft(s.Name, "abcdefghijklmnopqrstuvwxyz"))
	if err != nil {
		return err
	}
	for _, e := range elements {
		if len(e.Key) != keyBytes || len(e.Val) != dataBytes {
			r.Foreign = append(r.Foreign, fmt.Sprintf("element %x of map %s", e.Key, s.Name))
			continue
		}
		f, slot := decodeKey(e.Key)
		if slot >= slots {
			r.Foreign = append(r.Foreign, fmt.Sprintf("element %x of map %s", e.Key, s.Name))
			continue
		}
		t := netfilter.Target{Frontend: f, Slots: slots}
		if r.Spread[t] == nil {
			r.Spread[t] = make([]netip.AddrPort, slots)
		}
		r.Spread[t][slot] = decodeData(e.Val)
	}
	return nil
}
