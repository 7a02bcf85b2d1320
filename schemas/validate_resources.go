package schemas

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// standardResources are the names without a domain that mean something, of a
// quota too.
var standardResources = sets.New(strings.Fields(`cpu memory ephemeral-storage storage
	requests.cpu requests.memory requests.ephemeral-storage requests.storage
	limits.cpu limits.memory limits.ephemeral-storage
	pods resourcequotas services replicationcontrollers secrets configmaps persistentvolumeclaims
	services.nodeports services.loadbalancers`)...)

// countedResources are standard resources that come in whole numbers.
var countedResources = sets.New(strings.Fields(`pods resourcequotas services replicationcontrollers secrets configmaps
	persistentvolumeclaims services.nodeports services.loadbalancers`)...)

func hugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// nativeResource says that Kubernetes itself gives a resource its meaning.
func nativeResource(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

// extendedResource is one that a device or an operator offers.
func extendedResource(name corev1.ResourceName) bool {
	if nativeResource(name) || strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(name))) == 0
}

// resourceName is what is wrong with a resource's name anywhere.
func resourceName(name corev1.ResourceName) []string {
	if messages := validation.IsQualifiedName(string(name)); len(messages) > 0 {
		return messages
	}
	if !strings.Contains(string(name), "/") && !standardResources.Has(string(name)) && !hugePages(name) &&
		!strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix) {
		return []string{"must be a standard resource type or fully qualified"}
	}
	return nil
}

// containerResourceName is what is wrong with the name of a container's
// resource.
func containerResourceName(p *problems, name corev1.ResourceName, at *field.Path) {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return
	}
	p.invalid(at, name, resourceName(name)...)
	switch {
	case !strings.Contains(string(name), "/"):
		if !hugePages(name) {
			p.invalid(at, name, "must be a standard resource for containers")
		}
	case !nativeResource(name) && !extendedResource(name):
		p.invalid(at, name, "doesn't follow extended resource name standard")
	}
}

// podResourceName is what is wrong with the name of a resource of a whole pod.
func podResourceName(p *problems, name corev1.ResourceName, at *field.Path) {
	if messages := resourceName(name); len(messages) > 0 {
		p.invalid(at, name, messages...)
		return
	}
	if !podLevelResource(name) {
		p.found = append(p.found, field.NotSupported(at, name, podLevelResources))
	}
}

// podLevelResources is what Kubernetes lists as such, a prefix among it.
var podLevelResources = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceHugePagesPrefix, corev1.ResourceMemory}

func podLevelResource(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory || hugePages(name)
}

func sortedResources(l corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(l))
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

type resourceNameRule func(p *problems, name corev1.ResourceName, at *field.Path)

// resources checks requests, limits and claims against each other.
func (p *podCheck) resources(r *corev1.ResourceRequirements, at *field.Path, nameRule resourceNameRule) {
	computes, huge := false, false
	for _, name := range sortedResources(r.Limits) {
		q := r.Limits[name]
		p.amount(name, q, at, "limits", nameRule)
		huge = huge || hugePages(name)
		computes = computes || name == corev1.ResourceCPU || name == corev1.ResourceMemory
	}
	for _, name := range sortedResources(r.Requests) {
		q := r.Requests[name]
		p.amount(name, q, at, "requests", nameRule)
		huge = huge || hugePages(name)
		computes = computes || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		overcommits := nativeResource(name) && !hugePages(name)
		switch limit, limited := r.Limits[name]; {
		case !limited:
			if !overcommits {
				p.required(at.Child("limits"), "Limit must be set for non overcommitable resources")
			}
		case !overcommits && q.Cmp(limit) != 0:
			p.invalid(at.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case q.Cmp(limit) > 0:
			p.invalid(at.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		}
	}
	if huge && !computes {
		p.forbidden(at, "HugePages require cpu or memory")
	}
	p.resourceClaims(r.Claims, at)
}

func (p *podCheck) amount(name corev1.ResourceName, q resource.Quantity, at *field.Path, list string, nameRule resourceNameRule) {
	path := func() *field.Path { return at.Child(list).Key(string(name)) }
	if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
		nameRule(&p.problems, name, path())
	}
	p.quantity(name, q, path)
	if hugePages(name) && !wholePages(name, q) {
		p.invalid(path(), q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name))
	}
	// Kubernetes rounds "500m" of memory up to a byte and warns; nobody means
	// that. "0.1Gi", which is no whole number either, is rounded as there.
	if (name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage) && q.Sign() > 0 &&
		q.Value() < 1<<20 && q.Cmp(*resource.NewQuantity(q.Value(), resource.BinarySI)) != 0 {
		p.invalid(path(), q.String(), "must be a whole number of bytes; the suffix m means a thousandth, M a million")
	}
}

// quantity checks an amount by the nature of its resource.
func (p *problems) quantity(name corev1.ResourceName, q resource.Quantity, path func() *field.Path) {
	if q.Sign() < 0 {
		p.invalid(path(), q.String(), "must be greater than or equal to 0")
	}
	if name == corev1.ResourceCPU || name == corev1.ResourceMemory {
		return
	}
	if (countedResources.Has(string(name)) || extendedResource(name)) && q.MilliValue()%1000 != 0 {
		p.invalid(path(), q, "must be an integer")
	}
}

