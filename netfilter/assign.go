package netfilter

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// assign fills the slots of a frontend. Endpoints take turns, each taking the
// next free slot of an order of its own, so shares differ by one slot at most
// and a change of one endpoint leaves most slots of the others as they are.
// It depends on the set of endpoints alone: not on their order, not on what
// was there before. It returns nil for no endpoints.
func assign(endpoints []netip.AddrPort) []netip.AddrPort {
	endpoints = slices.Clone(endpoints)
	slices.SortFunc(endpoints, netip.AddrPort.Compare)
	endpoints = slices.Compact(endpoints)
	if len(endpoints) == 0 {
		return nil
	}
	n := slotsFor(len(endpoints))
	if n == 1 {
		return endpoints
	}
	type walker struct {
		endpoint netip.AddrPort
		hash     uint64
		at, skip uint32
	}
	walkers := make([]walker, len(endpoints))
	for i, e := range endpoints {
		h := mix(e)
		// The class sizes are powers of two, so an odd skip visits every slot.
		walkers[i] = walker{e, h, uint32(h), uint32(h>>32) | 1}
	}
	// By hash, so that with too many endpoints the ones left out are not
	// simply those of the last node.
	slices.SortFunc(walkers, func(a, b walker) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), a.endpoint.Compare(b.endpoint))
	})
	walkers = walkers[:min(len(walkers), n)]

	slots := make([]netip.AddrPort, n)
	mask := uint32(n - 1)
	for free := n; ; {
		for i := range walkers {
			w := &walkers[i]
			for slots[w.at&mask].IsValid() {
				w.at += w.skip
			}
			slots[w.at&mask] = w.endpoint
			if free--; free == 0 {
				return slots
			}
		}
	}
}

// mix hashes an IPv4 endpoint (the finalizer of SplitMix64). It must stay as
// it is across versions: nodes of two versions would else disagree for no
// reason, and an upgrade would rewrite every element.
func mix(e netip.AddrPort) uint64 {
	a := e.Addr().As4()
	x := uint64(binary.BigEndian.Uint32(a[:]))<<16 | uint64(e.Port())
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
