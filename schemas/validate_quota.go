package schemas

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// resourceQuota checks what is counted, and the scopes against it.
func (p *problems) resourceQuota(s *corev1.ResourceQuotaSpec, at *field.Path) {
	for _, name := range sortedResources(s.Hard) {
		here := at.Child("hard").Key(string(name))
		p.quotaResource(name, here)
		p.quantity(name, s.Hard[name], func() *field.Path { return here })
	}
	p.quotaScopes(s, at.Child("scopes"))
	p.quotaSelector(s, at.Child("scopeSelector", "matchExpressions"))
}

func (p *problems) quotaResource(name corev1.ResourceName, at *field.Path) {
	p.invalid(at, name, resourceName(name)...)
	if !strings.Contains(string(name), "/") && !quotaStandard(name) {
		p.invalid(at, name, "must be a standard resource for quota")
	}
}

// quotaStandard says that a name without a domain can be limited by a quota:
// every standard name but storage, of which only requests are counted.
func quotaStandard(name corev1.ResourceName) bool {
	return standardResources.Has(string(name)) && name != corev1.ResourceStorage ||
		hugePages(name) || strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix)
}

var (
	podQuotas = sets.New[corev1.ResourceName](corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory)
	quotaScopeNames = sets.New(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating,
		corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass,
		corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass)
)

// scopeFits says that objects of a scope have the resource at all.
func scopeFits(scope corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	if !quotaStandard(name) {
		return true
	}
	switch scope {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	}
	return !quotaScopeNames.Has(scope) || podQuotas.Has(name)
}

func (p *problems) quotaScopes(s *corev1.ResourceQuotaSpec, at *field.Path) {
	for _, scope := range s.Scopes {
		if !quotaScopeNames.Has(scope) {
			p.invalid(at, s.Scopes, "unsupported scope")
		}
		p.scopeFitsAll(scope, s.Hard, s.Scopes, at)
	}
	p.scopeConflicts(sets.New(s.Scopes...), s, at)
}

func (p *problems) scopeFitsAll(scope corev1.ResourceQuotaScope, hard corev1.ResourceList, value any, at *field.Path) {
	for name := range hard {
		if !scopeFits(scope, name) {
			p.invalid(at, value, "unsupported scope applied to resource")
		}
	}
}

func (p *problems) scopeConflicts(scopes sets.Set[corev1.ResourceQuotaScope], s *corev1.ResourceQuotaSpec, at *field.Path) {
	if scopes.HasAll(corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort) ||
		scopes.HasAll(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating) {
		p.invalid(at, s.Scopes, "conflicting scopes")
	}
}

func (p *problems) quotaSelector(s *corev1.ResourceQuotaSpec, at *field.Path) {
	if s.ScopeSelector == nil {
		return
	}
	scopes := sets.New[corev1.ResourceQuotaScope]()
	for _, r := range s.ScopeSelector.MatchExpressions {
		scopes.Insert(r.ScopeName)
		if !quotaScopeNames.Has(r.ScopeName) {
			p.invalid(at.Child("scopeName"), r.ScopeName, "unsupported scope")
		}
		p.scopeFitsAll(r.ScopeName, s.Hard, s.ScopeSelector, at)
		switch r.ScopeName {
		case corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeVolumeAttributesClass:
		default:
			if quotaScopeNames.Has(r.ScopeName) && r.Operator != corev1.ScopeSelectorOpExists {
				p.invalid(at.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")
			}
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				p.required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				p.invalid(at.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
			}
		default:
			p.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
		}
	}
	p.scopeConflicts(scopes, s, at)
}

func (p *problems) resourceQuotaUpdate(updated, old *corev1.ResourceQuota) {
	if !sets.New(updated.Spec.Scopes...).Equal(sets.New(old.Spec.Scopes...)) {
		p.invalid(field.NewPath("spec", "scopes"), updated.Spec.Scopes, immutable)
	}
}

// defaultLimitRange derives what a container gets by default from its bounds.
func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type == corev1.LimitTypeContainer {
			item.Default = withDefaults(item.Default, item.Max)
			item.DefaultRequest = withDefaults(withDefaults(item.DefaultRequest, item.Default), item.Min)
		}
		for _, list := range []corev1.ResourceList{item.Max, item.Min, item.Default, item.DefaultRequest, item.MaxLimitRequestRatio} {
			roundResources(list)
		}
	}
}

func withDefaults(l, defaults corev1.ResourceList) corev1.ResourceList {
	if l == nil {
		l = corev1.ResourceList{}
	}
	for name, q := range defaults {
		if _, ok := l[name]; !ok {
			l[name] = q.DeepCopy()
		}
	}
	return l
}

