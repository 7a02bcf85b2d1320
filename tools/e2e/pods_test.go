package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestHowPodsEnd: each end shows with the reason and exit code that kubectl
// users know.
func TestHowPodsEnd(t *testing.T) {
	l := newLab(t)
	oneShot := `"restartPolicy":"Never"`
	for _, c := range []struct {
		name, spec, podSpec string
		want                func(p corev1.Pod) bool
		event               string // part of an event about it, where one is due
	}{
		{"completed", `"args":["exit","0"]`, oneShot, func(p corev1.Pod) bool {
			end := container(p, "c").State.Terminated
			return p.Status.Phase == corev1.PodSucceeded && end != nil && end.Reason == "Completed" && end.ExitCode == 0
		}, ""},
		{"error", `"args":["exit","3"]`, oneShot, func(p corev1.Pod) bool {
			end := container(p, "c").State.Terminated
			return p.Status.Phase == corev1.PodFailed && end != nil && end.Reason == "Error" && end.ExitCode == 3
		}, ""},
		{"crashing", `"args":["exit","1"]`, "", func(p corev1.Pod) bool {
			return waitingFor(p, "c") == "CrashLoopBackOff" && container(p, "c").RestartCount >= 1
		}, "Back-off restarting failed container"},
		{"on-failure", `"args":["exit","0"]`, `"restartPolicy":"OnFailure"`, func(p corev1.Pod) bool {
			return p.Status.Phase == corev1.PodSucceeded && container(p, "c").RestartCount == 0
		}, ""},
		{"oom", `"args":["eat","256Mi"],"resources":{"limits":{"memory":"32Mi"}}`, oneShot, func(p corev1.Pod) bool {
			end := container(p, "c").State.Terminated
			return p.Status.Phase == corev1.PodFailed && end != nil && end.Reason == "OOMKilled" && end.ExitCode == 137
		}, ""},
		{"no-command", `"command":["/no/such/program"]`, "", func(p corev1.Pod) bool {
			s := container(p, "c")
			text := fmt.Sprint(s.State, s.LastTerminationState)
			return strings.Contains(text, "/no/such/program")
		}, "/no/such/program"},
		{"no-image", `"image":"127.0.0.1:5050/gantry/none:v1"`, "", func(p corev1.Pod) bool {
			return waitingFor(p, "c") == "ImagePullBackOff" || waitingFor(p, "c") == "ErrImagePull"
		}, "127.0.0.1:5050/gantry/none:v1"},
		{"no-registry", `"image":"127.0.0.1:5051/gantry/web:v1"`, "", func(p corev1.Pod) bool {
			return waitingFor(p, "c") == "ImagePullBackOff"
		}, "127.0.0.1:5051"},
		{"too-big", `"resources":{"requests":{"memory":"900Gi"}}`, "", func(p corev1.Pod) bool {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == "Unschedulable" {
					return p.Status.Phase == corev1.PodPending && strings.Contains(c.Message, "Insufficient memory")
				}
			}
			return false
		}, "Insufficient memory"},
	} {
		// An image named in the case replaces the sample.
		manifest := onePod(c.name, c.spec, c.podSpec)
		if strings.Contains(c.spec, `"image"`) {
			manifest = strings.Replace(manifest, fmt.Sprintf(`"image":%q,`, sampleImage), "", 1)
		}
		l.apply(manifest)
		t.Run(c.name, func(t *testing.T) {
			l := *l
			l.T = t
			l.pod(c.name, "ends as it should", c.want)
			if c.event != "" {
				l.eventually("an event tells", func() error {
					out, err := l.gantry("", "events", "--for", "pod/"+c.name)
					if err == nil && !strings.Contains(out, c.event) {
						err = fmt.Errorf("events: %s", out)
					}
					return err
				})
			}
		})
	}
}

