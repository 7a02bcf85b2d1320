package schemas

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateStatus says what is wrong with a status that a user wrote, as
// Kubernetes does where controllers go by it: addresses that are none, counts
// below zero, a phase that contradicts the object. What old says wrong already
// is no reason to refuse the rest.
func ValidateStatus(updated, old Object) field.ErrorList {
	at := field.NewPath("status")
	switch o := updated.(type) {
	case *corev1.Pod:
		return validatePodStatus(&o.Status, &old.(*corev1.Pod).Status, at)
	case *corev1.Namespace:
		deleted := o.DeletionTimestamp != nil
		switch phase := o.Status.Phase; {
		case !deleted && phase != corev1.NamespaceActive:
			return field.ErrorList{field.Invalid(at.Child("phase"), phase, "may only be 'Active' if `deletionTimestamp` is empty")}
		case deleted && phase != corev1.NamespaceTerminating:
			return field.ErrorList{field.Invalid(at.Child("phase"), phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")}
		}
	case *corev1.Service:
		var errs field.ErrorList
		for i, in := range o.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				errs = append(errs, validIP(at.Child("loadBalancer", "ingress").Index(i).Child("ip"), in.IP, knownIngress(old)...)...)
			}
		}
		return errs
	case *appsv1.Deployment:
		s := o.Status
		return notNegative(at, counted{"replicas", s.Replicas}, counted{"updatedReplicas", s.UpdatedReplicas}, counted{"readyReplicas", s.ReadyReplicas},
			counted{"availableReplicas", s.AvailableReplicas}, counted{"unavailableReplicas", s.UnavailableReplicas})
	case *appsv1.ReplicaSet:
		s := o.Status
		return notNegative(at, counted{"replicas", s.Replicas}, counted{"fullyLabeledReplicas", s.FullyLabeledReplicas},
			counted{"readyReplicas", s.ReadyReplicas}, counted{"availableReplicas", s.AvailableReplicas})
	}
	return nil
}

func knownIngress(old Object) []string {
	var known []string
	for _, in := range old.(*corev1.Service).Status.LoadBalancer.Ingress {
		known = append(known, in.IP)
	}
	return known
}

func validatePodStatus(s, old *corev1.PodStatus, at *field.Path) field.ErrorList {
	known := []string{old.PodIP, old.HostIP}
	for _, ip := range old.PodIPs {
		known = append(known, ip.IP)
	}
	for _, ip := range old.HostIPs {
		known = append(known, ip.IP)
	}
	var errs field.ErrorList
	check := func(at *field.Path, ip string) {
		if ip != "" {
			errs = append(errs, validIP(at, ip, known...)...)
		}
	}
	check(at.Child("podIP"), s.PodIP)
	check(at.Child("hostIP"), s.HostIP)
	for i, ip := range s.PodIPs {
		check(at.Child("podIPs").Index(i).Child("ip"), ip.IP)
	}
	for i, ip := range s.HostIPs {
		check(at.Child("hostIPs").Index(i).Child("ip"), ip.IP)
	}
	return errs
}

// counted is a number of a status, by its field.
type counted struct {
	name string
	n    int32
}

func notNegative(at *field.Path, numbers ...counted) field.ErrorList {
	var errs field.ErrorList
	for _, c := range numbers {
		if c.n < 0 {
			errs = append(errs, field.Invalid(at.Child(c.name), c.n, "must be greater than or equal to 0"))
		}
	}
	return errs
}
