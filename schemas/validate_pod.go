package schemas

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// oneOf refuses a value outside an enumeration; empty means not given.
func oneOf[T ~string](v T, at *field.Path, valid ...T) field.ErrorList {
	if v == "" {
		return nil
	}
	for _, ok := range valid {
		if v == ok {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(at, v, valid)}
}

// invalid makes one error of each message.
func invalid(at *field.Path, value any, messages []string) field.ErrorList {
	var errs field.ErrorList
	for _, m := range messages {
		errs = append(errs, field.Invalid(at, value, m))
	}
	return errs
}

func validatePodSpec(s *corev1.PodSpec, at *field.Path) field.ErrorList {
	errs := oneOf(s.RestartPolicy, at.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	errs = append(errs, oneOf(s.DNSPolicy, at.Child("dnsPolicy"), corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		errs = append(errs, field.Invalid(at.Child("terminationGracePeriodSeconds"), *g, "must be greater than or equal to 0"))
	}
	if d := s.ActiveDeadlineSeconds; d != nil && *d < 1 {
		errs = append(errs, field.Invalid(at.Child("activeDeadlineSeconds"), *d, "must be greater than or equal to 1"))
	}
	errs = append(errs, metavalidation.ValidateLabels(s.NodeSelector, at.Child("nodeSelector"))...)
	if s.NodeName != "" {
		errs = append(errs, invalid(at.Child("nodeName"), s.NodeName, validation.IsDNS1123Subdomain(s.NodeName))...)
	}
	if s.Hostname != "" {
		errs = append(errs, invalid(at.Child("hostname"), s.Hostname, validation.IsDNS1123Label(s.Hostname))...)
	}
	if s.ServiceAccountName != "" {
		errs = append(errs, invalid(at.Child("serviceAccountName"), s.ServiceAccountName, validation.IsDNS1123Subdomain(s.ServiceAccountName))...)
	}
	errs = append(errs, validatePodSecurity(s.SecurityContext, at.Child("securityContext"))...)
	errs = append(errs, validateTolerations(s.Tolerations, at.Child("tolerations"))...)

	at = at.Child("containers")
	if len(s.Containers) == 0 {
		return append(errs, field.Required(at, ""))
	}
	names := map[string]bool{}
	hostPorts := map[string]bool{}
	for i := range s.Containers {
		c := &s.Containers[i]
		if names[c.Name] && c.Name != "" {
			errs = append(errs, field.Duplicate(at.Index(i).Child("name"), c.Name))
		}
		names[c.Name] = true
		errs = append(errs, validateContainer(c, s.HostNetwork, hostPorts, at.Index(i))...)
	}
	return append(errs, validatePodPortNames(s.Containers, at)...)
}

// validatePodPortNames refuses one name for two ports of a pod: a Service that
// targets it could mean either. Kubernetes refuses it within a container only,
// and picks the first otherwise.
func validatePodPortNames(containers []corev1.Container, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, c := range containers {
		names := map[string]bool{}
		for j, p := range c.Ports {
			if p.Name == "" {
				continue
			}
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Index(i).Child("ports").Index(j).Child("name"), p.Name))
			}
			names[p.Name] = true
		}
	}
	return errs
}

