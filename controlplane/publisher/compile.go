package publisher

import (
	"cmp"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gantry.dev/schemas"
)

// CompilePod is what a node is told of a pod: the object without its status
// and without what changes at every write, so that reports of the pod never
// come back to the node as news. The record has no feed position yet.
func CompilePod(clusterID string, pod *corev1.Pod) schemas.PodRecord {
	told := &corev1.Pod{TypeMeta: pod.TypeMeta, ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}
	told.ManagedFields = nil
	told.ResourceVersion = ""
	return schemas.PodRecord{
		ClusterID: clusterID,
		Node:      pod.Spec.NodeName,
		Revision:  revisionOf(pod),
		Namespace: pod.Namespace,
		Name:      pod.Name,
		UID:       pod.UID,
		Pod:       told,
	}
}

// CompileNetwork is a node's part in the network; ok is false while the node
// has no pod range.
func CompileNetwork(node *corev1.Node, podCIDR, serviceCIDR string) (schemas.NetworkRecord, bool) {
	if node.Spec.PodCIDR == "" {
		return schemas.NetworkRecord{}, false
	}
	return schemas.NetworkRecord{PodCIDR: node.Spec.PodCIDR, ClusterPodCIDR: podCIDR, ServiceCIDR: serviceCIDR}, true
}

// CompileRoute is what every node is told of a Service and the slices of its
// endpoints: ready addresses alone, sorted, each once. ok is false for a
// Service that has no address of its own to route. The record has no feed
// position yet.
func CompileRoute(clusterID string, service *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) (r schemas.RouteRecord, ok bool) {
	ips := clusterIPs(service)
	if len(ips) == 0 {
		return schemas.RouteRecord{}, false
	}
	r = schemas.RouteRecord{
		ClusterID:  clusterID,
		Revision:   revisionOf(service),
		Namespace:  service.Namespace,
		Name:       service.Name,
		UID:        service.UID,
		ClusterIPs: ips,
	}
	for _, s := range endpointSlices {
		r.Revision = max(r.Revision, revisionOf(s))
	}
	for i := range service.Spec.Ports {
		p := &service.Spec.Ports[i]
		protocol := p.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		r.Ports = append(r.Ports, schemas.RoutePort{
			Name:      p.Name,
			Protocol:  protocol,
			Port:      uint16(p.Port),
			Endpoints: endpointsOf(endpointSlices, p.Name, protocol),
		})
	}
	return r, true
}

func endpointsOf(endpointSlices []*discoveryv1.EndpointSlice, name string, protocol corev1.Protocol) []schemas.RouteEndpoint {
	out := []schemas.RouteEndpoint{}
	for _, s := range endpointSlices {
		number, ok := slicePort(s, name, protocol)
		if !ok {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			// An unset condition means ready, by the definition of the kind.
			if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
				continue
			}
			to := schemas.RouteEndpoint{IP: e.Addresses[0], Port: number}
			if e.NodeName != nil {
				to.Node = *e.NodeName
			}
			out = append(out, to)
		}
	}
	slices.SortFunc(out, func(a, b schemas.RouteEndpoint) int {
		return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Node, b.Node))
	})
	return slices.CompactFunc(out, func(a, b schemas.RouteEndpoint) bool { return a.IP == b.IP && a.Port == b.Port })
}

func slicePort(s *discoveryv1.EndpointSlice, name string, protocol corev1.Protocol) (uint16, bool) {
	for _, p := range s.Ports {
		if p.Port == nil || p.Name != nil && *p.Name != name || p.Name == nil && name != "" {
			continue
		}
		if p.Protocol != nil && *p.Protocol != protocol || p.Protocol == nil && protocol != corev1.ProtocolTCP {
			continue
		}
		return uint16(*p.Port), true
	}
	return 0, false
}

// clusterIPs are the addresses that nodes answer for. Headless and
// ExternalName Services have none.
func clusterIPs(s *corev1.Service) []string {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	all := s.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{s.Spec.ClusterIP}
	}
	var out []string
	for _, ip := range all {
		if ip != "" && ip != corev1.ClusterIPNone {
			out = append(out, ip)
		}
	}
	return out
}

// revisionOf is an object's resourceVersion; 0 where it has none that reads as
// a number, which a stored object always has.
func revisionOf(o schemas.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