// TestInsideAContainer: what the image and the pod say is what the program gets.
func TestInsideAContainer(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("inside", `"args":["env"],"workingDir":"/tmp/made","env":[
{"name":"GREETING","value":"hello $(NAME)"},{"name":"NAME","value":"x"},{"name":"EXPANDED","value":"hello $(NAME)"},
{"name":"POD","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}},
{"name":"IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}}],
"securityContext":{"runAsUser":1234,"runAsGroup":99,"allowPrivilegeEscalation":false,"readOnlyRootFilesystem":true,"capabilities":{"drop":["ALL"]}}`,
		`"restartPolicy":"Never","hostname":"box"`))
	p := l.pod("inside", "has ended", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	out := l.must(l.gantry("", "logs", "inside"))
	for _, want := range []string{
		"GREETING=hello $(NAME)", // only what stands before it is known
		"EXPANDED=hello x", "POD=inside", "IP=" + p.Status.PodIP,
		"uid=1234", "gid=99", "cwd=/tmp/made", "hostname=box", "NoNewPrivs=1", "Seccomp=2", "CapEff=0000000000000000",
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("the program did not see %q; it saw:\n%s", want, out)
		}
	}

	// Where the pod says nothing: the default profile and capabilities, and the
	// image's own user and directory.
	l.apply(onePod("plain", `"args":["env"]`, `"restartPolicy":"Never"`))
	l.pod("plain", "has ended", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	out = l.must(l.gantry("", "logs", "plain"))
	for _, want := range []string{"Seccomp=2", "NoNewPrivs=0", "CapBnd=00000000a80425fb", "CapAmb=0000000000000000", "hostname=plain", "pid=1"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("without settings the program did not see %q; it saw:\n%s", want, out)
		}
	}
}

// TestLimits: what the pod asks for is what the kernel holds it to.
func TestLimits(t *testing.T) {
	l := newLab(t, "--pids-limit", "123")
	l.apply(onePod("bound", `"resources":{"limits":{"memory":"64Mi","cpu":"250m"},"requests":{"cpu":"100m"}}`, ""))
	p := l.pod("bound", "is ready", ready)
	pid, err := l.ContainerPID(string(p.UID), "c")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][2]string{ // by controller: file and content
		"memory": {"memory.limit_in_bytes", "67108864"}, "pids": {"pids.max", "123"}, "cpu": {"cpu.cfs_quota_us", "25000"},
	}
	seen := 0
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, controller := range strings.Split(parts[1], ",") {
			want, ok := files[controller]
			if !ok {
				continue
			}
			got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, parts[2], want[0]))
			if err != nil || strings.TrimSpace(string(got)) != want[1] {
				t.Errorf("%s is %q, want %s: %v", want[0], got, want[1], err)
			}
			seen++
		}
		if parts[1] == "" && seen == 0 { // cgroup v2
			for name, want := range map[string]string{"memory.max": "67108864", "pids.max": "123", "cpu.max": "25000 100000"} {
				got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", parts[2], name))
				if err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%s is %q, want %s: %v", name, got, want, err)
				}
			}
			seen = len(files)
		}
	}
	if seen != len(files) {
		t.Errorf("%d of %d limits found in\n%s", seen, len(files), data)
	}
}

