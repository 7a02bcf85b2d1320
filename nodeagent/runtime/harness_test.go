//go:build linux

package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"
)

// binEnv names a directory with gantry-shim, gantry-launcher and testprog; the
// tests build them when it is not set.
const binEnv = "GANTRY_TEST_BIN"

var bin string

func TestMain(m *testing.M) {
	if verb := os.Getenv(agentEnv); verb != "" {
		os.Exit(agentMain(verb))
	}
	code := func() int {
		if bin = os.Getenv(binEnv); bin == "" {
			dir, err := os.MkdirTemp("", "gtest-bin-")
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer func() { _ = os.RemoveAll(dir) }()
			if err := buildAll(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			bin = dir
		}
		return m.Run()
	}()
	os.Exit(code)
}

func buildAll(dir string) error {
	for _, b := range []struct {
		name, pkg string
		cgo       string
		args      []string
	}{
		{"gantry-shim", "gantry.dev/nodeagent/runtime/shim", "0", nil},
		{"testprog", "gantry.dev/nodeagent/runtime/testprog", "0", nil},
		{"gantry-launcher", "gantry.dev/nodeagent/runtime/launcher", "1", []string{"-tags", "seccomp osusergo netgo"}},
	} {
		ld := "-s -w"
		if b.cgo == "1" {
			ld += ` -linkmode external -extldflags "-static"`
		}
		args := append([]string{"build", "-trimpath", "-ldflags", ld, "-o", filepath.Join(dir, b.name)}, b.args...)
		cmd := exec.Command("go", append(args, b.pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", b.name, err, out)
		}
	}
	return nil
}

// node is one node's runtime with directories and cgroups of its own. At the
// end it checks that nothing is left.
type node struct {
	t     testing.TB
	dir   string
	root  string // cgroup
	opt   Options
	rt    *Runtime
	layer string
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	// Not t.TempDir: its name holds the test's, and its removal hides ours.
	dir, err := os.MkdirTemp("", "gtest-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, root: "/gtest-" + random(), layer: filepath.Join(dir, "layer")}
	n.opt = Options{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), CgroupRoot: n.root,
		Shim: filepath.Join(bin, "gantry-shim"), Launcher: filepath.Join(bin, "gantry-launcher"),
		Log: zerolog.New(zerolog.NewTestWriter(t)),
	}
	n.makeLayer()
	n.open()
	t.Cleanup(func() {
		n.cleanUp()
		// Whatever the runtime mounts lies under the directory or is made of what
		// does; other tests mount too, so counting would not do.
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		for line := range strings.SplitSeq(string(mounts), "\n") {
			if strings.Contains(line, dir) {
				t.Errorf("left on the host: mount %s", line)
			}
		}
	})
	return n
}

func (n *node) makeLayer() {
	n.t.Helper()
	files := map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
		"etc/group":  "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n",
	}
	for name, text := range files {
		path := filepath.Join(n.layer, name)
		must(n.t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(n.t, os.WriteFile(path, []byte(text), 0o644))
	}
	must(n.t, os.MkdirAll(filepath.Join(n.layer, "tmp"), 0o755))
	must(n.t, os.Chmod(filepath.Join(n.layer, "tmp"), 0o1777))
	b, err := os.ReadFile(filepath.Join(bin, "testprog"))
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(n.layer, "testprog"), b, 0o755))
	must(n.t, os.WriteFile(filepath.Join(n.layer, "notexec"), b, 0o644))
}

func (n *node) open() {
	n.t.Helper()
	rt, err := Open(context.Background(), n.opt)
	must(n.t, err)
	n.rt = rt
}

// reopen is what an agent's restart is to the pods.
func (n *node) reopen() {
	n.t.Helper()
	n.rt.Close()
	n.open()
}