// wholePages says that an amount of huge pages is one of whole pages.
func wholePages(name corev1.ResourceName, q resource.Quantity) bool {
	size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
	if err != nil || size.Sign() <= 0 || size.MilliValue()%1000 != 0 {
		return false
	}
	return q.Value()%size.Value() == 0
}

// resourceClaims checks a container's claims of devices against the pod's.
func (p *podCheck) resourceClaims(claims []corev1.ResourceClaim, at *field.Path) {
	seen := map[string]bool{}
	for i, c := range claims {
		at := at.Child("claims").Index(i)
		if c.Name == "" {
			p.required(at, "")
			continue
		}
		p.claimOnce(seen, c, at)
		if p.claims[c.Name] {
			continue
		}
		e := field.NotFound(at, c.Name)
		e.Detail = "must be one of the names in pod.spec.resourceClaims which is empty"
		if len(p.claims) > 0 {
			e.Detail = "must be one of the names in pod.spec.resourceClaims: " + strings.Join(sets.List(sets.KeySet(p.claims)), ", ")
		}
		p.found = append(p.found, e)
	}
}

// claimOnce refuses a claim that another covers: the whole claim and a request
// of it exclude each other.
func (p *podCheck) claimOnce(seen map[string]bool, c corev1.ResourceClaim, at *field.Path) {
	if seen[c.Name] {
		p.duplicate(at, c.Name)
		return
	}
	key := c.Name
	if c.Request != "" {
		p.check(validation.IsDNS1123Label, c.Request, at, "request")
		key += "/" + c.Request
	}
	switch {
	case seen[key]:
		p.duplicate(at, key)
	case c.Request == "":
		for other := range seen {
			if strings.HasPrefix(other, c.Name+"/") {
				p.duplicate(at, c.Name)
			}
		}
	}
	seen[key] = true
}

// podResources checks spec.resources, the budget that containers share.
func (p *podCheck) podResources() {
	r := p.spec.Resources
	if r == nil {
		return
	}
	at := p.at.Child("resources")
	if p.spec.OS != nil && p.spec.OS.Name == corev1.Windows {
		p.forbidden(at, "may not be set for a windows pod")
		return
	}
	if r.Claims != nil {
		p.forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	p.resources(r, at, podResourceName)
	sum := containersRequests(p.spec)
	for _, name := range sortedResources(sum) {
		have, want := r.Requests[name], sum[name]
		if _, ok := r.Requests[name]; ok && want.Cmp(have) > 0 {
			p.invalid(at.Child("requests").Key(string(name)), have.String(), fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", want.String()))
		}
	}
	sum = containersLimits(p.spec)
	for _, name := range sortedResources(sum) {
		have, want := r.Limits[name], sum[name]
		if _, ok := r.Limits[name]; ok && hugePages(name) && want.Cmp(have) > 0 {
			p.invalid(at.Child("limits").Key(string(name)), have.String(), fmt.Sprintf("must be greater than or equal to aggregate container limits of %s", want.String()))
		}
	}
	for i := range p.spec.Containers {
		limits := p.spec.Containers[i].Resources.Limits
		for _, name := range sortedResources(limits) {
			have, most := limits[name], r.Limits[name]
			if _, ok := r.Limits[name]; ok && have.Cmp(most) > 0 {
				// Kubernetes' path, odd as it is.
				p.invalid(at.Child("containers").Index(i).Key(string(name)).Child("limits"), have.String(), "must be less than or equal to pod limits of "+most.String())
			}
		}
	}
}

// containersRequests is what all containers ask for at once: the sum of those
// that run together, or what one init container needs before, if that is more.
func containersRequests(s *corev1.PodSpec) corev1.ResourceList {
	return containersTotal(s, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests })
}

// containersLimits is the like of containersRequests.
func containersLimits(s *corev1.PodSpec) corev1.ResourceList {
	return containersTotal(s, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits })
}

func containersTotal(s *corev1.PodSpec, of func(*corev1.Container) corev1.ResourceList) corev1.ResourceList {
	total, sidecars, most := corev1.ResourceList{}, corev1.ResourceList{}, corev1.ResourceList{}
	for i := range s.Containers {
		addResources(total, of(&s.Containers[i]))
	}
	for i := range s.InitContainers {
		c := &s.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			addResources(total, of(c))
			addResources(sidecars, of(c))
			maxResources(most, sidecars)
			continue
		}
		now := corev1.ResourceList{}
		addResources(now, of(c))
		addResources(now, sidecars)
		maxResources(most, now)
	}
	maxResources(total, most)
	return total
}

func addResources(to, more corev1.ResourceList) {
	for name, q := range more {
		sum := to[name].DeepCopy()
		sum.Add(q)
		to[name] = sum
	}
}

func maxResources(to, other corev1.ResourceList) {
	for name, q := range other {
		if have, ok := to[name]; !ok || q.Cmp(have) > 0 {
			to[name] = q.DeepCopy()
		}
	}
}