// TestContainersOfAPod share the network; each has its own log.
func TestContainersOfAPod(t *testing.T) {
	l := newLab(t)
	l.apply(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"pair"},"spec":{"restartPolicy":"OnFailure","terminationGracePeriodSeconds":1,"containers":[
{"name":"server","image":%q,"env":[{"name":"POD_NAME","value":"the-server"}]},
{"name":"client","image":%q,"args":["get","--retry","30s","http://localhost:8080/"]}]}}`, sampleImage, sampleImage))
	l.pod("pair", "has a client that got its answer", func(p corev1.Pod) bool {
		end := container(p, "client").State.Terminated
		return end != nil && end.ExitCode == 0 && container(p, "server").State.Running != nil
	})
	if out := l.must(l.gantry("", "logs", "pair", "-c", "client")); !strings.Contains(out, "the-server") {
		t.Errorf("the client heard %q", out)
	}
	if _, err := l.gantry("", "logs", "pair"); err == nil || !strings.Contains(err.Error(), "client") {
		t.Errorf("logs of a pod with two containers must ask which: %v", err)
	}
}

// TestReadiness: only ready pods get traffic, by each kind of probe.
func TestReadiness(t *testing.T) {
	l := newLab(t)
	probes := map[string]string{
		"http": `"httpGet":{"path":"/healthz","port":8080}`,
		"tcp":  `"tcpSocket":{"port":8080}`,
		"exec": `"exec":{"command":["/web","get","http://localhost:8080/healthz"]}`,
	}
	for name, probe := range probes {
		l.apply(onePod("ready-"+name, `"readinessProbe":{"periodSeconds":1,`+probe+`}`, ""))
		l.apply(onePod("never-"+name, `"args":["sleep"],"readinessProbe":{"periodSeconds":1,`+probe+`}`, ""))
	}
	for name := range probes {
		l.pod("ready-"+name, "becomes ready", ready)
		p := l.pod("never-"+name, "runs", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		if ready(p) {
			t.Errorf("pod %s is ready though nothing listens", p.Name)
		}
		l.eventually("an event says why", func() error {
			out, err := l.gantry("", "events", "--for", "pod/never-"+name)
			if err == nil && !strings.Contains(out, "Readiness probe failed") {
				err = fmt.Errorf("events: %s", out)
			}
			return err
		})
	}
}

// TestHostPortTaken: a pod on the host's network whose port another program
// holds says so, and starts when it is free.
func TestHostPortTaken(t *testing.T) {
	l := newLab(t)
	holder, err := net.Listen("tcp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	l.apply(onePod("taken", `"ports":[{"containerPort":8080,"hostPort":8080}]`, `"hostNetwork":true`))
	l.pod("taken", "says that its port is taken", func(p corev1.Pod) bool {
		w := container(p, "c").State.Waiting
		return w != nil && strings.Contains(w.Message, "8080")
	})
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	l.pod("taken", "runs", func(p corev1.Pod) bool { return container(p, "c").State.Running != nil })
}

// TestGracefulTermination: TERM first, KILL after the grace period, and the
// log can be read to the end.
func TestGracefulTermination(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("polite", "", `"restartPolicy":"Never"`))
	l.apply(onePod("stubborn", `"args":["ignore-term"]`, `"restartPolicy":"Never"`))
	for _, name := range []string{"polite", "stubborn"} {
		l.pod(name, "runs", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		l.must(l.gantry("", "delete", "pod", name, "--wait", "--timeout", "30s"))
		if _, err := l.gantry("", "get", "pod", name); err == nil || !strings.Contains(err.Error(), "NotFound") {
			t.Errorf("pod %s after its deletion: %v", name, err)
		}
	}
}

// TestImageWithoutRegistry: each form of an image file goes into the node's
// store and runs.
func TestImageWithoutRegistry(t *testing.T) {
	l := newLab(t)
	layout := filepath.Join(l.dir, "image") // newLab built it, as web:latest
	docker, oci := filepath.Join(l.dir, "docker.tar"), filepath.Join(l.dir, "oci.tar")
	l.must(command(l.ctx, "", l.bin+"/gantry-images", "save", layout, docker, "example.test/offline/web:v2"))
	l.must(command(l.ctx, "", "tar", "-C", layout, "-cf", oci, "."))
	for _, c := range []struct{ name, file, image string }{
		{"docker-archive", docker, "example.test/offline/web:v2"},
		{"oci-archive", oci, "docker.io/library/web:latest"},
		{"oci-layout", layout, "docker.io/library/web:latest"},
	} {
		if out := l.must(l.gantry("", "image", "load", c.file)); !strings.Contains(out, c.image) {
			t.Errorf("image load of the %s printed %q", c.name, out)
		}
		l.apply(strings.Replace(onePod(c.name, `"imagePullPolicy":"Never"`, ""), sampleImage, c.image, 1))
		l.pod(c.name, "runs", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	}
	bad := filepath.Join(l.dir, "bad.tar")
	if err := os.WriteFile(bad, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.gantry("", "image", "load", bad); err == nil || !strings.Contains(err.Error(), "bad.tar") {
		t.Errorf("image load of garbage: %v", err)
	}
	if _, err := l.gantry("", "image", "load", bad+".none"); err == nil || !strings.Contains(err.Error(), "bad.tar.none") {
		t.Errorf("image load of nothing: %v", err)
	}
}
