package schemas

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	seccompTypes        = []corev1.SeccompProfileType{corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined}
	appArmorTypes       = []corev1.AppArmorProfileType{corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined}
	procMounts          = []corev1.ProcMountType{corev1.DefaultProcMount, corev1.UnmaskedProcMount}
	fsGroupChanges      = []corev1.PodFSGroupChangePolicy{corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch}
	supplementalGroups  = []corev1.SupplementalGroupsPolicy{corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict}
	seLinuxChanges      = []corev1.PodSELinuxChangePolicy{corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive}
	sysctlName          = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)
	maxSysctlName       = 253
	maxAppArmorProfile  = 4095 // a path's length in Linux
	seccompOfAnnotation = map[corev1.SeccompProfileType][]string{
		corev1.SeccompProfileTypeUnconfined:     {corev1.SeccompProfileNameUnconfined},
		corev1.SeccompProfileTypeRuntimeDefault: {corev1.SeccompProfileRuntimeDefault, corev1.DeprecatedSeccompProfileDockerDefault},
	}
)

// podSecurity checks spec.securityContext.
func (p *podCheck) podSecurity() {
	s := p.spec.SecurityContext
	if s == nil {
		return
	}
	at := p.at.Child("securityContext")
	p.id(validation.IsValidGroupID, s.FSGroup, at, "fsGroup")
	p.id(validation.IsValidUserID, s.RunAsUser, at, "runAsUser")
	p.id(validation.IsValidGroupID, s.RunAsGroup, at, "runAsGroup")
	for i, g := range s.SupplementalGroups {
		p.invalid(at.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g)...)
	}
	p.sysctls(s.Sysctls, at.Child("sysctls"))
	choosePtr(&p.problems, s.FSGroupChangePolicy, at, "fsGroupChangePolicy", fsGroupChanges)
	choosePtr(&p.problems, s.SupplementalGroupsPolicy, at, "supplementalGroupsPolicy", supplementalGroups)
	choosePtr(&p.problems, s.SELinuxChangePolicy, at, "seLinuxChangePolicy", seLinuxChanges)
	p.seccomp(s.SeccompProfile, at)
	p.appArmor(s.AppArmorProfile, at)
	p.windowsOptions(s.WindowsOptions, at)
}

// sysctls refuses those of a namespace that the pod shares with its node.
func (p *podCheck) sysctls(list []corev1.Sysctl, at *field.Path) {
	seen := map[string]bool{}
	for i, s := range list {
		at := at.Index(i).Child("name")
		switch {
		case s.Name == "":
			p.required(at, "")
		case len(s.Name) > maxSysctlName || !sysctlName.MatchString(s.Name):
			p.invalid(at, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", maxSysctlName,
				`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`))
		case seen[s.Name]:
			p.duplicate(at, s.Name)
		}
		seen[s.Name] = true
		switch namespace := sysctlNamespace(s.Name); {
		case namespace == "net" && p.spec.HostNetwork:
			p.invalid(at, s.Name, "may not be specified when 'hostNetwork' is true")
		case namespace == "ipc" && p.spec.HostIPC:
			p.invalid(at, s.Name, "may not be specified when 'hostIPC' is true")
		}
	}
}

// sysctlNamespace is the Linux namespace that a sysctl belongs to, or empty.
func sysctlNamespace(name string) string {
	// Either . or / parts the steps; the first of them says which does, and the
	// other is then part of a name.
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		name = strings.ReplaceAll(name, "/", ".")
	}
	name, _, _ = strings.Cut(name, "*")
	switch name {
	case "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.shm",
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.msg":
		return "ipc"
	}
	switch {
	case strings.HasPrefix(name, "net."):
		return "net"
	case strings.HasPrefix(name, "fs.mqueue."):
		return "ipc"
	}
	return ""
}

func (p *problems) seccomp(s *corev1.SeccompProfile, at *field.Path) {
	if s == nil {
		return
	}
	at = at.Child("seccompProfile")
	if s.Type == "" {
		p.required(at.Child("type"), "type is required when seccompProfile is set")
	} else {
		choose(p, s.Type, at, "type", seccompTypes)
	}
	switch local := s.Type == corev1.SeccompProfileTypeLocalhost; {
	case local && s.LocalhostProfile == nil:
		p.required(at.Child("localhostProfile"), "must be set when seccomp type is Localhost")
	case local:
		p.relativePath(*s.LocalhostProfile, at, "localhostProfile")
	case s.LocalhostProfile != nil:
		p.invalid(at.Child("localhostProfile"), s, "can only be set when seccomp type is Localhost")
	}
}

