package schemas

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	taintEffects      = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
	tolerationOps     = []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}
	numericOps        = []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt}
	spreadActions     = []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}
	inclusionPolicies = []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore}
)

func validSelector(s *metav1.LabelSelector, at *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, at)
}

// affinity checks spec.affinity.
func (p *podCheck) affinity() {
	a := p.spec.Affinity
	if a == nil {
		return
	}
	at := p.at.Child("affinity")
	const required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
	if n := a.NodeAffinity; n != nil {
		at := at.Child("nodeAffinity")
		if n.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			p.nodeSelector(n.RequiredDuringSchedulingIgnoredDuringExecution, at.Child(required))
		}
		for i, t := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			at := at.Child(preferred).Index(i)
			p.weight(t.Weight, at)
			// Values are not checked here, as in Kubernetes.
			p.nodeSelectorTerm(&t.Preference, at.Child("preference"), false)
		}
	}
	pods := func(must []corev1.PodAffinityTerm, may []corev1.WeightedPodAffinityTerm, at *field.Path) {
		for i := range must {
			p.affinityTerm(&must[i], at.Child(required).Index(i))
		}
		for i := range may {
			at := at.Child(preferred).Index(i)
			p.weight(may[i].Weight, at)
			p.affinityTerm(&may[i].PodAffinityTerm, at.Child("podAffinityTerm"))
		}
	}
	if n := a.PodAffinity; n != nil {
		pods(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAffinity"))
	}
	if n := a.PodAntiAffinity; n != nil {
		pods(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAntiAffinity"))
	}
}

func (p *problems) weight(w int32, at *field.Path) {
	if w < 1 || w > 100 {
		p.invalid(at.Child("weight"), w, "must be in the range 1-100")
	}
}

func (p *problems) nodeSelector(s *corev1.NodeSelector, at *field.Path) {
	at = at.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		p.required(at, "must have at least one node selector term")
	}
	for i := range s.NodeSelectorTerms {
		p.nodeSelectorTerm(&s.NodeSelectorTerms[i], at.Index(i), true)
	}
}

func (p *problems) nodeSelectorTerm(t *corev1.NodeSelectorTerm, at *field.Path, values bool) {
	for i := range t.MatchExpressions {
		p.nodeExpression(&t.MatchExpressions[i], at.Child("matchExpressions").Index(i), values)
	}
	for i, r := range t.MatchFields {
		at := at.Child("matchFields").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) != 1 {
				p.required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
			}
		default:
			p.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
		}
		if r.Key != metav1.ObjectNameField {
			p.invalid(at.Child("key"), r.Key, "not a valid field selector key")
			continue
		}
		for j, v := range r.Values {
			p.invalid(at.Child("values").Index(j), v, dnsSubdomain(v)...)
		}
	}
}

func (p *problems) nodeExpression(r *corev1.NodeSelectorRequirement, at *field.Path, values bool) {
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			p.required(at.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
		}
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			p.forbidden(at.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			p.required(at.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
		}
	default:
		p.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
	}
	p.add(metavalidation.ValidateLabelName(r.Key, at.Child("key")))
	if !values {
		return
	}
	for i, v := range r.Values {
		p.invalid(at.Child("values").Index(i), v, validation.IsValidLabelValue(v)...)
	}
}

func (p *podCheck) affinityTerm(t *corev1.PodAffinityTerm, at *field.Path) {
	p.add(validSelector(t.LabelSelector, at.Child("labelSelector")))
	p.add(validSelector(t.NamespaceSelector, at.Child("namespaceSelector")))
	for _, ns := range t.Namespaces {
		p.invalid(at.Child("namespace"), ns, validation.IsDNS1123Label(ns)...)
	}
	p.labelKeys(t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector, at)
	if t.TopologyKey == "" {
		p.required(at.Child("topologyKey"), "can not be empty")
	}
	p.add(metavalidation.ValidateLabelName(t.TopologyKey, at.Child("topologyKey")))
}

