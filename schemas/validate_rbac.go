package schemas

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// defaultSubjects gives users and groups, which are not objects, their group.
func defaultSubjects(subjects []rbacv1.Subject) {
	for i := range subjects {
		if s := &subjects[i]; s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind {
			orDefault(&s.APIGroup, rbacv1.GroupName)
		}
	}
}

// policyRules wants each rule to be either of resources or, in a ClusterRole,
// of paths.
func (p *problems) policyRules(rules []rbacv1.PolicyRule, namespaced bool) {
	for i, r := range rules {
		at := field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			p.required(at.Child("verbs"), "")
		}
		if len(r.NonResourceURLs) > 0 {
			if namespaced {
				p.invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs")
			}
			if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
				p.invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs")
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			p.required(at.Child("apiGroups"), "resource rules must supply at least one api group")
		}
		if len(r.Resources) == 0 {
			p.required(at.Child("resources"), "resource rules must supply at least one resource")
		}
	}
}

func (p *problems) aggregation(a *rbacv1.AggregationRule, at *field.Path) {
	if a == nil {
		return
	}
	at = at.Child("clusterRoleSelectors")
	if len(a.ClusterRoleSelectors) == 0 {
		p.required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil")
	}
	for i := range a.ClusterRoleSelectors {
		s := &a.ClusterRoleSelectors[i]
		p.add(validSelector(s, at.Index(i)))
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			p.invalid(at.Index(i), s, "invalid label selector.")
		}
	}
}

func (p *problems) roleRef(r *rbacv1.RoleRef, kinds ...string) {
	at := field.NewPath("roleRef")
	choose(p, r.APIGroup, at, "apiGroup", []string{rbacv1.GroupName})
	choose(p, r.Kind, at, "kind", kinds)
	p.checkRequired(content.IsPathSegmentName, r.Name, at, "name")
}

func (p *problems) subjects(subjects []rbacv1.Subject, namespaced bool) {
	for i := range subjects {
		s := &subjects[i]
		at := field.NewPath("subjects").Index(i)
		p.given(s.Name, at, "name")
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			if s.Name != "" {
				p.check(dnsSubdomain, s.Name, at, "name")
			}
			choose(p, s.APIGroup, at, "apiGroup", []string{""})
			if !namespaced {
				p.given(s.Namespace, at, "namespace")
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
			choose(p, s.APIGroup, at, "apiGroup", []string{rbacv1.GroupName})
		default:
			choose(p, s.Kind, at, "kind", []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind})
		}
	}
}
