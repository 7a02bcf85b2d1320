package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry.dev/netfilter"
)

// The kernel remembers where it sent the first packet of a UDP flow and sends
// the following ones there as long as they keep coming, also after the
// endpoint is gone. TCP connections end with their endpoint; UDP flows have
// to be forgotten.

// Forget ends the UDP flows to frontends that went to exactly these endpoints.
func (n *Network) Forget(ctx context.Context, flows []netfilter.Flow) error {
	doomed := make(map[netfilter.Flow]bool, len(flows))
	for _, f := range flows {
		if f.Protocol == netfilter.UDP {
			doomed[f] = true
		}
	}
	if len(doomed) == 0 {
		return nil
	}
	return n.deleteFlows(ctx, func(f netfilter.Flow) bool { return doomed[f] })
}

// Reconcile ends every UDP flow to the service range that goes elsewhere than
// the ruleset sends it: to an endpoint that went while nobody watched, or
// nowhere, because it began while the rules were missing.
func (n *Network) Reconcile(ctx context.Context, frame netfilter.Frame, r netfilter.Ruleset) error {
	stands := map[netfilter.Frontend]map[netip.AddrPort]bool{}
	return n.deleteFlows(ctx, func(f netfilter.Flow) bool {
		if !frame.ServiceCIDR.Contains(f.IP) {
			return false
		}
		behind, known := stands[f.Frontend]
		if !known {
			behind = map[netip.AddrPort]bool{}
			for _, e := range r.Endpoints(f.Frontend) {
				behind[e] = true
			}
			stands[f.Frontend] = behind
		}
		return !behind[f.Endpoint]
	})
}

func (n *Network) deleteFlows(ctx context.Context, match func(netfilter.Flow) bool) error {
	// A listing that was disturbed may have left some out.
	var err error
	for range 5 {
		if err = ctx.Err(); err != nil {
			break
		}
		_, err = n.handle.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, udpFilter(match))
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("forget UDP flows: %w", err)
	}
	return nil
}

// udpFilter picks UDP flows by where they were sent and where they go.
type udpFilter func(netfilter.Flow) bool

// MatchConntrackFlow is called by the library for each entry.
func (match udpFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if c.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, ok := addr4(c.Forward.DstIP)
	from, ok2 := addr4(c.Reverse.SrcIP)
	return ok && ok2 && match(netfilter.Flow{
		Frontend: netfilter.Frontend{IP: to, Protocol: netfilter.UDP, Port: c.Forward.DstPort},
		Endpoint: netip.AddrPortFrom(from, c.Reverse.SrcPort),
	})
}

func addr4(ip net.IP) (netip.Addr, bool) { return netip.AddrFromSlice(ip.To4()) }
