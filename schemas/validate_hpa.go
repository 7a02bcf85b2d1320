package schemas

import (
	"errors"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Kubernetes' limits and defaults of a HorizontalPodAutoscaler.
const (
	maxPolicyPeriodSeconds  = 1800
	maxStabilizationSeconds = 3600
	defaultCPUUtilization   = 80
	defaultPolicyPeriod     = 15
)

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	orPointer(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{
				Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr[int32](defaultCPUUtilization)}},
		}}
	}
	b := h.Spec.Behavior
	if b == nil {
		return
	}
	// Who gives one rule gets Kubernetes' own for the others: up by the double or
	// by 4 pods, whichever is more; down to nothing.
	double := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: defaultPolicyPeriod}
	four := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: defaultPolicyPeriod}
	orPointer(&b.ScaleUp, autoscalingv2.HPAScalingRules{})
	orPointer(&b.ScaleUp.StabilizationWindowSeconds, 0)
	defaultScalingRules(b.ScaleUp, four, double)
	orPointer(&b.ScaleDown, autoscalingv2.HPAScalingRules{})
	defaultScalingRules(b.ScaleDown, double)
}

func defaultScalingRules(r *autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) {
	orPointer(&r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if r.Policies == nil {
		r.Policies = policies
	}
}

func (p *problems) autoscaler(s *autoscalingv2.HorizontalPodAutoscalerSpec, at *field.Path) {
	if s.MinReplicas != nil && *s.MinReplicas < 0 {
		p.invalid(at.Child("minReplicas"), *s.MinReplicas, "must be greater than or equal to 0")
	}
	switch {
	case s.MaxReplicas == 0:
		p.required(at.Child("maxReplicas"), "")
	case s.MaxReplicas < 0:
		p.invalid(at.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to 1")
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		p.invalid(at.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`")
	}
	// Of what can be scaled, the core group has this one only.
	p.scaleTarget(&s.ScaleTargetRef, s.ScaleTargetRef.Kind == "ReplicationController", at.Child("scaleTargetRef"))
	fromOutside := false
	for i := range s.Metrics {
		m := &s.Metrics[i]
		p.metric(m, at.Child("metrics").Index(i))
		fromOutside = fromOutside || m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}
	// What no pod runs of has no use of resources to go by.
	if s.MinReplicas != nil && *s.MinReplicas == 0 && !fromOutside {
		p.forbidden(at.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas")
	}
	if s.Behavior != nil {
		p.scalingRules(s.Behavior.ScaleUp, at.Child("behavior", "scaleUp"))
		p.scalingRules(s.Behavior.ScaleDown, at.Child("behavior", "scaleDown"))
	}
}

// scaleTarget checks what an autoscaler refers to; core says that it may be of
// the core group, too.
func (p *problems) scaleTarget(r *autoscalingv2.CrossVersionObjectReference, core bool, at *field.Path) {
	p.checkRequired(content.IsPathSegmentName, r.Kind, at, "kind")
	p.checkRequired(content.IsPathSegmentName, r.Name, at, "name")
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err == nil && gv.Group == "" && !core {
		err = errors.New("apiVersion must specify API group")
	}
	if err != nil {
		p.invalid(at.Child("apiVersion"), r.APIVersion, err.Error())
	}
}

// metricSource is one of the fields of a metric of which exactly one is given.
type metricSource struct {
	kind  autoscalingv2.MetricSourceType
	name  string
	given bool
	check func(at *field.Path)
}

func (p *problems) metric(m *autoscalingv2.MetricSpec, at *field.Path) {
	sources := []metricSource{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(at *field.Path) { p.objectMetric(m.Object, at) }},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(at *field.Path) { p.externalMetric(m.External, at) }},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(at *field.Path) { p.podsMetric(m.Pods, at) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(at *field.Path) {
			if m.Resource.Name == "" {
				p.required(at.Child("name"), "must specify a resource name")
			}
			p.usageTarget(&m.Resource.Target, at.Child("target"))
		}},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil,
			func(at *field.Path) { p.containerMetric(m.ContainerResource, at) }},
	}
	expected, given := "", 0
	for _, s := range sources {
		if s.kind == m.Type {
			expected = s.name
			if !s.given {
				p.required(at.Child(s.name), "must populate information for the given metric source")
			}
		}
		if s.given {
			if given++; given == 1 {
				s.check(at.Child(s.name))
			}
		}
	}
	if expected == "" {
		if m.Type == "" {
			p.required(at.Child("type"), "must specify a metric source type")
		}
		choose(p, m.Type, at, "type", []autoscalingv2.MetricSourceType{autoscalingv2.ContainerResourceMetricSourceType,
			autoscalingv2.ExternalMetricSourceType, autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType,
			autoscalingv2.ResourceMetricSourceType})
	}
	if given == 1 {
		return
	}
	for _, s := range sources {
		if s.given && s.name != expected {
			p.forbidden(at.Child(s.name), "must populate the given metric source only")
		}
	}
}

func (p *problems) objectMetric(m *autoscalingv2.ObjectMetricSource, at *field.Path) {
	p.scaleTarget(&m.DescribedObject, true, at.Child("describedObject"))
	p.metricName(m.Metric.Name, at)
	p.metricTarget(&m.Target, at.Child("target"))
	if m.Target.Value == nil && m.Target.AverageValue == nil {
		p.required(at.Child("target", "averageValue"), "must set either a target value or averageValue")
	}
}

func (p *problems) externalMetric(m *autoscalingv2.ExternalMetricSource, at *field.Path) {
	p.metricName(m.Metric.Name, at)
	p.metricTarget(&m.Target, at.Child("target"))
	switch {
	case m.Target.Value == nil && m.Target.AverageValue == nil:
		p.required(at.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target")
	case m.Target.Value != nil && m.Target.AverageValue != nil:
		p.forbidden(at.Child("target", "value"), "may not set both a target value for metric and a per-pod target")
	}
}

func (p *problems) podsMetric(m *autoscalingv2.PodsMetricSource, at *field.Path) {
	p.metricName(m.Metric.Name, at)
	p.metricTarget(&m.Target, at.Child("target"))
	if m.Target.AverageValue == nil {
		p.required(at.Child("target", "averageValue"), "must specify a positive target averageValue")
	}
}

func (p *problems) containerMetric(m *autoscalingv2.ContainerResourceMetricSource, at *field.Path) {
	if m.Name == "" {
		p.required(at.Child("name"), "must specify a resource name")
	} else {
		containerResourceName(p, m.Name, at.Child("name"))
	}
	if m.Container == "" {
		p.required(at.Child("container"), "must specify a container")
	} else {
		p.check(validation.IsDNS1123Label, m.Container, at, "container")
	}
	p.usageTarget(&m.Target, at.Child("target"))
}

func (p *problems) metricName(name string, source *field.Path) {
	at := source.Child("metric")
	if name == "" {
		p.required(at.Child("name"), "must specify a metric name")
		return
	}
	p.check(content.IsPathSegmentName, name, at, "name")
}

// usageTarget is the target of a resource: a share of what is requested, or an
// amount.
func (p *problems) usageTarget(t *autoscalingv2.MetricTarget, at *field.Path) {
	p.metricTarget(t, at)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		p.required(at.Child("averageUtilization"), "must set either a target raw value or a target utilization")
	case t.AverageUtilization != nil && t.AverageValue != nil:
		p.forbidden(at.Child("averageValue"), "may not set both a target raw value and a target utilization")
	}
}

func (p *problems) metricTarget(t *autoscalingv2.MetricTarget, at *field.Path) {
	if t.Type == "" {
		p.required(at.Child("type"), "must specify a metric target type")
	}
	switch t.Type {
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		p.invalid(at.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue")
	}
	positive := func(q *resource.Quantity, name string) {
		if q != nil && q.Sign() <= 0 {
			p.invalid(at.Child(name), q, "must be positive")
		}
	}
	positive(t.Value, "value")
	positive(t.AverageValue, "averageValue")
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		p.invalid(at.Child("averageUtilization"), *t.AverageUtilization, "must be greater than 0")
	}
}

func (p *problems) scalingRules(r *autoscalingv2.HPAScalingRules, at *field.Path) {
	if r == nil {
		return
	}
	if w := r.StabilizationWindowSeconds; w != nil {
		p.bounded(*w, 0, "must be greater than or equal to zero", maxStabilizationSeconds, "must be less than or equal to 3600", at.Child("stabilizationWindowSeconds"))
	}
	choosePtr(p, r.SelectPolicy, at, "selectPolicy", []autoscalingv2.ScalingPolicySelect{
		autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect})
	if len(r.Policies) == 0 {
		p.required(at.Child("policies"), "must specify at least one Policy")
	}
	for i, policy := range r.Policies {
		here := at.Child("policies").Index(i)
		choose(p, policy.Type, here, "type", []autoscalingv2.HPAScalingPolicyType{autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy})
		if policy.Value <= 0 {
			p.invalid(here.Child("value"), policy.Value, "must be greater than zero")
		}
		p.bounded(policy.PeriodSeconds, 1, "must be greater than zero", maxPolicyPeriodSeconds, "must be less than or equal to 1800", here.Child("periodSeconds"))
	}
	if r.Tolerance != nil && r.Tolerance.Sign() < 0 {
		p.invalid(at.Child("tolerance"), r.Tolerance.String(), "must be greater than or equal to 0")
	}
}

// bounded refuses what is less than low or more than high, in these words.
func (p *problems) bounded(v, low int32, tooLow string, high int32, tooHigh string, at *field.Path) {
	switch {
	case v < low:
		p.invalid(at, v, tooLow)
	case v > high:
		p.invalid(at, v, tooHigh)
	}
}
