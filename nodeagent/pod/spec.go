package pod

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/runtime"
)

const (
	defaultPath   = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	cpuPeriod     = 100_000 // microseconds
	minCPUQuota   = 1_000   // the kernel takes no less
	minCPUShares  = 2
	maxCPUShares  = 262_144
	defaultTermin = "/dev/termination-log"
)

// LogDir is where the logs of a pod lie: <container>/<attempt>.log.
func LogDir(h Host, uid types.UID) string { return filepath.Join(h.LogDir, string(uid)) }

// etcDir is where the files generated for a pod lie.
func etcDir(h Host, uid types.UID) string { return filepath.Join(h.EtcDir, string(uid)) }

// podDir is where a pod's volumes lie.
func podDir(h Host, uid types.UID) string { return filepath.Join(h.PodDir, string(uid)) }

// Build makes the run's specification from pod and image. It is pure; its
// error names the field that does not hold.
func Build(pod *corev1.Pod, c *corev1.Container, img image.Image, attempt int, ip string, host Host) (runtime.Container, error) {
	env, vars, err := environment(pod, c, img, ip, host)
	if err != nil {
		return runtime.Container{}, err
	}
	user, err := userOf(pod, c, img)
	if err != nil {
		return runtime.Container{}, err
	}
	args := arguments(c, img, vars)
	if len(args) == 0 {
		return runtime.Container{}, fmt.Errorf("container %q: neither command nor args are set and image %q names no entrypoint", c.Name, c.Image)
	}
	mounts, err := mountsOf(pod, c, host)
	if err != nil {
		return runtime.Container{}, err
	}
	seccomp, err := seccompOf(pod, c)
	if err != nil {
		return runtime.Container{}, err
	}
	out := runtime.Container{
		PodUID: pod.UID, Name: c.Name, Attempt: attempt,
		Args: args, Env: env, Cwd: "/", User: user, AdditionalGroups: groupsOf(pod),
		Layers: img.Layers, Mounts: mounts, Resources: resourcesOf(c, host), Seccomp: seccomp,
		TerminationMessagePath: c.TerminationMessagePath,
		Stdin:                  c.Stdin, StdinOnce: c.Stdin && c.StdinOnce, TTY: c.TTY,
	}
	if out.TerminationMessagePath == "" {
		out.TerminationMessagePath = defaultTermin
	}
	switch {
	case c.WorkingDir != "":
		out.Cwd = c.WorkingDir
	case img.Config.WorkingDir != "":
		out.Cwd = img.Config.WorkingDir
	}
	score := oomScore(pod, c, host)
	out.OOMScoreAdj = &score
	if sc := c.SecurityContext; sc != nil {
		out.Privileged = sc.Privileged != nil && *sc.Privileged
		out.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		out.ReadonlyRootfs = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
		if sc.Capabilities != nil {
			for _, a := range sc.Capabilities.Add {
				out.CapAdd = append(out.CapAdd, string(a))
			}
			for _, d := range sc.Capabilities.Drop {
				out.CapDrop = append(out.CapDrop, string(d))
			}
		}
	}
	return out, nil
}

// arguments joins command and args of the pod with entrypoint and cmd of the
// image: a command replaces both, args alone replace cmd.
func arguments(c *corev1.Container, img image.Image, vars map[string]string) []string {
	command, args := img.Config.Entrypoint, img.Config.Cmd
	if len(c.Command) > 0 {
		command, args = expandAll(c.Command, vars), nil
	}
	if len(c.Args) > 0 {
		args = expandAll(c.Args, vars)
	}
	return slices.Concat(command, args)
}

func expandAll(in []string, vars map[string]string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = expand(s, vars)
	}
	return out
}

// expand replaces $(NAME) where NAME is known; $$ stands for one $, and what
// is unknown stays as it is.
func expand(s string, vars map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteByte('$')
				continue
			}
			name := s[i+2 : i+2+end]
			if value, ok := vars[name]; ok {
				b.WriteString(value)
			} else {
				b.WriteString(s[i : i+3+end])
			}
			i += 2 + end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// environment is the image's, then the pod's. vars holds the pod's own
