package pod

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/runtime"
)

func ptr[T any](v T) *T { return &v }

var specHost = Host{Node: "n1", IP: "192.0.2.7", MemBytes: 1000 << 20, PidsLimit: 100, EtcDir: "/e", PodDir: "/p", LogDir: "/l"}

func build(t *testing.T, p *corev1.Pod, img image.Image) runtime.Container {
	t.Helper()
	out, err := Build(p, &p.Spec.Containers[0], img, 0, "10.1.0.9", specHost)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestArguments(t *testing.T) {
	for _, tt := range []struct {
		desc                           string
		entrypoint, cmd, command, args []string
		want                           []string
	}{
		{"image alone", []string{"/e"}, []string{"c"}, nil, nil, []string{"/e", "c"}},
		{"args replace cmd", []string{"/e"}, []string{"c"}, nil, []string{"a"}, []string{"/e", "a"}},
		{"command replaces both", []string{"/e"}, []string{"c"}, []string{"/x"}, nil, []string{"/x"}},
		{"command and args", []string{"/e"}, []string{"c"}, []string{"/x"}, []string{"a"}, []string{"/x", "a"}},
		{"variables", []string{"$(V)"}, nil, nil, []string{"$(V)", "$$(V)", "$(NONE)", "$V", "$(V", "100$"},
			[]string{"$(V)", "v", "$(V)", "$(NONE)", "$V", "$(V", "100$"}},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			p := testPod(corev1.RestartPolicyAlways, "a")
			p.Spec.Containers[0].Command, p.Spec.Containers[0].Args = tt.command, tt.args
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", Value: "v"}}
			got := build(t, p, image.Image{Config: image.Config{Entrypoint: tt.entrypoint, Cmd: tt.cmd}})
			if diff := cmp.Diff(tt.want, got.Args); diff != "" {
				t.Errorf("args (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	p := testPod(corev1.RestartPolicyAlways, "a")
	p.Labels = map[string]string{"app": "shop"}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	c := &p.Spec.Containers[0]
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	c.Env = []corev1.EnvVar{
		{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)$(IMG)"}, {Name: "IMG", Value: "pod"},
		{Name: "IP", ValueFrom: field("status.podIP")}, {Name: "HOST", ValueFrom: field("status.hostIP")},
		{Name: "APP", ValueFrom: field("metadata.labels['app']")}, {Name: "NAME", ValueFrom: field("metadata.name")},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
	}
	got := build(t, p, image.Image{Config: image.Config{Entrypoint: []string{"/e"}, Env: []string{"IMG=image", "PATH=/own"}}})
	want := []string{"PATH=/own", "HOSTNAME=web", "IMG=pod", "A=1", "B=1$(IMG)", "IP=10.1.0.9", "HOST=192.0.2.7", "APP=shop", "NAME=web", "CPU=2", "MEM=64"}
	if diff := cmp.Diff(want, got.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
}

func TestTerminal(t *testing.T) {
	p := testPod(corev1.RestartPolicyAlways, "a")
	c := &p.Spec.Containers[0]
	img := image.Image{Config: image.Config{Entrypoint: []string{"/e"}}}
	c.StdinOnce = true // means nothing without an input
	if got := build(t, p, img); got.Stdin || got.StdinOnce || got.TTY {
		t.Errorf("without input: %+v", got)
	}
	c.Stdin, c.TTY = true, true
	got := build(t, p, img)
	if !got.Stdin || !got.StdinOnce || !got.TTY || !slices.Contains(got.Env, "TERM=xterm") {
		t.Errorf("with a terminal: %+v", got)
	}
	c.Env = []corev1.EnvVar{{Name: "TERM", Value: "vt100"}}
	if got := build(t, p, img); !slices.Contains(got.Env, "TERM=vt100") || slices.Contains(got.Env, "TERM=xterm") {
		t.Errorf("with a TERM of its own: %v", got.Env)
	}
}

func TestUsers(t *testing.T) {
	for _, tt := range []struct {
		desc  string
		image string
		pod   *corev1.PodSecurityContext
		own   *corev1.SecurityContext
		want  string
		err   string
	}{
		{"image's", "app:app", nil, nil, "app:app", ""},
		{"pod's", "app", &corev1.PodSecurityContext{RunAsUser: ptr(int64(7))}, nil, "7", ""},
		{"container's before pod's", "app", &corev1.PodSecurityContext{RunAsUser: ptr(int64(7)), RunAsGroup: ptr(int64(8))},
			&corev1.SecurityContext{RunAsUser: ptr(int64(9))}, "9:8", ""},
		{"group alone", "app:app", nil, &corev1.SecurityContext{RunAsGroup: ptr(int64(8))}, "app:8", ""},
		{"group alone, root", "", nil, &corev1.SecurityContext{RunAsGroup: ptr(int64(8))}, "0:8", ""},
		{"non-root holds", "1000", nil, &corev1.SecurityContext{RunAsNonRoot: ptr(true)}, "1000", ""},
		{"non-root with root's image", "", nil, &corev1.SecurityContext{RunAsNonRoot: ptr(true)}, "", "will run as root"},
		{"non-root with a name", "app", &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)}, nil, "", "non-numeric user (app)"},
		{"non-root with uid 0", "1000", &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)}, &corev1.SecurityContext{RunAsUser: ptr(int64(0))}, "", "runAsUser is 0"},
		{"container may be root after all", "", &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)}, &corev1.SecurityContext{RunAsNonRoot: ptr(false)}, "", ""},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			p := testPod(corev1.RestartPolicyAlways, "a")
			p.Spec.SecurityContext, p.Spec.Containers[0].SecurityContext = tt.pod, tt.own
			got, err := Build(p, &p.Spec.Containers[0], image.Image{Config: image.Config{Entrypoint: []string{"/e"}, User: tt.image}}, 0, "", specHost)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if err == nil && got.User != tt.want {
				t.Errorf("user %q, want %q", got.User, tt.want)
			}
		})
	}
}

