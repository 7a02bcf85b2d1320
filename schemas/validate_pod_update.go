package schemas

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validatePodUpdate checks what may change in a pod that there is.
func validatePodUpdate(updated, old *corev1.Pod) field.ErrorList {
	p := podCheck{spec: &updated.Spec, at: field.NewPath("spec"), meta: &updated.ObjectMeta, isPod: true}
	p.keptAnnotations(old)
	n, o := &updated.Spec, &old.Spec
	for _, list := range []struct {
		name    string
		updated []corev1.Container
		old     []corev1.Container
	}{{"containers", n.Containers, o.Containers}, {"initContainers", n.InitContainers, o.InitContainers}} {
		if len(list.updated) != len(list.old) {
			p.forbidden(p.at.Child(list.name), "pod updates may not add or remove containers")
			return p.found
		}
	}
	if !p.deadlineUpdate(o) {
		return p.found
	}
	p.tolerationsUpdate(o.Tolerations)
	p.gatesUpdate(o.SchedulingGates)
	if equality.Semantic.DeepEqual(n, o) {
		return p.found
	}
	// What may change is set back; the rest must be what it was.
	rest := n.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = o.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = o.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds, rest.SchedulingGates, rest.Tolerations = o.ActiveDeadlineSeconds, o.SchedulingGates, o.Tolerations
	if was, is := o.TerminationGracePeriodSeconds, rest.TerminationGracePeriodSeconds; was != nil && *was < 0 && is != nil && *is == 1 {
		rest.TerminationGracePeriodSeconds = was
	}
	if len(o.SchedulingGates) > 0 {
		p.gatedUpdate(rest, o)
	}
	if changed := FirstDifference(rest, o); changed != "" {
		p.forbidden(p.at, podUpdateRule+"\nspec."+changed+" differs: delete the pod and create it again")
	}
	return p.found
}

const podUpdateRule = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`," +
	"`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// keptAnnotations refuses a change to those that say how the pod was started.
func (p *podCheck) keptAnnotations(old *corev1.Pod) {
	at := field.NewPath("metadata", "annotations")
	const appArmor, mirror = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix, corev1.MirrorPodAnnotationKey
	for key, was := range old.Annotations {
		if is, ok := p.meta.Annotations[key]; ok && is == was {
			continue
		}
		if strings.HasPrefix(key, appArmor) {
			p.forbidden(at.Key(key), "may not remove or update AppArmor annotations")
		}
		if key == mirror {
			p.forbidden(at.Key(key), "may not remove or update mirror pod annotation")
		}
	}
	for key := range p.meta.Annotations {
		if _, ok := old.Annotations[key]; ok {
			continue
		}
		if strings.HasPrefix(key, appArmor) {
			p.forbidden(at.Key(key), "may not add AppArmor annotations")
		}
		if key == mirror {
			p.forbidden(at.Key(key), "may not add mirror pod annotation")
		}
	}
}

// deadlineUpdate says whether the deadline leaves it worth to look further: it
// may come closer, never move away.
func (p *podCheck) deadlineUpdate(old *corev1.PodSpec) bool {
	at, is, was := p.at.Child("activeDeadlineSeconds"), p.spec.ActiveDeadlineSeconds, old.ActiveDeadlineSeconds
	switch {
	case is == nil && was != nil:
		p.invalid(at, is, "must not update from a positive integer to nil value")
	case is == nil:
	case *is < 0 || *is > math.MaxInt32:
		p.invalid(at, *is, validation.InclusiveRangeError(0, math.MaxInt32))
		return false
	case was != nil && *was < *is:
		p.invalid(at, *is, "must be less than or equal to previous value")
		return false
	}
	return true
}

func (p *podCheck) tolerationsUpdate(old []corev1.Toleration) {
	for _, o := range old {
		kept := false
		for _, n := range p.spec.Tolerations {
			n.TolerationSeconds = o.TolerationSeconds
			kept = kept || equality.Semantic.DeepEqual(n, o)
		}
		if !kept {
			p.forbidden(p.at.Child("tolerations"), "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
}

// gatesUpdate: a gate is taken away when what it waited for is there.
func (p *podCheck) gatesUpdate(old []corev1.PodSchedulingGate) {
	had := map[string]bool{}
	for _, g := range old {
		had[g.Name] = true
	}
	for i, g := range p.spec.SchedulingGates {
		if !had[g.Name] {
			p.forbidden(p.at.Child("schedulingGates").Index(i).Child("name"), "only deletion is allowed, but found new scheduling gate '"+g.Name+"'")
		}
	}
}

// gatedUpdate lets who gated a pod narrow down its nodes, and sets back in rest
// what it has looked at.
func (p *podCheck) gatedUpdate(rest, old *corev1.PodSpec) {
	for k, v := range old.NodeSelector {
		if rest.NodeSelector[k] != v {
			p.invalid(p.at.Child("nodeSelector"), rest.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
			break
		}
	}
	rest.NodeSelector = old.NodeSelector
	is, was := nodeAffinity(rest), nodeAffinity(old)
	if equality.Semantic.DeepEqual(is, was) {
		return
	}
	p.nodeAffinityUpdate(is, was)
	switch {
	case rest.Affinity == nil:
		if was != nil {
			rest.Affinity = &corev1.Affinity{NodeAffinity: was}
		}
	case old.Affinity == nil && rest.Affinity.PodAffinity == nil && rest.Affinity.PodAntiAffinity == nil:
		rest.Affinity = nil
	default:
		rest.Affinity.NodeAffinity = was
	}
}

func nodeAffinity(s *corev1.PodSpec) *corev1.NodeAffinity {
	if s.Affinity == nil {
		return nil
	}
	return s.Affinity.NodeAffinity
}

func (p *podCheck) nodeAffinityUpdate(updated, old *corev1.NodeAffinity) {
	terms := func(n *corev1.NodeAffinity) []corev1.NodeSelectorTerm {
		if n == nil || n.RequiredDuringSchedulingIgnoredDuringExecution == nil {
			return nil
		}
		return n.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	is, was := terms(updated), terms(old)
	at := p.at.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	if len(was) == 0 {
		return
	}
	if len(was) != len(is) {
		p.invalid(at, is, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
		return
	}
	for i := range was {
		if !narrows(is[i].MatchExpressions, was[i].MatchExpressions) || !narrows(is[i].MatchFields, was[i].MatchFields) ||
			len(was[i].MatchExpressions)+len(was[i].MatchFields) == 0 && len(is[i].MatchExpressions)+len(is[i].MatchFields) > 0 {
			p.invalid(at.Index(i), is[i], "only additions are allowed (no mutations or deletions)")
		}
	}
}

// narrows says that a list of requirements goes on where the old one ended.
func narrows(updated, old []corev1.NodeSelectorRequirement) bool {
	return len(updated) >= len(old) && (len(old) == 0 || equality.Semantic.DeepEqual(updated[:len(old)], old))
}
