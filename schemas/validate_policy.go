package schemas

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

var policyProtocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

func defaultNetworkPolicy(n *networkingv1.NetworkPolicy) {
	for i := range n.Spec.Ingress {
		defaultPolicyPorts(n.Spec.Ingress[i].Ports)
	}
	for i := range n.Spec.Egress {
		defaultPolicyPorts(n.Spec.Egress[i].Ports)
	}
	if len(n.Spec.PolicyTypes) == 0 {
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(n.Spec.Egress) > 0 {
			n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		orPointer(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func (p *problems) networkPolicy(s *networkingv1.NetworkPolicySpec, at *field.Path) {
	p.add(validSelector(&s.PodSelector, at.Child("podSelector")))
	for i, r := range s.Ingress {
		here := at.Child("ingress").Index(i)
		p.policyPorts(r.Ports, here)
		p.policyPeers(r.From, here.Child("from"))
	}
	for i, r := range s.Egress {
		here := at.Child("egress").Index(i)
		p.policyPorts(r.Ports, here)
		p.policyPeers(r.To, here.Child("to"))
	}
	valid := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	if len(s.PolicyTypes) > len(valid) {
		p.invalid(at.Child("policyTypes"), s.PolicyTypes, "may not specify more than two policyTypes")
		return
	}
	for i, t := range s.PolicyTypes {
		if !slices.Contains(valid, t) {
			p.found = append(p.found, field.NotSupported(at.Child("policyTypes").Index(i), t, valid))
		}
	}
}

func (p *problems) policyPorts(ports []networkingv1.NetworkPolicyPort, rule *field.Path) {
	for i := range ports {
		port := &ports[i]
		at := rule.Child("ports").Index(i)
		choosePtr(p, port.Protocol, at, "protocol", policyProtocols)
		end := func(messages ...string) { p.invalid(at.Child("endPort"), *port.EndPort, messages...) }
		switch {
		case port.Port == nil:
			if port.EndPort != nil {
				end("may not be specified when `port` is not specified")
			}
		case port.Port.Type == intstr.String:
			if port.EndPort != nil {
				end("may not be specified when `port` is non-numeric")
			}
			p.check(validation.IsValidPortName, port.Port.StrVal, at, "port")
		default:
			p.invalid(at.Child("port"), port.Port.IntVal, validation.IsValidPortNum(port.Port.IntValue())...)
			if port.EndPort != nil {
				if *port.EndPort < port.Port.IntVal {
					end("must be greater than or equal to `port`")
				}
				end(validation.IsValidPortNum(int(*port.EndPort))...)
			}
		}
	}
}

func (p *problems) policyPeers(peers []networkingv1.NetworkPolicyPeer, list *field.Path) {
	for i := range peers {
		peer := &peers[i]
		at := list.Index(i)
		if peer.PodSelector != nil {
			p.add(validSelector(peer.PodSelector, at.Child("podSelector")))
		}
		if peer.NamespaceSelector != nil {
			p.add(validSelector(peer.NamespaceSelector, at.Child("namespaceSelector")))
		}
		selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
		switch {
		case peer.IPBlock == nil && !selects:
			p.required(at, "must specify a peer")
		case peer.IPBlock != nil:
			p.ipBlock(peer.IPBlock, at.Child("ipBlock"))
			if selects {
				p.forbidden(at, "may not specify both ipBlock and another peer")
			}
		}
	}
}

// ipBlock wants every exception to lie within the block and to be smaller.
func (p *problems) ipBlock(b *networkingv1.IPBlock, at *field.Path) {
	if b.CIDR == "" {
		p.required(at.Child("cidr"), "")
		return
	}
	p.add(validation.IsValidCIDRForLegacyField(at.Child("cidr"), b.CIDR, true, nil))
	_, block, err := netutils.ParseCIDRSloppy(b.CIDR)
	if err != nil {
		return
	}
	size, _ := block.Mask.Size()
	for i, e := range b.Except {
		here := at.Child("except").Index(i)
		p.add(validation.IsValidCIDRForLegacyField(here, e, true, nil))
		_, except, err := netutils.ParseCIDRSloppy(e)
		if err != nil {
			continue
		}
		if exceptSize, _ := except.Mask.Size(); !block.Contains(except.IP) || size >= exceptSize {
			p.invalid(here, e, "must be a strict subset of `cidr`")
		}
	}
}

// endpointIP refuses addresses that no other machine can reach.
func (p *problems) endpointIP(address string, at *field.Path) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return // found before
	}
	switch {
	case ip.IsUnspecified():
		p.invalid(at, address, "may not be unspecified ("+address+")")
	case ip.IsLoopback():
		p.invalid(at, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case ip.IsLinkLocalUnicast():
		p.invalid(at, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case ip.IsLinkLocalMulticast():
		p.invalid(at, address, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

func (p *problems) disruptionBudget(s *policyv1.PodDisruptionBudgetSpec, at *field.Path) {
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		p.invalid(at, *s, "minAvailable and maxUnavailable cannot be both set")
	}
	p.intOrPercent(s.MinAvailable, at, "minAvailable", true)
	p.intOrPercent(s.MaxUnavailable, at, "maxUnavailable", true)
	if s.Selector != nil {
		p.add(validSelector(s.Selector, at.Child("selector")))
	}
	choosePtr(p, s.UnhealthyPodEvictionPolicy, at, "unhealthyPodEvictionPolicy",
		[]policyv1.UnhealthyPodEvictionPolicyType{policyv1.AlwaysAllow, policyv1.IfHealthyBudget})
}
