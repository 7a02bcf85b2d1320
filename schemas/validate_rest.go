package schemas

import (
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What follows is for the kinds that neither are workloads nor Services nor
// storage. Default, Validate and ValidateUpdate call it.

func defaultRest(o Object) {
	if ns, ok := o.(*corev1.Namespace); ok {
		defaultNamespace(ns)
	}
}

func defaultNamespace(ns *corev1.Namespace) {
	// Kubernetes' way to select a namespace by its name.
	if ns.Name == "" {
		return
	}
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

// validateRest checks all but the metadata of an object.
func validateRest(Object) field.ErrorList { return nil }

// validateRestUpdate checks what may not change; validateRest has found what is
// wrong with updated itself.
func validateRestUpdate(_, _ Object) field.ErrorList { return nil }

func nameRuleRest(k Kind) apivalidation.ValidateNameFunc {
	if k.Resource == Namespaces {
		return apivalidation.NameIsDNSLabel
	}
	return apivalidation.NameIsDNSSubdomain
}