func (p *problems) appArmor(a *corev1.AppArmorProfile, at *field.Path) {
	if a == nil {
		return
	}
	at = at.Child("appArmorProfile")
	if a.Type == "" {
		p.required(at.Child("type"), "type is required when appArmorProfile is set")
		return
	}
	choose(p, a.Type, at, "type", appArmorTypes)
	name := at.Child("localhostProfile")
	switch a.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		switch {
		case a.LocalhostProfile == nil:
			p.required(name, "must be set when AppArmor type is Localhost")
			return
		case strings.TrimSpace(*a.LocalhostProfile) != *a.LocalhostProfile:
			p.invalid(name, *a.LocalhostProfile, "must not be padded with whitespace")
		case *a.LocalhostProfile == "":
			p.required(name, "must be set when AppArmor type is Localhost")
		}
		if len(*a.LocalhostProfile) > maxAppArmorProfile {
			p.tooLong(name, maxAppArmorProfile)
		}
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
		if a.LocalhostProfile != nil {
			p.invalid(name, *a.LocalhostProfile, "can only be set when AppArmor type is Localhost")
		}
	}
}

// security checks a container's securityContext.
func (p *podCheck) security(s *corev1.SecurityContext, at *field.Path) {
	if s == nil {
		return
	}
	at = at.Child("securityContext")
	p.id(validation.IsValidUserID, s.RunAsUser, at, "runAsUser")
	p.id(validation.IsValidGroupID, s.RunAsGroup, at, "runAsGroup")
	choosePtr(&p.problems, s.ProcMount, at, "procMount", procMounts)
	if s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount && p.usesHostUsers() {
		p.invalid(at.Child("procMount"), *s.ProcMount, "`hostUsers` must be false to use `Unmasked`")
	}
	p.seccomp(s.SeccompProfile, at)
	p.appArmor(s.AppArmorProfile, at)
	p.windowsOptions(s.WindowsOptions, at)
	if c := s.Capabilities; c != nil {
		p.capabilities(c.Add, at.Child("capabilities", "add"))
		p.capabilities(c.Drop, at.Child("capabilities", "drop"))
	}
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
		return
	}
	if s.Privileged != nil && *s.Privileged {
		p.invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
	}
	if s.Capabilities != nil {
		for _, c := range s.Capabilities.Add {
			// Kubernetes looks for the name with CAP_ alone, though both mean the same.
			if strings.TrimPrefix(string(c), "CAP_") == "SYS_ADMIN" {
				p.invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
			}
		}
	}
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

// capabilities refuses names that no kernel has; Kubernetes leaves it to the
// container's start to fail.
func (p *problems) capabilities(caps []corev1.Capability, at *field.Path) {
	for i, c := range caps {
		if !linuxCapabilities[strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")] {
			p.invalid(at.Index(i), c, "not a Linux capability")
		}
	}
}

// podAnnotations checks the annotations of a pod or a template that mean
// something to Kubernetes.
func (p *podCheck) podAnnotations(at *field.Path) {
	for key, value := range p.meta.Annotations {
		switch {
		case key == corev1.MirrorPodAnnotationKey && p.spec.NodeName == "":
			p.invalid(at.Key(key), value, "must set spec.nodeName if mirror pod annotation is set")
		case key == corev1.PodDeletionCost:
			if !deletionCost(value) {
				p.invalid(at.Key(key), value, "must be a 32bit integer")
			}
		case key == corev1.SeccompPodAnnotationKey || strings.HasPrefix(key, corev1.SeccompContainerAnnotationKeyPrefix):
			p.seccompAnnotation(value, at, key)
		case strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix):
			name := strings.TrimPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
			if !p.hasContainer(name) {
				p.invalid(at.Key(key), name, "container not found")
			}
			if value != "" && value != corev1.DeprecatedAppArmorBetaProfileRuntimeDefault && value != corev1.DeprecatedAppArmorBetaProfileNameUnconfined &&
				!strings.HasPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix) {
				p.invalid(at.Key(key), value, fmt.Sprintf("invalid AppArmor profile name: %q", value))
			}
		}
	}
}

