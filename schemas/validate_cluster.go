package schemas

import (
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

func defaultNamespace(ns *corev1.Namespace) {
	orDefault(&ns.Status.Phase, corev1.NamespaceActive)
	// Kubernetes' way to select a namespace by its name.
	if ns.Name == "" {
		return
	}
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

func (p *problems) namespaceFinalizers(ns *corev1.Namespace) {
	at := field.NewPath("spec", "finalizers")
	for _, f := range ns.Spec.Finalizers {
		p.add(apivalidation.ValidateFinalizerName(string(f), at))
		if !strings.Contains(string(f), "/") && !standardFinalizers[string(f)] {
			p.invalid(at, f, "name is neither a standard finalizer name nor is it fully qualified")
		}
	}
}

func defaultNode(n *corev1.Node) {
	if n.Status.Allocatable == nil {
		for name, q := range n.Status.Capacity {
			if n.Status.Allocatable == nil {
				n.Status.Allocatable = corev1.ResourceList{}
			}
			n.Status.Allocatable[name] = q.DeepCopy()
		}
	}
	roundResources(n.Status.Capacity)
	roundResources(n.Status.Allocatable)
	// The field of one family and that of several say the same.
	switch s := &n.Spec; {
	case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
		s.PodCIDRs = []string{s.PodCIDR}
	case len(s.PodCIDRs) > 0:
		s.PodCIDR = s.PodCIDRs[0]
	}
}

func (p *problems) node(n *corev1.Node) {
	// Kubernetes names taints and swap below metadata, though they are not there.
	p.taints(n.Spec.Taints, field.NewPath("metadata", "taints"))
	capacity := func(l corev1.ResourceList, name string) {
		for _, r := range sortedResources(l) {
			p.quantity(r, l[r], func() *field.Path { return field.NewPath("status", name, string(r)) })
		}
	}
	capacity(n.Status.Capacity, "capacity")
	capacity(n.Status.Allocatable, "allocatable")
	p.podCIDRs(n.Spec.PodCIDRs, field.NewPath("spec", "podCIDRs"))
}

func (p *problems) podCIDRs(cidrs []string, at *field.Path) {
	for i, c := range cidrs {
		p.add(validation.IsValidCIDRForLegacyField(at.Index(i), c, true, nil))
	}
	if len(cidrs) < 2 {
		return
	}
	dual, err := netutils.IsDualStackCIDRStrings(cidrs)
	if err != nil {
		p.found = append(p.found, field.InternalError(at, fmt.Errorf("invalid PodCIDRs. failed to check with dual stack with error:%w", err)))
	}
	if !dual || len(cidrs) > 2 {
		p.invalid(at, cidrs, "may specify no more than one CIDR for each IP family")
	}
}

func (p *problems) taints(taints []corev1.Taint, list *field.Path) {
	type id struct {
		key    string
		effect corev1.TaintEffect
	}
	seen := map[id]bool{}
	for i, t := range taints {
		at := list.Index(i)
		p.check(validation.IsQualifiedName, t.Key, at, "key")
		if messages := validation.IsValidLabelValue(t.Value); len(messages) > 0 {
			p.invalid(at.Child("value"), t.Value, strings.Join(messages, ";"))
		}
		chooseRequired(p, t.Effect, at, "effect", []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute})
		if seen[id{t.Key, t.Effect}] {
			e := field.Duplicate(at, t)
			e.Detail = "taints must be unique by key and effect pair"
			p.found = append(p.found, e)
		}
		seen[id{t.Key, t.Effect}] = true
	}
}

func (p *problems) nodeUpdate(updated, old *corev1.Node) {
	spec := field.NewPath("spec")
	seen := map[corev1.NodeAddress]bool{}
	for i, a := range updated.Status.Addresses {
		if seen[a] {
			p.duplicate(field.NewPath("status", "addresses").Index(i), a)
		}
		seen[a] = true
	}
	if len(old.Spec.PodCIDRs) > 0 && FirstDifference(updated.Spec.PodCIDRs, old.Spec.PodCIDRs) != "" ||
		len(old.Spec.PodCIDRs) > 0 && len(updated.Spec.PodCIDRs) != len(old.Spec.PodCIDRs) {
		p.forbidden(spec.Child("podCIDRs"), `node updates may not change podCIDR except from "" to valid`)
	}
	if was := old.Spec.ProviderID; was != "" && updated.Spec.ProviderID != was {
		message := "field cannot be modified once set"
		if updated.Spec.ProviderID == "" {
			message = "field cannot be cleared once set"
		}
		p.invalid(spec.Child("providerID"), nil, message)
	}
	if updated.Spec.DoNotUseExternalID != old.Spec.DoNotUseExternalID {
		p.forbidden(spec.Child("externalID"), "may not be updated")
	}
}

// Kubernetes' limits of an Event in its newer form, which has an eventTime.
const (
	maxEventField   = 128
	maxEventMessage = 1024
)

func (p *problems) event(e *corev1.Event) {
	about := field.NewPath("involvedObject", "namespace")
	of := e.InvolvedObject.Namespace
	if e.EventTime.IsZero() {
		if of != e.Namespace && (of != "" || e.Namespace != metav1.NamespaceDefault) {
			p.invalid(about, of, "does not match event.namespace")
		}
		return
	}
	if of == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
		p.invalid(about, of, "does not match event.namespace")
	}
	p.given(e.ReportingController, nil, "reportingComponent")
	p.check(validation.IsQualifiedName, e.ReportingController, nil, "reportingComponent")
	text := func(value, name string, most int) {
		if len(value) > most {
			p.invalid(field.NewPath(name), "", fmt.Sprintf("can have at most %d characters", most))
		}
	}
	for _, f := range []struct{ value, name string }{{e.ReportingInstance, "reportingInstance"}, {e.Action, "action"}, {e.Reason, "reason"}} {
		p.given(f.value, nil, f.name)
		text(f.value, f.name, maxEventField)
	}
	text(e.Message, "message", maxEventMessage)
}

