package nodes

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// rangeBits is the size of the piece of the cluster's pod range that one node
// gets: 254 pods are above what a node is asked to run.
const rangeBits = 24

// ranges hands out the pieces of the cluster's pod range. It walks on from the
// last piece given rather than filling the first hole, so that the range of a
// node that was removed rests as long as possible: somebody may still hold an
// address out of it.
type ranges struct {
	cluster netip.Prefix
	next    uint32
	byNode  map[string]netip.Prefix
	held    map[netip.Prefix]string
}

// CheckPodCIDR tells whether a range can be handed out to nodes.
func CheckPodCIDR(cidr string) error {
	_, err := newRanges(cidr)
	return err
}

func newRanges(cluster string) (*ranges, error) {
	p, err := netip.ParsePrefix(cluster)
	if err != nil {
		return nil, fmt.Errorf("pod CIDR %q: %w", cluster, err)
	}
	if !p.Addr().Is4() || p.Bits() > rangeBits {
		return nil, fmt.Errorf("pod CIDR %q: want an IPv4 range of at least /%d: each node takes one", cluster, rangeBits)
	}
	return &ranges{cluster: p.Masked(), byNode: map[string]netip.Prefix{}, held: map[netip.Prefix]string{}}, nil
}

// note takes in what a stored Node holds; an empty or foreign range is kept as
// it is and blocks nothing.
func (r *ranges) note(node, cidr string) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return
	}
	if had, ok := r.byNode[node]; ok && had != p {
		delete(r.held, had)
	}
	r.byNode[node], r.held[p] = p, node
	if i, ok := r.index(p); ok && i >= r.next {
		r.next = i + 1
	}
}

func (r *ranges) release(node string) {
	if p, ok := r.byNode[node]; ok {
		delete(r.byNode, node)
		delete(r.held, p)
	}
}

// give returns the node's range, a new one where it has none; false when all
// are taken.
func (r *ranges) give(node string) (string, bool) {
	if p, ok := r.byNode[node]; ok {
		return p.String(), true
	}
	count := uint32(1) << (rangeBits - r.cluster.Bits())
	for range count {
		i := r.next % count
		r.next = i + 1
		p := r.at(i)
		if _, taken := r.held[p]; taken {
			continue
		}
		r.byNode[node], r.held[p] = p, node
		return p.String(), true
	}
	return "", false
}

func (r *ranges) at(i uint32) netip.Prefix {
	base := r.cluster.Addr().As4()
	n := binary.BigEndian.Uint32(base[:]) + i<<(32-rangeBits)
	binary.BigEndian.PutUint32(base[:], n)
	return netip.PrefixFrom(netip.AddrFrom4(base), rangeBits)
}

func (r *ranges) index(p netip.Prefix) (uint32, bool) {
	if p.Bits() != rangeBits || !r.cluster.Contains(p.Addr()) {
		return 0, false
	}
	base, addr := r.cluster.Addr().As4(), p.Addr().As4()
	return (binary.BigEndian.Uint32(addr[:]) - binary.BigEndian.Uint32(base[:])) >> (32 - rangeBits), true
}
