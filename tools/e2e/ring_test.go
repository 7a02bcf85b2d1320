package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/tools/cluster"
)

func (l *lab) applyWeb() {
	l.Helper()
	l.must(l.gantry("", "apply", "-f", "../../examples/web.yaml"))
	l.awaitReplicas(3)
}

func (l *lab) awaitReplicas(n int32) {
	l.Helper()
	l.eventually(fmt.Sprintf("%d replicas of web ready", n), func() error {
		var d appsv1.Deployment
		if err := l.get(&d, "deployment", "web"); err != nil {
			return err
		}
		if d.Status.ReadyReplicas != n || d.Status.Replicas != n || d.Status.ObservedGeneration != d.Generation {
			return fmt.Errorf("status: %+v", d.Status)
		}
		return nil
	})
}

func (l *lab) serviceAddress(name string) string {
	l.Helper()
	var s corev1.Service
	if err := l.get(&s, "service", name); err != nil {
		l.Fatal(err)
	}
	return fmt.Sprintf("%s:%d", s.Spec.ClusterIP, s.Spec.Ports[0].Port)
}

var client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func ask(address string) (string, error) {
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), errors.Join(err, resp.Body.Close())
}

// everyPodAnswers asks the address until every one of the pods has answered.
func (l *lab) everyPodAnswers(address string, pods []corev1.Pod) {
	l.Helper()
	answered := map[string]bool{}
	l.eventually("every pod answers on "+address, func() error {
		body, err := ask(address)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if strings.Contains(body, p.Name) {
				answered[p.Name] = true
			}
		}
		if len(answered) < len(pods) {
			return fmt.Errorf("%d of %d pods have answered", len(answered), len(pods))
		}
		return nil
	})
}