// variables alone: only they can be named in $(...).
func environment(pod *corev1.Pod, c *corev1.Container, img image.Image, ip string, host Host) ([]string, map[string]string, error) {
	order, values := []string{}, map[string]string{}
	put := func(name, value string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	name, value, _ := strings.Cut(defaultPath, "=")
	put(name, value)
	put("HOSTNAME", hostname(pod, host))
	if c.TTY {
		put("TERM", "xterm") // as other runtimes do
	}
	for _, kv := range img.Config.Env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			put(name, value)
		}
	}
	vars := map[string]string{}
	for i := range c.Env {
		e := &c.Env[i]
		value := expand(e.Value, vars)
		if e.ValueFrom != nil {
			var err error
			if value, err = valueFrom(pod, c, e.ValueFrom, ip, host); err != nil {
				return nil, nil, fmt.Errorf("container %q: env %q: %w", c.Name, e.Name, err)
			}
		}
		vars[e.Name] = value
		put(e.Name, value)
	}
	env := make([]string, len(order))
	for i, name := range order {
		env[i] = name + "=" + values[name]
	}
	return env, vars, nil
}

func valueFrom(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, ip string, host Host) (string, error) {
	switch {
	case from.FieldRef != nil:
		return field(pod, from.FieldRef.FieldPath, ip, host)
	case from.ResourceFieldRef != nil:
		return resourceField(pod, c, from.ResourceFieldRef)
	case from.ConfigMapKeyRef != nil:
		if opt := from.ConfigMapKeyRef.Optional; opt != nil && *opt {
			return "", nil
		}
		return "", fmt.Errorf("configmap %q not found", from.ConfigMapKeyRef.Name)
	case from.SecretKeyRef != nil:
		if opt := from.SecretKeyRef.Optional; opt != nil && *opt {
			return "", nil
		}
		return "", fmt.Errorf("secret %q not found", from.SecretKeyRef.Name)
	}
	return "", errors.New("valueFrom names no source that is supported")
}

func field(pod *corev1.Pod, path, ip string, host Host) (string, error) {
	if rest, ok := strings.CutSuffix(path, "']"); ok {
		if key, ok := strings.CutPrefix(rest, "metadata.labels['"); ok {
			return pod.Labels[key], nil
		}
		if key, ok := strings.CutPrefix(rest, "metadata.annotations['"); ok {
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return host.Node, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return host.IP, nil
	case "status.podIP", "status.podIPs":
		if pod.Spec.HostNetwork {
			return host.IP, nil
		}
		return ip, nil
	}
	return "", fmt.Errorf("fieldPath %q is not supported", path)
}

func resourceField(pod *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		i := slices.IndexFunc(pod.Spec.Containers, func(o corev1.Container) bool { return o.Name == ref.ContainerName })
		if i < 0 {
			return "", fmt.Errorf("resourceFieldRef: no container %q", ref.ContainerName)
		}
		c = &pod.Spec.Containers[i]
	}
	which, name, ok := strings.Cut(ref.Resource, ".")
	list := c.Resources.Limits
	if which == "requests" {
		list = c.Resources.Requests
	} else if which != "limits" {
		ok = false
	}
	if !ok {
		return "", fmt.Errorf("resource %q is not supported", ref.Resource)
	}
	quantity := list[corev1.ResourceName(name)]
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(corev1.ResourceCPU) {
		return ceilDiv(quantity.MilliValue(), divisor.MilliValue()), nil
	}
	return ceilDiv(quantity.Value(), divisor.Value()), nil
}

func ceilDiv(a, b int64) string {
	if b == 0 {
		b = 1
	}
	return strconv.FormatInt(int64(math.Ceil(float64(a)/float64(b))), 10)
}

