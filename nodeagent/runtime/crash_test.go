//go:build linux

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
)

// agentEnv makes the test binary an agent that is there to be killed. Its value
// is an agentOrder.
const agentEnv = "GANTRY_TEST_AGENT"

type agentOrder struct {
	StateDir, RunDir, CgroupRoot, Shim, Launcher string

	Pods       []Sandbox
	Containers []Container
	Commands   []Command // run in the first container once it runs
	Done       string    // made when everything was asked for
}

// agentMain asks for every pod and container, again after every restart, as an
// agent does that knows nothing but what should be.
func agentMain(arg string) int {
	var o agentOrder
	if err := json.Unmarshal([]byte(arg), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	rt, err := Open(ctx, Options{
		StateDir: o.StateDir, RunDir: o.RunDir, CgroupRoot: o.CgroupRoot, Shim: o.Shim, Launcher: o.Launcher,
		Log: zerolog.New(os.Stderr),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, s := range o.Pods {
		if _, err := rt.EnsureSandbox(ctx, s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for _, c := range o.Containers {
			if c.PodUID != s.UID {
				continue
			}
			if err := rt.Start(ctx, c); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
	for _, c := range o.Commands {
		if _, err := agentOpens(rt, o.Containers[0], c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := os.WriteFile(o.Done, nil, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {} // until killed
}

// agentOpens runs a command as soon as the container runs.
func agentOpens(rt *Runtime, c Container, cmd Command) (Streams, error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		s, err := rt.Open(c.PodUID, c.Name, c.Attempt, cmd)
		if !errors.Is(err, ErrNotRunning) || time.Now().After(end) {
			return s, err
		}
	}
}

func (n *node) agent(o agentOrder) *exec.Cmd {
	n.t.Helper()
	o.StateDir, o.RunDir, o.CgroupRoot = n.opt.StateDir, n.opt.RunDir, n.opt.CgroupRoot
	o.Shim, o.Launcher = n.opt.Shim, n.opt.Launcher
	b, err := json.Marshal(o)
	must(n.t, err)
	exe, err := os.Executable()
	must(n.t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), agentEnv+"="+string(b))
	cmd.Stderr = os.Stderr
	must(n.t, cmd.Start())
	return cmd
}

func TestAgentKilledAtAnyLineStartsEachContainerOnce(t *testing.T) {
	n := newNode(t)
	n.rt.Close()
	marks := filepath.Join(n.dir, "marks")
	must(t, os.Mkdir(marks, 0o777))
	o := agentOrder{Done: filepath.Join(n.dir, "done")}
	for i := range 12 {
		s := n.sandbox()
		o.Pods = append(o.Pods, s)
		for j := range 2 {
			mark := fmt.Sprintf("/marks/%d-%d", i, j)
			c := n.container(s, "mark", mark, "out", mark, "exit", fmt.Sprint(i+j))
			c.Name = fmt.Sprintf("c%d", j)
			c.Mounts = []Mount{{Type: "bind", Source: marks, Destination: "/marks"}}
			o.Containers = append(o.Containers, c)
		}
	}
	kills := 0
	for end := time.Now().Add(time.Minute); ; kills++ {
		if _, err := os.Stat(o.Done); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the agent never came to its end")
		}
		cmd := n.agent(o)
		time.Sleep(time.Duration(rand.IntN(60+kills*5)) * time.Millisecond) // not to wait: to hit any line
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	}
	t.Logf("%d agents killed", kills)
	n.open()
	for i, c := range o.Containers {
		st := n.ended(c)
		want := i/2 + i%2
		if st.Phase != PhaseExited || st.ExitCode != want {
			t.Errorf("%s of pod %d: %+v, want exit code %d", c.Name, i/2, st, want)
		}
		mark := fmt.Sprintf("/marks/%d-%d", i/2, i%2)
		if b, err := os.ReadFile(filepath.Join(n.dir, mark)); err != nil || string(b) != "x" {
			t.Errorf("%s of pod %d was run %d times: %v", c.Name, i/2, len(b), err)
		}
		if got := n.log(c); got != mark+"\n" {
			t.Errorf("log %q, want %q", got, mark)
		}
	}
}

func TestStartingAgainDoesNothing(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	c := n.container(s, "out", "once")
	for range 3 {
		n.start(c)
	}
	n.ended(c)
	n.start(c)
	n.reopen()
	n.start(c)
	other := n.container(s, "out", "barrier")
	other.Name = "barrier"
	n.says(other) // the shim has looked again by now
	if got := n.log(c); got != "once\n" {
		t.Errorf("log %q", got)
	}
}

func TestNothingIsLostWhileNoAgentRuns(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	ticks := n.container(s, "ticks", "300", "exit", "9")
	n.start(ticks)
	n.logged(ticks, "tick 3")
	before := n.running(ticks)
	n.rt.Close()
	eventually(t, "the container to end by itself", func() bool {
		return strings.Contains(n.log(ticks), "tick 299")
	}, func() any { return n.log(ticks) })
	n.open()
	st := n.ended(ticks)
	if st.ExitCode != 9 || st.PID != 0 || !st.StartedAt.Equal(before.StartedAt) {
		t.Errorf("%+v, before %+v", st, before)
	}
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "tick %d\n", i)
	}
	if got := n.log(ticks); got != want.String() {
		t.Errorf("log differs: %d bytes, want %d", len(got), want.Len())
	}
	// The sandbox is the same one, and works.
	again, err := n.rt.EnsureSandbox(context.Background(), s)
	must(t, err)
	if again.PID == 0 || len(again.Containers) != 1 {
		t.Errorf("%+v", again)
	}
	c := n.container(s, "out", "goes on")
	c.Attempt = 1
	if got := n.says(c); got != "goes on\n" {
		t.Error(got)
	}
}

func TestShimKilled(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	ctx := context.Background()
	done, runs := n.container(s, "exit", "3"), n.container(s, "out", "up", "sleep", "0")
	done.Name, runs.Name = "done", "runs"
	n.start(done)
	n.start(runs)
	n.ended(done)
	n.logged(runs, "up")
	pid := n.running(runs).PID
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	st, _, err := n.rt.Sandbox(s.UID)
	must(t, err)
	must(t, syscall.Kill(st.PID, syscall.SIGKILL))
	eventually(t, "the death of the shim to be seen", func() bool {
		st, _, err = n.rt.Sandbox(s.UID)
		must(t, err)
		return st.PID == 0
	}, func() any { return st })
	if got := st.Containers; got[0].Phase != PhaseExited || got[0].ExitCode != 3 || got[1].Phase != PhaseUnknown {
		t.Errorf("%+v", got)
	}
	if err := n.rt.Start(ctx, n.container(s, "out", "x")); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("start without a shim: %v", err)
	}
	st, err = n.rt.EnsureSandbox(ctx, s)
	must(t, err)
	if !pidfdDead(fd) {
		t.Error("the container outlived its sandbox")
	}
	if got := st.Containers; st.PID == 0 || got[0].Phase != PhaseExited || got[1].Phase != PhaseUnknown {
		t.Errorf("%+v", st)
	}
	n.start(runs) // the same attempt: nothing
	runs.Attempt, runs.Args = 1, prog("out", "again")
	if got := n.says(runs); got != "again\n" {
		t.Error(got)
	}
	must(t, n.rt.Remove(ctx, s.UID, "runs", 0))
	n.reopen()
	st, _, err = n.rt.Sandbox(s.UID)
	must(t, err)
	if got := st.Containers; len(got) != 2 || got[1].Attempt != 1 || got[1].Phase != PhaseExited {
		t.Errorf("%+v", got)
	}
}

// TestShimKilledAtAnyMomentOfAStart looks for launchers that outlive the shim:
// one of them would bring a container into a pod that is buried.
func TestShimKilledAtAnyMomentOfAStart(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	s := n.pod()
	for i := range 40 {
		c := n.container(s, "sleep", "0")
		c.Attempt = i
		st, _, err := n.rt.Sandbox(s.UID)
		must(t, err)
		n.start(c)
		time.Sleep(time.Duration(i) * 500 * time.Microsecond) // the moment, not a wait for anything
		must(t, syscall.Kill(st.PID, syscall.SIGKILL))
		eventually(t, "the death of the shim to be seen", func() bool {
			st, _, err = n.rt.Sandbox(s.UID)
			must(t, err)
			return st.PID == 0
		}, func() any { return st })
		st, err = n.rt.EnsureSandbox(ctx, s)
		must(t, err)
		// A run that was never claimed is the new shim's.
		if phase := st.Containers[i].Phase; phase == PhaseStarting {
			n.running(c)
			must(t, n.rt.Signal(ctx, s.UID, c.Name, c.Attempt, syscall.SIGKILL))
			n.ended(c)
		} else if phase != PhaseUnknown {
			t.Errorf("attempt %d is %s", i, phase)
		}
		var left map[int]string
		eventually(t, "all but the new shim to be gone", func() bool {
			left = n.processes()
			delete(left, st.PID)
			return len(left) == 0
		}, func() any { return left })
	}
}

// processes are those that live in a cgroup of this node, with what they run.
func (n *node) processes() map[int]string {
	found := map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	must(n.t, err)
	for _, d := range dirs {
		cgroup, err := os.ReadFile(filepath.Join(d, "cgroup"))
		if err != nil || !strings.Contains(string(cgroup), n.root+"/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		must(n.t, err)
		stat, _ := os.ReadFile(filepath.Join(d, "stat"))
		if state, _, ok := rundir.ParseStat(stat); !ok || state == 'Z' || pid == os.Getpid() {
			continue
		}
		found[pid] = string(stat)
	}
	return found
}

func TestShimKilledWhileNoAgentRuns(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	c := n.container(s, "sleep", "0")
	n.start(c)
	n.running(c)
	st, _, err := n.rt.Sandbox(s.UID)
	must(t, err)
	n.rt.Close()
	fd, err := unix.PidfdOpen(st.PID, 0)
	must(t, err)
	must(t, syscall.Kill(st.PID, syscall.SIGKILL))
	must(t, awaitPidfd(context.Background(), fd))
	_ = unix.Close(fd)
	reap(st.PID) // it was a child of this process
	n.open()
	st, found, err := n.rt.Sandbox(s.UID)
	must(t, err)
	if !found || st.PID != 0 || st.Containers[0].Phase != PhaseUnknown {
		t.Errorf("%+v", st)
	}
	must(t, n.rt.RemoveSandbox(context.Background(), s.UID))
	if pids := n.rt.cg.pids(podCgroup(s.UID)); len(pids) > 0 {
		t.Errorf("left: %v", pids)
	}
}

func TestRemoveSandboxEndsEverything(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	ctx := context.Background()
	var fds []int
	for i := range 3 {
		c := n.container(s, "forks", "3", "term", "sleep", "0") // deaf to nothing but KILL
		c.Name = fmt.Sprintf("c%d", i)
		n.start(c)
		n.logged(c, "ready")
		fd, err := unix.PidfdOpen(n.running(c).PID, 0)
		must(t, err)
		fds = append(fds, fd)
	}
	starting := n.container(s, "sleep", "0")
	n.start(starting) // caught in the middle
	must(t, n.rt.RemoveSandbox(ctx, s.UID))
	for _, fd := range fds {
		if !pidfdDead(fd) {
			t.Error("a container is left")
		}
		_ = unix.Close(fd)
	}
	if _, found, _ := n.rt.Sandbox(s.UID); found {
		t.Error("found after its removal")
	}
	if got := n.log(Container{PodUID: s.UID, Name: "c0"}); !strings.Contains(got, "ready") {
		t.Errorf("log is gone: %q", got)
	}
	must(t, n.rt.RemoveSandbox(ctx, s.UID))
	must(t, n.rt.RemoveSandbox(ctx, "never-there"))
}

func TestSecondAgentIsRefused(t *testing.T) {
	n := newNode(t)
	if rt, err := Open(context.Background(), n.opt); err == nil {
		rt.Close()
		t.Fatal("two agents have one directory")
	} else if !strings.Contains(err.Error(), "another agent") {
		t.Error(err)
	}
}

func TestRebootLosesRunDir(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	c := n.container(s, "write", "/x", "y", "sleep", "0")
	n.start(c)
	n.logged(c, "wrote")
	must(t, n.rt.RemoveSandbox(context.Background(), s.UID))
	// What a reboot leaves: the disk's part, and nothing in RunDir.
	old := filepath.Join(n.opt.StateDir, "pods", string(s.UID), "main.0.upper")
	must(t, os.MkdirAll(old, 0o755))
	must(t, os.WriteFile(filepath.Join(old, "x"), []byte("from before\n"), 0o644))
	n.reopen()
	if _, err := os.Stat(old); err == nil {
		t.Error("the old writable layer is still there")
	}
	if _, found, err := n.rt.Sandbox(s.UID); found || err != nil {
		t.Errorf("found: %v, %v", found, err)
	}
	_, err := n.rt.EnsureSandbox(context.Background(), s)
	must(t, err)
	c.Args = prog("cat", "/x", "out", "new")
	if got := n.says(c); !strings.Contains(got, "no such file") || !strings.Contains(got, "new") {
		t.Error(got)
	}
}

func TestWakes(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	n.start(n.container(s, "sleep", "20"))
	deadline := time.After(30 * time.Second)
	for {
		select {
		case uid := <-n.rt.Wakes():
			st, _, err := n.rt.Sandbox(uid)
			must(t, err)
			if len(st.Containers) == 1 && st.Containers[0].Phase == PhaseExited {
				return
			}
		case <-deadline:
			t.Fatal("no wake-up told of the end")
		}
	}
}
