package schemas

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const immutable = apivalidation.FieldImmutableErrorMsg

// Validate says what is wrong with a new object that went through Default and
// Derive, with Kubernetes' field paths and words. It does not say what Gantry
// lacks: that is Unsupported.
func Validate(o Object) field.ErrorList { return validate(o, nil) }

// validate checks an object by itself; old is nil for a new one.
func validate(o, old Object) field.ErrorList {
	errs := validateMeta(o, KindOf(o))
	spec, creating := field.NewPath("spec"), old == nil
	var more field.ErrorList
	switch o := o.(type) {
	case *corev1.Pod:
		more = validatePod(o, creating)
	case *corev1.Service:
		was, _ := old.(*corev1.Service)
		more = validateService(o, was)
	case *appsv1.Deployment:
		more = validateDeployment(&o.Spec, spec)
	case *appsv1.ReplicaSet:
		more = validateReplicaSet(&o.Spec, spec)
	case *appsv1.StatefulSet:
		more = validateStatefulSet(&o.Spec, spec, creating)
	case *appsv1.DaemonSet:
		more = validateDaemonSet(&o.Spec, spec)
	case *appsv1.ControllerRevision:
		more = validateControllerRevision(o, creating)
	case *corev1.ReplicationController:
		more = validateReplicationController(&o.Spec, spec)
	case *corev1.PodTemplate:
		more = validatePodTemplate(&o.Template, field.NewPath("template"))
	case *batchv1.Job:
		more = validateJob(o, creating)
	case *batchv1.CronJob:
		was, _ := old.(*batchv1.CronJob)
		more = validateCronJob(o, was)
	case *corev1.PersistentVolume:
		more = validatePersistentVolume(o)
	case *corev1.PersistentVolumeClaim:
		more = validateClaim(o, old)
	case *storagev1.StorageClass:
		more = validateStorageClass(o)
	default:
		more = validateRest(o)
	}
	return dedupe(append(errs, more...))
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
		if !strings.Contains(f, "/") && !standardFinalizers[f] {
			errs = append(errs, field.Invalid(at.Child("finalizers").Index(i), f, "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	// Labels have no limit of their own in Kubernetes but etcd's; ours is that of annotations.
	total := 0
	for key, value := range o.GetLabels() {
		total += len(key) + len(value)
	}
	if total > apivalidation.TotalAnnotationSizeLimitB {
		errs = append(errs, field.TooLong(at.Child("labels"), "", apivalidation.TotalAnnotationSizeLimitB))
	}
	return errs
}

// standardFinalizers are those without a domain.
var standardFinalizers = map[string]bool{
	string(corev1.FinalizerKubernetes): true, metav1.FinalizerOrphanDependents: true, metav1.FinalizerDeleteDependents: true,
}

// dedupe drops errors that two rules found alike.
func dedupe(errs field.ErrorList) field.ErrorList {
	if len(errs) < 2 {
		return errs
	}
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
	case Services, StatefulSets:
		return apivalidation.NameIsDNSLabel
	case Pods, Deployments, ReplicaSets, DaemonSets, ControllerRevisions, ReplicationControllers, PodTemplates, Jobs, CronJobs,
		PersistentVolumes, PersistentVolumeClaims, StorageClasses:
		return apivalidation.NameIsDNSSubdomain
	}
	return nameRuleRest(k)
}

func nonNegative(v int64, at *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(v, at)
}

var immutableMeta = field.NewPath("metadata")

// ValidateUpdate says what is wrong with replacing one object by another of the
// same kind and name, both of which went through Default, and updated through
// DeriveUpdate; Validate's findings included.
func ValidateUpdate(updated, old Object) field.ErrorList {
	errs := validate(updated, old)
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
	return dedupe(append(errs, validateKindUpdate(updated, old)...))
}

// validateKindUpdate checks what a kind does not let change. Objects of two
// kinds have no rule: admission never brings them together.
func validateKindUpdate(updated, old Object) field.ErrorList {
	spec := field.NewPath("spec")
	switch n := updated.(type) {
	case *corev1.Pod:
		if o, ok := old.(*corev1.Pod); ok {
			return validatePodUpdate(n, o)
		}
	case *corev1.Service:
		if o, ok := old.(*corev1.Service); ok {
			return validateServiceUpdate(n, o)
		}
	case *appsv1.Deployment:
		if o, ok := old.(*appsv1.Deployment); ok {
			return unchanged(n.Spec.Selector, o.Spec.Selector, spec.Child("selector"))
		}
	case *appsv1.ReplicaSet:
		if o, ok := old.(*appsv1.ReplicaSet); ok {
			return unchanged(n.Spec.Selector, o.Spec.Selector, spec.Child("selector"))
		}
	case *appsv1.DaemonSet:
		if o, ok := old.(*appsv1.DaemonSet); ok {
			return unchanged(n.Spec.Selector, o.Spec.Selector, spec.Child("selector"))
		}
	case *appsv1.StatefulSet:
		if o, ok := old.(*appsv1.StatefulSet); ok {
			return validateStatefulSetUpdate(&n.Spec, &o.Spec, spec)
		}
	case *appsv1.ControllerRevision:
		if o, ok := old.(*appsv1.ControllerRevision); ok {
			return unchanged(n.Data, o.Data, field.NewPath("data"))
		}
	case *batchv1.Job:
		if o, ok := old.(*batchv1.Job); ok {
			return validateJobUpdate(n, o)
		}
	case *corev1.PersistentVolume:
		if o, ok := old.(*corev1.PersistentVolume); ok {
			return validatePersistentVolumeUpdate(n, o)
		}
	case *corev1.PersistentVolumeClaim:
		if o, ok := old.(*corev1.PersistentVolumeClaim); ok {
			return validateClaimUpdate(n, o)
		}
	case *storagev1.StorageClass:
		if o, ok := old.(*storagev1.StorageClass); ok {
			return validateStorageClassUpdate(n, o)
		}
	case *corev1.ReplicationController, *corev1.PodTemplate, *batchv1.CronJob:
		// All of them may change.
	default:
		return validateRestUpdate(updated, old)
	}
	return nil
}
