package schemas

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const maxAffinitySeconds = 24 * 60 * 60

var (
	serviceTypes      = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort}
	affinities        = []corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone}
	ipFamilies        = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	ipFamilyPolicies  = []corev1.IPFamilyPolicy{corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack}
	externalPolicies  = []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}
	internalPolicies  = []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal}
	trafficPreference = []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode}
)

func headless(s *corev1.ServiceSpec) bool {
	return len(s.ClusterIPs) == 1 && s.ClusterIPs[0] == corev1.ClusterIPNone
}

// externallyReachable says that traffic may come from outside the cluster.
func externallyReachable(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer || s.Type == corev1.ServiceTypeNodePort ||
		s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
}

// needsHealthCheck says that a load balancer asks nodes whether they have pods.
func needsHealthCheck(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// validateService checks a Service but for its metadata; old is nil for a new one.
func validateService(svc, old *corev1.Service) field.ErrorList {
	var p problems
	s, at := &svc.Spec, field.NewPath("spec")
	p.serviceAnnotations(svc, old)
	if len(s.Ports) == 0 && !headless(s) && s.Type != corev1.ServiceTypeExternalName {
		p.required(at.Child("ports"), "")
	}
	chooseRequired(&p, s.Type, at, "type", serviceTypes)
	p.serviceType(s, at)
	p.servicePorts(s, at)
	if len(s.Selector) > 0 {
		p.add(metavalidation.ValidateLabels(s.Selector, at.Child("selector")))
	}
	p.sessionAffinity(s, at)
	var was corev1.ServiceSpec
	if old != nil {
		was = old.Spec
	}
	if s.Type != corev1.ServiceTypeExternalName {
		p.clusterIPs(s, was.ClusterIPs, at)
	}
	for i, ip := range s.ExternalIPs {
		at := at.Child("externalIPs").Index(i)
		if errs := validIP(at, ip, was.ExternalIPs...); len(errs) > 0 {
			p.add(errs)
			continue
		}
		p.reachableIP(ip, at)
	}
	p.loadBalancer(s, &was, at)
	p.traffic(s, at)
	return p.found
}

func (p *problems) serviceAnnotations(svc, old *corev1.Service) {
	at := field.NewPath("metadata", "annotations")
	mode, hasMode := svc.Annotations[corev1.AnnotationTopologyMode]
	hints, hasHints := svc.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if hasMode && hasHints && mode != hints {
		p.invalid(at.Key(corev1.AnnotationTopologyMode), mode, "must match annotations["+corev1.DeprecatedAnnotationTopologyAwareHints+"] when both are specified")
	}
	const key = corev1.AnnotationLoadBalancerSourceRangesKey
	ranges, ok := svc.Annotations[key]
	if !ok || len(svc.Spec.LoadBalancerSourceRanges) > 0 {
		return
	}
	at = at.Key(key)
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		p.forbidden(at, "may only be used when `type` is 'LoadBalancer'")
	}
	if old != nil && old.Annotations[key] == ranges {
		return
	}
	if ranges = strings.TrimSpace(ranges); ranges != "" {
		for r := range strings.SplitSeq(ranges, ",") {
			p.add(validation.IsValidCIDRForLegacyField(at, strings.TrimSpace(r), true, nil))
		}
	}
}

