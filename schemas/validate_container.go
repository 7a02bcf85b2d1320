package schemas

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	pullPolicies        = []corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}
	messagePolicies     = []corev1.TerminationMessagePolicy{corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError}
	protocols           = []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}
	containerRestarts   = []corev1.ContainerRestartPolicy{corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure}
	restartRuleActions  = []corev1.ContainerRestartRuleAction{corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers}
	exitCodeOperators   = []corev1.ContainerRestartRuleOnExitCodesOperator{corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn}
	resizableResources  = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}
	resizeRestarts      = []corev1.ResourceResizeRestartPolicy{corev1.NotRequired, corev1.RestartContainer}
	namesOfDownwardEnv  = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	namesOfDownwardFile = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	downwardResources   = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}
	downwardDivisors    = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
)

// Limits of a container's restart rules.
const (
	maxRestartRules     = 20
	maxRestartExitCodes = 255
)

// containerSort is the list of the pod's spec that a container stands in.
type containerSort int

const (
	regular containerSort = iota
	initial
	ephemeral
)

// containers checks spec.containers.
func (p *podCheck) containers() {
	p.sort = regular
	at := p.at.Child("containers")
	if len(p.spec.Containers) == 0 {
		p.required(at, "")
		return
	}
	names := map[string]bool{}
	ports := map[string]bool{}
	for i := range p.spec.Containers {
		c, at := &p.spec.Containers[i], at.Index(i)
		p.container(c, at)
		if p.isPod {
			p.trimmedImage(c, at)
		}
		p.uniqueName(names, c.Name, at)
		p.lifecycle(c.Lifecycle, at)
		p.probes(c, at)
		p.restartRules(c, at)
		p.uniqueHostPorts(ports, c, at)
	}
}

func (p *podCheck) uniqueName(names map[string]bool, name string, at *field.Path) {
	if names[name] {
		p.duplicate(at.Child("name"), name)
	}
	names[name] = true
}

