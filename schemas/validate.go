package schemas

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const immutable = apivalidation.FieldImmutableErrorMsg

// Validate says what is wrong with a defaulted object, with Kubernetes' field
// paths and words. It does not say what Gantry lacks: that is Unsupported.
func Validate(o Object) field.ErrorList {
	k := KindOf(o)
	errs := validateMeta(o, k)
	spec := field.NewPath("spec")
	switch o := o.(type) {
	case *corev1.Pod:
		errs = append(errs, validatePodSpec(&o.Spec, spec)...)
	case *corev1.Service:
		errs = append(errs, validateService(o, spec)...)
	case *appsv1.Deployment:
		errs = append(errs, validateDeployment(&o.Spec, spec)...)
	case *appsv1.ReplicaSet:
		errs = append(errs, validateReplicaSet(&o.Spec, spec)...)
	default:
		errs = append(errs, validateRest(o)...)
	}
	return errs
}

func validateMeta(o Object, k Kind) field.ErrorList {
	at := field.NewPath("metadata")
	errs := apivalidation.ValidateObjectMetaAccessor(o, k.Namespaced, nameRule(k), at)
	if ns := o.GetNamespace(); k.Namespaced && ns != "" {
		for _, msg := range validation.IsDNS1123Label(ns) {
			errs = append(errs, field.Invalid(at.Child("namespace"), ns, msg))
		}
	}
	seen := map[string]bool{}
	for i, f := range o.GetFinalizers() {
		if seen[f] {
			errs = append(errs, field.Duplicate(at.Child("finalizers").Index(i), f))
		}
		seen[f] = true
	}
	// Labels have no limit of their own in Kubernetes but etcd's; ours is that of annotations.
	total := 0
	for key, value := range o.GetLabels() {
		total += len(key) + len(value)
	}
	if total > apivalidation.TotalAnnotationSizeLimitB {
		errs = append(errs, field.TooLong(at.Child("labels"), "", apivalidation.TotalAnnotationSizeLimitB))
	}
	return dedupe(errs)
}

// dedupe drops errors that two rules found alike.
func dedupe(errs field.ErrorList) field.ErrorList {
	seen := map[string]bool{}
	var out field.ErrorList
	for _, e := range errs {
		if s := e.Error(); !seen[s] {
			seen[s] = true
			out = append(out, e)
		}
	}
	return out
}

func nameRule(k Kind) apivalidation.ValidateNameFunc {
	switch k.Resource {
	case Services:
		return apivalidation.NameIsDNS1035Label
	case Pods, Deployments, ReplicaSets:
		return apivalidation.NameIsDNSSubdomain
	}
	return nameRuleRest(k)
}

func nonNegative(v int64, at *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(v, at)
}

func validateDeployment(s *appsv1.DeploymentSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Replicas != nil {
		errs = append(errs, nonNegative(int64(*s.Replicas), at.Child("replicas"))...)
	}
	errs = append(errs, nonNegative(int64(s.MinReadySeconds), at.Child("minReadySeconds"))...)
	if s.RevisionHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*s.RevisionHistoryLimit), at.Child("revisionHistoryLimit"))...)
	}
	if s.ProgressDeadlineSeconds != nil {
		errs = append(errs, nonNegative(int64(*s.ProgressDeadlineSeconds), at.Child("progressDeadlineSeconds"))...)
		if *s.ProgressDeadlineSeconds <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(at.Child("progressDeadlineSeconds"), *s.ProgressDeadlineSeconds, "must be greater than minReadySeconds"))
		}
	}
	errs = append(errs, validateSelector(s.Selector, &s.Template, at)...)
	errs = append(errs, validateTemplate(&s.Template, at.Child("template"))...)
	return append(errs, validateStrategy(&s.Strategy, at.Child("strategy"))...)
}

func validateReplicaSet(s *appsv1.ReplicaSetSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Replicas != nil {
		errs = append(errs, nonNegative(int64(*s.Replicas), at.Child("replicas"))...)
	}
	errs = append(errs, nonNegative(int64(s.MinReadySeconds), at.Child("minReadySeconds"))...)
	errs = append(errs, validateSelector(s.Selector, &s.Template, at)...)
	return append(errs, validateTemplate(&s.Template, at.Child("template"))...)
}