func (p *podCheck) seccompAnnotation(value string, at *field.Path, key string) {
	switch value {
	case corev1.SeccompProfileRuntimeDefault, corev1.DeprecatedSeccompProfileDockerDefault, corev1.SeccompProfileNameUnconfined:
		return
	}
	profile, local := strings.CutPrefix(value, corev1.SeccompLocalhostProfileNamePrefix)
	if !local {
		p.invalid(at.Child(key), value, "must be a valid seccomp profile")
		return
	}
	p.relativePath(profile, at, key)
}

func (p *podCheck) hasContainer(name string) bool {
	found := false
	p.eachContainer(func(c *corev1.Container, _ func() *field.Path) { found = found || c.Name == name })
	return found
}

// eachContainer visits init, regular and ephemeral containers.
func (p *podCheck) eachContainer(visit func(c *corev1.Container, at func() *field.Path)) {
	eachContainer(p.spec, func(c *corev1.Container, list string, i int) {
		visit(c, func() *field.Path { return p.at.Child(list).Index(i) })
	})
}

// annotationsMatch refuses an old annotation for seccomp or AppArmor beside a
// field that says something else.
func (p *podCheck) annotationsMatch() {
	annotations := p.meta.Annotations
	if len(annotations) == 0 {
		return
	}
	var pod corev1.PodSecurityContext
	if p.spec.SecurityContext != nil {
		pod = *p.spec.SecurityContext
	}
	if value, ok := annotations[corev1.SeccompPodAnnotationKey]; ok {
		p.seccompMatches(value, pod.SeccompProfile, p.at.Child("securityContext", "seccompProfile"))
	}
	windows := p.spec.OS != nil && p.spec.OS.Name == corev1.Windows
	p.eachContainer(func(c *corev1.Container, at func() *field.Path) {
		var own corev1.SecurityContext
		if c.SecurityContext != nil {
			own = *c.SecurityContext
		}
		if value, ok := annotations[corev1.SeccompContainerAnnotationKeyPrefix+c.Name]; ok {
			p.seccompMatches(value, own.SeccompProfile, at().Child("securityContext", "seccompProfile"))
		}
		if own.AppArmorProfile == nil {
			own.AppArmorProfile = pod.AppArmorProfile
		}
		if value, ok := annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]; ok && !windows {
			p.appArmorMatches(value, own.AppArmorProfile, at().Child("securityContext", "appArmorProfile"))
		}
	})
}

func (p *podCheck) seccompMatches(annotation string, s *corev1.SeccompProfile, at *field.Path) {
	if s == nil {
		return
	}
	if s.Type == corev1.SeccompProfileTypeLocalhost {
		profile, local := strings.CutPrefix(annotation, corev1.SeccompLocalhostProfileNamePrefix)
		switch {
		case !local:
			p.forbidden(at.Child("type"), "seccomp type in annotation and field must match")
		case s.LocalhostProfile == nil || *s.LocalhostProfile != profile:
			p.forbidden(at.Child("localhostProfile"), "seccomp profile in annotation and field must match")
		}
		return
	}
	same, known := seccompOfAnnotation[s.Type]
	for _, v := range same {
		known = known && v != annotation
	}
	if known {
		p.forbidden(at.Child("type"), "seccomp type in annotation and field must match")
	}
}

func (p *podCheck) appArmorMatches(annotation string, a *corev1.AppArmorProfile, at *field.Path) {
	if a == nil {
		return
	}
	profile, local := strings.CutPrefix(annotation, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
	matches := true
	switch a.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		matches = annotation == corev1.DeprecatedAppArmorBetaProfileNameUnconfined
	case corev1.AppArmorProfileTypeRuntimeDefault:
		matches = annotation == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault
	case corev1.AppArmorProfileTypeLocalhost:
		matches = local
		if local && (a.LocalhostProfile == nil || *a.LocalhostProfile != profile) {
			p.forbidden(at.Child("localhostProfile"), "apparmor profile in annotation and field must match")
		}
	}
	if !matches {
		p.forbidden(at.Child("type"), "apparmor type in annotation and field must match")
	}
}

// relativePath takes a path below some directory, and no way out of it.
func (p *problems) relativePath(value string, at *field.Path, name string) {
	if path.IsAbs(value) {
		p.invalid(at.Child(name), value, "must be a relative path")
	}
	p.noBacksteps(value, at, name)
}

func (p *problems) noBacksteps(value string, at *field.Path, name string) {
	for step := range strings.SplitSeq(value, "/") {
		if step == ".." {
			p.invalid(at.Child(name), value, "must not contain '..'")
			return
		}
	}
}
