// Package network gives pods their addresses and links, and the node the
// routes that reach them. It is the only importer of vishvananda/netlink, and
// it changes nothing of the host but links and routes that it made itself.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// Options say where the network keeps its state and how its links are called.
type Options struct {
	// StateDir is a directory of its own; it is made where it is missing.
	StateDir string
	// Bridge is the link that carries the node's address among pods and the
	// route to Services; empty means gantry0.
	Bridge string
	// MTU of the pods' links; 0 means the kernel's choice.
	MTU int
	Log zerolog.Logger
}

const (
	defaultBridge = "gantry0"
	linkPrefix    = "gy"
	podLink       = "eth0"
	// linkGroup marks every link that is ours: "gant". A group can be deleted
	// in one step, and the kernel waits for its readers once for all of it.
	linkGroup = 0x67616e74
	// doomedGroup are links about to be deleted together: "gand".
	doomedGroup = 0x67616e64
)

// hostAddress is what pods see as their gateway. It is on no link: the pod is
// told its hardware address for good, so nobody ever asks for it.
var hostAddress = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// hostMAC is the same on the host's side of every pod: each is a line of two.
var hostMAC = []byte{0x02, 'g', 0, 0, 0, 1}

// Network is the network of one node. Its methods are safe for concurrent use,
// those on one pod one after the other.
type Network struct {
	opts      Options
	log       zerolog.Logger
	hostNS    fileID
	ipv6      bool
	addresses *addresses
	requests  *socket
	handle    *netlink.Handle

	mu      sync.Mutex
	gateway netip.Addr // zero before Setup
}

// New opens the network of the calling thread's network namespace. It changes
// nothing but the state directory. An agent must be the only one in its
// network namespace.
func New(o Options) (*Network, error) {
	if o.Bridge == "" {
		o.Bridge = defaultBridge
	}
	hostNS, err := idOf("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	a, err := openAddresses(filepath.Join(o.StateDir, "addresses"))
	if err != nil {
		return nil, err
	}
	_, ipv6Err := os.Stat("/proc/sys/net/ipv6")
	requests, err := openSocket()
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), requests.close())
	}
	return &Network{opts: o, log: o.Log, hostNS: hostNS, ipv6: ipv6Err == nil,
		addresses: a, requests: requests, handle: handle}, nil
}

// Close ends the connections to the kernel and leaves everything in place.
func (n *Network) Close() error {
	n.handle.Close()
	return n.requests.close()
}

// Addresses says which pod has which address.
func (n *Network) Addresses() map[types.UID]netip.Addr { return n.addresses.all() }

// Gateway is the node's own address among the pods; the zero value before Setup.
func (n *Network) Gateway() netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gateway
}

// Setup makes the node's part of the cluster network: the bridge link with the
// gateway's address, and the route to Services through it, by which processes
// of the node itself reach them. It may be repeated, also with other ranges.
func (n *Network) Setup(ctx context.Context, r schemas.NetworkRecord) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("set up network: %w", err)
	}
	podCIDR, err := netip.ParsePrefix(r.PodCIDR)
	if err != nil {
		return fmt.Errorf("set up network: pod range: %w", err)
	}
	serviceCIDR, err := netip.ParsePrefix(r.ServiceCIDR)
	if err != nil {
		return fmt.Errorf("set up network: service range: %w", err)
	}
	if !podCIDR.Addr().Is4() || podCIDR.Bits() > 30 || !serviceCIDR.Addr().Is4() {
		return fmt.Errorf("set up network: pod range %s and service range %s: want IPv4 ranges with room for addresses", podCIDR, serviceCIDR)
	}
	podCIDR, serviceCIDR = podCIDR.Masked(), serviceCIDR.Masked()
	gw := gateway(podCIDR)
	index, err := n.bridge()
	if err != nil {
		return fmt.Errorf("set up network: %w", err)
	}
	var b batch
	n.quiet6(&b, "keep IPv6 off "+n.opts.Bridge, index)
	b.up("bring up "+n.opts.Bridge, index)
	b.address("add address of "+n.opts.Bridge, index, gw)
	b.route("add route to services", serviceCIDR, index, netip.Addr{}, gw)
	if err := n.requests.do(&b, optional6); err != nil {
		return fmt.Errorf("set up network: %w", err)
	}
	if err := n.prune(int(index), gw, serviceCIDR); err != nil {
		return fmt.Errorf("set up network: %w", err)
	}
	n.addresses.use(podCIDR)
	n.mu.Lock()
	n.gateway = gw
	n.mu.Unlock()
	for _, w := range n.Missing() {
		n.log.Warn().Msg(w)
	}
	return nil
}

