package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/tools/cluster"
)

// stage is what `task demo`, `task up` and `task down` call, on directories of
// the test's own.
type stage struct {
	*testing.T
	bin, state, run, tmp string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &stage{T: t, bin: bin, state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"), tmp: filepath.Join(dir, "tmp")}
	if err := os.Mkdir(s.tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(s.state); err == nil {
			if out, err := s.command("down").CombinedOutput(); err != nil {
				t.Errorf("clean up: %v\n%s", err, out)
			}
		}
	})
	return s
}

// command calls the demo program. What it and its children write into the
// temporary directory must be gone afterwards as well.
func (s *stage) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	s.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "gantry-demo"), append(args, "--state-dir", s.state, "--run-dir", s.run, "--node", s.node())...)
	cmd.Dir = "../.." // examples/ lies there
	cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp)
	return cmd
}

// node is a name of our own: a cluster that runs on the machine is called local.
func (s *stage) node() string { return fmt.Sprintf("stage-%d", os.Getpid()) }

func (s *stage) must(args ...string) string {
	s.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s: %v\n%s", args[0], err, out)
	}
	return string(out)
}

// refused runs a command that must fail and say why.
func (s *stage) refused(want string, args ...string) {
	s.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "panic") {
		s.Errorf("%s: want failure with %q: %v\n%s", args[0], want, err, out)
	}
}

// opened is the cluster that `up` made.
func (s *stage) opened() *cluster.Cluster {
	s.Helper()
	c, err := cluster.Open(cluster.Options{Bin: s.bin, StateDir: s.state, RunDir: s.run})
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// nothingLeft looks for everything that a cluster can leave on a machine.
func (s *stage) nothingLeft() {
	s.Helper()
	left, err := (&cluster.Cluster{Options: cluster.Options{StateDir: s.state, RunDir: s.run, Node: s.node()}}).Leftovers()
	if err != nil || len(left) > 0 {
		s.Errorf("left behind: %v %v", left, err)
	}
	for _, dir := range []string{s.state, s.run} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			s.Errorf("left behind: %s: %v", dir, err)
		}
	}
	tmp, err := os.ReadDir(s.tmp)
	if err != nil || len(tmp) > 0 {
		s.Errorf("left behind in the temporary directory: %v %v", tmp, err)
	}
	procs, err := exec.Command("pgrep", "-af", s.run).CombinedOutput()
	if err == nil {
		s.Errorf("left running: %s", procs)
	}
}

// TestDemo: what the README shows first.
func TestDemo(t *testing.T) {
	s := newStage(t)
	out := s.must("run")
	if n := strings.Count(out, " ok "); n != 9 || strings.Contains(out, "FAILED") {
		t.Errorf("%d steps held, want 9:\n%s", n, out)
	}
	s.nothingLeft()
}