// Priorities from highestUserPriority on belong to the system, under a name
// that tells.
const (
	highestUserPriority  = 1_000_000_000
	systemPriorityPrefix = "system-"
)

var systemPriorities = map[string]int32{
	"system-cluster-critical": 2 * highestUserPriority,
	"system-node-critical":    2*highestUserPriority + 1000,
}

func (p *problems) priorityClass(c *schedulingv1.PriorityClass) {
	switch {
	case strings.HasPrefix(c.Name, systemPriorityPrefix):
		if why := notSystemPriority(c); why != "" {
			p.forbidden(field.NewPath("metadata", "name"), "priority class names with '"+systemPriorityPrefix+"' prefix are reserved for system use only. error: "+why)
		}
	case c.Value > highestUserPriority:
		p.forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %d", highestUserPriority))
	}
	if c.PreemptionPolicy != nil {
		chooseRequired(p, *c.PreemptionPolicy, nil, "preemptionPolicy", []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever})
	}
}

// notSystemPriority says why a class is none of the system's own, or nothing.
func notSystemPriority(c *schedulingv1.PriorityClass) string {
	value, known := systemPriorities[c.Name]
	switch {
	case !known:
		return c.Name + " is not a known system priority class"
	case c.Value != value:
		return fmt.Sprintf("value of %s PriorityClass must be %d", c.Name, value)
	case c.GlobalDefault:
		return fmt.Sprintf("globalDefault of %s PriorityClass must be false", c.Name)
	}
	return ""
}

func (p *problems) priorityClassUpdate(updated, old *schedulingv1.PriorityClass) {
	if updated.Value != old.Value {
		p.forbidden(field.NewPath("value"), "may not be changed in an update.")
	}
	p.unchanged(updated.PreemptionPolicy, old.PreemptionPolicy, "preemptionPolicy")
}

func (p *problems) lease(s *coordinationv1.LeaseSpec, at *field.Path) {
	if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
		p.invalid(at.Child("leaseDurationSeconds"), *d, "must be greater than 0")
	}
	if n := s.LeaseTransitions; n != nil && *n < 0 {
		p.invalid(at.Child("leaseTransitions"), *n, "must be greater than or equal to 0")
	}
}