// initContainers checks spec.initContainers: those that restart always are
// sidecars, which may do what containers may.
func (p *podCheck) initContainers() {
	if len(p.spec.InitContainers) == 0 {
		return
	}
	p.sort = initial
	list := p.at.Child("initContainers")
	names := map[string]bool{}
	for i := range p.spec.Containers {
		names[p.spec.Containers[i].Name] = true
	}
	for i := range p.spec.InitContainers {
		c, at := &p.spec.InitContainers[i], list.Index(i)
		p.container(c, at)
		if p.isPod {
			p.trimmedImage(c, at)
		}
		p.restartRules(c, at)
		if c.Name == "" {
			if names[""] {
				p.duplicate(at.Child("name"), "")
			}
		} else {
			p.uniqueName(names, c.Name, at)
		}
		// One init container runs at a time, so each has the host's ports to
		// itself. Kubernetes counts from the list's first here, and so do we.
		p.uniqueHostPorts(map[string]bool{}, c, list.Index(0))
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			p.lifecycle(c.Lifecycle, at)
			p.probes(c, at)
			continue
		}
		const sidecarsOnly = "may not be set for init containers without restartPolicy=Always"
		for name, set := range map[string]bool{
			"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil,
			"readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil,
		} {
			if set {
				p.forbidden(at.Child(name), sidecarsOnly)
			}
		}
		for j, r := range c.ResizePolicy {
			if r.RestartPolicy == corev1.RestartContainer {
				p.invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), r.RestartPolicy, "must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
}

// ephemeralContainers checks spec.ephemeralContainers, which may join a
// running pod and share its fate.
func (p *podCheck) ephemeralContainers() {
	if len(p.spec.EphemeralContainers) == 0 {
		return
	}
	p.sort = ephemeral
	targets, names := map[string]bool{}, map[string]bool{}
	for _, list := range [][]corev1.Container{p.spec.InitContainers, p.spec.Containers} {
		for i := range list {
			targets[list[i].Name], names[list[i].Name] = true, true
		}
	}
	for i := range p.spec.EphemeralContainers {
		e, at := &p.spec.EphemeralContainers[i], p.at.Child("ephemeralContainers").Index(i)
		c := (*corev1.Container)(&e.EphemeralContainerCommon)
		p.container(c, at)
		p.trimmedImage(c, at)
		p.uniqueName(names, c.Name, at)
		if e.TargetContainerName != "" && !targets[e.TargetContainerName] {
			p.notFound(at.Child("targetContainerName"), e.TargetContainerName)
		}
		const notHere = "cannot be set for an Ephemeral Container"
		for name, set := range map[string]bool{
			"ports":     c.Ports != nil,
			"resources": c.Resources.Limits != nil || c.Resources.Requests != nil || c.Resources.Claims != nil,
			"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil,
			"readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil,
			"resizePolicy": c.ResizePolicy != nil, "restartPolicy": c.RestartPolicy != nil,
			"restartPolicyRules": c.RestartPolicyRules != nil,
		} {
			if set {
				p.forbidden(at.Child(name), notHere)
			}
		}
		for j, m := range c.VolumeMounts {
			at := at.Child("volumeMounts").Index(j)
			if m.SubPath != "" {
				p.forbidden(at.Child("subPath"), notHere)
			}
			if m.SubPathExpr != "" {
				p.forbidden(at.Child("subPathExpr"), notHere)
			}
		}
	}
}

// container checks what containers of all sorts have.
func (p *podCheck) container(c *corev1.Container, at *field.Path) {
	p.checkRequired(validation.IsDNS1123Label, c.Name, at, "name")
	p.given(c.Image, at, "image")
	chooseRequired(&p.problems, c.TerminationMessagePolicy, at, "terminationMessagePolicy", messagePolicies)
	if f := c.TerminationMessagePath; f != "" && !path.IsAbs(f) {
		p.invalid(at.Child("terminationMessagePath"), f, "must be an absolute path")
	}
	p.ports(c.Ports, at)
	for i := range c.Env {
		p.env(&c.Env[i], at, i)
	}
	p.envFrom(c.EnvFrom, at)
	p.mounts(c, at)
	p.devices(c, at)
	chooseRequired(&p.problems, c.ImagePullPolicy, at, "imagePullPolicy", pullPolicies)
	p.resources(&c.Resources, at.Child("resources"), containerResourceName)
	p.resizePolicy(c.ResizePolicy, at)
	p.security(c.SecurityContext, at)
}

// trimmedImage is a rule for pods alone: templates with it are stored already.
func (p *podCheck) trimmedImage(c *corev1.Container, at *field.Path) {
	if strings.TrimSpace(c.Image) != c.Image {
		p.invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace")
	}
}

func (p *podCheck) ports(ports []corev1.ContainerPort, at *field.Path) {
	if len(ports) == 0 {
		return
	}
	at = at.Child("ports")
	names, seen := map[string]bool{}, map[containerPort]bool{}
	for i := range ports {
		port, at := &ports[i], at.Index(i)
		if port.Name != "" {
			switch messages := validation.IsValidPortName(port.Name); {
			case len(messages) > 0:
				p.invalid(at.Child("name"), port.Name, messages...)
			case names[port.Name]:
				p.duplicate(at.Child("name"), port.Name)
			}
			names[port.Name] = true
		}
		if port.ContainerPort == 0 {
			p.required(at.Child("containerPort"), "")
		} else {
			p.portNumber(port.ContainerPort, at, "containerPort")
		}
		if port.HostPort != 0 {
			p.portNumber(port.HostPort, at, "hostPort")
		}
		if p.spec.HostNetwork && port.HostPort != port.ContainerPort && (p.isPod || port.HostPort != 0) && p.sort == regular {
			p.invalid(at.Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true")
		}
		chooseRequired(&p.problems, port.Protocol, at, "protocol", protocols)
		// Kubernetes warns of a port listed twice; here it is an error, because
		// the merge of a later apply could not tell the two apart.
		key := containerPort{port.ContainerPort, port.Protocol}
		if seen[key] {
			p.duplicate(at, fmt.Sprintf("%d/%s", port.ContainerPort, port.Protocol))
		}
		seen[key] = true
	}
}

type containerPort struct {
	number   int32
	protocol corev1.Protocol
}

func (p *problems) portNumber(n int32, at *field.Path, name string) {
	if messages := validation.IsValidPortNum(int(n)); len(messages) > 0 {
		p.invalid(at.Child(name), n, messages...)
	}
}

func (p *podCheck) uniqueHostPorts(seen map[string]bool, c *corev1.Container, at *field.Path) {
	for i := range c.Ports {
		port := &c.Ports[i]
		if port.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
		if seen[key] {
			p.duplicate(at.Child("ports").Index(i).Child("hostPort"), key)
		}
		seen[key] = true
	}
}

func (p *podCheck) env(e *corev1.EnvVar, container *field.Path, i int) {
	at := func() *field.Path { return container.Child("env").Index(i) }
	if e.Name == "" {
		p.required(at().Child("name"), "")
	} else if messages := validation.IsRelaxedEnvVarName(e.Name); len(messages) > 0 {
		p.invalid(at().Child("name"), e.Name, messages...)
	}
	// No process can have it, so the container could never start.
	if strings.ContainsRune(e.Value, 0) {
		p.invalid(at().Child("value"), e.Value, "must not contain NUL")
	}
	if e.ValueFrom != nil {
		p.envSource(e, at().Child("valueFrom"))
	}
}

func (p *podCheck) envSource(e *corev1.EnvVar, at *field.Path) {
	from, given := e.ValueFrom, 0
	if r := from.FieldRef; r != nil {
		given++
		p.fieldRef(r, namesOfDownwardEnv, at.Child("fieldRef"))
	}
	if r := from.ResourceFieldRef; r != nil {
		given++
		p.resourceFieldRef(r, false, at.Child("resourceFieldRef"))
	}
	if r := from.ConfigMapKeyRef; r != nil {
		given++
		p.keyRef(r.Name, r.Key, at.Child("configMapKeyRef"))
	}
	if r := from.SecretKeyRef; r != nil {
		given++
		p.keyRef(r.Name, r.Key, at.Child("secretKeyRef"))
	}
	if r := from.FileKeyRef; r != nil {
		given++
		p.fileKeyRef(r, at.Child("fileKeyRef"))
	}
	switch {
	case given == 0:
		p.invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case e.Value != "":
		p.invalid(at, "", "may not be specified when `value` is not empty")
	case given > 1:
		p.invalid(at, "", "may not have more than one field specified at a time")
	}
}

func (p *problems) keyRef(name, key string, at *field.Path) {
	p.check(dnsSubdomain, name, at, "name")
	p.checkRequired(validation.IsConfigMapKey, key, at, "key")
}

// fileKeyRef checks the reference to a variable in a file, and that its volume
// is an empty directory of this pod.
func (p *podCheck) fileKeyRef(r *corev1.FileKeySelector, at *field.Path) {
	p.checkRequired(validation.IsRelaxedEnvVarName, r.Key, at, "key")
	p.checkRequired(validation.IsDNS1123Label, r.VolumeName, at, "volumeName")
	if r.Path == "" {
		p.required(at.Child("path"), "")
	} else {
		p.noBacksteps(r.Path, at, "path")
	}
	var found *corev1.Volume
	for i := range p.spec.Volumes {
		if p.spec.Volumes[i].Name == r.VolumeName {
			found = &p.spec.Volumes[i]
		}
	}
	switch {
	case found == nil:
		p.notFound(at.Child("volumeName"), r.VolumeName)
	case found.EmptyDir == nil:
		p.invalid(at.Child("volumeName"), r.VolumeName, "referenced volume must be of type emptyDir")
	}
}

// downwardFields are what a fieldRef may name before the place decides which
// of them it takes.
var downwardFields = map[string]bool{
	"metadata.annotations": true, "metadata.labels": true, "metadata.name": true, "metadata.namespace": true, "metadata.uid": true,
	"spec.nodeName": true, "spec.restartPolicy": true, "spec.serviceAccountName": true, "spec.schedulerName": true,
	"status.phase": true, "status.hostIP": true, "status.hostIPs": true, "status.podIP": true, "status.podIPs": true,
}

func (p *problems) fieldRef(r *corev1.ObjectFieldSelector, valid []string, at *field.Path) {
	if r.APIVersion == "" {
		p.required(at.Child("apiVersion"), "")
		return
	}
	if r.FieldPath == "" {
		p.required(at.Child("fieldPath"), "")
		return
	}
	name, key, keyed := subscript(r.FieldPath)
	problem := ""
	switch {
	case r.APIVersion != "v1":
		problem = "unsupported pod version: " + r.APIVersion
	case keyed && name != "metadata.annotations" && name != "metadata.labels":
		problem = "field label does not support subscript: " + r.FieldPath
	case !keyed && r.FieldPath == "spec.host":
		name = "spec.nodeName" // the name that early clients know it by
	case !keyed && !downwardFields[r.FieldPath]:
		problem = "field label not supported: " + r.FieldPath
	}
	switch {
	case problem != "":
		p.invalid(at.Child("fieldPath"), r.FieldPath, "error converting fieldPath: "+problem)
	case keyed && name == "metadata.annotations":
		p.invalid(at, key, validation.IsQualifiedName(strings.ToLower(key))...)
	case keyed:
		p.invalid(at, key, validation.IsQualifiedName(key)...)
	default:
		choose(p, name, at, "fieldPath", valid)
	}
}

// subscript takes metadata.labels['key'] apart.
func subscript(fieldPath string) (name, key string, ok bool) {
	rest, ok := strings.CutSuffix(fieldPath, "']")
	if !ok {
		return fieldPath, "", false
	}
	name, key, ok = strings.Cut(rest, "['")
	if !ok || name == "" {
		return fieldPath, "", false
	}
	return name, key, true
}

func (p *problems) resourceFieldRef(r *corev1.ResourceFieldSelector, inFile bool, at *field.Path) {
	huge := strings.HasPrefix(r.Resource, "requests.hugepages-") || strings.HasPrefix(r.Resource, "limits.hugepages-")
	switch {
	case inFile && r.ContainerName == "":
		p.required(at.Child("containerName"), "")
	case r.Resource == "":
		p.required(at.Child("resource"), "")
	case !huge:
		choose(p, r.Resource, at, "resource", downwardResources)
	}
	if !r.Divisor.IsZero() {
		p.divisor(r, huge, at.Child("divisor"))
	}
}

// divisor checks the unit that an amount is given in.
func (p *problems) divisor(r *corev1.ResourceFieldSelector, huge bool, at *field.Path) {
	valid, list := downwardDivisors, strings.Join(downwardDivisors, ", ")
	var of string
	switch r.Resource {
	case "limits.cpu", "requests.cpu":
		valid, list, of = []string{"1m", "1"}, "1m and 1", "cpu"
	case "limits.memory", "requests.memory":
		of = "memory"
	case "limits.ephemeral-storage", "requests.ephemeral-storage":
		of = "local ephemeral storage"
	default:
		if !huge {
			return // refused for its resource
		}
		of = "hugepages"
	}
	if !slices.Contains(valid, r.Divisor.String()) {
		p.invalid(at, r.Resource, fmt.Sprintf("only divisor's values %s are supported with the %s resource", list, of))
	}
}

func (p *podCheck) envFrom(sources []corev1.EnvFromSource, container *field.Path) {
	if len(sources) == 0 {
		return
	}
	list := container.Child("envFrom")
	for i := range sources {
		s, at, given := &sources[i], list.Index(i), 0
		if s.Prefix != "" {
			p.check(validation.IsRelaxedEnvVarName, s.Prefix, at, "prefix")
		}
		if r := s.ConfigMapRef; r != nil {
			given++
			p.checkRequired(dnsSubdomainPrefix, r.Name, at.Child("configMapRef"), "name")
		}
		if r := s.SecretRef; r != nil {
			given++
			p.checkRequired(dnsSubdomainPrefix, r.Name, at.Child("secretRef"), "name")
		}
		switch {
		case given == 0:
			p.invalid(list, "", "must specify one of: `configMapRef` or `secretRef`")
		case given > 1:
			p.invalid(list, "", "may not have more than one field specified at a time")
		}
	}
}

func (p *podCheck) resizePolicy(policies []corev1.ContainerResizePolicy, container *field.Path) {
	if len(policies) == 0 {
		return
	}
	at := container.Child("resizePolicy")
	seen := map[corev1.ResourceName]bool{}
	for i, r := range policies {
		if seen[r.ResourceName] {
			p.duplicate(at.Index(i), r.ResourceName)
		}
		seen[r.ResourceName] = true
		// The list's own path, as in Kubernetes.
		chooseRequired(&p.problems, r.ResourceName, container, "resizePolicy", resizableResources)
		chooseRequired(&p.problems, r.RestartPolicy, container, "resizePolicy", resizeRestarts)
		if p.spec.RestartPolicy == corev1.RestartPolicyNever && r.RestartPolicy != corev1.NotRequired {
			p.invalid(at, r.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
}

func (p *podCheck) restartRules(c *corev1.Container, at *field.Path) {
	switch {
	case c.RestartPolicy != nil:
		choose(&p.problems, *c.RestartPolicy, at, "restartPolicy", containerRestarts)
	case len(c.RestartPolicyRules) > 0:
		p.required(at.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		if p.sort == initial {
			return
		}
	}
	if n := len(c.RestartPolicyRules); n > maxRestartRules {
		p.tooMany(at.Child("restartPolicyRules"), n, maxRestartRules)
	}
	for i, r := range c.RestartPolicyRules {
		at := at.Child("restartPolicyRules").Index(i)
		choose(&p.problems, r.Action, at, "action", restartRuleActions)
		if r.ExitCodes == nil {
			p.required(at.Child("exitCodes"), "must be specified")
			continue
		}
		at = at.Child("exitCodes")
		choose(&p.problems, r.ExitCodes.Operator, at, "operator", exitCodeOperators)
		if n := len(r.ExitCodes.Values); n > maxRestartExitCodes {
			p.tooMany(at.Child("values"), n, maxRestartExitCodes)
		}
	}
}

func dnsSubdomain(name string) []string { return apivalidation.NameIsDNSSubdomain(name, false) }

// dnsSubdomainPrefix takes what may become a name once more is appended.
func dnsSubdomainPrefix(name string) []string { return apivalidation.NameIsDNSSubdomain(name, true) }
