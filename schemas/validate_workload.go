package schemas

import (
	"encoding/json"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	deploymentStrategies = []appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType}
	daemonSetStrategies  = []appsv1.DaemonSetUpdateStrategyType{appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType}
	alwaysRestarts       = []corev1.RestartPolicy{corev1.RestartPolicyAlways}
	claimRetentions      = []appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
)

func validateDeployment(s *appsv1.DeploymentSpec, at *field.Path) field.ErrorList {
	var p problems
	p.notNegativePtr(s.Replicas, at, "replicas")
	p.notNegative(int64(s.MinReadySeconds), at, "minReadySeconds")
	p.notNegativePtr(s.RevisionHistoryLimit, at, "revisionHistoryLimit")
	p.notNegativePtr(s.ProgressDeadlineSeconds, at, "progressDeadlineSeconds")
	if d := s.ProgressDeadlineSeconds; d != nil && *d <= s.MinReadySeconds {
		p.invalid(at.Child("progressDeadlineSeconds"), *d, "must be greater than minReadySeconds")
	}
	p.selectedTemplate(s.Selector, &s.Template, at, "deployment", "ReplicaSet")
	p.deploymentStrategy(&s.Strategy, at.Child("strategy"))
	return p.found
}

func validateReplicaSet(s *appsv1.ReplicaSetSpec, at *field.Path) field.ErrorList {
	var p problems
	p.notNegativePtr(s.Replicas, at, "replicas")
	p.notNegative(int64(s.MinReadySeconds), at, "minReadySeconds")
	p.selectedTemplate(s.Selector, &s.Template, at, "deployment", "ReplicaSet")
	return p.found
}

// selectedTemplate checks a selector, which has to be given, and the template
// whose pods it has to select. In messages, the kind is called empty where its
// selector is, and ending where its pods may end.
func (p *problems) selectedTemplate(sel *metav1.LabelSelector, t *corev1.PodTemplateSpec, at *field.Path, empty, ending string) {
	if sel == nil {
		p.required(at.Child("selector"), "")
	} else {
		p.add(validSelector(sel, at.Child("selector")))
		p.notEmptySelector(sel, at, empty)
	}
	s, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		p.invalid(at.Child("selector"), sel, "invalid label selector")
		return
	}
	at = at.Child("template")
	if !s.Empty() {
		p.selects(s, t.Labels, at)
	}
	p.add(validatePodTemplate(t, at))
	p.endless(t, at, ending)
}

func (p *problems) notEmptySelector(sel *metav1.LabelSelector, at *field.Path, kind string) {
	if len(sel.MatchLabels)+len(sel.MatchExpressions) == 0 {
		p.invalid(at.Child("selector"), sel, "empty selector is invalid for "+kind)
	}
}

func (p *problems) selects(s labels.Selector, l map[string]string, template *field.Path) {
	if !s.Matches(labels.Set(l)) {
		p.invalid(template.Child("metadata", "labels"), l, "`selector` does not match template `labels`")
	}
}

