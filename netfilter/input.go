// Package netfilter turns Services into an nftables ruleset and two rulesets
// into the transaction between them. It holds values only: the sub-package
// kernel is what tells the kernel, and Decide says without a kernel what a
// ruleset does to one packet.
package netfilter

import (
	"fmt"
	"net/netip"

	"gantry.dev/schemas"
)

// Protocol is an IP protocol that Services can have.
type Protocol uint8

// Protocols, by their IANA numbers.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprint(uint8(p))
}

// Input is all that a node's ruleset is made from.
type Input struct {
	Frame
	Services []Service
}

// Frame is the part of Input that does not change with Services. Changing it
// replaces the table, in one transaction.
type Frame struct {
	// Table is the name of our table (family ip).
	Table string
	// ServiceCIDR holds every cluster IP. What is addressed to it and is not
	// translated to an endpoint is rejected.
	ServiceCIDR netip.Prefix
	// PodCIDR is the range of all pods of the cluster. What leaves it from a
	// pod takes the node's address.
	PodCIDR netip.Prefix
	// Gateway is the address that a pod sees when it reaches itself through
	// its own Service; the zero value lets the kernel choose.
	Gateway netip.Addr
	// LocalPods are the addresses that pods of this node have or may get.
	// Naming them ahead (see Addresses) spares a transaction per pod.
	LocalPods []netip.Addr
}

// Service is one Service with its ready endpoints.
type Service struct {
	Name  string // namespace/name, unique
	IPs   []netip.Addr
	Ports []Port
}

// Port is one port of a Service. The order of its endpoints does not matter.
type Port struct {
	Protocol  Protocol
	Port      uint16
	Endpoints []netip.AddrPort
}

// Addresses lists the addresses that pods of a range may have, at most limit
// of them: all but the first two, the range's own and the gateway's.
func Addresses(p netip.Prefix, limit int) []netip.Addr {
	var out []netip.Addr
	p = p.Masked()
	for a := p.Addr().Next().Next(); p.Contains(a) && len(out) < limit; a = a.Next() {
		out = append(out, a)
	}
	return out
}

// ServiceOf takes a Service from what the control plane tells. IPv6 addresses
// and protocols other than TCP and UDP are left out: admission refuses them.
func ServiceOf(r schemas.RouteRecord) (Service, error) {
	s := Service{Name: r.Namespace + "/" + r.Name}
	for _, text := range r.ClusterIPs {
		if text == "" || text == "None" {
			continue
		}
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return Service{}, fmt.Errorf("read cluster IP of service %s: %w", s.Name, err)
		}
		if ip = ip.Unmap(); ip.Is4() {
			s.IPs = append(s.IPs, ip)
		}
	}
	for _, rp := range r.Ports {
		p := Port{Port: rp.Port}
		switch rp.Protocol {
		case "TCP", "":
			p.Protocol = TCP
		case "UDP":
			p.Protocol = UDP
		default:
			continue
		}
		for _, e := range rp.Endpoints {
			ip, err := netip.ParseAddr(e.IP)
			if err != nil {
				return Service{}, fmt.Errorf("read endpoint of service %s port %d: %w", s.Name, rp.Port, err)
			}
			if ip = ip.Unmap(); ip.Is4() {
				p.Endpoints = append(p.Endpoints, netip.AddrPortFrom(ip, e.Port))
			}
		}
		s.Ports = append(s.Ports, p)
	}
	return s, nil
}
