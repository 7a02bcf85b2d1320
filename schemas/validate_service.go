package schemas

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func sortedResources(l corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(l))
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func validateService(svc *corev1.Service, at *field.Path) field.ErrorList {
	s := &svc.Spec
	errs := oneOf(s.Type, at.Child("type"), corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	errs = append(errs, oneOf(s.SessionAffinity, at.Child("sessionAffinity"), corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	errs = append(errs, metavalidation.ValidateLabels(s.Selector, at.Child("selector"))...)
	if len(s.Ports) == 0 && s.ClusterIP != corev1.ClusterIPNone && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(at.Child("ports"), ""))
	}
	if ip := s.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		if a, err := netip.ParseAddr(ip); err != nil || a.String() != ip {
			errs = append(errs, field.Invalid(at.Child("clusterIP"), ip, "must be a valid IP address, (e.g. 10.9.8.7), or empty to be given one"))
		}
	}
	if len(s.ClusterIPs) > 0 && s.ClusterIPs[0] != s.ClusterIP {
		errs = append(errs, field.Invalid(at.Child("clusterIPs").Index(0), s.ClusterIPs[0], "must match `clusterIP`"))
	}
	if len(s.ClusterIPs) > 1 {
		errs = append(errs, field.Invalid(at.Child("clusterIPs"), s.ClusterIPs, "may only hold one address: this cluster has one address family"))
	}
	names, ports := map[string]bool{}, map[string]bool{}
	for i := range s.Ports {
		errs = append(errs, validateServicePort(&s.Ports[i], len(s.Ports) > 1, names, ports, at.Child("ports").Index(i))...)
	}
	return errs
}

func validateServicePort(p *corev1.ServicePort, named bool, names, ports map[string]bool, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case p.Name == "" && named:
		errs = append(errs, field.Required(at.Child("name"), "required where there is more than one port"))
	case p.Name != "":
		errs = append(errs, invalid(at.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
		if names[p.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
		}
		names[p.Name] = true
	}
	errs = append(errs, invalid(at.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))...)
	errs = append(errs, oneOf(p.Protocol, at.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	key := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
	if ports[key] {
		errs = append(errs, field.Duplicate(at, key))
	}
	ports[key] = true
	if p.TargetPort.Type == intstr.Int {
		return append(errs, invalid(at.Child("targetPort"), p.TargetPort.IntVal, validation.IsValidPortNum(int(p.TargetPort.IntVal)))...)
	}
	return append(errs, invalid(at.Child("targetPort"), p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal))...)
}
