package schemas

import (
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Derive fills in what Kubernetes works out when an object is created, from the
// whole of it: the selector of a Job, what a pod's own labels add to selectors,
// the families of a Service's addresses. It comes after Default and before
// Validate, changes the object in place, and needs a Job's UID. Repeating it
// changes nothing.
func Derive(o Object) {
	switch o := o.(type) {
	case *corev1.Pod:
		derivePod(o)
	case *corev1.Service:
		deriveService(&o.Spec)
	case *batchv1.Job:
		selectJobPods(o)
	case *corev1.PersistentVolumeClaim:
		deriveDataSource(&o.Spec)
	}
}

// DeriveUpdate fills in what a writer who does not know of it may leave out of
// an object that there is, and takes away what the change makes pointless. It
// comes after Default and before ValidateUpdate, and changes updated in place.
func DeriveUpdate(updated, old Object) {
	switch n := updated.(type) {
	case *corev1.Pod:
		o, ok := old.(*corev1.Pod)
		if !ok {
			return
		}
		if n.Spec.Resources == nil {
			n.Spec.Resources = o.Spec.Resources.DeepCopy()
		}
		if n.Spec.Priority == nil && o.Spec.Priority != nil {
			n.Spec.Priority = ptr(*o.Spec.Priority)
		}
		if n.Spec.PreemptionPolicy == nil && o.Spec.PreemptionPolicy != nil {
			n.Spec.PreemptionPolicy = ptr(*o.Spec.PreemptionPolicy)
		}
	case *corev1.Service:
		if o, ok := old.(*corev1.Service); ok {
			deriveServiceUpdate(&n.Spec, &o.Spec)
		}
	case *corev1.PersistentVolumeClaim:
		deriveDataSource(&n.Spec)
	}
}

func derivePod(o *corev1.Pod) {
	s := &o.Spec
	orPointer(&s.Priority, 0)
	orPointer(&s.PreemptionPolicy, corev1.PreemptLowerPriority)
	if a := s.Affinity; a != nil {
		terms := func(must []corev1.PodAffinityTerm, may []corev1.WeightedPodAffinityTerm) {
			for i := range must {
				mergeLabelKeys(must[i].LabelSelector, must[i].MatchLabelKeys, must[i].MismatchLabelKeys, o.Labels)
			}
			for i := range may {
				t := &may[i].PodAffinityTerm
				mergeLabelKeys(t.LabelSelector, t.MatchLabelKeys, t.MismatchLabelKeys, o.Labels)
			}
		}
		if n := a.PodAffinity; n != nil {
			terms(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if n := a.PodAntiAffinity; n != nil {
			terms(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	for i := range s.TopologySpreadConstraints {
		c := &s.TopologySpreadConstraints[i]
		mergeLabelKeys(c.LabelSelector, c.MatchLabelKeys, nil, o.Labels)
	}
	if len(o.Annotations) > 0 {
		appArmorFields(o)
	}
	derivePodResources(s)
}

// mergeLabelKeys adds to a selector what the pod's labels have for some keys:
// pods like this one, and pods unlike it.
func mergeLabelKeys(s *metav1.LabelSelector, match, mismatch []string, labels map[string]string) {
	if s == nil {
		return
	}
	add := func(keys []string, op metav1.LabelSelectorOperator) {
		for _, k := range keys {
			v, ok := labels[k]
			if !ok {
				continue
			}
			r := metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}}
			has := func(e metav1.LabelSelectorRequirement) bool { return equality.Semantic.DeepEqual(e, r) }
			if !slices.ContainsFunc(s.MatchExpressions, has) {
				s.MatchExpressions = append(s.MatchExpressions, r)
			}
		}
	}
	add(match, metav1.LabelSelectorOpIn)
	add(mismatch, metav1.LabelSelectorOpNotIn)
}

// appArmorFields takes over what the annotations of before say of containers.
func appArmorFields(o *corev1.Pod) {
	if o.Spec.OS != nil && o.Spec.OS.Name == corev1.Windows {
		return
	}
	var pod *corev1.AppArmorProfile
	if o.Spec.SecurityContext != nil {
		pod = o.Spec.SecurityContext.AppArmorProfile
	}
	eachContainer(&o.Spec, func(c *corev1.Container, _ string, _ int) {
		value, ok := o.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]
		if !ok || c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			return
		}
		a := appArmorOf(value)
		if a == nil || equality.Semantic.DeepEqual(a, pod) {
			return
		}
		orPointer(&c.SecurityContext, corev1.SecurityContext{})
		c.SecurityContext.AppArmorProfile = a
	})
}

func appArmorOf(annotation string) *corev1.AppArmorProfile {
	switch profile, local := strings.CutPrefix(annotation, corev1.DeprecatedAppArmorBetaProfileNamePrefix); {
	case annotation == corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case annotation == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case local && profile != "" && strings.TrimSpace(profile) == profile && len(profile) <= maxAppArmorProfile:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &profile}
	}
	return nil
}

// derivePodResources completes a pod's budget from its containers: of huge
// pages their limits, of the rest their requests, and limits where all have one.
func derivePodResources(s *corev1.PodSpec) {
	r := s.Resources
	if r == nil || len(r.Requests)+len(r.Limits) == 0 {
		return
	}
	limits := containersLimits(s)
	fill := func(list *corev1.ResourceList, name corev1.ResourceName, from corev1.ResourceList) {
		if _, ok := (*list)[name]; ok {
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = from[name].DeepCopy()
	}
	for name := range limits {
		if _, requested := r.Requests[name]; hugePages(name) && !requested {
			fill(&r.Limits, name, limits)
		}
	}
	requests := containersRequests(s)
	for name := range requests {
		if podLevelResource(name) && !hugePages(name) {
			fill(&r.Requests, name, requests)
		}
	}
	for name := range r.Limits {
		if podLevelResource(name) {
			fill(&r.Requests, name, r.Limits)
		}
	}
	for name, request := range r.Requests {
		if _, limited := r.Limits[name]; limited || !podLevelResource(name) || !allLimited(s, name) {
			continue
		}
		most := limits[name]
		if request.Cmp(most) > 0 {
			most = request
		}
		if r.Limits == nil {
			r.Limits = corev1.ResourceList{}
		}
		r.Limits[name] = most.DeepCopy()
	}
}

func allLimited(s *corev1.PodSpec, name corev1.ResourceName) bool {
	all := true
	eachContainer(s, func(c *corev1.Container, _ string, _ int) {
		_, ok := c.Resources.Limits[name]
		all = all && ok
	})
	return all
}

// selectJobPods gives a Job whose selector is not made by hand one that selects
// its own pods alone, and its pods the labels for it.
func selectJobPods(o *batchv1.Job) {
	s := &o.Spec
	if s.ManualSelector != nil && *s.ManualSelector {
		return
	}
	if s.Template.Labels == nil {
		s.Template.Labels = map[string]string{}
	}
	for k, v := range jobLabels(o) {
		if _, ok := s.Template.Labels[k]; !ok {
			s.Template.Labels[k] = v
		}
	}
	orPointer(&s.Selector, metav1.LabelSelector{})
	if s.Selector.MatchLabels == nil {
		s.Selector.MatchLabels = map[string]string{}
	}
	if _, ok := s.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		s.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(o.UID)
	}
}

// deriveDataSource keeps the old field and the new one for a claim's content
// the same, where the old one can say it.
func deriveDataSource(s *corev1.PersistentVolumeClaimSpec) {
	switch d, r := s.DataSource, s.DataSourceRef; {
	case d != nil && r == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: d.APIGroup, Kind: d.Kind, Name: d.Name}
	case d == nil && r != nil && (r.Namespace == nil || *r.Namespace == ""):
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: r.APIGroup, Kind: r.Kind, Name: r.Name}
	}
}

