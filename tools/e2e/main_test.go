package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/tools/cluster"
)

func TestMain(m *testing.M) {
	if err := cluster.InOwnNetwork(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	registryAddress = "127.0.0.1:5050"
	sampleImage     = registryAddress + "/gantry/web:v1"
	patience        = 60 * time.Second
)

// lab is one cluster and the command line to drive it.
type lab struct {
	*testing.T
	*cluster.Cluster
	ctx context.Context
	bin string
	dir string
}

// newLab brings up a cluster with the sample image in its registry. When the
// test ends it is taken down, and whatever it leaves behind fails the test.
func newLab(t *testing.T, agentFlags ...string) *lab {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, cluster.NodeAgent)); err != nil {
		t.Fatalf("no binaries in bin/: run `task build` first: %v", err)
	}
	// Not t.Context(): that ends before the clean-up, which still asks the cluster.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	dir := t.TempDir()
	c, err := cluster.Start(ctx, cluster.Options{
		Bin: bin, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		Node: fmt.Sprintf("e2e-%d", os.Getpid()), Registry: registryAddress, LogLevel: "debug",
		AgentFlags: agentFlags,
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{T: t, Cluster: c, ctx: ctx, bin: bin, dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			l.dump()
		}
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if err := c.Stop(stopCtx, false); err != nil {
			t.Errorf("take the cluster down: %v", err)
		}
		left, err := c.Leftovers()
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
		for _, m := range mountsOf(t, dir) {
			t.Errorf("left behind: mount %s", m)
		}
	})
	layout := filepath.Join(dir, "image")
	l.must(command(ctx, "", filepath.Join(bin, "gantry-images"), "build", "-o", layout, "web"))
	l.must(command(ctx, "", filepath.Join(bin, "gantry-images"), "push", "--insecure", layout, sampleImage))
	return l
}

// mountsOf lists the host's mounts that lie under a directory or are made of
// what does, such as an overlay's layers.
func mountsOf(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.SplitSeq(string(data), "\n") {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	return found
}

// dump prints what helps to understand a failure.
func (l *lab) dump() {
	for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "nodes"}, {"events", "-A"}} {
		out, err := l.gantry("", args...)
		l.Logf("gantry %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	for _, name := range []string{cluster.ControlPlane, cluster.NodeAgent} {
		data, err := os.ReadFile(l.LogPath(name))
		if err != nil {
			continue
		}
		lines := strings.Split(string(data), "\n")
		l.Logf("%s log ends:\n%s", name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

func command(ctx context.Context, stdin, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

func (l *lab) gantry(stdin string, args ...string) (string, error) {
	return command(l.ctx, stdin, filepath.Join(l.bin, "gantry"), append([]string{"--credentials", l.Credentials()}, args...)...)
}

func (l *lab) must(out string, err error) string {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
	return out
}

func (l *lab) apply(manifest string) {
	l.Helper()
	l.must(l.gantry(manifest, "apply", "-f", "-"))
}

// get reads one object into out.
func (l *lab) get(out any, kind, name string) error {
	data, err := l.gantry("", "get", kind, name, "-o", "json")
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(data), out)
}

func (l *lab) pods(selector string) []corev1.Pod {
	l.Helper()
	var list corev1.PodList
	if err := json.Unmarshal([]byte(l.must(l.gantry("", "get", "pods", "-l", selector, "-o", "json"))), &list); err != nil {
		l.Fatal(err)
	}
	return list.Items
}

// eventually asks until cond returns nil; its last error fails the test.
func (l *lab) eventually(what string, cond func() error) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			l.Fatalf("%s: still not after %v: %v", what, patience, err)
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// pod waits until the named pod is as wanted and returns it.
func (l *lab) pod(name, what string, is func(corev1.Pod) bool) corev1.Pod {
	l.Helper()
	var p corev1.Pod
	l.eventually(fmt.Sprintf("pod %s %s", name, what), func() error {
		p = corev1.Pod{}
		if err := l.get(&p, "pod", name); err != nil {
			return err
		}
		if !is(p) {
			status, err := json.Marshal(p.Status)
			return errors.Join(fmt.Errorf("its status is %s", status), err)
		}
		return nil
	})
	return p
}

func ready(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// container is the status of a pod's container, empty where it has none yet.
func container(p corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

func waitingFor(p corev1.Pod, name string) string {
	if w := container(p, name).State.Waiting; w != nil {
		return w.Reason
	}
	return ""
}

// onePod is a manifest; spec goes into its container as further JSON fields,
// podSpec into the pod's.
func onePod(name, spec, podSpec string) string {
	if spec != "" {
		spec = "," + spec
	}
	if podSpec != "" {
		podSpec = "," + podSpec
	}
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"labels":{"pod":%q}},
"spec":{"terminationGracePeriodSeconds":2,"containers":[{"name":"c","image":%q%s}]%s}}
`, name, name, sampleImage, spec, podSpec)
}