// labelKeys checks the keys whose values are the pod's own, and that the
// selector, which they are added to, does not name them as well.
func (p *podCheck) labelKeys(match, mismatch []string, selector *metav1.LabelSelector, at *field.Path) {
	if len(match)+len(mismatch) == 0 {
		return
	}
	for _, list := range []struct {
		name string
		keys []string
	}{{"matchLabelKeys", match}, {"mismatchLabelKeys", mismatch}} {
		if len(list.keys) == 0 {
			continue
		}
		if selector == nil {
			p.forbidden(at.Child(list.name), "must not be specified when labelSelector is not set")
			continue
		}
		for i, k := range list.keys {
			p.add(metavalidation.ValidateLabelName(k, at.Child(list.name).Index(i)))
		}
	}
	index := map[string]int{}
	for i, k := range match {
		index[k] = i
	}
	if selector != nil {
		// A key may stand in the expressions once: there the server puts it
		// when the pod is made.
		seen := map[string]bool{}
		for k := range selector.MatchLabels {
			seen[k] = true
		}
		for _, e := range selector.MatchExpressions {
			if i, ok := index[e.Key]; ok && seen[e.Key] {
				p.invalid(at.Index(i), e.Key, "exists in both matchLabelKeys and labelSelector")
			}
			seen[e.Key] = true
		}
	}
	for _, k := range mismatch {
		if i, ok := index[k]; ok {
			p.invalid(at.Child("matchLabelKeys").Index(i), k, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func (p *podCheck) spread() {
	list := p.spec.TopologySpreadConstraints
	for i := range list {
		c, at := &list[i], p.at.Child("topologySpreadConstraints").Index(i)
		if c.MaxSkew <= 0 {
			p.invalid(at.Child("maxSkew"), c.MaxSkew, notPositive)
		}
		if c.TopologyKey == "" {
			p.required(at.Child("topologyKey"), "can not be empty")
		}
		choose(&p.problems, c.WhenUnsatisfiable, at, "whenUnsatisfiable", spreadActions)
		for _, other := range list[i+1:] {
			if c.TopologyKey == other.TopologyKey && c.WhenUnsatisfiable == other.WhenUnsatisfiable {
				p.duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable))
				break
			}
		}
		if n := c.MinDomains; n != nil {
			if *n <= 0 {
				p.invalid(at.Child("minDomains"), *n, notPositive)
			}
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				p.invalid(at.Child("minDomains"), *n, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable))
			}
		}
		choosePtr(&p.problems, c.NodeAffinityPolicy, at, "nodeAffinityPolicy", inclusionPolicies)
		choosePtr(&p.problems, c.NodeTaintsPolicy, at, "nodeTaintsPolicy", inclusionPolicies)
		p.labelKeys(c.MatchLabelKeys, nil, c.LabelSelector, at)
		p.add(validSelector(c.LabelSelector, at.Child("labelSelector")))
	}
}

func (p *problems) tolerations(list []corev1.Toleration, at *field.Path) {
	for i := range list {
		t, at := &list[i], at.Child("tolerations").Index(i)
		if t.Key != "" {
			p.add(metavalidation.ValidateLabelName(t.Key, at.Child("key")))
		} else if t.Operator != corev1.TolerationOpExists {
			p.invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			p.invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			if messages := validation.IsValidLabelValue(t.Value); len(messages) > 0 {
				p.invalid(at.Child("operator"), t.Value, strings.Join(messages, ";"))
			}
		case corev1.TolerationOpExists:
			if t.Value != "" {
				p.invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
			}
		case corev1.TolerationOpLt, corev1.TolerationOpGt:
			// They compare numbers, which Kubernetes does not do yet unless told to.
			p.found = append(p.found, field.NotSupported(at.Child("operator"), t.Operator, numericOps))
		default:
			p.found = append(p.found, field.NotSupported(at.Child("operator"), t.Operator, tolerationOps))
		}
		if t.Effect != "" {
			choose(p, t.Effect, at, "effect", taintEffects)
		}
	}
}

// gates checks the conditions that hold a pod back.
func (p *podCheck) gates() {
	for i, g := range p.spec.ReadinessGates {
		p.check(validation.IsQualifiedName, string(g.ConditionType), p.at.Child("readinessGates").Index(i), "conditionType")
	}
	seen := map[string]bool{}
	for i, g := range p.spec.SchedulingGates {
		at := p.at.Child("schedulingGates").Index(i)
		p.invalid(at, g.Name, validation.IsQualifiedName(g.Name)...)
		if seen[g.Name] {
			p.duplicate(at, g.Name)
		}
		seen[g.Name] = true
	}
}

// podClaims checks spec.resourceClaims, the devices of the pod.
func (p *podCheck) podClaims() {
	seen := map[string]bool{}
	for i := range p.spec.ResourceClaims {
		c, at := &p.spec.ResourceClaims[i], p.at.Child("resourceClaims").Index(i)
		switch {
		case c.Name == "":
			p.required(at.Child("name"), "")
		case seen[c.Name]:
			p.duplicate(at.Child("name"), c.Name)
		default:
			p.check(validation.IsDNS1123Label, c.Name, at, "name")
		}
		seen[c.Name] = true
		switch named, templated := c.ResourceClaimName != nil, c.ResourceClaimTemplateName != nil; {
		case named && templated:
			p.invalid(at, c.Name, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		case !named && !templated:
			p.invalid(at, c.Name, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if n := c.ResourceClaimName; n != nil {
			p.check(dnsSubdomain, *n, at, "resourceClaimName")
		}
		if n := c.ResourceClaimTemplateName; n != nil {
			p.check(dnsSubdomain, *n, at, "resourceClaimTemplateName")
		}
		if c.Name != "" {
			if p.claims == nil {
				p.claims = map[string]bool{}
			}
			p.claims[c.Name] = true
		}
	}
}
