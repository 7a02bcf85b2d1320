package kernel

import (
	"net/netip"
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gantry.dev/netfilter"
)

// Registers: the first of 16 bytes, and the three words after it, so that four
// words loaded one by one make one concatenated key.
const (
	reg0 = unix.NFT_REG_1
	reg1 = unix.NFT_REG32_00 + 1
	reg2 = unix.NFT_REG32_00 + 2
	reg3 = unix.NFT_REG32_00 + 3
)

const (
	keyBytes  = 16 // address, protocol, port, slot: each takes a word
	dataBytes = 8  // address, port
	pairBytes = 8
)

// The types matter to people only: nft lists elements by them. The slot is
// called a mark because that is a plain number of four bytes in the machine's
// order; nft aborts on a bare integer, whose length it does not know.
var (
	keyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto,
		nftables.TypeInetService, nftables.TypeMark)
	dataType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	pairType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
)

var hooks = map[string]*nftables.ChainHook{
	"prerouting":  nftables.ChainHookPrerouting,
	"input":       nftables.ChainHookInput,
	"forward":     nftables.ChainHookForward,
	"output":      nftables.ChainHookOutput,
	"postrouting": nftables.ChainHookPostrouting,
}

// encode is a rule as the kernel runs it. What the kernel fills in by itself
// when it gives a rule back is spelled out, so that decode can compare.
func encode(r netfilter.Rule) []expr.Any {
	return append(encodeMatch(r), encodeVerb(r)...)
}

func encodeMatch(r netfilter.Rule) []expr.Any {
	var out []expr.Any
	address := func(offset uint32, p netip.Prefix, op expr.CmpOp) {
		if !p.IsValid() {
			return
		}
		net := p.Masked().Addr().As4()
		out = append(out, loadAddress(offset, reg0))
		if p.Bits() < 32 {
			out = append(out, &expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4,
				Mask: mask(p.Bits()), Xor: make([]byte, 4)})
		}
		out = append(out, &expr.Cmp{Op: op, Register: reg0, Data: net[:]})
	}
	address(offsetSource, r.From, expr.CmpOpEq)
	address(offsetDestination, r.To, expr.CmpOpEq)
	address(offsetDestination, r.NotTo, expr.CmpOpNeq)
	if r.Proto != 0 {
		out = append(out,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{byte(r.Proto)}})
	}
	if r.Hairpin {
		out = append(out,
			loadAddress(offsetSource, reg0),
			loadAddress(offsetDestination, reg1),
			&expr.Lookup{SourceRegister: reg0, SetName: netfilter.HairpinSet()})
	}
	return out
}

func encodeVerb(r netfilter.Rule) []expr.Any {
	switch r.Do {
	case netfilter.Jump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.Chain}}
	case netfilter.Spread:
		return []expr.Any{
			loadAddress(offsetDestination, reg0),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
			&expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseTransportHeader,
				Offset: 2, Len: 2, DestRegister: reg2},
			&expr.Numgen{Register: reg3, Modulus: uint32(r.Slots), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true,
				SetName: netfilter.MapName(r.Slots)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
				RegAddrMin: reg0, RegAddrMax: reg0, RegProtoMin: reg1, RegProtoMax: reg1, Specified: true},
		}
	case netfilter.SNAT:
		a := r.Addr.As4()
		return []expr.Any{
			&expr.Immediate{Register: reg0, Data: a[:]},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg0, RegAddrMax: reg0},
		}
	case netfilter.Masquerade:
		return []expr.Any{&expr.Masq{FullyRandom: true}}
	case netfilter.Reset:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	case netfilter.Unreachable:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}
	}
	return nil
}

const (
	offsetSource      = 12
	offsetDestination = 16
)

func loadAddress(offset, register uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseNetworkHeader,
		Offset: offset, Len: 4, DestRegister: register}
}

func mask(bits int) []byte {
	return binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - bits))
}

