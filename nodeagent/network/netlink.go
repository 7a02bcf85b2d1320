package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// batch is several requests to rtnetlink that go to the kernel in one system
// call. Bringing a pod's network up takes eleven requests, and one by one,
// each with its answer and with look-ups of link indexes between them, they
// would cost more than making the link. The kernel goes on after a request
// that failed, so the order matters only where one needs the other.
type batch struct {
	buf   []byte
	start int // of the open message
	what  []string
}

// request opens a message; header is what follows the netlink header.
func (b *batch) request(what string, kind, flags uint16, header []byte) {
	b.close()
	b.start = len(b.buf)
	b.what = append(b.what, what)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0) // length, set by close
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, flags|unix.NLM_F_REQUEST)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(len(b.what))) // sequence
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0)                   // port
	b.buf = append(b.buf, header...)
}

func (b *batch) close() {
	if len(b.what) > 0 {
		binary.NativeEndian.PutUint32(b.buf[b.start:], uint32(len(b.buf)-b.start))
	}
}

// attr adds an attribute to the open message.
func (b *batch) attr(kind uint16, data []byte) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(4+len(data)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, data...)
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

// nest adds an attribute whose content is what f adds.
func (b *batch) nest(kind uint16, f func()) {
	start := len(b.buf)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	f()
	binary.NativeEndian.PutUint16(b.buf[start:], uint16(len(b.buf)-start))
}

func (b *batch) raw(data []byte) { b.buf = append(b.buf, data...) }

// requestError is the kernel's answer to one request of a batch.
type requestError struct {
	what  string
	errno unix.Errno
}

func (e requestError) Error() string { return e.what + ": " + e.errno.Error() }
func (e requestError) Unwrap() error { return e.errno }

// socket is a connection to rtnetlink in the namespace of the thread that
// opened it.
type socket struct {
	mu sync.Mutex
	fd int
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// Without it each answer would carry the request again.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("set netlink option: %w", err), unix.Close(fd))
	}
	return &socket{fd: fd}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// do sends the batch and returns what failed, in order. ignore lists errors