// endless refuses a template whose pods would end by themselves.
func (p *problems) endless(t *corev1.PodTemplateSpec, at *field.Path, kind string) {
	choose(p, t.Spec.RestartPolicy, at.Child("spec"), "restartPolicy", alwaysRestarts)
	if t.Spec.ActiveDeadlineSeconds != nil {
		p.forbidden(at.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported")
	}
}

func (p *problems) deploymentStrategy(s *appsv1.DeploymentStrategy, at *field.Path) {
	r := s.RollingUpdate
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if r != nil {
			p.forbidden(at.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'")
		}
		return
	case appsv1.RollingUpdateDeploymentStrategyType:
	default:
		p.found = append(p.found, field.NotSupported(at, s.Type, deploymentStrategies))
		return
	}
	if at = at.Child("rollingUpdate"); r == nil {
		p.required(at, "this should be defaulted and never be nil")
		return
	}
	p.intOrPercent(r.MaxUnavailable, at, "maxUnavailable", true)
	p.intOrPercent(r.MaxSurge, at, "maxSurge", false)
	if amount(r.MaxUnavailable) == 0 && amount(r.MaxSurge) == 0 {
		p.invalid(at.Child("maxUnavailable"), r.MaxUnavailable, "may not be 0 when `maxSurge` is 0")
	}
}

// intOrPercent takes a number or a share; ofAll bounds the share by 100%.
func (p *problems) intOrPercent(v *intstr.IntOrString, at *field.Path, name string, ofAll bool) {
	if v == nil {
		return
	}
	if v.Type == intstr.Int {
		p.notNegative(int64(v.IntVal), at, name)
		return
	}
	if messages := validation.IsValidPercent(v.StrVal); len(messages) > 0 {
		p.invalid(at.Child(name), v, messages...)
	} else if ofAll && amount(v) > 100 {
		p.invalid(at.Child(name), v, "must not be greater than 100%")
	}
}

// amount is the number, of things or of percents; 0 where there is none.
func amount(v *intstr.IntOrString) int {
	if v == nil {
		return 0
	}
	if v.Type == intstr.Int {
		return int(v.IntVal)
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	if err != nil {
		return 0
	}
	return n
}

func validateDaemonSet(s *appsv1.DaemonSetSpec, at *field.Path) field.ErrorList {
	var p problems
	p.add(validSelector(s.Selector, at.Child("selector")))
	if s.Selector != nil {
		p.notEmptySelector(s.Selector, at, "daemonset")
	}
	// No selector selects nothing.
	if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil {
		p.selects(sel, s.Template.Labels, at.Child("template"))
	}
	p.add(validatePodTemplate(&s.Template, at.Child("template")))
	p.endless(&s.Template, at.Child("template"), "DaemonSet")
	p.notNegative(int64(s.MinReadySeconds), at, "minReadySeconds")
	p.notNegativePtr(s.RevisionHistoryLimit, at, "revisionHistoryLimit")
	p.daemonSetStrategy(&s.UpdateStrategy, at.Child("updateStrategy"))
	return p.found
}

func (p *problems) daemonSetStrategy(s *appsv1.DaemonSetUpdateStrategy, at *field.Path) {
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return
	case appsv1.RollingUpdateDaemonSetStrategyType:
	default:
		p.found = append(p.found, field.NotSupported(at, s.Type, daemonSetStrategies))
		return
	}
	r, at := s.RollingUpdate, at.Child("rollingUpdate")
	if r == nil {
		p.required(at, "")
		return
	}
	p.intOrPercent(r.MaxUnavailable, at, "maxUnavailable", true)
	p.intOrPercent(r.MaxSurge, at, "maxSurge", true)
	switch unavailable, surge := amount(r.MaxUnavailable) != 0, amount(r.MaxSurge) != 0; {
	case unavailable && surge:
		p.invalid(at.Child("maxSurge"), r.MaxSurge, "may not be set when maxUnavailable is non-zero")
	case !unavailable && !surge:
		p.required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
	}
}

// validateStatefulSet checks a spec; what never changes is not looked at again
// in an update.
func validateStatefulSet(s *appsv1.StatefulSetSpec, at *field.Path, creating bool) field.ErrorList {
	var p problems
	switch s.PodManagementPolicy {
	case "":
		p.required(at.Child("podManagementPolicy"), "")
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		p.invalid(at.Child("podManagementPolicy"), s.PodManagementPolicy, "must be 'OrderedReady' or 'Parallel'")
	}
	p.statefulSetStrategy(&s.UpdateStrategy, at.Child("updateStrategy"))
	if r := s.PersistentVolumeClaimRetentionPolicy; r != nil {
		at := at.Child("persistentVolumeClaimRetentionPolicy")
		choose(&p, r.WhenDeleted, at, "whenDeleted", claimRetentions)
		choose(&p, r.WhenScaled, at, "whenScaled", claimRetentions)
	}
	if creating {
		for i := range s.VolumeClaimTemplates {
			p.claimSpec(&s.VolumeClaimTemplates[i].Spec, at.Child("volumeClaimTemplates").Index(i).Child("spec"), false)
		}
		if s.ServiceName != "" {
			p.check(validation.IsDNS1123Label, s.ServiceName, at, "serviceName")
		}
	}
	p.notNegativePtr(s.Replicas, at, "replicas")
	p.notNegative(int64(s.MinReadySeconds), at, "minReadySeconds")
	if o := s.Ordinals; o != nil {
		p.notNegative(int64(o.Start), at, "ordinals.start")
	}
	if s.Selector == nil {
		p.required(at.Child("selector"), "")
	} else {
		p.add(validSelector(s.Selector, at.Child("selector")))
		p.notEmptySelector(s.Selector, at, "statefulset")
	}
	template := at.Child("template")
	if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		p.invalid(at.Child("selector"), s.Selector, "")
	} else {
		if !sel.Empty() {
			p.selects(sel, s.Template.Labels, template)
		}
		p.add(validatePodTemplate(statefulSetPod(s), template))
	}
	p.endless(&s.Template, template, "StatefulSet")
	return p.found
}