func (n *node) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := n.rt.Erase(ctx); err != nil {
		n.t.Error(err)
	}
	for _, d := range []string{n.opt.RunDir, n.opt.StateDir} {
		if left, _ := os.ReadDir(d); len(left) > 0 {
			n.t.Errorf("left in %s: %v", d, left)
		}
	}
	for _, t := range n.rt.cg.tops {
		if _, err := os.Stat(t); err == nil {
			n.t.Errorf("cgroup left: %s", t)
		}
	}
	if pids := processesWith(n.dir); len(pids) > 0 {
		n.t.Errorf("processes left: %v", pids)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

// processesWith lists processes whose working directory is below dir: shims
// and launchers.
func processesWith(dir string) []string {
	var out []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir) {
			out = append(out, l+" "+to)
		}
	}
	return out
}

func (n *node) sandbox() Sandbox {
	uid := types.UID(random())
	return Sandbox{UID: uid, Namespace: "default", Name: "web", Hostname: "web-0", LogDir: filepath.Join(n.dir, "logs", string(uid))}
}

// pod makes a sandbox.
func (n *node) pod() Sandbox {
	n.t.Helper()
	s := n.sandbox()
	_, err := n.rt.EnsureSandbox(context.Background(), s)
	must(n.t, err)
	return s
}

func (n *node) container(s Sandbox, args ...string) Container {
	return Container{
		PodUID: s.UID, Name: "main", Args: append([]string{"/testprog"}, args...),
		Env: []string{"NAME=main"}, Cwd: "/", Layers: []string{n.layer}, Seccomp: "RuntimeDefault",
	}
}

func (n *node) start(c Container) {
	n.t.Helper()
	must(n.t, n.rt.Start(context.Background(), c))
}

// until waits for a run to be as ok says.
func (n *node) until(uid types.UID, name string, attempt int, what string, ok func(ContainerState) bool) ContainerState {
	n.t.Helper()
	var last ContainerState
	eventually(n.t, what, func() bool {
		s, found, err := n.rt.Sandbox(uid)
		must(n.t, err)
		if !found {
			return false
		}
		for _, c := range s.Containers {
			if c.Name == name && c.Attempt == attempt {
				last = c
				return ok(c)
			}
		}
		return false
	}, func() any { return last })
	return last
}

func (n *node) ended(c Container) ContainerState {
	n.t.Helper()
	return n.until(c.PodUID, c.Name, c.Attempt, "the run to end", func(s ContainerState) bool { return s.Phase.Ended() })
}

func (n *node) running(c Container) ContainerState {
	n.t.Helper()
	st := n.until(c.PodUID, c.Name, c.Attempt, "the run to execute", func(s ContainerState) bool { return s.Phase != PhaseStarting })
	if st.Phase != PhaseRunning {
		n.t.Fatalf("not running: %+v\n%s", st, n.log(c))
	}
	return st
}

// log is the text of the log without times and marks.
func (n *node) log(c Container) string {
	n.t.Helper()
	s := Sandbox{LogDir: filepath.Join(n.dir, "logs", string(c.PodUID))}
	b, err := os.ReadFile(n.rt.LogPath(s, c.Name, c.Attempt))
	if err != nil {
		return ""
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) == 4 {
			out.WriteString(parts[3])
		}
	}
	return out.String()
}

// says runs a container to its end and returns what it logged.
func (n *node) says(c Container) string {
	n.t.Helper()
	n.start(c)
	st := n.ended(c)
	if st.Phase != PhaseExited || st.ExitCode != 0 {
		n.t.Fatalf("ended as %+v\n%s", st, n.log(c))
	}
	return n.log(c)
}

func (n *node) logged(c Container, text string) {
	n.t.Helper()
	eventually(n.t, "log to hold "+text, func() bool { return strings.Contains(n.log(c), text) }, func() any { return n.log(c) })
}

// eventually gives slow machines a minute; nothing here is a measurement.
func eventually(t testing.TB, what string, ok func() bool, seen func() any) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s; last seen: %+v", what, seen())
}

func random() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