func validateSelector(sel *metav1.LabelSelector, template *corev1.PodTemplateSpec, at *field.Path) field.ErrorList {
	if sel == nil {
		return field.ErrorList{field.Required(at.Child("selector"), "")}
	}
	if len(sel.MatchLabels)+len(sel.MatchExpressions) == 0 {
		return field.ErrorList{field.Invalid(at.Child("selector"), sel, "empty selector is invalid: it would match every pod")}
	}
	if errs := metavalidation.ValidateLabelSelector(sel, metavalidation.LabelSelectorValidationOptions{}, at.Child("selector")); len(errs) > 0 {
		return errs
	}
	s, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		return field.ErrorList{field.Invalid(at.Child("selector"), sel, err.Error())}
	}
	if !s.Matches(labels.Set(template.Labels)) {
		return field.ErrorList{field.Invalid(at.Child("template", "metadata", "labels"), template.Labels,
			fmt.Sprintf("`selector` does not match template `labels`: the selector is %s", s))}
	}
	return nil
}

func validateTemplate(t *corev1.PodTemplateSpec, at *field.Path) field.ErrorList {
	meta := at.Child("metadata")
	errs := metavalidation.ValidateLabels(t.Labels, meta.Child("labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, meta.Child("annotations"))...)
	errs = append(errs, validatePodSpec(&t.Spec, at.Child("spec"))...)
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways && t.Spec.RestartPolicy != "" {
		errs = append(errs, field.NotSupported(at.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(at.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in a Deployment or ReplicaSet is not supported"))
	}
	return errs
}

func validateStrategy(s *appsv1.DeploymentStrategy, at *field.Path) field.ErrorList {
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(at.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'")}
		}
		return nil
	case appsv1.RollingUpdateDeploymentStrategyType:
	default:
		return field.ErrorList{field.NotSupported(at.Child("type"), s.Type,
			[]appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType})}
	}
	r := s.RollingUpdate
	if r == nil {
		return nil
	}
	at = at.Child("rollingUpdate")
	errs := validateIntOrPercent(r.MaxUnavailable, at.Child("maxUnavailable"))
	errs = append(errs, validateIntOrPercent(r.MaxSurge, at.Child("maxSurge"))...)
	if len(errs) > 0 {
		return errs
	}
	if zeroIntOrPercent(r.MaxUnavailable) && zeroIntOrPercent(r.MaxSurge) {
		errs = append(errs, field.Invalid(at.Child("maxUnavailable"), r.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
	}
	if n, ok := percent(r.MaxUnavailable); ok && n > 100 {
		errs = append(errs, field.Invalid(at.Child("maxUnavailable"), r.MaxUnavailable, "must not be greater than 100%"))
	}
	return errs
}

func validateIntOrPercent(v *intstr.IntOrString, at *field.Path) field.ErrorList {
	if v == nil {
		return nil
	}
	if v.Type == intstr.Int {
		return nonNegative(int64(v.IntVal), at)
	}
	for _, msg := range validation.IsValidPercent(v.StrVal) {
		return field.ErrorList{field.Invalid(at, v, msg)}
	}
	return nil
}

func percent(v *intstr.IntOrString) (int, bool) {
	if v == nil || v.Type != intstr.String {
		return 0, false
	}
	var n int
	if _, err := fmt.Sscanf(v.StrVal, "%d%%", &n); err != nil {
		return 0, false
	}
	return n, true
}

func zeroIntOrPercent(v *intstr.IntOrString) bool {
	if v == nil {
		return true
	}
	if n, ok := percent(v); ok {
		return n == 0
	}
	return v.Type == intstr.Int && v.IntVal == 0
}

var immutableMeta = field.NewPath("metadata")

// ValidateUpdate says what is wrong with replacing one defaulted object by
// another of the same kind and name, Validate's findings included.
func ValidateUpdate(updated, old Object) field.ErrorList {
	errs := Validate(updated)
	if updated.GetName() != old.GetName() {
		errs = append(errs, field.Invalid(immutableMeta.Child("name"), updated.GetName(), immutable))
	}
	if updated.GetNamespace() != old.GetNamespace() {
		errs = append(errs, field.Invalid(immutableMeta.Child("namespace"), updated.GetNamespace(), immutable))
	}
	if updated.GetUID() != "" && updated.GetUID() != old.GetUID() {
		errs = append(errs, field.Invalid(immutableMeta.Child("uid"), updated.GetUID(), immutable))
	}
	if old.GetDeletionTimestamp() != nil {
		errs = append(errs, apivalidation.ValidateNoNewFinalizers(updated.GetFinalizers(), old.GetFinalizers(), immutableMeta.Child("finalizers"))...)
	}
	spec := field.NewPath("spec")
	switch n := updated.(type) {
	case *corev1.Pod:
		if o, ok := old.(*corev1.Pod); ok {
			errs = append(errs, validatePodUpdate(n, o, spec)...)
		}
	case *corev1.Service:
		if o, ok := old.(*corev1.Service); ok && o.Spec.ClusterIP != "" && n.Spec.ClusterIP != o.Spec.ClusterIP {
			errs = append(errs, field.Invalid(spec.Child("clusterIP"), n.Spec.ClusterIP, immutable))
		}
	case *appsv1.Deployment:
		if o, ok := old.(*appsv1.Deployment); ok {
			errs = append(errs, unchanged(n.Spec.Selector, o.Spec.Selector, spec.Child("selector"))...)
		}
	case *appsv1.ReplicaSet:
		if o, ok := old.(*appsv1.ReplicaSet); ok {
			errs = append(errs, unchanged(n.Spec.Selector, o.Spec.Selector, spec.Child("selector"))...)
		}
	default:
		errs = append(errs, validateRestUpdate(updated, old)...)
	}
	return errs
}

func unchanged(updated, old any, at *field.Path) field.ErrorList {
	if equality.Semantic.DeepEqual(updated, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(at, updated, immutable)}
}

func validatePodUpdate(updated, old *corev1.Pod, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(updated.Spec.Containers) != len(old.Spec.Containers) {
		return field.ErrorList{field.Forbidden(at.Child("containers"), "pod updates may not add or remove containers")}
	}
	if grace := updated.Spec.TerminationGracePeriodSeconds; grace != nil && *grace < 0 {
		errs = append(errs, field.Invalid(at.Child("terminationGracePeriodSeconds"), *grace, "must be greater than or equal to 0"))
	}
	// What may change is set back; the rest must be what it was.
	rest := updated.Spec.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Spec.Containers[i].Image
	}
	errs = append(errs, validateTolerationsGrow(rest.Tolerations, old.Spec.Tolerations, at.Child("tolerations"))...)
	rest.Tolerations = old.Spec.Tolerations
	rest.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	if old.Spec.TerminationGracePeriodSeconds != nil && *old.Spec.TerminationGracePeriodSeconds < 0 {
		rest.TerminationGracePeriodSeconds = old.Spec.TerminationGracePeriodSeconds
	}
	if field := FirstDifference(rest, &old.Spec); field != "" {
		errs = append(errs, forbidPodChange(at, "spec."+field))
	}
	return errs
}

func forbidPodChange(at *field.Path, changed string) *field.Error {
	return field.Forbidden(at, "pod updates may not change fields other than `spec.containers[*].image`, `spec.activeDeadlineSeconds` and `spec.tolerations` (only additions); "+
		changed+" differs: delete the pod and create it again")
}

func validateTolerationsGrow(updated, old []corev1.Toleration, at *field.Path) field.ErrorList {
	for _, o := range old {
		kept := false
		for _, n := range updated {
			n.TolerationSeconds = o.TolerationSeconds
			kept = kept || equality.Semantic.DeepEqual(n, o)
		}
		if !kept {
			return field.ErrorList{field.Forbidden(at, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}
