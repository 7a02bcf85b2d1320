package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// podIndex is the index that eth0 gets in the pod. It is chosen here so that
// nobody has to ask for it; small numbers may be taken by tunnel devices that
// some kernels put into every new namespace.
const (
	podIndex = 64
	loIndex  = 1
)

// hostIndex is the index of the host's side of a pod's link: above what the
// kernel gives out by itself, and unique because addresses are.
func hostIndex(pod netip.Addr) int32 {
	ip := pod.As4()
	return 1<<30 | int32(ip[1])<<16 | int32(ip[2])<<8 | int32(ip[3])
}

// linkName is the host's side of a pod's link.
func linkName(uid types.UID) string {
	sum := sha256.Sum256([]byte(uid))
	return linkPrefix + hex.EncodeToString(sum[:])[:12]
}

func podMAC(pod netip.Addr) []byte {
	return append([]byte{0x02, 'g'}, ip4(pod)...)
}

// Attach gives the pod whose shim is shimPID its address and its link, and
// returns the address. It may be repeated, whatever became of an attempt
// before; the pod keeps its address until Detach.
func (n *Network) Attach(ctx context.Context, uid types.UID, shimPID int) (netip.Addr, error) {
	fail := func(err error) (netip.Addr, error) {
		return netip.Addr{}, fmt.Errorf("attach pod %s to the network: %w", uid, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if !n.Gateway().IsValid() {
		return fail(errors.New("the network of this node is not set up yet"))
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", shimPID))
	if err != nil {
		return fail(err)
	}
	defer func() { _ = ns.Close() }()
	// Its link would be made in the host itself, with the host's lo and routes.
	if id, err := idOf(fmt.Sprintf("/proc/self/fd/%d", ns.Fd())); err != nil || id == n.hostNS {
		return fail(errors.Join(err, fmt.Errorf("process %d has no network namespace of its own", shimPID)))
	}
	ip, err := n.addresses.allocate(uid)
	if err != nil {
		return fail(err)
	}
	pod, err := socketIn(ns)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = pod.close() }()
	err = n.connect(uid, ip, ns, pod)
	if occupied(err) {
		// An attempt before got as far as the link, perhaps to a namespace
		// that is gone. Where the pod has its end, the rest is repeated;
		// where it has not, the old link must go first.
		if podErr := n.configure(ip, pod); podErr == nil {
			err = n.configureHost(uid, ip)
		} else if err = n.clear(uid, ip); err == nil {
			err = n.connect(uid, ip, ns, pod)
		}
	}
	if err != nil {
		return fail(err)
	}
	return ip, nil
}

// occupied says that a link was in the way.
func occupied(err error) bool {
	return errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
}

// connect makes the link and sets up both ends.
func (n *Network) connect(uid types.UID, ip netip.Addr, ns *os.File, pod *socket) error {
	name := linkName(uid)
	var b batch
	b.request("make link "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(hostIndex(ip), 0, 0))
	b.attr(unix.IFLA_IFNAME, text(name))
	b.attr(unix.IFLA_ADDRESS, hostMAC)
	b.attr(unix.IFLA_GROUP, u32(linkGroup))
	n.linkSize(&b)
	b.nest(unix.IFLA_LINKINFO, func() {
		b.attr(unix.IFLA_INFO_KIND, []byte("veth"))
		b.nest(unix.IFLA_INFO_DATA, func() {
			b.nest(vethInfoPeer, func() {
				b.raw(linkHeader(podIndex, 0, 0))
				b.attr(unix.IFLA_IFNAME, text(podLink))
				b.attr(unix.IFLA_ADDRESS, podMAC(ip))
				b.attr(unix.IFLA_NET_NS_FD, u32(uint32(ns.Fd())))
				n.linkSize(&b)
			})
		})
	})
	if err := n.requests.do(&b, nil); err != nil {
		return err
	}
	if err := n.configure(ip, pod); err != nil {
		return err
	}
	return n.configureHost(uid, ip)
}

// linkSize sets what both ends have in common. One queue is what a line
// between two ends needs; by default there is one for each possible CPU.
func (n *Network) linkSize(b *batch) {
	if n.opts.MTU > 0 {
		b.attr(unix.IFLA_MTU, u32(uint32(n.opts.MTU)))
	}
	b.attr(unix.IFLA_NUM_TX_QUEUES, u32(1))
	b.attr(unix.IFLA_NUM_RX_QUEUES, u32(1))
}

// configure sets up the pod's end.
func (n *Network) configure(ip netip.Addr, pod *socket) error {
	var b batch
	b.up("bring up lo in the pod", loIndex)
	n.quiet6(&b, "keep IPv6 off eth0", podIndex)
	b.up("bring up eth0", podIndex)
	b.address("add address of eth0", podIndex, ip)
	b.neighbour("add gateway's hardware address", podIndex, hostAddress, hostMAC)
	b.route("add default route of the pod", netip.PrefixFrom(netip.IPv4Unspecified(), 0), podIndex, hostAddress, netip.Addr{})
	return pod.do(&b, optional6)
}

// configureHost sets up the host's end. The route comes last: with it the pod
// can be reached.
func (n *Network) configureHost(uid types.UID, ip netip.Addr) error {
	name, index := linkName(uid), hostIndex(ip)
	var b batch
	n.quiet6(&b, "keep IPv6 off "+name, index)
	b.forward("forward from "+name, index)
	b.up("bring up "+name, index)
	b.neighbour("add hardware address of pod", index, ip, podMAC(ip))
	b.route("add route to pod", netip.PrefixFrom(ip, 32), index, netip.Addr{}, n.Gateway())
	return n.requests.do(&b, optional6)
}

// clear deletes whatever link has the name or the index of this pod's, if it
// is ours.
func (n *Network) clear(uid types.UID, ip netip.Addr) error {
	links, err := n.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if a := l.Attrs(); a.Name == linkName(uid) || a.Index == int(hostIndex(ip)) {
			if err := n.deleteLink(a.Name, int32(a.Index)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Network) deleteLink(name string, index int32) error {
	var b batch
	b.request("delete link "+name, unix.RTM_DELLINK, 0, linkHeader(index, 0, 0))
	return n.requests.do(&b, gone)
}

// Detach takes a pod off the network and its address back; a pod that is not
// on it is none. The link goes with the pod's namespace: only where something
// still holds that does Detach delete it, which takes some 20 ms.
func (n *Network) Detach(ctx context.Context, uid types.UID) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("detach pod %s from the network: %w", uid, err)
	}
	ip, ok := n.addresses.lookup(uid)
	if !ok {
		return nil
	}
	name := linkName(uid)
	link, err := n.handle.LinkByName(name)
	switch {
	case missing(err):
	case err != nil:
		return fmt.Errorf("detach pod %s from the network: find link %s: %w", uid, name, err)
	case link.Attrs().Group != linkGroup:
		return fmt.Errorf("detach pod %s from the network: link %s is not ours", uid, name)
	case link.Attrs().NetNsID >= 0:
		if err := n.deleteLink(name, int32(link.Attrs().Index)); err != nil {
			return fmt.Errorf("detach pod %s from the network: %w", uid, err)
		}
	default:
		// The kernel gives a namespace that is going away no number. Its links
		// follow soon; the route must not wait for that, since the address may
		// be another pod's before.
		var b batch
		b.unroute("remove route to pod", netip.PrefixFrom(ip, 32), int32(link.Attrs().Index))
		if err := n.requests.do(&b, gone); err != nil {
			return fmt.Errorf("detach pod %s from the network: %w", uid, err)
		}
	}
	if err := n.addresses.free(uid); err != nil {
		return fmt.Errorf("detach pod %s from the network: %w", uid, err)
	}
	return nil
}

// socketIn opens a socket in a network namespace. A socket stays where it was
// opened, so the thread is away only for that.
func socketIn(ns *os.File) (s *socket, err error) {
	err = Within(ns, func() error {
		s, err = openSocket()
		return err
	})
	return s, err
}