func TestResourcesAndQOS(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		out := corev1.ResourceList{}
		if cpu != "" {
			out[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			out[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return out
	}
	for _, tt := range []struct {
		desc             string
		requests, limits corev1.ResourceList
		want             runtime.Resources
		qos              corev1.PodQOSClass
		oom              int
	}{
		{"nothing", nil, nil, runtime.Resources{CPUShares: 2, PidsLimit: 100}, corev1.PodQOSBestEffort, 1000},
		{"requests", list("250m", "100Mi"), nil, runtime.Resources{CPUShares: 256, PidsLimit: 100}, corev1.PodQOSBurstable, 900},
		{"limits alone", nil, list("500m", "64Mi"),
			runtime.Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, MemoryLimit: 64 << 20, PidsLimit: 100}, corev1.PodQOSGuaranteed, -997},
		{"both, different", list("100m", "32Mi"), list("200m", "64Mi"),
			runtime.Resources{CPUShares: 102, CPUQuota: 20000, CPUPeriod: 100000, MemoryLimit: 64 << 20, PidsLimit: 100}, corev1.PodQOSBurstable, 968},
		{"hardly any", list("1m", ""), list("1m", ""), runtime.Resources{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100000, PidsLimit: 100}, corev1.PodQOSBurstable, 999},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			p := testPod(corev1.RestartPolicyAlways, "a")
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: tt.requests, Limits: tt.limits}
			got := build(t, p, testImage("img"))
			if diff := cmp.Diff(tt.want, got.Resources); diff != "" {
				t.Errorf("resources (-want +got):\n%s", diff)
			}
			if qos := QOS(p); qos != tt.qos || *got.OOMScoreAdj != tt.oom {
				t.Errorf("class %s with score %d, want %s with %d", qos, *got.OOMScoreAdj, tt.qos, tt.oom)
			}
		})
	}
}

func TestSecurityDefaults(t *testing.T) {
	p := testPod(corev1.RestartPolicyAlways, "a")
	got := build(t, p, testImage("img"))
	if got.Seccomp != "RuntimeDefault" || got.Privileged || got.NoNewPrivileges || got.ReadonlyRootfs {
		t.Errorf("defaults: %+v", got)
	}
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
		Capabilities:   &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined},
	}
	got = build(t, p, testImage("img"))
	if got.Seccomp != "Unconfined" || !got.NoNewPrivileges || !got.ReadonlyRootfs ||
		!cmp.Equal(got.CapAdd, []string{"NET_ADMIN"}) || !cmp.Equal(got.CapDrop, []string{"ALL"}) {
		t.Errorf("as asked: %+v", got)
	}
	for _, m := range got.Mounts {
		if strings.HasPrefix(m.Destination, "/etc/") && !cmp.Equal(m.Options, []string{"rbind", "rprivate", "ro"}) {
			t.Errorf("mount %s in a read-only root: %v", m.Destination, m.Options)
		}
	}
}

func TestGeneratedFiles(t *testing.T) {
	host := specHost
	host.PodDir, host.EtcDir = t.TempDir(), t.TempDir()
	p := testPod(corev1.RestartPolicyAlways, "a")
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"one", "two"}}}
	if got := string(hostsFile(p, "10.1.0.9", host)); !strings.Contains(got, "10.1.0.9\tweb\n") || !strings.Contains(got, "192.0.2.1\tone\ttwo\n") {
		t.Errorf("hosts:\n%s", got)
	}
	p.Spec.DNSPolicy = corev1.DNSNone
	p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}, Searches: []string{"a.test", "b.test"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("2")}, {Name: "edns0"}}}
	if got, want := string(resolvFile(p, []byte("nameserver 1.1.1.1\n"))), "nameserver 192.0.2.53\nsearch a.test b.test\noptions ndots:2\noptions edns0\n"; got != want {
		t.Errorf("resolv.conf:\n%s", got)
	}
	for range 2 { // again changes nothing
		if err := writeFiles(p, "10.1.0.9", host); err != nil {
			t.Fatal(err)
		}
	}
}