// decode reads a rule back. What encode would not have made is Unknown.
func decode(exprs []expr.Any) netfilter.Rule {
	for _, e := range exprs {
		if l, ok := e.(*expr.Lookup); ok {
			l.SetID = 0
		}
	}
	var r netfilter.Rule
	rest := exprs
	for {
		n := decodeMatch(rest, &r)
		if n == 0 {
			break
		}
		rest = rest[n:]
	}
	if len(rest) > 0 {
		if i, ok := rest[0].(*expr.Immediate); ok && len(i.Data) == 4 {
			r.Addr = netip.AddrFrom4([4]byte(i.Data))
		}
		if v, ok := rest[0].(*expr.Verdict); ok {
			r.Chain = v.Chain
		}
		if len(rest) > 3 {
			if g, ok := rest[3].(*expr.Numgen); ok {
				r.Slots = int(g.Modulus)
			}
		}
		for r.Do = netfilter.Jump; r.Do < netfilter.Unknown; r.Do++ {
			if r.Do == netfilter.SNAT && !r.Addr.IsValid() {
				continue
			}
			if reflect.DeepEqual(encodeVerb(r), rest) {
				break
			}
		}
	} else {
		r.Do = netfilter.Unknown
	}
	// The matches may stand in another order or say more than was understood:
	// only what encodes to the very same is known.
	if r.Do == netfilter.Unknown || !reflect.DeepEqual(encode(r), exprs) {
		return netfilter.Rule{Do: netfilter.Unknown}
	}
	return r
}

// decodeMatch takes one match off the front and says how many expressions it
// took; 0 where none begins.
func decodeMatch(exprs []expr.Any, r *netfilter.Rule) int {
	if len(exprs) < 2 {
		return 0
	}
	if m, ok := exprs[0].(*expr.Meta); ok && m.Key == expr.MetaKeyL4PROTO && m.Register == reg0 {
		if c, ok := exprs[1].(*expr.Cmp); ok && len(c.Data) == 1 {
			r.Proto = netfilter.Protocol(c.Data[0])
			return 2
		}
		return 0
	}
	p, ok := exprs[0].(*expr.Payload)
	if !ok {
		return 0
	}
	if len(exprs) >= 3 {
		if l, ok := exprs[2].(*expr.Lookup); ok && !l.IsDestRegSet {
			r.Hairpin = true
			return 3
		}
	}
	bits, n := 32, 1
	if b, ok := exprs[1].(*expr.Bitwise); ok {
		bits, n = 0, 2
		for _, m := range b.Mask {
			for ; m != 0; m <<= 1 {
				bits++
			}
		}
	}
	if n >= len(exprs) {
		return 0
	}
	c, ok := exprs[n].(*expr.Cmp)
	if !ok || len(c.Data) != 4 {
		return 0
	}
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte(c.Data)), bits)
	switch {
	case p.Offset == offsetSource && c.Op == expr.CmpOpEq:
		r.From = prefix
	case p.Offset == offsetDestination && c.Op == expr.CmpOpEq:
		r.To = prefix
	case p.Offset == offsetDestination && c.Op == expr.CmpOpNeq:
		r.NotTo = prefix
	default:
		return 0
	}
	return n + 1
}

func slotKey(t netfilter.Target, slot int) []byte {
	key := make([]byte, keyBytes)
	ip := t.IP.As4()
	copy(key, ip[:])
	key[4] = byte(t.Protocol)
	key[8], key[9] = byte(t.Port>>8), byte(t.Port)
	// numgen leaves its number in the machine's byte order.
	copy(key[12:], binaryutil.NativeEndian.PutUint32(uint32(slot)))
	return key
}

func decodeKey(key []byte) (f netfilter.Frontend, slot int) {
	return netfilter.Frontend{
		IP:       netip.AddrFrom4([4]byte(key[:4])),
		Protocol: netfilter.Protocol(key[4]),
		Port:     uint16(key[8])<<8 | uint16(key[9]),
	}, int(binaryutil.NativeEndian.Uint32(key[12:16]))
}

func slotData(e netip.AddrPort) []byte {
	data := make([]byte, dataBytes)
	ip := e.Addr().As4()
	copy(data, ip[:])
	data[4], data[5] = byte(e.Port()>>8), byte(e.Port())
	return data
}

func decodeData(data []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[:4])), uint16(data[4])<<8|uint16(data[5]))
}

func pairKey(a netip.Addr) []byte {
	ip := a.As4()
	return append(ip[:], ip[:]...)
}
