package schemas

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// defaultPod is defaultPodSpec with what Kubernetes fills in for pods alone: a
// template stays as its author wrote it.
func defaultPod(s *corev1.PodSpec) {
	defaultPodSpec(s)
	if g := s.TerminationGracePeriodSeconds; *g < 0 {
		s.TerminationGracePeriodSeconds = ptr[int64](1)
	}
	orPointer(&s.EnableServiceLinks, true)
	for _, list := range [2][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range list {
			c := &list[i]
			limitsAsRequests(&c.Resources)
			if !s.HostNetwork {
				continue
			}
			for j := range c.Ports {
				orDefault(&c.Ports[j].HostPort, c.Ports[j].ContainerPort)
			}
		}
	}
}

// limitsAsRequests: a limit without a request is the request, too.
func limitsAsRequests(r *corev1.ResourceRequirements) {
	if r.Limits == nil {
		return
	}
	if r.Requests == nil {
		r.Requests = corev1.ResourceList{}
	}
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; !ok {
			r.Requests[name] = limit.DeepCopy()
		}
	}
}

func defaultPodSpec(s *corev1.PodSpec) {
	orDefault(&s.RestartPolicy, corev1.RestartPolicyAlways)
	orDefault(&s.DNSPolicy, corev1.DNSClusterFirst)
	orDefault(&s.SchedulerName, corev1.DefaultSchedulerName)
	orPointer(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	orPointer(&s.SecurityContext, corev1.PodSecurityContext{})
	// The deprecated name and the new one mean the same; the new one counts.
	orDefault(&s.ServiceAccountName, s.DeprecatedServiceAccount)
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	eachContainer(s, func(c *corev1.Container, _ string, _ int) { defaultContainer(c) })
	roundResources(s.Overhead)
	if r := s.Resources; r != nil {
		roundResources(r.Limits)
		roundResources(r.Requests)
	}
}

func defaultContainer(c *corev1.Container) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = defaultPullPolicy(c.Image)
	}
	orDefault(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	orDefault(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		orDefault(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		from := c.Env[i].ValueFrom
		if from == nil {
			continue
		}
		defaultFieldRef(from.FieldRef)
		if from.FileKeyRef != nil {
			orPointer(&from.FileKeyRef.Optional, false)
		}
	}
	roundResources(c.Resources.Limits)
	roundResources(c.Resources.Requests)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.StartupProbe)
	if l := c.Lifecycle; l != nil {
		for _, h := range [2]*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
}

func defaultFieldRef(r *corev1.ObjectFieldSelector) {
	if r != nil {
		orDefault(&r.APIVersion, "v1")
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
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil {
		orPointer(&p.GRPC.Service, "")
	}
}

func defaultHTTPGet(h *corev1.HTTPGetAction) {
	if h != nil {
		orDefault(&h.Path, "/")
		orDefault(&h.Scheme, corev1.URISchemeHTTP)
	}
}

// imageName is what a reference to an image has to look like, its digest left
// out; a name that does not is pulled if it is not there.
var imageName = regexp.MustCompile(`^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9.-]*[a-zA-Z0-9]|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?` +
	`[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*(?::[\w][\w.-]{0,127})?$`)

// defaultPullPolicy is Always for what a tag named latest, or none, may
// change under, IfNotPresent for the rest.
func defaultPullPolicy(image string) corev1.PullPolicy {
	name, _, digested := strings.Cut(image, "@")
	last := name[strings.LastIndexByte(name, '/')+1:]
	switch _, tag, tagged := strings.Cut(last, ":"); {
	case tagged && tag != "latest", !tagged && digested, !imageName.MatchString(name):
		return corev1.PullIfNotPresent
	}
	return corev1.PullAlways
}
