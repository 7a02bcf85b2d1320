package schemas

import (
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func ptr[T any](v T) *T { return &v }

// orDefault fills a field that is empty.
func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func orPointer[T any](field **T, value T) {
	if *field == nil {
		*field = ptr(value)
	}
}

// Default fills in what Kubernetes fills in when it reads an object, with the
// same values. It changes the object in place, takes any that Kinds lists, and
// repeating it changes nothing. It also sets the object's apiVersion and kind.
// What a create adds to that is Derive's.
func Default(o Object) {
	o.GetObjectKind().SetGroupVersionKind(KindOf(o).GVK)
	switch o := o.(type) {
	case *corev1.Pod:
		defaultPod(&o.Spec)
	case *corev1.Service:
		defaultService(o)
	case *appsv1.Deployment:
		defaultDeployment(&o.Spec)
		defaultPodSpec(&o.Spec.Template.Spec)
	case *appsv1.ReplicaSet:
		orPointer(&o.Spec.Replicas, 1)
		defaultPodSpec(&o.Spec.Template.Spec)
	case *appsv1.StatefulSet:
		defaultStatefulSet(&o.Spec)
		defaultPodSpec(&o.Spec.Template.Spec)
	case *appsv1.DaemonSet:
		defaultDaemonSet(&o.Spec)
		defaultPodSpec(&o.Spec.Template.Spec)
	case *corev1.ReplicationController:
		defaultReplicationController(o)
	case *corev1.PodTemplate:
		defaultPodSpec(&o.Template.Spec)
	case *batchv1.Job:
		defaultJob(o)
	case *batchv1.CronJob:
		defaultCronJob(&o.Spec)
	case *corev1.PersistentVolume:
		defaultPersistentVolume(o)
	case *corev1.PersistentVolumeClaim:
		defaultClaim(o)
	case *storagev1.StorageClass:
		orPointer(&o.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
		orPointer(&o.VolumeBindingMode, storagev1.VolumeBindingImmediate)
	default:
		defaultRest(o)
	}
}

func defaultDeployment(s *appsv1.DeploymentSpec) {
	orPointer(&s.Replicas, 1)
	orDefault(&s.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if s.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		orPointer(&s.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		orPointer(&s.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		orPointer(&s.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	orPointer(&s.RevisionHistoryLimit, 10)
	orPointer(&s.ProgressDeadlineSeconds, 600)
}

func defaultDaemonSet(s *appsv1.DaemonSetSpec) {
	orDefault(&s.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if s.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		orPointer(&s.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		orPointer(&s.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		orPointer(&s.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	orPointer(&s.RevisionHistoryLimit, 10)
}

func defaultStatefulSet(s *appsv1.StatefulSetSpec) {
	orDefault(&s.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	u := &s.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		orPointer(&u.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
	}
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && u.RollingUpdate != nil {
		orPointer(&u.RollingUpdate.Partition, 0)
		orPointer(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	orPointer(&s.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	orDefault(&s.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	orDefault(&s.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	orPointer(&s.Replicas, 1)
	orPointer(&s.RevisionHistoryLimit, 10)
	for i := range s.VolumeClaimTemplates {
		c := &s.VolumeClaimTemplates[i]
		c.APIVersion, c.Kind = "v1", "PersistentVolumeClaim"
		defaultClaim(c)
	}
}

// defaultReplicationController takes the labels of the template for the
// controller's own and for its selector, as kinds after it do no more.
func defaultReplicationController(o *corev1.ReplicationController) {
	orPointer(&o.Spec.Replicas, 1)
	t := o.Spec.Template
	if t == nil {
		return
	}
	if len(o.Spec.Selector) == 0 && t.Labels != nil {
		o.Spec.Selector = maps.Clone(t.Labels)
	}
	if len(o.Labels) == 0 && t.Labels != nil {
		o.Labels = maps.Clone(t.Labels)
	}
	defaultPodSpec(&t.Spec)
}

func defaultJob(o *batchv1.Job) {
	s := &o.Spec
	// Without either number, one pod has to succeed.
	if s.Completions == nil && s.Parallelism == nil {
		s.Completions = ptr[int32](1)
	}
	orPointer(&s.Parallelism, 1)
	switch {
	case s.BackoffLimit != nil:
	case s.BackoffLimitPerIndex != nil:
		s.BackoffLimit = ptr[int32](1<<31 - 1)
	default:
		s.BackoffLimit = ptr[int32](6)
	}
	if len(o.Labels) == 0 && s.Template.Labels != nil {
		o.Labels = maps.Clone(s.Template.Labels)
	}
	orPointer(&s.CompletionMode, batchv1.NonIndexedCompletion)
	orPointer(&s.Suspend, false)
	if s.PodFailurePolicy != nil {
		orPointer(&s.PodReplacementPolicy, batchv1.Failed)
	}
	orPointer(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	orPointer(&s.ManualSelector, false)
	defaultJobPods(s)
}

// defaultJobPods is what the template of a Job gets in a CronJob, too.
func defaultJobPods(s *batchv1.JobSpec) {
	defaultPodSpec(&s.Template.Spec)
	if s.PodFailurePolicy == nil {
		return
	}
	for i := range s.PodFailurePolicy.Rules {
		conditions := s.PodFailurePolicy.Rules[i].OnPodConditions
		for j := range conditions {
			orDefault(&conditions[j].Status, corev1.ConditionTrue)
		}
	}
}

func defaultCronJob(s *batchv1.CronJobSpec) {
	orDefault(&s.ConcurrencyPolicy, batchv1.AllowConcurrent)
	orPointer(&s.Suspend, false)
	orPointer(&s.SuccessfulJobsHistoryLimit, 3)
	orPointer(&s.FailedJobsHistoryLimit, 1)
	defaultJobPods(&s.JobTemplate.Spec)
}

func defaultService(o *corev1.Service) {
	s := &o.Spec
	orDefault(&s.Type, corev1.ServiceTypeClusterIP)
	orDefault(&s.SessionAffinity, corev1.ServiceAffinityNone)
	switch c := s.SessionAffinityConfig; s.SessionAffinity {
	case corev1.ServiceAffinityNone:
		s.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(corev1.DefaultClientIPServiceAffinitySeconds)}}
		}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		orDefault(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyReachable(s) {
		orDefault(&s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	switch s.Type {
	case corev1.ServiceTypeLoadBalancer:
		orPointer(&s.AllocateLoadBalancerNodePorts, true)
		for i := range o.Status.LoadBalancer.Ingress {
			if in := &o.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				orPointer(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
		fallthrough
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeClusterIP:
		orPointer(&s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
}

// PodTemplateOf is the pod template within an object, or nil for kinds that
// have none, and for a ReplicationController without. It is the object's own,
// not a copy.
func PodTemplateOf(o Object) *corev1.PodTemplateSpec {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *appsv1.DaemonSet:
		return &o.Spec.Template
	case *corev1.ReplicationController:
		return o.Spec.Template
	case *corev1.PodTemplate:
		return &o.Template
	case *batchv1.Job:
		return &o.Spec.Template
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template
	}
	return nil
}

// podTemplatePath is where an object has what PodTemplateOf returns.
func podTemplatePath(o Object) *field.Path {
	switch o.(type) {
	case *corev1.PodTemplate:
		return field.NewPath("template")
	case *batchv1.CronJob:
		return field.NewPath("spec", "jobTemplate", "spec", "template")
	}
	return field.NewPath("spec", "template")
}
