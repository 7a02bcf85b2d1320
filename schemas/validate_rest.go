package schemas

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What follows is for the kinds that neither are workloads nor Services nor
// storage. Default, Validate and ValidateUpdate call it.

func defaultRest(o Object) {
	switch o := o.(type) {
	case *corev1.Namespace:
		defaultNamespace(o)
	case *corev1.Node:
		defaultNode(o)
	case *corev1.Secret:
		defaultSecret(o)
	case *corev1.ResourceQuota:
		roundResources(o.Spec.Hard)
		roundResources(o.Status.Hard)
		roundResources(o.Status.Used)
	case *corev1.LimitRange:
		defaultLimitRange(o)
	case *networkingv1.NetworkPolicy:
		defaultNetworkPolicy(o)
	case *discoveryv1.EndpointSlice:
		defaultEndpointSlice(o)
	case *autoscalingv2.HorizontalPodAutoscaler:
		defaultAutoscaler(o)
	case *schedulingv1.PriorityClass:
		orPointer(&o.PreemptionPolicy, corev1.PreemptLowerPriority)
	case *rbacv1.RoleBinding:
		orDefault(&o.RoleRef.APIGroup, rbacv1.GroupName)
		defaultSubjects(o.Subjects)
	case *rbacv1.ClusterRoleBinding:
		orDefault(&o.RoleRef.APIGroup, rbacv1.GroupName)
		defaultSubjects(o.Subjects)
	}
}

// validateRest checks all but the metadata of an object.
func validateRest(o Object) field.ErrorList {
	var p problems
	switch o := o.(type) {
	case *corev1.ConfigMap:
		p.configMap(o)
	case *corev1.Secret:
		p.secret(o)
	case *corev1.ResourceQuota:
		p.resourceQuota(&o.Spec, field.NewPath("spec"))
	case *corev1.LimitRange:
		p.limitRange(o)
	case *corev1.Namespace:
		p.namespaceFinalizers(o)
	case *corev1.Node:
		p.node(o)
	case *corev1.Event:
		p.event(o)
	case *networkingv1.NetworkPolicy:
		p.networkPolicy(&o.Spec, field.NewPath("spec"))
	case *policyv1.PodDisruptionBudget:
		p.disruptionBudget(&o.Spec, field.NewPath("spec"))
	case *autoscalingv2.HorizontalPodAutoscaler:
		p.autoscaler(&o.Spec, field.NewPath("spec"))
	case *discoveryv1.EndpointSlice:
		p.endpointSlice(o)
	case *rbacv1.Role:
		p.policyRules(o.Rules, true)
	case *rbacv1.ClusterRole:
		p.policyRules(o.Rules, false)
		p.aggregation(o.AggregationRule, field.NewPath("aggregationRule"))
	case *rbacv1.RoleBinding:
		p.roleRef(&o.RoleRef, "Role", "ClusterRole")
		p.subjects(o.Subjects, true)
	case *rbacv1.ClusterRoleBinding:
		p.roleRef(&o.RoleRef, "ClusterRole")
		p.subjects(o.Subjects, false)
	case *schedulingv1.PriorityClass:
		p.priorityClass(o)
	case *coordinationv1.Lease:
		p.lease(&o.Spec, field.NewPath("spec"))
	}
	return p.found
}

// validateRestUpdate checks what may not change; validateRest has found what is
// wrong with updated itself.
func validateRestUpdate(updated, old Object) field.ErrorList {
	var p problems
	switch n := updated.(type) {
	case *corev1.ConfigMap:
		p.configMapUpdate(n, old.(*corev1.ConfigMap))
	case *corev1.Secret:
		p.secretUpdate(n, old.(*corev1.Secret))
	case *corev1.ResourceQuota:
		p.resourceQuotaUpdate(n, old.(*corev1.ResourceQuota))
	case *corev1.Node:
		p.nodeUpdate(n, old.(*corev1.Node))
	case *discoveryv1.EndpointSlice:
		p.unchanged(n.AddressType, old.(*discoveryv1.EndpointSlice).AddressType, "addressType")
	case *rbacv1.RoleBinding:
		p.unchanged(n.RoleRef, old.(*rbacv1.RoleBinding).RoleRef, "roleRef")
	case *rbacv1.ClusterRoleBinding:
		p.unchanged(n.RoleRef, old.(*rbacv1.ClusterRoleBinding).RoleRef, "roleRef")
	case *schedulingv1.PriorityClass:
		p.priorityClassUpdate(n, old.(*schedulingv1.PriorityClass))
	}
	return p.found
}

// unchanged refuses a new value of a field at the object's root.
func (p *problems) unchanged(updated, old any, name string) {
	p.add(unchanged(updated, old, field.NewPath(name)))
}

// nameRuleRest says which names a kind takes.
func nameRuleRest(k Kind) apivalidation.ValidateNameFunc {
	switch k.Resource {
	case Namespaces:
		return apivalidation.NameIsDNSLabel
	case Roles, ClusterRoles, RoleBindings, ClusterRoleBindings:
		// Names such as system:node-reader are custom.
		return func(name string, prefix bool) []string {
			if prefix {
				return content.IsPathSegmentPrefix(name)
			}
			return content.IsPathSegmentName(name)
		}
	case Events:
		return func(string, bool) []string { return nil }
	}
	return apivalidation.NameIsDNSSubdomain
}
