package schemas

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of what Windows takes for a user.
const (
	maxCredentialSpec = 64 << 10
	maxWindowsDomain  = 256
	maxWindowsUser    = 104
)

var (
	controlCharacters = regexp.MustCompile(`[[:cntrl:]]`)
	netBIOSName       = regexp.MustCompile(`^[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}$`)
	windowsDNSName    = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
)

// windowsOptions checks what a securityContext says for Windows.
func (p *problems) windowsOptions(w *corev1.WindowsSecurityContextOptions, at *field.Path) {
	if w == nil {
		return
	}
	at = at.Child("windowsOptions")
	if n := w.GMSACredentialSpecName; n != nil {
		p.check(validation.IsDNS1123Subdomain, *n, at, "gmsaCredentialSpecName")
	}
	if s := w.GMSACredentialSpec; s != nil {
		switch {
		case *s == "":
			p.invalid(at.Child("gmsaCredentialSpec"), *s, "gmsaCredentialSpec cannot be an empty string")
		case len(*s) > maxCredentialSpec:
			p.invalid(at.Child("gmsaCredentialSpec"), *s, fmt.Sprintf("gmsaCredentialSpec size must be under %d KiB", maxCredentialSpec>>10))
		}
	}
	if u := w.RunAsUserName; u != nil {
		p.invalid(at.Child("runAsUserName"), *u, windowsUserProblems(*u)...)
	}
}

// windowsUserProblems says what is wrong with a user's name, with or without a
// domain before it.
func windowsUserProblems(name string) []string {
	const field = "runAsUserName"
	switch {
	case name == "":
		return []string{field + " cannot be an empty string"}
	case controlCharacters.MatchString(name):
		return []string{field + " cannot contain control characters"}
	case strings.Count(name, `\`) > 1:
		return []string{field + " cannot contain more than one backslash"}
	}
	domain, user, hasDomain := strings.Cut(name, `\`)
	if !hasDomain {
		domain, user = "", name
	}
	var out []string
	if len(domain) >= maxWindowsDomain {
		out = append(out, fmt.Sprintf("%s's Domain length must be under %d characters", field, maxWindowsDomain))
	}
	if hasDomain && !netBIOSName.MatchString(domain) && !windowsDNSName.MatchString(domain) {
		out = append(out, field+"'s Domain doesn't match the NetBios nor the DNS format")
	}
	switch {
	case user == "":
		out = append(out, field+"'s User cannot be empty")
	case len(user) > maxWindowsUser:
		out = append(out, fmt.Sprintf("%s's User length must not be longer than %d characters", field, maxWindowsUser))
	}
	if user != "" && strings.Trim(user, ". ") == "" {
		out = append(out, field+"'s User cannot contain only periods or spaces")
	}
	if strings.ContainsAny(user, `"/\:;|=,+*?<>@[]`) {
		out = append(out, field+`'s User cannot contain the following characters: "/\:;|=,+*?<>@[]`)
	}
	return out
}

// hostProcesses checks that a pod's containers are processes of a Windows host
// all or none.
func (p *podCheck) hostProcesses() {
	var pod *bool
	if s := p.spec.SecurityContext; s != nil && s.WindowsOptions != nil {
		pod = s.WindowsOptions.HostProcess
	}
	all, host := 0, 0
	p.eachContainer(func(c *corev1.Container, at func() *field.Path) {
		all++
		own := pod
		if s := c.SecurityContext; s != nil && s.WindowsOptions != nil && s.WindowsOptions.HostProcess != nil {
			own = s.WindowsOptions.HostProcess
			if pod != nil && *pod != *own {
				p.invalid(at().Child("securityContext", "windowsOptions", "hostProcess"), *own,
					fmt.Sprintf("pod hostProcess value must be identical if both are specified, was %v", *pod))
			}
		}
		if own != nil && *own {
			host++
		}
	})
	if host == 0 {
		return
	}
	if host != all {
		p.invalid(p.at, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers")
	}
	if !p.spec.HostNetwork {
		p.invalid(p.at.Child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers")
	}
}

var operatingSystems = []corev1.OSName{corev1.Linux, corev1.Windows}

// os checks spec.os, and that nothing is set that only another system knows.
func (p *podCheck) os() {
	if p.spec.OS == nil {
		return
	}
	switch p.spec.OS.Name {
	case "":
		p.required(p.at.Child("os", "name"), "")
	case corev1.Linux:
		p.linuxOnly()
	case corev1.Windows:
		p.windowsOnly()
	default:
		choose(&p.problems, p.spec.OS.Name, p.at, "os", operatingSystems)
	}
}

func (p *podCheck) linuxOnly() {
	const why = "windows options cannot be set for a linux pod"
	if s := p.spec.SecurityContext; s != nil && s.WindowsOptions != nil {
		p.forbidden(p.at.Child("securityContext", "windowsOptions"), why)
	}
	p.eachContainer(func(c *corev1.Container, at func() *field.Path) {
		if s := c.SecurityContext; s != nil && s.WindowsOptions != nil {
			p.forbidden(at().Child("securityContext", "windowsOptions"), why)
		}
	})
}

func (p *podCheck) windowsOnly() {
	refuse := func(at *field.Path, set map[string]bool) {
		for name, is := range set {
			if is {
				p.forbidden(at.Child(name), "cannot be set for a windows pod")
			}
		}
	}
	if s := p.spec.SecurityContext; s != nil {
		refuse(p.at.Child("securityContext"), map[string]bool{
			"appArmorProfile": s.AppArmorProfile != nil, "seLinuxOptions": s.SELinuxOptions != nil, "seccompProfile": s.SeccompProfile != nil,
			"fsGroup": s.FSGroup != nil, "fsGroupChangePolicy": s.FSGroupChangePolicy != nil, "sysctls": len(s.Sysctls) > 0,
			"runAsUser": s.RunAsUser != nil, "runAsGroup": s.RunAsGroup != nil, "supplementalGroups": s.SupplementalGroups != nil,
			"supplementalGroupsPolicy": s.SupplementalGroupsPolicy != nil, "seLinuxChangePolicy": s.SELinuxChangePolicy != nil,
		})
	}
	refuse(p.at, map[string]bool{
		"hostUsers": p.spec.HostUsers != nil, "hostPID": p.spec.HostPID, "hostIPC": p.spec.HostIPC,
		"shareProcessNamespace": p.spec.ShareProcessNamespace != nil,
	})
	p.eachContainer(func(c *corev1.Container, at func() *field.Path) {
		s := c.SecurityContext
		if s == nil {
			return
		}
		refuse(at().Child("securityContext"), map[string]bool{
			"appArmorProfile": s.AppArmorProfile != nil, "seLinuxOptions": s.SELinuxOptions != nil, "seccompProfile": s.SeccompProfile != nil,
			"capabilities": s.Capabilities != nil, "readOnlyRootFilesystem": s.ReadOnlyRootFilesystem != nil, "privileged": s.Privileged != nil,
			"allowPrivilegeEscalation": s.AllowPrivilegeEscalation != nil, "procMount": s.ProcMount != nil,
			"runAsUser": s.RunAsUser != nil, "runAsGroup": s.RunAsGroup != nil,
		})
	})
}
