package pod

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/runtime"
)

// etcFiles are made for each pod and mounted into its containers.
var etcFiles = []string{"hosts", "hostname", "resolv.conf"}

// mountsOf is the generated files and the pod's volumes.
func mountsOf(pod *corev1.Pod, c *corev1.Container, host Host) ([]runtime.Mount, error) {
	var out []runtime.Mount
	taken := map[string]bool{}
	for _, m := range c.VolumeMounts {
		mount, err := volumeMount(pod, m, host)
		if err != nil {
			return nil, fmt.Errorf("container %q: volumeMounts %q: %w", c.Name, m.Name, err)
		}
		taken[filepath.Clean(m.MountPath)] = true
		out = append(out, mount)
	}
	for _, name := range etcFiles {
		destination := "/etc/" + name
		if taken[destination] {
			continue
		}
		mode := "rw"
		if sc := c.SecurityContext; sc != nil && sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem {
			mode = "ro"
		}
		out = append(out, runtime.Mount{
			Source: filepath.Join(etcDir(host, pod.UID), name), Destination: destination,
			Type: "bind", Options: []string{"rbind", "rprivate", mode},
		})
	}
	return out, nil
}

func volumeMount(pod *corev1.Pod, m corev1.VolumeMount, host Host) (runtime.Mount, error) {
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
	if i < 0 {
		return runtime.Mount{}, errors.New("the pod has no such volume")
	}
	v := pod.Spec.Volumes[i]
	out := runtime.Mount{Destination: m.MountPath, Type: "bind", Options: []string{"rbind", "rprivate", "rw"}}
	if m.ReadOnly {
		out.Options[2] = "ro"
	}
	switch {
	case v.EmptyDir != nil || v.VolumeSource == (corev1.VolumeSource{}):
		out.Source = volumeDir(host, pod, v.Name)
	case v.HostPath != nil:
		out.Source = v.HostPath.Path
	default:
		return runtime.Mount{}, errors.New("the kind of volume is not supported")
	}
	if m.SubPath != "" || m.SubPathExpr != "" {
		return runtime.Mount{}, errors.New("subPath is not supported")
	}
	return out, nil
}

func volumeDir(host Host, pod *corev1.Pod, volume string) string {
	return filepath.Join(podDir(host, pod.UID), "volumes", volume)
}

// writeFiles makes what mountsOf names. Doing it again changes only what differs.
func writeFiles(pod *corev1.Pod, ip string, host Host) error {
	etc := etcDir(host, pod.UID)
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return fmt.Errorf("make files of pod: %w", err)
	}
	hosts := hostsFile(pod, ip, host)
	if pod.Spec.HostNetwork {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make /etc/hosts of pod: %w", err)
		}
		hosts = own
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make /etc/resolv.conf of pod: %w", err)
	}
	for name, content := range map[string][]byte{
		"hosts": hosts, "hostname": []byte(hostname(pod, host) + "\n"), "resolv.conf": resolvFile(pod, resolv),
	} {
		path := filepath.Join(etc, name)
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
			continue
		}
		// In place and not by rename: containers hold the inode through a bind mount.
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return fmt.Errorf("make /etc/%s of pod: %w", name, err)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil && v.VolumeSource != (corev1.VolumeSource{}) {
			continue
		}
		dir := volumeDir(host, pod, v.Name)
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return fmt.Errorf("make volume %q: %w", v.Name, err)
		}
		if err := os.Chmod(dir, 0o777); err != nil { // past the umask
			return fmt.Errorf("make volume %q: %w", v.Name, err)
		}
	}
	return nil
}

func hostsFile(pod *corev1.Pod, ip string, host Host) []byte {
	var b strings.Builder
	b.WriteString("# Made by Gantry.\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	if ip != "" {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname(pod, host))
	}
	for _, a := range pod.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return []byte(b.String())
}

// resolvFile is the host's, or what dnsPolicy None and dnsConfig say.
func resolvFile(pod *corev1.Pod, host []byte) []byte {
	var b strings.Builder
	if pod.Spec.DNSPolicy != corev1.DNSNone {
		b.Write(host)
		if len(host) > 0 && host[len(host)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		for _, n := range c.Nameservers {
			fmt.Fprintf(&b, "nameserver %s\n", n)
		}
		if len(c.Searches) > 0 {
			fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
		}
		for _, o := range c.Options {
			b.WriteString("options " + o.Name)
			if o.Value != nil {
				b.WriteString(":" + *o.Value)
			}
			b.WriteByte('\n')
		}
	}
	return []byte(b.String())
}

// removeFiles drops what was made for a pod, its logs too.
func removeFiles(want Desired, host Host) error {
	return errors.Join(
		os.RemoveAll(podDir(host, want.UID)),
		os.RemoveAll(etcDir(host, want.UID)),
		os.RemoveAll(LogDir(host, want.UID)),
	)
}