// userOf is the user that the container runs as, in the form that images use.
func userOf(pod *corev1.Pod, c *corev1.Container, img image.Image) (string, error) {
	var uid, gid *int64
	var nonRoot *bool
	if sc := pod.Spec.SecurityContext; sc != nil {
		uid, gid, nonRoot = sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot
	}
	if sc := c.SecurityContext; sc != nil {
		uid, gid, nonRoot = or(sc.RunAsUser, uid), or(sc.RunAsGroup, gid), or(sc.RunAsNonRoot, nonRoot)
	}
	imageUser, _, _ := strings.Cut(img.Config.User, ":")
	if nonRoot != nil && *nonRoot {
		n, err := strconv.ParseInt(imageUser, 10, 64)
		switch {
		case uid != nil && *uid == 0:
			return "", fmt.Errorf("container %q: runAsUser is 0, which breaks runAsNonRoot", c.Name)
		case uid != nil:
		case imageUser == "" || err == nil && n == 0:
			return "", fmt.Errorf("container %q: runAsNonRoot is set and image %q will run as root", c.Name, c.Image)
		case err != nil:
			return "", fmt.Errorf("container %q: runAsNonRoot is set and image %q has a non-numeric user (%s), cannot verify that it is not root", c.Name, c.Image, imageUser)
		}
	}
	user := img.Config.User
	if uid != nil {
		user = strconv.FormatInt(*uid, 10)
	}
	if gid != nil {
		if name, _, _ := strings.Cut(user, ":"); name != "" {
			user = name
		} else {
			user = "0"
		}
		user += ":" + strconv.FormatInt(*gid, 10)
	}
	return user, nil
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func groupsOf(pod *corev1.Pod) []int64 {
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	groups := slices.Clone(sc.SupplementalGroups)
	if sc.FSGroup != nil && !slices.Contains(groups, *sc.FSGroup) {
		groups = append(groups, *sc.FSGroup)
	}
	return groups
}

// seccompOf is RuntimeDefault unless the pod asks otherwise: Kubernetes'
// default of Unconfined is there for its history.
func seccompOf(pod *corev1.Pod, c *corev1.Container) (string, error) {
	var profile *corev1.SeccompProfile
	if sc := pod.Spec.SecurityContext; sc != nil {
		profile = sc.SeccompProfile
	}
	if sc := c.SecurityContext; sc != nil {
		profile = or(sc.SeccompProfile, profile)
		if sc.Privileged != nil && *sc.Privileged {
			return string(corev1.SeccompProfileTypeUnconfined), nil
		}
	}
	if profile == nil {
		return string(corev1.SeccompProfileTypeRuntimeDefault), nil
	}
	switch profile.Type {
	case corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined:
		return string(profile.Type), nil
	}
	return "", fmt.Errorf("container %q: seccompProfile type %q is not supported", c.Name, profile.Type)
}

func resourcesOf(c *corev1.Container, host Host) runtime.Resources {
	out := runtime.Resources{PidsLimit: host.PidsLimit, CPUShares: minCPUShares}
	request, asked := c.Resources.Requests[corev1.ResourceCPU]
	limit, limited := c.Resources.Limits[corev1.ResourceCPU]
	if !asked && limited {
		request, asked = limit, true
	}
	if asked {
		shares := request.MilliValue() * 1024 / 1000
		out.CPUShares = uint64(min(max(shares, minCPUShares), maxCPUShares))
	}
	if limited && !limit.IsZero() {
		out.CPUPeriod = cpuPeriod
		out.CPUQuota = max(limit.MilliValue()*cpuPeriod/1000, minCPUQuota)
	}
	if memory, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		out.MemoryLimit = memory.Value()
	}
	return out
}

// QOS is the quality of service class that requests and limits amount to.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	anything, guaranteed := false, true
	for i := range pod.Spec.Containers {
		r := pod.Spec.Containers[i].Resources
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			anything = anything || !request.IsZero() || !limit.IsZero()
			_, asked := r.Requests[name]
			if limit.IsZero() || asked && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !anything:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// oomScore ranks containers for the kernel's out-of-memory killer: those that
// asked for less of the machine go first.
func oomScore(pod *corev1.Pod, c *corev1.Container, host Host) int {
	const guaranteed, bestEffort = -997, 1000
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return guaranteed
	case corev1.PodQOSBestEffort:
		return bestEffort
	}
	if host.MemBytes <= 0 {
		return bestEffort - 1
	}
	request := c.Resources.Requests[corev1.ResourceMemory]
	score := bestEffort - int(bestEffort*request.Value()/host.MemBytes)
	return min(max(score, bestEffort+guaranteed), bestEffort-1)
}

// hostname is what the pod calls itself.
func hostname(pod *corev1.Pod, host Host) string {
	if pod.Spec.HostNetwork {
		return host.Node
	}
	name := pod.Spec.Hostname
	if name == "" {
		name = pod.Name
	}
	const limit = 63
	if len(name) > limit {
		name = strings.TrimRight(name[:limit], "-.")
	}
	return name
}