// serviceType refuses what one type of Service cannot have.
func (p *problems) serviceType(s *corev1.ServiceSpec, at *field.Path) {
	switch s.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if headless(s) {
			p.invalid(at.Child("clusterIPs").Index(0), s.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", s.Type))
		}
	case corev1.ServiceTypeClusterIP:
		for i := range s.Ports {
			if s.Ports[i].NodePort != 0 {
				p.forbidden(at.Child("ports").Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'")
			}
		}
	case corev1.ServiceTypeExternalName:
		const why = "may not be set for ExternalName services"
		if len(s.ClusterIPs) > 0 {
			p.forbidden(at.Child("clusterIPs"), why)
		}
		if len(s.IPFamilies) > 0 {
			p.forbidden(at.Child("ipFamilies"), why)
		}
		if s.IPFamilyPolicy != nil {
			p.forbidden(at.Child("ipFamilyPolicy"), why)
		}
		p.checkRequired(validation.IsDNS1123Subdomain, strings.TrimSuffix(s.ExternalName, "."), at, "externalName")
	}
}

func (p *problems) servicePorts(s *corev1.ServiceSpec, at *field.Path) {
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	names, ports, nodePorts := map[string]bool{}, map[key]bool{}, map[key]bool{}
	for i := range s.Ports {
		sp, at := &s.Ports[i], at.Child("ports").Index(i)
		switch {
		case sp.Name == "" && len(s.Ports) > 1:
			p.required(at.Child("name"), "")
		case sp.Name != "":
			p.check(validation.IsDNS1123Label, sp.Name, at, "name")
			if names[sp.Name] {
				p.duplicate(at.Child("name"), sp.Name)
			}
			names[sp.Name] = true
		}
		p.portNumber(sp.Port, at, "port")
		chooseRequired(p, sp.Protocol, at, "protocol", protocols)
		p.portNumberOrName(sp.TargetPort, at, "targetPort")
		if a := sp.AppProtocol; a != nil {
			p.check(validation.IsQualifiedName, *a, at, "appProtocol")
		}
		if k := (key{sp.Protocol, sp.Port}); ports[k] {
			p.duplicate(at, fmt.Sprintf("%d/%s", sp.Port, sp.Protocol))
		} else {
			ports[k] = true
		}
		if k := (key{sp.Protocol, sp.NodePort}); sp.NodePort != 0 && nodePorts[k] {
			p.duplicate(at.Child("nodePort"), sp.NodePort)
		} else {
			nodePorts[k] = true
		}
	}
}

func (p *problems) sessionAffinity(s *corev1.ServiceSpec, at *field.Path) {
	chooseRequired(p, s.SessionAffinity, at, "sessionAffinity", affinities)
	c, at := s.SessionAffinityConfig, at.Child("sessionAffinityConfig")
	if s.SessionAffinity == corev1.ServiceAffinityNone && c != nil {
		p.forbidden(at, "must not be set when session affinity is None")
	}
	if s.SessionAffinity != corev1.ServiceAffinityClientIP {
		return
	}
	const why = "when session affinity type is ClientIP"
	switch {
	case c == nil:
		p.required(at, why)
	case c.ClientIP == nil:
		p.required(at.Child("clientIP"), why)
	case c.ClientIP.TimeoutSeconds == nil:
		p.required(at.Child("clientIP", "timeoutSeconds"), why)
	case *c.ClientIP.TimeoutSeconds <= 0 || *c.ClientIP.TimeoutSeconds > maxAffinitySeconds:
		p.invalid(at.Child("clientIP", "timeoutSeconds"), *c.ClientIP.TimeoutSeconds, fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds))
	}
}

// clusterIPs checks the addresses and their families against each other.
func (p *problems) clusterIPs(s *corev1.ServiceSpec, old []string, at *field.Path) {
	list := at.Child("clusterIPs")
	switch {
	case s.ClusterIP != "" && len(s.ClusterIPs) == 0:
		p.required(list, "")
	case s.ClusterIP != "" && s.ClusterIPs[0] != s.ClusterIP:
		p.invalid(list, s.ClusterIPs, "first value must match `clusterIP`")
	case s.ClusterIP == "" && len(s.ClusterIPs) > 0:
		p.invalid(list, s.ClusterIPs, "must be empty when `clusterIP` is not specified")
	}
	for i, f := range s.IPFamilies {
		at := at.Child("ipFamilies").Index(i)
		if !slices.Contains(ipFamilies, f) {
			p.found = append(p.found, field.NotSupported(at, f, ipFamilies))
		}
		if slices.Contains(s.IPFamilies[:i], f) {
			p.duplicate(at, f)
		}
	}
	choosePtr(p, s.IPFamilyPolicy, at, "ipFamilyPolicy", ipFamilyPolicies)
	broken := false
	for i, ip := range s.ClusterIPs {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(s.ClusterIPs) > 1 {
				broken = true
				p.invalid(list, s.ClusterIPs, "'None' must be the first and only value")
			}
			continue
		}
		if errs := validIP(list.Index(i), ip, old...); len(errs) > 0 {
			broken = true
			p.add(errs)
		}
	}
	if len(s.ClusterIPs) > 2 {
		p.invalid(list, s.ClusterIPs, "may only hold up to 2 values")
	}
	if broken || headless(s) {
		return
	}
	if len(s.ClusterIPs) > 1 && !bothFamilies(s.ClusterIPs) {
		p.invalid(list, s.ClusterIPs, "may specify no more than one IP for each IP family")
	}
	for i, ip := range s.ClusterIPs[:min(len(s.ClusterIPs), len(s.IPFamilies))] {
		if want := s.IPFamilies[i]; slices.Contains(ipFamilies, want) && familyOf(ip) != want {
			p.invalid(list.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", want, i))
		}
	}
}

