package schemas

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
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

// Default fills in what Kubernetes fills in, with the same values. It changes
// the object in place, takes any that Kinds lists, and repeating it changes
// nothing. It also sets the object's apiVersion and kind.
func Default(o Object) {
	o.GetObjectKind().SetGroupVersionKind(KindOf(o).GVK)
	switch o := o.(type) {
	case *corev1.Pod:
		defaultPodSpec(&o.Spec)
		// Kubernetes has these for pods alone, not for templates.
		orPointer(&o.Spec.EnableServiceLinks, true)
		orPointer(&o.Spec.Priority, 0)
		orPointer(&o.Spec.PreemptionPolicy, corev1.PreemptLowerPriority)
	case *corev1.Service:
		defaultService(&o.Spec)
	case *appsv1.Deployment:
		defaultDeployment(&o.Spec)
		defaultPodSpec(&o.Spec.Template.Spec)
	case *appsv1.ReplicaSet:
		orPointer(&o.Spec.Replicas, 1)
		defaultPodSpec(&o.Spec.Template.Spec)
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

func defaultService(s *corev1.ServiceSpec) {
	orDefault(&s.Type, corev1.ServiceTypeClusterIP)
	orDefault(&s.SessionAffinity, corev1.ServiceAffinityNone)
	orPointer(&s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	orPointer(&s.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack)
	if len(s.IPFamilies) == 0 {
		s.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	if s.ClusterIP == "" && len(s.ClusterIPs) > 0 {
		s.ClusterIP = s.ClusterIPs[0]
	}
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		s.ClusterIPs = []string{s.ClusterIP}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		orDefault(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
}

func defaultPodSpec(s *corev1.PodSpec) {
	orDefault(&s.RestartPolicy, corev1.RestartPolicyAlways)
	orDefault(&s.DNSPolicy, corev1.DNSClusterFirst)
	orDefault(&s.SchedulerName, corev1.DefaultSchedulerName)
	orPointer(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	orPointer(&s.SecurityContext, corev1.PodSecurityContext{})
	// The deprecated name and the new one mean the same.
	orDefault(&s.ServiceAccountName, s.DeprecatedServiceAccount)
	orDefault(&s.DeprecatedServiceAccount, s.ServiceAccountName)
	for i := range s.Containers {
		defaultContainer(&s.Containers[i], s.HostNetwork)
	}
}

func defaultContainer(c *corev1.Container, hostNetwork bool) {
	if c.Image != "" {
		orDefault(&c.ImagePullPolicy, defaultPullPolicy(c.Image))
	}
	orDefault(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	orDefault(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		p := &c.Ports[i]
		orDefault(&p.Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			orDefault(&p.HostPort, p.ContainerPort)
		}
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			orDefault(&from.FieldRef.APIVersion, "v1")
		}
	}
	// A limit without a request is the request, too.
	for name, limit := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; ok {
			continue
		}
		if c.Resources.Requests == nil {
			c.Resources.Requests = corev1.ResourceList{}
		}
		c.Resources.Requests[name] = limit.DeepCopy()
	}
	roundResources(c.Resources.Limits)
	roundResources(c.Resources.Requests)
	for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
}

// roundResources rounds up to a thousandth, the finest that Kubernetes keeps.
func roundResources(l corev1.ResourceList) {
	for name, q := range l {
		q.RoundUp(resource.Milli)
		l[name] = q
	}
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	orDefault(&p.TimeoutSeconds, 1)
	orDefault(&p.PeriodSeconds, 10)
	orDefault(&p.SuccessThreshold, 1)
	orDefault(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		orDefault(&p.HTTPGet.Path, "/")
		orDefault(&p.HTTPGet.Scheme, corev1.URISchemeHTTP)
	}
}

// defaultPullPolicy is Always for what a tag named latest, or none, may
// change under, IfNotPresent for the rest.
func defaultPullPolicy(image string) corev1.PullPolicy {
	if strings.Contains(image, "@") {
		return corev1.PullIfNotPresent
	}
	last := image[strings.LastIndexByte(image, '/')+1:]
	if _, tag, ok := strings.Cut(last, ":"); ok && tag != "latest" {
		return corev1.PullIfNotPresent
	}
	return corev1.PullAlways
}

// PodTemplateOf is the pod template within an object, or nil for kinds that
// have none. It is the object's own, not a copy.
func PodTemplateOf(o Object) *corev1.PodTemplateSpec {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	}
	return nil
}