// that mean that the thing is already as it should be.
func (s *socket) do(b *batch, ignore func(requestError) bool) error {
	if len(b.what) == 0 {
		return nil
	}
	b.close()
	// One acknowledgement, of the last request, is enough: failures are told
	// in any case, and before it.
	flags := binary.NativeEndian.Uint16(b.buf[b.start+6:])
	binary.NativeEndian.PutUint16(b.buf[b.start+6:], flags|unix.NLM_F_ACK)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err := unix.Sendto(s.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	var errs []error
	buf := make([]byte, 8<<10)
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from netlink: %w", err)
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofNlMsghdr+4; {
			length := int(binary.NativeEndian.Uint32(rest))
			kind := binary.NativeEndian.Uint16(rest[4:])
			seq := int(binary.NativeEndian.Uint32(rest[8:]))
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				return errors.New("receive from netlink: message cut short")
			}
			if kind == unix.NLMSG_ERROR && seq >= 1 && seq <= len(b.what) {
				code := -int32(binary.NativeEndian.Uint32(rest[unix.SizeofNlMsghdr:]))
				e := requestError{b.what[seq-1], unix.Errno(code)}
				if code != 0 && (ignore == nil || !ignore(e)) {
					errs = append(errs, e)
				}
				if seq == len(b.what) {
					return errors.Join(errs...)
				}
			}
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
}

// Headers.

func linkHeader(index int32, flags, change uint32) []byte {
	h := make([]byte, 4, unix.SizeofIfInfomsg)
	h = binary.NativeEndian.AppendUint32(h, uint32(index))
	h = binary.NativeEndian.AppendUint32(h, flags)
	return binary.NativeEndian.AppendUint32(h, change)
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func text(s string) []byte { return append([]byte(s), 0) }

func ip4(a netip.Addr) []byte {
	b := a.As4()
	return b[:]
}

// Requests.

// up brings a link up.
func (b *batch) up(what string, index int32) {
	b.request(what, unix.RTM_SETLINK, 0, linkHeader(index, unix.IFF_UP, unix.IFF_UP))
}

// forward lets the kernel route what comes in from the link. It is the same as
// the sysctl of the link, which however spins while another thread holds the
// lock of the network configuration.
func (b *batch) forward(what string, index int32) {
	b.request(what, unix.RTM_SETLINK, 0, linkHeader(index, 0, 0))
	b.nest(unix.IFLA_AF_SPEC, func() {
		b.nest(unix.AF_INET, func() {
			b.nest(iflaInetConf, func() { b.attr(confForwarding, u32(1)) })
		})
	})
}

// quiet6 keeps IPv6 from giving the link an address of its own, and with it
// from asking around for duplicates and routers: the cluster is IPv4.
func (b *batch) quiet6(what string, index int32) {
	b.request(what, unix.RTM_SETLINK, 0, linkHeader(index, 0, 0))
	b.nest(unix.IFLA_AF_SPEC, func() {
		b.nest(unix.AF_INET6, func() { b.attr(iflaInet6AddrGenMode, []byte{addrGenNone}) })
	})
}

// Numbers from linux/if_link.h and linux/ip.h that package unix lacks.
const (
	iflaInetConf         = 1
	confForwarding       = 1
	iflaInet6AddrGenMode = 8
	addrGenNone          = 1
	vethInfoPeer         = 1
)

func (b *batch) address(what string, index int32, a netip.Addr) {
	h := []byte{unix.AF_INET, 32, 0, unix.RT_SCOPE_UNIVERSE}
	h = binary.NativeEndian.AppendUint32(h, uint32(index))
	b.request(what, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h)
	b.attr(unix.IFA_LOCAL, ip4(a))
	b.attr(unix.IFA_ADDRESS, ip4(a))
}

// neighbour says which hardware address an IP address has, for good.
func (b *batch) neighbour(what string, index int32, a netip.Addr, mac []byte) {
	h := []byte{unix.AF_INET, 0, 0, 0}
	h = binary.NativeEndian.AppendUint32(h, uint32(index))
	h = binary.NativeEndian.AppendUint16(h, unix.NUD_PERMANENT)
	h = append(h, 0, 0)
	b.request(what, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h)
	b.attr(unix.NDA_DST, ip4(a))
	b.attr(unix.NDA_LLADDR, mac)
}

// route sends a range out of a link. via and src may be the zero value; a
// gateway need not be in a range of the link.
func (b *batch) route(what string, to netip.Prefix, index int32, via, src netip.Addr) {
	scope, flags := byte(unix.RT_SCOPE_LINK), uint32(0)
	if via.IsValid() {
		scope, flags = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	h := []byte{unix.AF_INET, byte(to.Bits()), 0, 0, unix.RT_TABLE_MAIN, routeProtocol, scope, unix.RTN_UNICAST}
	h = binary.NativeEndian.AppendUint32(h, flags)
	b.request(what, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h)
	if to.Bits() > 0 {
		b.attr(unix.RTA_DST, ip4(to.Masked().Addr()))
	}
	b.attr(unix.RTA_OIF, u32(uint32(index)))
	if via.IsValid() {
		b.attr(unix.RTA_GATEWAY, ip4(via))
	}
	if src.IsValid() {
		b.attr(unix.RTA_PREFSRC, ip4(src))
	}
}

// unroute removes the route to a range through a link.
func (b *batch) unroute(what string, to netip.Prefix, index int32) {
	h := []byte{unix.AF_INET, byte(to.Bits()), 0, 0, unix.RT_TABLE_MAIN, routeProtocol, unix.RT_SCOPE_NOWHERE, 0}
	b.request(what, unix.RTM_DELROUTE, 0, binary.NativeEndian.AppendUint32(h, 0))
	b.attr(unix.RTA_DST, ip4(to.Masked().Addr()))
	b.attr(unix.RTA_OIF, u32(uint32(index)))
}

// routeProtocol marks our routes (`ip route` shows "proto 171"), so that they
// are told from an administrator's.
const routeProtocol = 171