// TestTheWholeRing: a manifest in, containers running, a Service answering;
// scaled, broken and removed.
func TestTheWholeRing(t *testing.T) {
	l := newLab(t)
	l.applyWeb()
	address := l.serviceAddress("web")
	pods := l.pods("app=web")
	l.everyPodAnswers(address, pods)

	t.Run("applying again changes nothing", func(t *testing.T) {
		out := l.must(l.gantry("", "apply", "-f", "../../examples/web.yaml"))
		if !strings.Contains(out, "deployment.apps/web unchanged") || !strings.Contains(out, "service/web unchanged") {
			t.Errorf("apply printed %q", out)
		}
	})
	t.Run("a pod reaches the Service, and itself through it", func(t *testing.T) {
		// A lone pod behind a Service of its own can only be reached by itself.
		l.apply(onePod("lonely", `"ports":[{"containerPort":8080}]`, "") + "---\n" +
			`{"apiVersion":"v1","kind":"Service","metadata":{"name":"lonely"},"spec":{"selector":{"pod":"lonely"},"ports":[{"port":80,"targetPort":8080}]}}`)
		l.pod("lonely", "is ready", ready)
		own := l.serviceAddress("lonely")
		l.eventually("the Service has its endpoint", func() error { _, err := ask(own); return err })
		l.apply(onePod("caller", fmt.Sprintf(`"args":["get","http://%s/"]`, address), `"restartPolicy":"Never"`))
		l.pod("caller", "has succeeded", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		if out := l.must(l.gantry("", "logs", "caller")); !strings.Contains(out, "web-") {
			t.Errorf("the pod heard %q", out)
		}
		out := l.askFromInside("lonely", "http://"+own+"/")
		if !strings.Contains(out, "lonely") {
			t.Errorf("through its own Service the pod heard %q", out)
		}
	})
	t.Run("scale up and down", func(t *testing.T) {
		l.must(l.gantry("", "scale", "deployment/web", "--replicas", "5"))
		l.awaitReplicas(5)
		l.must(l.gantry("", "scale", "deployment/web", "--replicas", "2"))
		l.awaitReplicas(2)
		l.eventually("2 pods are left", func() error {
			if n := len(l.pods("app=web")); n != 2 {
				return fmt.Errorf("%d pods", n)
			}
			return nil
		})
		l.everyPodAnswers(address, l.pods("app=web"))
	})
	t.Run("a deleted pod is replaced", func(t *testing.T) {
		victim := l.pods("app=web")[0]
		l.must(l.gantry("", "delete", "pod", victim.Name, "--wait"))
		l.awaitReplicas(2)
		for _, p := range l.pods("app=web") {
			if p.UID == victim.UID {
				t.Errorf("pod %s is still there", p.Name)
			}
		}
	})
	t.Run("no endpoints: refused at once", func(t *testing.T) {
		l.must(l.gantry("", "scale", "deployment/web", "--replicas", "0"))
		l.awaitReplicas(0)
		l.eventually("the Service refuses", func() error {
			conn, err := net.DialTimeout("tcp", address, 5*time.Second)
			if err == nil {
				return errors.Join(errors.New("it still accepts"), conn.Close())
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
			return nil
		})
	})
	t.Run("delete takes everything along", func(t *testing.T) {
		l.must(l.gantry("", "delete", "-f", "../../examples/web.yaml", "--wait"))
		l.eventually("nothing of web is left", func() error {
			for _, kind := range []string{"deployments", "replicasets", "pods", "services", "endpointslices"} {
				out, err := l.gantry("", "get", kind, "-o", "name")
				if err != nil {
					return err
				}
				if strings.Contains(out, "/web") {
					return fmt.Errorf("still there: %s", out)
				}
			}
			return nil
		})
	})
}

// askFromInside makes the pod's own network namespace ask a URL.
func (l *lab) askFromInside(podName, url string) string {
	l.Helper()
	p := l.pod(podName, "exists", func(corev1.Pod) bool { return true })
	pid, err := l.ContainerPID(string(p.UID), "c")
	if err != nil {
		l.Fatal(err)
	}
	return l.must(command(l.ctx, "", "nsenter", "-t", fmt.Sprint(pid), "-n", "-m", "/web", "get", url))
}

// TestAgentDies: containers, log lines, exit codes and restart counts outlive
// the agent.
func TestAgentDies(t *testing.T) {
	l := newLab(t)
	l.applyWeb()
	l.apply(onePod("counter", `"args":["lines","--count","400","--interval","10ms"]`, `"restartPolicy":"Never"`))
	l.pod("counter", "runs", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	before := map[string]int{}
	for _, p := range l.pods("app=web") {
		pid, err := l.ContainerPID(string(p.UID), "web")
		if err != nil {
			t.Fatal(err)
		}
		before[p.Name] = pid
	}
	for range 5 {
		if err := l.Kill(l.ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(l.ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The last death lasts until the counter has ended: nobody watches its exit.
	if err := l.Kill(l.ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	uid := string(l.pod("counter", "exists", func(corev1.Pod) bool { return true }).UID)
	l.eventually("the counter ends", func() error {
		if _, err := l.ContainerPID(uid, "c"); err == nil {
			return errors.New("it still runs")
		}
		return nil
	})
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
	p := l.pod("counter", "has ended with code 0", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if end := container(p, "c").State.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("the counter's end: %+v", container(p, "c").State)
	}
	lines := strings.Split(strings.TrimSpace(l.must(l.gantry("", "logs", "counter"))), "\n")
	if len(lines) != 400 {
		t.Errorf("%d log lines, want 400", len(lines))
	}
	for _, p := range l.pods("app=web") {
		pid, err := l.ContainerPID(string(p.UID), "web")
		if err != nil || pid != before[p.Name] {
			t.Errorf("pod %s: process %d, was %d: %v", p.Name, pid, before[p.Name], err)
		}
		if n := container(p, "web").RestartCount; n != 0 {
			t.Errorf("pod %s has restarted %d times", p.Name, n)
		}
	}
}

// TestControlPlaneDown: Services answer and containers restart without it, and
// nothing restarts or doubles when it returns.
func TestControlPlaneDown(t *testing.T) {
	l := newLab(t)
	l.applyWeb()
	address, pods := l.serviceAddress("web"), l.pods("app=web")
	if err := l.Kill(l.ctx, cluster.ControlPlane, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.everyPodAnswers(address, pods)
	victim := pods[0]
	old, err := l.ContainerPID(string(victim.UID), "web")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.eventually("the container is restarted", func() error {
		pid, err := l.ContainerPID(string(victim.UID), "web")
		if err == nil && pid == old {
			err = errors.New("the old one still runs")
		}
		return err
	})
	l.everyPodAnswers(address, pods)
	// The agent too may start while nobody answers on the bus.
	if err := l.Kill(l.ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.everyPodAnswers(address, pods)
	now := map[string]int{}
	for _, p := range pods {
		if now[p.Name], err = l.ContainerPID(string(p.UID), "web"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.StartControlPlane(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.pod(victim.Name, "shows the restart of the time without control plane", func(p corev1.Pod) bool {
		return ready(p) && container(p, "web").RestartCount == 1
	})
	l.awaitReplicas(3)
	after := l.pods("app=web")
	if len(after) != 3 {
		t.Errorf("%d pods, want 3", len(after))
	}
	for _, p := range after {
		if pid, err := l.ContainerPID(string(p.UID), "web"); err != nil || pid != now[p.Name] {
			t.Errorf("pod %s: process %d, was %d: %v", p.Name, pid, now[p.Name], err)
		}
	}
}

// TestReboot: every process dies at once and the runtime directory is gone, as
// after a power cut; what is on disk starts the pods again.
func TestReboot(t *testing.T) {
	l := newLab(t)
	l.applyWeb()
	address, pods := l.serviceAddress("web"), l.pods("app=web")
	for _, name := range []string{cluster.NodeAgent, cluster.ControlPlane} {
		if err := l.Kill(l.ctx, name, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	l.killCgroup()
	if err := os.RemoveAll(l.AgentRunDir()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartControlPlane(l.ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.awaitReplicas(3)
	l.everyPodAnswers(address, pods)
	for _, p := range l.pods("app=web") {
		if n := container(p, "web").RestartCount; n != 1 {
			t.Errorf("pod %s: restart count %d, want 1", p.Name, n)
		}
	}
}

// killCgroup kills every process of every pod, as a power cut would.
func (l *lab) killCgroup() {
	l.Helper()
	l.eventually("no process of any pod is left", func() error {
		alive := 0
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
			if err != nil || !strings.Contains(string(data), "/"+l.CgroupRoot()) {
				continue
			}
			var pid int
			if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
				continue
			}
			alive++
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
		if alive > 0 {
			return fmt.Errorf("%d are", alive)
		}
		return nil
	})
}

// TestTwoAgentsForOneNode: the second is refused by name, the first goes on.
func TestTwoAgentsForOneNode(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("steady", "", ""))
	p := l.pod("steady", "is ready", ready)
	pid, err := l.ContainerPID(string(p.UID), "c")
	if err != nil {
		t.Fatal(err)
	}
	credentials := filepath.Join(l.StateDir, "controlplane", "credentials", "node-"+l.Node+".json")
	for name, dirs := range map[string][2]string{
		"in the same directories": {l.AgentStateDir(), l.AgentRunDir()},
		"in other directories":    {filepath.Join(l.dir, "state2"), filepath.Join(l.dir, "run2")},
	} {
		out, err := command(l.ctx, "", "timeout", "30", filepath.Join(l.bin, cluster.NodeAgent), "--node", l.Node,
			"--credentials", credentials, "--state-dir", dirs[0], "--run-dir", dirs[1], "--cgroup-root", l.CgroupRoot()+"-second")
		if err == nil || strings.Contains(err.Error(), "exit status 124") {
			t.Errorf("%s: the second agent was not refused: %v\n%s", name, err, out)
			continue
		}
		if text := out + err.Error(); !strings.Contains(text, l.Node) && !strings.Contains(text, dirs[0]) {
			t.Errorf("%s: the error names neither the node nor the directory: %s", name, text)
		}
	}
	if now, err := l.ContainerPID(string(p.UID), "c"); err != nil || now != pid {
		t.Errorf("the pod's process was %d and is %d: %v", pid, now, err)
	}
}

// TestOthersTouchTheTable: while the agent runs no other program can flush the
// Services away, and what was removed without it is there again once it returns.
func TestOthersTouchTheTable(t *testing.T) {
	l := newLab(t)
	l.applyWeb()
	address, pods := l.serviceAddress("web"), l.pods("app=web")
	l.everyPodAnswers(address, pods)
	if _, err := command(l.ctx, "", "nft", "delete", "table", "ip", "gantry"); err == nil {
		t.Error("the table could be removed")
	}
	if out, err := command(l.ctx, "", "nft", "flush", "ruleset"); err != nil {
		t.Logf("the ruleset could not be flushed: %v %s", err, out) // either way the Services answer
	}
	l.everyPodAnswers(address, pods)

	l.killAgent()
	l.must(command(l.ctx, "", "nft", "delete", "table", "ip", "gantry"))
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.everyPodAnswers(address, pods)
}

// TestBusLosesItsData: a control plane that comes back without its objects is
// another cluster to the node, which keeps running what it has.
func TestBusLosesItsData(t *testing.T) {
	l := newLab(t)
	l.applyWeb()
	address, pods := l.serviceAddress("web"), l.pods("app=web")
	before := map[string]int{}
	for _, p := range pods {
		pid, err := l.ContainerPID(string(p.UID), "web")
		if err != nil {
			t.Fatal(err)
		}
		before[p.Name] = pid
	}
	if err := l.Kill(l.ctx, cluster.ControlPlane, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(l.StateDir, "controlplane", "bus", "jetstream")); err != nil {
		t.Fatal(err)
	}
	if err := l.StartControlPlane(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.eventually("the node says that this is another cluster", func() error {
		data, err := os.ReadFile(l.LogPath(cluster.NodeAgent))
		if err == nil && !strings.Contains(string(data), "is of another cluster") {
			err = errors.New("it does not")
		}
		return err
	})
	l.everyPodAnswers(address, pods)
	for _, p := range pods {
		if pid, err := l.ContainerPID(string(p.UID), "web"); err != nil || pid != before[p.Name] {
			t.Errorf("pod %s: process %d, was %d: %v", p.Name, pid, before[p.Name], err)
		}
	}
	// And the new cluster does not count on a node that will not listen to it.
	if out, err := l.gantry("", "get", "nodes", "--no-headers"); err != nil || strings.Contains(out, " Ready") {
		t.Errorf("nodes of the new cluster: %v\n%s", err, out)
	}
}
