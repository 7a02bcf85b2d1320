package schemas

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of a pod's resolver.
const (
	maxNameservers   = 3
	maxSearches      = 32
	maxSearchesChars = 2048
	maxHostname      = 64
)

var (
	podRestarts        = []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}
	dnsPolicies        = []corev1.DNSPolicy{corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone}
	preemptionPolicies = []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}
)

// podCheck finds what is wrong with a pod's spec, of a Pod or of a template.
//
// Kubernetes lets an update keep some of what an earlier version of it took,
// with a switch for each such rule. There is none of that here: no earlier
// version took anything else.
type podCheck struct {
	problems
	spec *corev1.PodSpec
	at   *field.Path // of spec
	// meta is the pod's or the template's.
	meta *metav1.ObjectMeta
	// isPod is false for a template.
	isPod bool
	// sort is the list whose container is looked at.
	sort containerSort
	// volumes that containers may mount, by name.
	volumes map[string]*corev1.Volume
	// claims are the names of spec.resourceClaims.
	claims map[string]bool
}

// validatePod checks a Pod but for its metadata; creating says that it is not
// there yet.
func validatePod(o *corev1.Pod, creating bool) field.ErrorList {
	p := podCheck{spec: &o.Spec, at: field.NewPath("spec"), meta: &o.ObjectMeta, isPod: true}
	if len(o.Annotations) > 0 {
		p.podAnnotations(field.NewPath("metadata", "annotations"))
	}
	p.run()
	if g := o.Spec.TerminationGracePeriodSeconds; g != nil {
		p.notNegative(*g, p.at, "terminationGracePeriodSeconds")
	}
	if o.Spec.ServiceAccountName == "" {
		p.noTokens()
	}
	if creating {
		p.annotationsMatch()
		if len(o.Spec.EphemeralContainers) > 0 {
			p.forbidden(p.at.Child("ephemeralContainers"), "cannot be set on create")
		}
		if o.Spec.NodeName != "" && len(o.Spec.SchedulingGates) > 0 {
			p.forbidden(p.at.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
		}
	}
	return p.found
}

// noTokens refuses a service account's token without service account.
func (p *podCheck) noTokens() {
	for i := range p.spec.Volumes {
		v := p.spec.Volumes[i].Projected
		if v == nil {
			continue
		}
		for j := range v.Sources {
			if v.Sources[j].ServiceAccountToken != nil {
				p.forbidden(p.at.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"),
					"must not be specified when serviceAccountName is not set")
			}
		}
	}
}

// validatePodTemplate checks a template of pods.
func validatePodTemplate(t *corev1.PodTemplateSpec, at *field.Path) field.ErrorList {
	p := podCheck{spec: &t.Spec, at: at.Child("spec"), meta: &t.ObjectMeta}
	if len(t.Labels) > 0 {
		p.add(metavalidation.ValidateLabels(t.Labels, at.Child("labels")))
	}
	if len(t.Annotations) > 0 {
		p.add(apivalidation.ValidateAnnotations(t.Annotations, at.Child("annotations")))
		p.podAnnotations(at.Child("annotations"))
		p.annotationsMatch()
	}
	p.run()
	if len(t.Spec.EphemeralContainers) > 0 {
		p.forbidden(p.at.Child("ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
	return p.found
}

// run checks the spec.
func (p *podCheck) run() {
	s := p.spec
	p.podVolumes()
	p.podClaims()
	p.containers()
	p.initContainers()
	p.ephemeralContainers()
	p.podResources()
	if s.TerminationGracePeriodSeconds == nil {
		p.required(p.at.Child("terminationGracePeriodSeconds"), "")
	}
	chooseRequired(&p.problems, s.RestartPolicy, p.at, "restartPolicy", podRestarts)
	chooseRequired(&p.problems, s.DNSPolicy, p.at, "dnsPolicy", dnsPolicies)
	if len(s.NodeSelector) > 0 {
		p.add(metavalidation.ValidateLabels(s.NodeSelector, p.at.Child("nodeSelector")))
	}
	p.podSecurity()
	if s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && s.HostPID {
		p.invalid(p.at.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	p.affinity()
	p.dnsConfig()
	p.gates()
	p.spread()
	p.hostProcesses()
	p.ownUsers()
	p.names()
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		p.invalid(p.at.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32))
	}
	p.tolerations(s.Tolerations, p.at)
	for i, a := range s.HostAliases {
		at := p.at.Child("hostAliases").Index(i)
		p.add(validIP(at.Child("ip"), a.IP))
		for j, h := range a.Hostnames {
			p.invalid(at.Child("hostnames").Index(j), h, validation.IsDNS1123Subdomain(h)...)
		}
	}
	if s.PreemptionPolicy != nil {
		chooseRequired(&p.problems, *s.PreemptionPolicy, p.at, "preemptionPolicy", preemptionPolicies)
	}
	if s.Overhead != nil {
		p.resources(&corev1.ResourceRequirements{Limits: s.Overhead}, p.at.Child("overhead"), containerResourceName)
	}
	p.os()
}

// validIP takes addresses as Kubernetes has taken them since it refuses what
// different software reads differently.
func validIP(at *field.Path, ip string, old ...string) field.ErrorList {
	return validation.IsValidIPForLegacyField(at, ip, true, old)
}

// names checks the names that a pod has and refers to.
func (p *podCheck) names() {
	s := p.spec
	for _, n := range [...]struct {
		field, name string
		rule        func(string) []string
	}{
		{"serviceAccountName", s.ServiceAccountName, dnsSubdomain},
		{"nodeName", s.NodeName, dnsSubdomain},
		{"hostname", s.Hostname, validation.IsDNS1123Label},
		{"subdomain", s.Subdomain, validation.IsDNS1123Label},
		{"priorityClassName", s.PriorityClassName, dnsSubdomain},
	} {
		if n.name != "" {
			p.check(n.rule, n.name, p.at, n.field)
		}
	}
	if s.DeprecatedServiceAccount != s.ServiceAccountName {
		p.invalid(p.at.Child("deprecatedServiceAccount"), s.DeprecatedServiceAccount, fmt.Sprintf("must be the same as serviceAccountName: %q", s.ServiceAccountName))
	}
	if s.RuntimeClassName != nil {
		p.check(dnsSubdomain, *s.RuntimeClassName, p.at, "runtimeClassName")
	}
	if h := s.HostnameOverride; h != nil {
		at := p.at.Child("hostnameOverride")
		if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
			p.forbidden(at, "may not be specified when setHostnameAsFQDN is true")
		}
		if s.HostNetwork {
			p.forbidden(at, "may not be specified when hostNetwork is true")
		}
		if len(*h) > maxHostname {
			p.tooLong(at, maxHostname)
		}
		p.invalid(at, *h, validation.IsDNS1123Subdomain(*h)...)
	}
}

// usesHostUsers says that the pod's users are those of its node.
func (p *podCheck) usesHostUsers() bool { return p.spec.HostUsers == nil || *p.spec.HostUsers }

// ownUsers refuses what a pod with users of its own cannot have.
func (p *podCheck) ownUsers() {
	if p.usesHostUsers() {
		return
	}
	const why = "when `hostUsers` is false"
	if p.spec.HostNetwork {
		p.forbidden(p.at.Child("hostNetwork"), why)
	}
	if p.spec.HostPID {
		p.forbidden(p.at.Child("HostPID"), why)
	}
	if p.spec.HostIPC {
		p.forbidden(p.at.Child("HostIPC"), why)
	}
	p.eachContainer(func(c *corev1.Container, at func() *field.Path) {
		if len(c.VolumeDevices) > 0 {
			p.forbidden(at().Child("volumeDevices"), why)
		}
	})
}

func (p *podCheck) dnsConfig() {
	c, at := p.spec.DNSConfig, p.at
	if p.spec.DNSPolicy == corev1.DNSNone {
		switch {
		case c == nil:
			p.required(at.Child("dnsConfig"), "must provide `dnsConfig` when `dnsPolicy` is None")
			return
		case len(c.Nameservers) == 0:
			p.required(at.Child("dnsConfig", "nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
			return
		}
	}
	if c == nil {
		return
	}
	at = at.Child("dnsConfig")
	if len(c.Nameservers) > maxNameservers {
		p.invalid(at.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %d nameservers", maxNameservers))
	}
	for i, n := range c.Nameservers {
		p.add(validIP(at.Child("nameservers").Index(i), n))
	}
	if len(c.Searches) > maxSearches {
		p.invalid(at.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %d search paths", maxSearches))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchesChars {
		p.invalid(at.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %d characters (including spaces) in the search list", maxSearchesChars))
	}
	for i, s := range c.Searches {
		if s == "." {
			continue
		}
		s = strings.TrimSuffix(s, ".")
		p.invalid(at.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(s)...)
	}
	for i, o := range c.Options {
		if o.Name == "" {
			p.required(at.Child("options").Index(i), "must not be empty")
		}
	}
}

// deletionCost says that an annotation holds a number as Kubernetes wants it:
// neither signed by a plus nor led by a zero.
func deletionCost(value string) bool {
	if value == "" || value[0] == '+' || value[0] == '0' && value != "0" {
		return false
	}
	_, err := strconv.ParseInt(value, 10, 32)
	return err == nil
}

// eachContainer visits init, regular and ephemeral containers with the list
// that they stand in.
func eachContainer(s *corev1.PodSpec, visit func(c *corev1.Container, list string, i int)) {
	for i := range s.InitContainers {
		visit(&s.InitContainers[i], "initContainers", i)
	}
	for i := range s.Containers {
		visit(&s.Containers[i], "containers", i)
	}
	for i := range s.EphemeralContainers {
		visit((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon), "ephemeralContainers", i)
	}
}