// bridge returns the index of our link, which it makes where it is missing.
func (n *Network) bridge() (int32, error) {
	link, err := n.handle.LinkByName(n.opts.Bridge)
	if missing(err) {
		var b batch
		b.request("make link "+n.opts.Bridge, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, 0, 0))
		b.attr(unix.IFLA_IFNAME, text(n.opts.Bridge))
		b.attr(unix.IFLA_GROUP, u32(linkGroup))
		b.nest(unix.IFLA_LINKINFO, func() { b.attr(unix.IFLA_INFO_KIND, []byte("bridge")) })
		if err := n.requests.do(&b, nil); err != nil {
			return 0, err
		}
		link, err = n.handle.LinkByName(n.opts.Bridge)
	}
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", n.opts.Bridge, err)
	}
	if link.Type() != "bridge" || link.Attrs().Group != linkGroup {
		return 0, fmt.Errorf("link %s is there and is not ours", n.opts.Bridge)
	}
	return int32(link.Attrs().Index), nil
}

// prune removes addresses and routes of ranges that the node had before.
func (n *Network) prune(index int, gw netip.Addr, serviceCIDR netip.Prefix) error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: index, Name: n.opts.Bridge}}
	addrs, err := n.handle.AddrList(link, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", n.opts.Bridge, err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip != gw {
			if err := n.handle.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove address %s of %s: %w", ip, n.opts.Bridge, err)
			}
		}
	}
	routes, err := n.handle.RouteListFiltered(unix.AF_INET, &netlink.Route{LinkIndex: index, Protocol: routeProtocol},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", n.opts.Bridge, err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() == serviceCIDR.String() {
			continue
		}
		if err := n.handle.RouteDel(&r); err != nil {
			return fmt.Errorf("remove route %s: %w", r, err)
		}
	}
	return nil
}

// Missing says what of the host's own settings keeps pods from being reached
// or from reaching out. Changing them is up to the operator.
func (n *Network) Missing() []string {
	var out []string
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4", path))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	if read("conf/all/ignore_routes_with_linkdown") == "1" {
		out = append(out, "net.ipv4.conf.all.ignore_routes_with_linkdown is 1: processes of the node cannot reach Services; set it to 0")
	}
	routes, err := n.handle.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return append(out, fmt.Sprintf("cannot read the host's routes: %v", err))
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		link, err := n.handle.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone since
		}
		name := link.Attrs().Name
		if read("conf/"+strings.ReplaceAll(name, ".", "/")+"/forwarding") == "0" {
			out = append(out, fmt.Sprintf("net.ipv4.conf.%s.forwarding is 0: pods get no answers from outside the node; set it to 1 to let them", name))
		}
	}
	return out
}

// Sync releases what belongs to no known pod: addresses, and links whose
// namespace somebody still holds.
func (n *Network) Sync(ctx context.Context, known []types.UID) error {
	keep := map[string]bool{n.opts.Bridge: true}
	live := map[types.UID]bool{}
	for _, uid := range known {
		live[uid] = true
		keep[linkName(uid)] = true
	}
	var errs []error
	for uid := range n.addresses.all() {
		if !live[uid] {
			errs = append(errs, n.Detach(ctx, uid))
		}
	}
	links, err := n.links()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	var b batch
	for _, l := range links {
		if !keep[l.Attrs().Name] {
			b.request("doom link "+l.Attrs().Name, unix.RTM_SETLINK, 0, linkHeader(int32(l.Attrs().Index), 0, 0))
			b.attr(unix.IFLA_GROUP, u32(doomedGroup))
		}
	}
	if len(b.what) > 0 {
		errs = append(errs, n.requests.do(&b, gone), n.deleteGroup(doomedGroup))
	}
	return errors.Join(errs...)
}

// links lists the links that are ours.
func (n *Network) links() ([]netlink.Link, error) {
	var all []netlink.Link
	var err error
	for range 5 {
		if all, err = n.handle.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []netlink.Link
	for _, l := range all {
		if a := l.Attrs(); a.Group == linkGroup && (a.Name == n.opts.Bridge || strings.HasPrefix(a.Name, linkPrefix)) {
			out = append(out, l)
		}
	}
	return out, nil
}

// deleteGroup deletes all links of a group in one step: one by one, the kernel
// would wait for all readers each time, some 20 ms.
func (n *Network) deleteGroup(group uint32) error {
	var b batch
	b.request("delete links", unix.RTM_DELLINK, 0, linkHeader(0, 0, 0))
	b.attr(unix.IFLA_GROUP, u32(group))
	return n.requests.do(&b, gone)
}

// Teardown removes all that is ours: links, routes, addresses and the state
// directory's content.
func (n *Network) Teardown(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("tear down network: %w", err)
	}
	err := errors.Join(n.deleteGroup(linkGroup), n.deleteGroup(doomedGroup))
	if err != nil {
		return fmt.Errorf("tear down network: %w", err)
	}
	if err := os.RemoveAll(n.addresses.dir); err != nil {
		return fmt.Errorf("tear down network: %w", err)
	}
	return nil
}

func (n *Network) quiet6(b *batch, what string, index int32) {
	if n.ipv6 {
		b.quiet6(what, index)
	}
}

// optional6 ignores that a link has no IPv6 that could be kept quiet.
func optional6(e requestError) bool { return e.errno == unix.EAFNOSUPPORT }

// gone ignores that what is to be removed is not there.
func gone(e requestError) bool {
	return e.errno == unix.ENODEV || e.errno == unix.ESRCH
}

func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// fileID tells one namespace from another.
type fileID struct{ dev, ino uint64 }

func idOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}