// familyOf is the family of a valid address.
func familyOf(ip string) corev1.IPFamily {
	if a, err := netip.ParseAddr(ip); err == nil && a.Is6() && !a.Is4In6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func bothFamilies(ips []string) bool {
	return slices.ContainsFunc(ips, func(ip string) bool { return familyOf(ip) == corev1.IPv4Protocol }) &&
		slices.ContainsFunc(ips, func(ip string) bool { return familyOf(ip) == corev1.IPv6Protocol })
}

// reachableIP refuses addresses that no packet from elsewhere is sent to.
func (p *problems) reachableIP(ip string, at *field.Path) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return // an address of before, with leading zeros
	}
	switch {
	case a.IsUnspecified():
		p.invalid(at, ip, fmt.Sprintf("may not be unspecified (%v)", ip))
	case a.IsLoopback():
		p.invalid(at, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case a.IsLinkLocalUnicast():
		p.invalid(at, ip, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case a.IsLinkLocalMulticast():
		p.invalid(at, ip, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

// loadBalancer checks the fields of Services of that type.
func (p *problems) loadBalancer(s, old *corev1.ServiceSpec, at *field.Path) {
	const only = "may only be used when `type` is 'LoadBalancer'"
	is := s.Type == corev1.ServiceTypeLoadBalancer
	if len(s.LoadBalancerSourceRanges) > 0 {
		at := at.Child("LoadBalancerSourceRanges")
		if !is {
			p.forbidden(at, only)
		}
		var was []string
		for _, r := range old.LoadBalancerSourceRanges {
			was = append(was, strings.TrimSpace(r))
		}
		for i, r := range s.LoadBalancerSourceRanges {
			p.add(validation.IsValidCIDRForLegacyField(at.Index(i), strings.TrimSpace(r), true, was))
		}
	}
	switch {
	case s.AllocateLoadBalancerNodePorts != nil && !is:
		p.forbidden(at.Child("allocateLoadBalancerNodePorts"), only)
	case s.AllocateLoadBalancerNodePorts == nil && is:
		p.required(field.NewPath("allocateLoadBalancerNodePorts"), "")
	}
	switch c := s.LoadBalancerClass; {
	case c == nil:
	case !is:
		p.forbidden(at.Child("loadBalancerClass"), only)
	default:
		p.check(validation.IsQualifiedName, *c, at, "loadBalancerClass")
	}
}

// traffic checks the policies by which packets find a pod.
func (p *problems) traffic(s *corev1.ServiceSpec, at *field.Path) {
	if !externallyReachable(s) {
		if s.ExternalTrafficPolicy != "" {
			p.invalid(at.Child("externalTrafficPolicy"), s.ExternalTrafficPolicy, "may only be set for externally-accessible services")
		}
	} else {
		chooseRequired(p, s.ExternalTrafficPolicy, at, "externalTrafficPolicy", externalPolicies)
	}
	switch needs := needsHealthCheck(s); {
	case !needs && s.HealthCheckNodePort != 0:
		p.invalid(at.Child("healthCheckNodePort"), s.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
	case needs && s.HealthCheckNodePort == 0:
		p.required(at.Child("healthCheckNodePort"), "")
	case needs:
		p.portNumber(s.HealthCheckNodePort, at, "healthCheckNodePort")
	}
	if s.InternalTrafficPolicy == nil && (s.Type == corev1.ServiceTypeClusterIP || s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer) {
		p.required(at.Child("internalTrafficPolicy"), "")
	}
	choosePtr(p, s.InternalTrafficPolicy, at, "internalTrafficPolicy", internalPolicies)
	choosePtr(p, s.TrafficDistribution, at, "trafficDistribution", trafficPreference)
}

// validateServiceUpdate checks what may not change.
func validateServiceUpdate(updated, old *corev1.Service) field.ErrorList {
	var p problems
	n, o, at := &updated.Spec, &old.Spec, field.NewPath("spec")
	if n.Type != corev1.ServiceTypeExternalName && o.Type != corev1.ServiceTypeExternalName {
		if !headless(n) || !headless(o) {
			p.keptList(n.ClusterIPs, o.ClusterIPs, n, at, "clusterIPs", "clusterIP", true)
		}
		if !headless(n) && !headless(o) {
			p.keptList(families(n), families(o), n, at, "ipFamilies", "ipFamily", false)
		}
	}
	if n.Type == corev1.ServiceTypeLoadBalancer && o.Type == n.Type && !equality.Semantic.DeepEqual(n.LoadBalancerClass, o.LoadBalancerClass) {
		p.invalid(at.Child("loadBalancerClass"), n.LoadBalancerClass, "may not change once set")
	}
	if needsHealthCheck(n) && needsHealthCheck(o) && n.HealthCheckNodePort != o.HealthCheckNodePort {
		p.forbidden(at.Child("healthCheckNodePort"), immutable)
	}
	return p.found
}

func families(s *corev1.ServiceSpec) []string {
	var out []string
	for _, f := range s.IPFamilies {
		out = append(out, string(f))
	}
	return out
}

// keptList holds addresses, or families, to their rule: the first stays for
// ever, a second may come, and go if the policy says SingleStack.
func (p *problems) keptList(updated, old []string, n *corev1.ServiceSpec, at *field.Path, name, one string, each bool) {
	changed := func(i int) {
		if !each {
			i = 0 // Kubernetes blames the first family for any
		}
		p.invalid(at.Child(name).Index(i), updated, "may not change once set")
	}
	if len(updated) == len(old) {
		for i := range old {
			if updated[i] != old[i] {
				changed(i)
			}
		}
		return
	}
	if len(updated) < len(old) && len(n.ClusterIPs) == 0 {
		p.invalid(at.Child(name).Index(0), updated, "primary "+one+" can not be unset")
	}
	if len(old) > 0 && len(updated) > 0 && updated[0] != old[0] {
		changed(0)
	}
	if len(updated) < len(old) && len(updated) == 1 && (n.IPFamilyPolicy == nil || *n.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack) {
		p.invalid(at.Child("ipFamilyPolicy"), n.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary "+one)
	}
}