// deriveService fills in the families of a Service's addresses; this cluster
// has one.
func deriveService(s *corev1.ServiceSpec) {
	if s.Type == corev1.ServiceTypeExternalName {
		return
	}
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		s.ClusterIPs = []string{s.ClusterIP}
	}
	if len(s.IPFamilies) == 0 {
		family := corev1.IPv4Protocol
		if !headless(s) && s.ClusterIP != "" {
			family = familyOf(s.ClusterIP)
		}
		s.IPFamilies = []corev1.IPFamily{family}
	}
	orPointer(&s.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack)
}

// deriveServiceUpdate brings the two fields of addresses together, and wipes
// what the new type has no use for, unless the writer changed it as well: that
// is for ValidateUpdate to refuse.
func deriveServiceUpdate(n, o *corev1.ServiceSpec) {
	sameIPs := slices.Equal(n.ClusterIPs, o.ClusterIPs)
	switch {
	case n.ClusterIP != o.ClusterIP && sameIPs:
		n.ClusterIPs = nil
		if n.ClusterIP != "" {
			n.ClusterIPs = []string{n.ClusterIP}
		}
	case n.ClusterIP == o.ClusterIP && len(n.ClusterIPs) == 0:
		n.ClusterIPs = slices.Clone(o.ClusterIPs)
	}
	if n.Type == corev1.ServiceTypeExternalName && o.Type != n.Type {
		if n.ClusterIP == o.ClusterIP && slices.Equal(n.ClusterIPs, o.ClusterIPs) {
			n.ClusterIP, n.ClusterIPs = "", nil
		}
		if slices.Equal(n.IPFamilies, o.IPFamilies) {
			n.IPFamilies = nil
		}
		if equality.Semantic.DeepEqual(n.IPFamilyPolicy, o.IPFamilyPolicy) {
			n.IPFamilyPolicy = nil
		}
	} else {
		deriveService(n)
	}
	if usesNodePorts(o) && !usesNodePorts(n) && sameNodePorts(n, o) {
		for i := range n.Ports {
			n.Ports[i].NodePort = 0
		}
	}
	if needsHealthCheck(o) && !needsHealthCheck(n) && n.HealthCheckNodePort == o.HealthCheckNodePort {
		n.HealthCheckNodePort = 0
	}
	if o.Type == corev1.ServiceTypeLoadBalancer && n.Type != o.Type {
		if equality.Semantic.DeepEqual(n.AllocateLoadBalancerNodePorts, o.AllocateLoadBalancerNodePorts) {
			n.AllocateLoadBalancerNodePorts = nil
		}
		if equality.Semantic.DeepEqual(n.LoadBalancerClass, o.LoadBalancerClass) {
			n.LoadBalancerClass = nil
		}
	}
	if externallyReachable(o) && !externallyReachable(n) && n.ExternalTrafficPolicy == o.ExternalTrafficPolicy {
		n.ExternalTrafficPolicy = ""
	}
}

func usesNodePorts(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort ||
		s.Type == corev1.ServiceTypeLoadBalancer && (s.AllocateLoadBalancerNodePorts == nil || *s.AllocateLoadBalancerNodePorts)
}

// sameNodePorts says that both have the same ports on nodes, in any order.
func sameNodePorts(a, b *corev1.ServiceSpec) bool {
	ports := func(s *corev1.ServiceSpec) map[int32]bool {
		out := map[int32]bool{}
		for i := range s.Ports {
			out[s.Ports[i].NodePort] = true
		}
		return out
	}
	return equality.Semantic.DeepEqual(ports(a), ports(b))
}