func (p *problems) limitRange(l *corev1.LimitRange) {
	seen := sets.New[corev1.LimitType]()
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		at := field.NewPath("spec", "limits").Index(i)
		p.limitType(item.Type, at.Child("type"))
		if seen.Has(item.Type) {
			p.duplicate(at.Child("type"), item.Type)
		}
		seen.Insert(item.Type)
		p.limitItem(item, at)
	}
}

func (p *problems) limitType(t corev1.LimitType, at *field.Path) {
	if messages := validation.IsQualifiedName(string(t)); len(messages) > 0 {
		p.invalid(at, t, messages...)
		return
	}
	switch t {
	case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
		return
	}
	if !strings.Contains(string(t), "/") {
		p.invalid(at, t, "must be a standard limit type or fully qualified")
	}
}

// limitItem checks the bounds of one type against each other.
func (p *problems) limitItem(item *corev1.LimitRangeItem, at *field.Path) {
	names := sets.New[corev1.ResourceName]()
	list := func(l corev1.ResourceList, name string) {
		for _, r := range sortedResources(l) {
			names.Insert(r)
			p.limitResource(item.Type, r, at.Child(name).Key(string(r)))
		}
	}
	list(item.Max, "max")
	list(item.Min, "min")
	list(item.MaxLimitRequestRatio, "maxLimitRequestRatio")
	defaults, requests := item.Default, item.DefaultRequest
	if item.Type == corev1.LimitTypePod {
		if len(defaults) > 0 {
			p.forbidden(at.Child("default"), "may not be specified when `type` is 'Pod'")
		}
		if len(requests) > 0 {
			p.forbidden(at.Child("defaultRequest"), "may not be specified when `type` is 'Pod'")
		}
		defaults, requests = nil, nil
	}
	list(defaults, "default")
	list(requests, "defaultRequest")
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		_, min := item.Min[corev1.ResourceStorage]
		_, max := item.Max[corev1.ResourceStorage]
		if !min && !max {
			p.required(at.Child("limits"), "either minimum or maximum storage value is required, but neither was provided")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		p.limitOrder(item, defaults, requests, name, at)
	}
}

func (p *problems) limitResource(t corev1.LimitType, name corev1.ResourceName, at *field.Path) {
	if t == corev1.LimitTypePod || t == corev1.LimitTypeContainer {
		containerResourceName(p, name, at)
		return
	}
	p.invalid(at, name, resourceName(name)...)
}

// limitOrder wants min <= default request <= default <= max of a resource.
func (p *problems) limitOrder(item *corev1.LimitRangeItem, defaults, requests corev1.ResourceList, name corev1.ResourceName, at *field.Path) {
	min, hasMin := item.Min[name]
	max, hasMax := item.Max[name]
	limit, hasLimit := defaults[name]
	request, hasRequest := requests[name]
	key := func(list string) *field.Path { return at.Child(list).Key(string(name)) }
	order := func(low resource.Quantity, lowName string, high resource.Quantity, highName, blamed string, both bool) {
		if both && low.Cmp(high) > 0 {
			p.invalid(key(blamed), low, fmt.Sprintf("%s value %s is greater than %s value %s", lowName, low.String(), highName, high.String()))
		}
	}
	order(min, "min", max, "max", "min", hasMin && hasMax)
	order(min, "min", request, "default request", "defaultRequest", hasMin && hasRequest)
	order(request, "default request", max, "max", "defaultRequest", hasRequest && hasMax)
	order(request, "default request", limit, "default limit", "defaultRequest", hasRequest && hasLimit)
	order(min, "min", limit, "default", "default", hasMin && hasLimit)
	order(limit, "default", max, "max", "default", hasLimit && hasMax)
	if (!nativeResource(name) || hugePages(name)) && hasLimit && hasRequest && limit.Cmp(request) != 0 {
		p.invalid(key("defaultRequest"), request, fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", limit.String(), request.String(), name))
	}
	ratio, ok := item.MaxLimitRequestRatio[name]
	if !ok {
		return
	}
	if ratio.Cmp(resource.MustParse("1")) < 0 {
		p.invalid(key("maxLimitRequestRatio"), ratio, fmt.Sprintf("ratio %s is less than 1", ratio.String()))
	}
	if widest := max.AsApproximateFloat64() / min.AsApproximateFloat64(); hasMin && hasMax && ratio.AsApproximateFloat64() > widest {
		p.invalid(key("maxLimitRequestRatio"), ratio, fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), widest))
	}
}
