package schemas

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// Kubernetes' limits of an EndpointSlice.
const (
	maxSliceEndpoints = 1000
	maxSlicePorts     = 20000
	maxAddresses      = 100
	maxHints          = 8
)

func defaultEndpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		orPointer(&s.Ports[i].Name, "")
		orPointer(&s.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	// It is of the version before this one, and nothing reads it; Kubernetes
	// drops it from new objects as well.
	for i := range s.Endpoints {
		s.Endpoints[i].DeprecatedTopology = nil
	}
}

func (p *problems) endpointSlice(s *discoveryv1.EndpointSlice) {
	chooseRequired(p, s.AddressType, nil, "addressType",
		[]discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6})
	p.slicePorts(s.Ports, field.NewPath("ports"))
	at := field.NewPath("endpoints")
	if len(s.Endpoints) > maxSliceEndpoints {
		p.tooMany(at, len(s.Endpoints), maxSliceEndpoints)
		return
	}
	for i := range s.Endpoints {
		p.endpoint(&s.Endpoints[i], s.AddressType, at.Index(i))
	}
}

func (p *problems) slicePorts(ports []discoveryv1.EndpointPort, at *field.Path) {
	if len(ports) > maxSlicePorts {
		p.tooMany(at, len(ports), maxSlicePorts)
		return
	}
	names := map[string]bool{}
	for i, port := range ports {
		here := at.Index(i)
		if port.Name != nil {
			if *port.Name != "" {
				p.check(validation.IsDNS1123Label, *port.Name, here, "name")
			}
			if names[*port.Name] {
				p.duplicate(here.Child("name"), port.Name)
			}
			names[*port.Name] = true
		}
		if port.Protocol == nil {
			p.required(here.Child("protocol"), "")
		}
		choosePtr(p, port.Protocol, here, "protocol", []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP})
		if port.AppProtocol != nil {
			p.check(validation.IsQualifiedName, *port.AppProtocol, here, "appProtocol")
		}
	}
}

func (p *problems) endpoint(e *discoveryv1.Endpoint, kind discoveryv1.AddressType, at *field.Path) {
	addresses := at.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		p.required(addresses, "")
	case n > maxAddresses:
		p.tooMany(addresses, n, maxAddresses)
	}
	for i, a := range e.Addresses {
		p.endpointAddress(a, kind, addresses, i)
	}
	if e.NodeName != nil {
		p.check(dnsSubdomain, *e.NodeName, at, "nodeName")
	}
	if e.Hostname != nil {
		p.check(validation.IsDNS1123Label, *e.Hostname, at, "hostname")
	}
	if e.Hints != nil {
		p.hints(e.Hints, at.Child("hints"))
	}
}

func (p *problems) endpointAddress(address string, kind discoveryv1.AddressType, list *field.Path, i int) {
	at := list.Index(i)
	var errs field.ErrorList
	switch kind {
	case discoveryv1.AddressTypeFQDN:
		p.add(validation.IsFullyQualifiedDomainName(at, address))
		return
	case discoveryv1.AddressTypeIPv4:
		if errs = validation.IsValidIPForLegacyField(at, address, true, nil); len(errs) == 0 && !netutils.IsIPv4String(address) {
			p.invalid(list, address, "must be an IPv4 address")
		}
	case discoveryv1.AddressTypeIPv6:
		if errs = validation.IsValidIP(at, address); len(errs) == 0 && !netutils.IsIPv6String(address) {
			p.invalid(list, address, "must be an IPv6 address")
		}
	default:
		return
	}
	p.add(errs)
	if len(errs) == 0 {
		p.endpointIP(address, at)
	}
}

func (p *problems) hints(h *discoveryv1.EndpointHints, at *field.Path) {
	zones := at.Child("forZones")
	if n := len(h.ForZones); n > maxHints {
		p.tooMany(zones, n, maxHints)
		return
	}
	seen := map[string]bool{}
	for i, z := range h.ForZones {
		p.hint(z.Name, validation.IsValidLabelValue, seen, zones.Index(i))
	}
	nodes := at.Child("forNodes")
	if n := len(h.ForNodes); n > maxHints {
		p.tooMany(nodes, n, maxHints)
		return
	}
	seen = map[string]bool{}
	for i, n := range h.ForNodes {
		p.hint(n.Name, dnsSubdomain, seen, nodes.Index(i))
	}
}

func (p *problems) hint(name string, rule func(string) []string, seen map[string]bool, at *field.Path) {
	if seen[name] {
		p.duplicate(at.Child("name"), name)
	}
	seen[name] = true
	p.check(rule, name, at, "name")
}
