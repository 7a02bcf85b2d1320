package endpoints

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gantry.dev/controlplane/reconcile"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxEndpoints is what one slice may hold, as the API says; it also keeps the
// record well below what the bus takes.
const maxEndpoints = 1000

// Slices are the EndpointSlices of a Service whose pods are given, ordered by
// name: usually one. Pods whose named ports have different numbers need a slice
// for each set of numbers. A Service without pods has an empty one, so that it
// can be seen that somebody looked.
func Slices(s *corev1.Service, pods []*corev1.Pod) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, family := range families(s) {
		groups := group(s, pods, family)
		if len(groups) == 0 {
			groups = []portGroup{{}}
		}
		n := 0
		for _, g := range groups {
			for _, endpoints := range chunks(g.endpoints) {
				// Named by its place, not by its ports: when the ports change,
				// the slice changes in one write, and no moment is without.
				out = append(out, newSlice(s, family, n, g.ports, endpoints))
				n++
			}
		}
	}
	return out
}

type portGroup struct {
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// group puts pods together that have the same ports, ordered by the ports.
func group(s *corev1.Service, pods []*corev1.Pod, family discoveryv1.AddressType) []portGroup {
	byPorts := map[string]*portGroup{}
	for _, p := range pods {
		ip := address(p, family)
		if ip == "" {
			continue
		}
		ports := portsOf(s, p)
		key := portsKey(ports)
		g, ok := byPorts[key]
		if !ok {
			g = &portGroup{ports: ports}
			byPorts[key] = g
		}
		g.endpoints = append(g.endpoints, endpoint(s, p, ip))
	}
	var out []portGroup
	for _, key := range slices.Sorted(maps.Keys(byPorts)) {
		out = append(out, *byPorts[key])
	}
	return out
}

func endpoint(s *corev1.Service, p *corev1.Pod, ip string) discoveryv1.Endpoint {
	serving, terminating := ready(p), p.DeletionTimestamp != nil
	isReady := s.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &isReady, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		node := p.Spec.NodeName
		e.NodeName = &node
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name {
		host := p.Spec.Hostname
		e.Hostname = &host
	}
	return e
}

// portsOf are the Service's ports with the numbers that they have in the pod.
// A name that the pod does not have leaves the port out: the pod does not serve it.
func portsOf(s *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for _, sp := range s.Spec.Ports {
		number, ok := targetPort(sp, p)
		if !ok {
			continue
		}
		name, protocol := sp.Name, protocolOf(sp.Protocol)
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: sp.AppProtocol})
	}
	return out
}

func targetPort(sp corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		if sp.TargetPort.IntVal == 0 {
			return sp.Port, true
		}
		return sp.TargetPort.IntVal, true
	}
	if sp.TargetPort.StrVal == "" {
		return sp.Port, true
	}
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c) // a sidecar serves as long as the pod does
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name == sp.TargetPort.StrVal && protocolOf(port.Protocol) == protocolOf(sp.Protocol) {
				return port.ContainerPort, true
			}
		}
	}
	return 0, false
}

func protocolOf(p corev1.Protocol) corev1.Protocol { return cmp.Or(p, corev1.ProtocolTCP) }

func portsKey(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s/%s/%05d,", *p.Name, *p.Protocol, *p.Port)
	}
	return b.String()
}

// chunks parts endpoints that are too many for one slice. Which part a pod is
// in depends on its name alone as long as there are as many parts, so a pod
// that comes or goes changes one slice.
func chunks(endpoints []discoveryv1.Endpoint) [][]discoveryv1.Endpoint {
	if len(endpoints) <= maxEndpoints {
		return [][]discoveryv1.Endpoint{endpoints}
	}
	n := 2
	for len(endpoints) > n*maxEndpoints/2 { // half full on average, since names fall unevenly
		n *= 2
	}
	out := make([][]discoveryv1.Endpoint, n)
	for _, e := range endpoints {
		h := fnv.New32a()
		_, _ = h.Write([]byte(e.TargetRef.Name)) // a hash does not fail
		i := int(h.Sum32()) % n
		out[i] = append(out[i], e)
	}
	return out
}

func newSlice(s *corev1.Service, family discoveryv1.AddressType, n int, ports []discoveryv1.EndpointPort, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	l := map[string]string{}
	for k, v := range s.Labels {
		l[k] = v
	}
	l[discoveryv1.LabelServiceName] = s.Name
	l[discoveryv1.LabelManagedBy] = ManagedBy
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		l[corev1.IsHeadlessService] = ""
	}
	if endpoints == nil {
		endpoints = []discoveryv1.Endpoint{} // the API has a list here, not null
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       s.Namespace,
			Name:            reconcile.DerivedName(s.Name, reconcile.Hash(5, string(s.UID), string(family), strconv.Itoa(n))),
			Labels:          l,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(s, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: family,
		Endpoints:   endpoints,
		Ports:       ports,
	}
	slice.SetGroupVersionKind(discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"))
	return slice
}

func families(s *corev1.Service) []discoveryv1.AddressType {
	if len(s.Spec.IPFamilies) == 0 {
		return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	}
	var out []discoveryv1.AddressType
	for _, f := range s.Spec.IPFamilies {
		out = append(out, discoveryv1.AddressType(f))
	}
	return out
}

// address is the pod's address of a family; empty where it has none.
func address(p *corev1.Pod, family discoveryv1.AddressType) string {
	ips := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip)
		if err == nil && a.Is4() == (family == discoveryv1.AddressTypeIPv4) {
			return ip
		}
	}
	return ""
}