// statefulSetPod is the template with what each pod of the set gets of its own:
// claims in place of volumes by the same names, and its host's name.
func statefulSetPod(s *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	if s.Template.Spec.Subdomain == "" && s.Template.Spec.Hostname == "" && len(s.VolumeClaimTemplates) == 0 {
		return &s.Template
	}
	t := s.Template
	t.Spec.Subdomain, t.Spec.Hostname = "", ""
	claimed := map[string]bool{}
	var volumes []corev1.Volume
	for i := range s.VolumeClaimTemplates {
		name := s.VolumeClaimTemplates[i].Name
		if claimed[name] {
			continue
		}
		claimed[name] = true
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
	}
	for _, v := range t.Spec.Volumes {
		if !claimed[v.Name] {
			volumes = append(volumes, v)
		}
	}
	t.Spec.Volumes = volumes
	return &t
}

func (p *problems) statefulSetStrategy(s *appsv1.StatefulSetUpdateStrategy, at *field.Path) {
	r := s.RollingUpdate
	switch s.Type {
	case "":
		p.required(at, "")
	case appsv1.OnDeleteStatefulSetStrategyType:
		if r != nil {
			p.invalid(at.Child("rollingUpdate"), r, "only allowed for updateStrategy 'RollingUpdate'")
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if r == nil {
			return
		}
		at := at.Child("rollingUpdate")
		p.notNegativePtr(r.Partition, at, "partition")
		p.intOrPercent(r.MaxUnavailable, at, "maxUnavailable", true)
		if r.MaxUnavailable != nil && amount(r.MaxUnavailable) == 0 {
			p.invalid(at.Child("maxUnavailable"), r.MaxUnavailable, "cannot be 0")
		}
	default:
		p.invalid(at, s.Type, "must be 'RollingUpdate' or 'OnDelete'")
	}
}

func validateStatefulSetUpdate(updated, old *appsv1.StatefulSetSpec, at *field.Path) field.ErrorList {
	errs := unchanged(updated.Selector, old.Selector, at.Child("selector"))
	errs = append(errs, unchanged(updated.VolumeClaimTemplates, old.VolumeClaimTemplates, at.Child("volumeClaimTemplates"))...)
	errs = append(errs, unchanged(updated.ServiceName, old.ServiceName, at.Child("serviceName"))...)
	return append(errs, unchanged(updated.PodManagementPolicy, old.PodManagementPolicy, at.Child("podManagementPolicy"))...)
}

func validateReplicationController(s *corev1.ReplicationControllerSpec, at *field.Path) field.ErrorList {
	var p problems
	p.notNegative(int64(s.MinReadySeconds), at, "minReadySeconds")
	if s.Replicas == nil {
		p.required(at.Child("replicas"), "")
	}
	p.notNegativePtr(s.Replicas, at, "replicas")
	if len(s.Selector) == 0 {
		p.required(at.Child("selector"), "")
	}
	at = at.Child("template")
	if s.Template == nil {
		p.required(at, "")
		return p.found
	}
	if len(s.Selector) > 0 {
		p.selects(labels.SelectorFromSet(s.Selector), s.Template.Labels, at)
	}
	p.add(validatePodTemplate(s.Template, at))
	p.endless(s.Template, at, "ReplicationController")
	return p.found
}

// validateControllerRevision checks a revision; its data, which no update may
// change, of a new one alone.
func validateControllerRevision(o *appsv1.ControllerRevision, creating bool) field.ErrorList {
	var p problems
	p.notNegative(o.Revision, nil, "revision")
	if !creating {
		return p.found
	}
	at := field.NewPath("data")
	raw := o.Data.Raw
	if raw == nil && o.Data.Object != nil {
		return p.found
	}
	var v any
	if raw == nil {
		p.required(at, "data is mandatory")
	} else if err := json.Unmarshal(raw, &v); err != nil {
		p.invalid(at, "<value omitted>", "error parsing data: "+err.Error())
	} else if v == nil {
		p.required(at, "data is mandatory")
	} else if _, ok := v.(map[string]any); !ok {
		p.required(at, "data must be a valid JSON object")
	}
	return p.found
}

func unchanged(updated, old any, at *field.Path) field.ErrorList {
	if equality.Semantic.DeepEqual(updated, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(at, updated, immutable)}
}