func validateContainer(c *corev1.Container, hostNetwork bool, hostPorts map[string]bool, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	} else {
		errs = append(errs, invalid(at.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
	}
	switch {
	case c.Image == "":
		errs = append(errs, field.Required(at.Child("image"), ""))
	case strings.TrimSpace(c.Image) != c.Image:
		errs = append(errs, field.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	errs = append(errs, oneOf(c.ImagePullPolicy, at.Child("imagePullPolicy"), corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, oneOf(c.TerminationMessagePolicy, at.Child("terminationMessagePolicy"), corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	for i, e := range c.Env {
		errs = append(errs, validateEnv(&e, at.Child("env").Index(i))...)
	}
	errs = append(errs, validateContainerPorts(c.Ports, hostNetwork, hostPorts, at.Child("ports"))...)
	errs = append(errs, validateResources(&c.Resources, at.Child("resources"))...)
	errs = append(errs, validateProbe(c.ReadinessProbe, c, at.Child("readinessProbe"))...)
	if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(at.Child("readinessProbe", "terminationGracePeriodSeconds"), *p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	errs = append(errs, validateProbe(c.LivenessProbe, c, at.Child("livenessProbe"))...)
	errs = append(errs, validateProbe(c.StartupProbe, c, at.Child("startupProbe"))...)
	errs = append(errs, mustSucceedOnce(c.LivenessProbe, at.Child("livenessProbe"))...)
	errs = append(errs, mustSucceedOnce(c.StartupProbe, at.Child("startupProbe"))...)
	if p := c.TerminationMessagePath; p != "" && !path.IsAbs(p) {
		errs = append(errs, field.Invalid(at.Child("terminationMessagePath"), p, "must be an absolute path"))
	}
	return append(errs, validateSecurity(c.SecurityContext, at.Child("securityContext"))...)
}

func mustSucceedOnce(p *corev1.Probe, at *field.Path) field.ErrorList {
	if p == nil || p.SuccessThreshold == 1 {
		return nil
	}
	return field.ErrorList{field.Invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1")}
}

func validateEnv(e *corev1.EnvVar, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if e.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	} else {
		errs = append(errs, invalid(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
	}
	if strings.ContainsRune(e.Value, 0) {
		errs = append(errs, field.Invalid(at.Child("value"), e.Value, "must not contain NUL"))
	}
	from := e.ValueFrom
	if from == nil {
		return errs
	}
	at = at.Child("valueFrom")
	given := 0
	for _, set := range []bool{from.FieldRef != nil, from.ResourceFieldRef != nil, from.ConfigMapKeyRef != nil, from.SecretKeyRef != nil, from.FileKeyRef != nil} {
		if set {
			given++
		}
	}
	switch {
	case given == 0:
		errs = append(errs, field.Invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case given > 1:
		errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
	}
	if e.Value != "" {
		errs = append(errs, field.Invalid(at, "", "may not be specified when `value` is not empty"))
	}
	if r := from.FieldRef; r != nil && r.FieldPath == "" {
		errs = append(errs, field.Required(at.Child("fieldRef", "fieldPath"), ""))
	}
	return errs
}

func validateContainerPorts(ports []corev1.ContainerPort, hostNetwork bool, hostPorts map[string]bool, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, p := range ports {
		at := at.Index(i)
		if p.Name != "" {
			errs = append(errs, invalid(at.Child("name"), p.Name, validation.IsValidPortName(p.Name))...)
		}
		if p.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, invalid(at.Child("containerPort"), p.ContainerPort, validation.IsValidPortNum(int(p.ContainerPort)))...)
		}
		errs = append(errs, oneOf(p.Protocol, at.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		// Kubernetes warns of a port listed twice; here it is an error, because
		// the merge of a later apply could not tell the two apart.
		key := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		if seen[key] {
			errs = append(errs, field.Duplicate(at, key))
		}
		seen[key] = true
		if p.HostPort == 0 {
			continue
		}
		errs = append(errs, invalid(at.Child("hostPort"), p.HostPort, validation.IsValidPortNum(int(p.HostPort)))...)
		if hostNetwork && p.HostPort != p.ContainerPort {
			errs = append(errs, field.Invalid(at.Child("hostPort"), p.HostPort, "must match `containerPort` when `hostNetwork` is true"))
		}
		host := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if hostPorts[host] {
			errs = append(errs, field.Duplicate(at.Child("hostPort"), host))
		}
		hostPorts[host] = true
	}
	return errs
}

func validateResources(r *corev1.ResourceRequirements, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, name := range sortedResources(r.Limits) {
		q := r.Limits[name]
		errs = append(errs, validateQuantity(name, q, at.Child("limits").Key(string(name)))...)
	}
	for _, name := range sortedResources(r.Requests) {
		q := r.Requests[name]
		at := at.Child("requests").Key(string(name))
		errs = append(errs, validateQuantity(name, q, at)...)
		if limit, ok := r.Limits[name]; ok && q.Cmp(limit) > 0 {
			errs = append(errs, field.Invalid(at, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		}
	}
	return errs
}

func validateQuantity(name corev1.ResourceName, q resource.Quantity, at *field.Path) field.ErrorList {
	if q.Sign() < 0 {
		return field.ErrorList{field.Invalid(at, q.String(), "must be greater than or equal to 0")}
	}
	switch name {
	case corev1.ResourceCPU:
		return nil
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		// Kubernetes rounds "500m" of memory up to a byte; nobody means that.
		// "0.1Gi", which is no whole number either, is rounded as there.
		if q.Value() < 1<<20 && q.Cmp(*resource.NewQuantity(q.Value(), resource.BinarySI)) != 0 {
			return field.ErrorList{field.Invalid(at, q.String(), "must be a whole number of bytes; the suffix m means a thousandth, M a million")}
		}
		return nil
	}
	return invalid(at, string(name), resourceNameProblems(name))
}

func resourceNameProblems(name corev1.ResourceName) []string {
	if !strings.Contains(string(name), "/") && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
		return []string{"must be a standard resource type (cpu, memory, ephemeral-storage) or fully qualified"}
	}
	return validation.IsQualifiedName(string(name))
}

func validateProbe(p *corev1.Probe, c *corev1.Container, at *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	var errs field.ErrorList
	errs = append(errs, nonNegative(int64(p.InitialDelaySeconds), at.Child("initialDelaySeconds"))...)
	errs = append(errs, nonNegative(int64(p.TimeoutSeconds), at.Child("timeoutSeconds"))...)
	errs = append(errs, nonNegative(int64(p.PeriodSeconds), at.Child("periodSeconds"))...)
	errs = append(errs, nonNegative(int64(p.SuccessThreshold), at.Child("successThreshold"))...)
	errs = append(errs, nonNegative(int64(p.FailureThreshold), at.Child("failureThreshold"))...)
	handlers := 0
	if p.Exec != nil {
		handlers++
		if len(p.Exec.Command) == 0 {
			errs = append(errs, field.Required(at.Child("exec", "command"), ""))
		}
	}
	if h := p.HTTPGet; h != nil {
		handlers++
		at := at.Child("httpGet")
		if h.Path == "" {
			errs = append(errs, field.Required(at.Child("path"), ""))
		}
		errs = append(errs, validateProbePort(h.Port, c, at.Child("port"))...)
		errs = append(errs, oneOf(h.Scheme, at.Child("scheme"), corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for i, header := range h.HTTPHeaders {
			errs = append(errs, invalid(at.Child("httpHeaders").Index(i).Child("name"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
		}
	}
	if t := p.TCPSocket; t != nil {
		handlers++
		errs = append(errs, validateProbePort(t.Port, c, at.Child("tcpSocket", "port"))...)
	}
	if g := p.GRPC; g != nil {
		handlers++
		errs = append(errs, invalid(at.Child("grpc", "port"), g.Port, validation.IsValidPortNum(int(g.Port)))...)
	}
	switch {
	case handlers == 0:
		errs = append(errs, field.Required(at, "must specify a handler type: httpGet, tcpSocket or exec"))
	case handlers > 1:
		errs = append(errs, field.Forbidden(at, "may not specify more than 1 handler type"))
	}
	return errs
}

// validateProbePort checks a number's range and a name's syntax, and that the
// container has a port of that name: Kubernetes lets the probe fail for ever.
func validateProbePort(port intstr.IntOrString, c *corev1.Container, at *field.Path) field.ErrorList {
	if port.Type == intstr.Int {
		return invalid(at, port.IntVal, validation.IsValidPortNum(int(port.IntVal)))
	}
	if errs := invalid(at, port.StrVal, validation.IsValidPortName(port.StrVal)); len(errs) > 0 {
		return errs
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return nil
		}
	}
	return field.ErrorList{field.Invalid(at, port.StrVal, "the container has no port of this name")}
}

func validatePodSecurity(s *corev1.PodSecurityContext, at *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := validateIDs(s.RunAsUser, s.RunAsGroup, at)
	for i, g := range s.SupplementalGroups {
		errs = append(errs, invalid(at.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))...)
	}
	return append(errs, validateSeccomp(s.SeccompProfile, at.Child("seccompProfile"))...)
}

func validateIDs(user, group *int64, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if user != nil {
		errs = append(errs, invalid(at.Child("runAsUser"), *user, validation.IsValidUserID(*user))...)
	}
	if group != nil {
		errs = append(errs, invalid(at.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))...)
	}
	return errs
}

func validateSeccomp(p *corev1.SeccompProfile, at *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	if p.Type == "" {
		return field.ErrorList{field.Required(at.Child("type"), "type is required when seccompProfile is set")}
	}
	return oneOf(p.Type, at.Child("type"), corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
}

func validateSecurity(s *corev1.SecurityContext, at *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := validateIDs(s.RunAsUser, s.RunAsGroup, at)
	errs = append(errs, validateSeccomp(s.SeccompProfile, at.Child("seccompProfile"))...)
	if s.Capabilities != nil {
		errs = append(errs, validateCapabilities(s.Capabilities.Add, at.Child("capabilities", "add"))...)
		errs = append(errs, validateCapabilities(s.Capabilities.Drop, at.Child("capabilities", "drop"))...)
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if s.Privileged != nil && *s.Privileged {
			errs = append(errs, field.Invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if s.Capabilities != nil {
			for _, c := range s.Capabilities.Add {
				if strings.TrimPrefix(string(c), "CAP_") == "SYS_ADMIN" {
					errs = append(errs, field.Invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
				}
			}
		}
	}
	return errs
}

// linuxCapabilities are all that the kernel knows, without CAP_.
var linuxCapabilities = func() map[string]bool {
	m := map[string]bool{"ALL": true}
	for _, c := range strings.Fields(`AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN
		DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE
		MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYS_ADMIN SYS_BOOT
		SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM`) {
		m[c] = true
	}
	return m
}()

// validateCapabilities refuses names that no kernel has; Kubernetes leaves it
// to the container's start to fail.
func validateCapabilities(caps []corev1.Capability, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, c := range caps {
		if !linuxCapabilities[strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")] {
			errs = append(errs, field.Invalid(at.Index(i), c, "not a Linux capability"))
		}
	}
	return errs
}

func validateTolerations(ts []corev1.Toleration, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, t := range ts {
		at := at.Index(i)
		if t.Key != "" {
			errs = append(errs, metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
		}
		if t.Key == "" && t.Operator != corev1.TolerationOpExists {
			errs = append(errs, field.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		if t.Operator == corev1.TolerationOpExists && t.Value != "" {
			errs = append(errs, field.Invalid(at.Child("operator"), t.Operator, "value must be empty when `operator` is 'Exists'"))
		}
		errs = append(errs, oneOf(t.Effect, at.Child("effect"), corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
	}
	return errs
}