// TestDemoInterrupted: Ctrl-C after any step leaves nothing.
func TestDemoInterrupted(t *testing.T) {
	for _, step := range []int{0, 1, 3, 5} {
		t.Run(fmt.Sprintf("after step %d", step), func(t *testing.T) {
			s := newStage(t)
			cmd := s.command("run")
			var out lockedBuffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			deadline := time.After(patience)
			for reached := false; !reached; {
				select {
				case err := <-done:
					t.Fatalf("it ended before: %v\n%s", err, out.String())
				case <-deadline:
					t.Fatalf("it does not come that far:\n%s", out.String())
				case <-time.After(5 * time.Millisecond):
				}
				reached = strings.Contains(out.String(), fmt.Sprintf("\n%2d. ", step)) || strings.HasPrefix(out.String(), fmt.Sprintf("%2d. ", step))
				if step == 0 { // within the first step
					_, err := os.Stat(filepath.Join(s.run, "cluster.json"))
					reached = err == nil
				}
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err == nil || !strings.Contains(out.String(), "context canceled") {
				t.Errorf("interrupted, it ended with %v:\n%s", err, out.String())
			}
			s.nothingLeft()
		})
	}
}

// lockedBuffer is what two streams of a process may write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestUpAndDown: up twice, down twice, and down after everything was killed.
func TestUpAndDown(t *testing.T) {
	s := newStage(t)
	out := s.must("up", "-d")
	if !strings.Contains(out, "--context "+s.state) {
		t.Errorf("up does not say how to connect:\n%s", out)
	}
	s.refused("a cluster already runs here: `task down` removes it", "up", "-d")
	s.refused("a cluster already runs here: `task down` removes it", "run")
	gantry := func(args ...string) string {
		t.Helper()
		args = append([]string{"--credentials", s.opened().Credentials()}, args...)
		out, err := exec.Command(filepath.Join(s.bin, "gantry"), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("gantry %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	gantry("apply", "-f", "../../examples/web.yaml")
	gantry("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")

	kill := func() {
		t.Helper()
		c := s.opened()
		for _, name := range []string{cluster.ControlPlane, cluster.NodeAgent, cluster.Registry} {
			if err := c.Kill(t.Context(), name, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		// The program behind the registry ends with it, a moment later.
		for deadline := time.Now().Add(patience); ; {
			conn, err := net.Dial("tcp", registryAddress)
			if err != nil {
				return
			}
			if err := conn.Close(); err != nil || time.Now().After(deadline) {
				t.Fatalf("%s still answers: %v", registryAddress, err)
			}
		}
	}
	kill()
	// Brought up again, it is the same cluster with the same pods.
	s.must("up", "-d")
	if out := gantry("get", "deployment", "web"); !strings.Contains(out, "3/3") {
		t.Errorf("after kill -9 and up:\n%s", out)
	}
	// A start that fails takes nothing away that was there.
	kill()
	holder, err := net.Listen("tcp", registryAddress)
	if err != nil {
		t.Fatal(err)
	}
	s.refused(registryAddress+" is taken by another program", "up", "-d")
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	s.must("up", "-d")
	gantry("get", "deployment", "web")
	kill()
	if out := s.must("down"); !strings.Contains(out, "no process, mount, namespace, link, cgroup, table or directory left") {
		t.Errorf("down printed %q", out)
	}
	s.nothingLeft()
	if out := s.must("down"); !strings.Contains(out, "no cluster is up here") {
		t.Errorf("a second down printed %q", out)
	}
}

// TestDownKeepsState where it is asked to, and removes it later; the demo does
// not touch what is kept.
func TestDownKeepsState(t *testing.T) {
	s := newStage(t)
	s.must("up", "-d")
	creds := s.opened().Credentials()
	before, err := os.ReadFile(creds)
	if err != nil {
		t.Fatal(err)
	}
	if out := s.must("down", "--keep-state"); !strings.Contains(out, "kept: "+s.state) {
		t.Errorf("down --keep-state printed %q", out)
	}
	s.refused(s.state+" holds the state of another cluster", "run")
	s.must("up", "-d")
	after, err := os.ReadFile(creds)
	if err != nil || string(before) != string(after) {
		t.Errorf("the kept cluster has other credentials: %v", err)
	}
	s.must("down", "--keep-state")
	s.must("down") // nothing runs, as after a reboot
	s.nothingLeft()
}

// TestUpFails: the message names what is wrong, and nothing is left.
func TestUpFails(t *testing.T) {
	for _, address := range []string{"127.0.0.1:4222", registryAddress} {
		t.Run("address "+address+" taken", func(t *testing.T) {
			s := newStage(t)
			holder, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = holder.Close() }()
			for _, command := range [][]string{{"up", "-d"}, {"run"}} {
				s.refused("address "+address+" is taken by another program", command...)
				s.nothingLeft()
			}
		})
	}
	for _, missing := range []string{cluster.ControlPlane, cluster.NodeAgent, "gantry-registry", "gantry-images"} {
		t.Run(missing+" does not start", func(t *testing.T) {
			s := newStage(t)
			s.bin = s.binWithout(missing)
			s.refused(missing, "up", "-d", "--bin", s.bin)
			s.nothingLeft()
		})
	}
}

// binWithout is a directory of the binaries, in which one fails at once.
func (s *stage) binWithout(broken string) string {
	s.Helper()
	dir := s.TempDir()
	entries, err := os.ReadDir(s.bin)
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range entries {
		to := filepath.Join(dir, e.Name())
		if e.Name() != broken {
			err = os.Symlink(filepath.Join(s.bin, e.Name()), to)
		} else {
			// The node agent still has to take away what a start made.
			err = os.WriteFile(to, fmt.Appendf(nil, "#!/bin/sh\ncase \"$1\" in reset) exec %s/%s \"$@\";; esac\necho broken on purpose; exit 1\n", s.bin, broken), 0o700)
		}
		if err != nil {
			s.Fatal(err)
		}
	}
	return dir
}
