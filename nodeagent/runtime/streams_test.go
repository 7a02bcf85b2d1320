//go:build linux

package runtime

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry.dev/nodeagent/runtime/rundir"
)

// connected is somebody at the other end of streams.
type connected struct {
	t        testing.TB
	s        Streams
	mu       sync.Mutex
	out, err bytes.Buffer
	readers  sync.WaitGroup
}

func connect(t testing.TB, s Streams, err error) *connected {
	t.Helper()
	must(t, err)
	c := &connected{t: t, s: s}
	var once sync.Once
	stop := s.Stop
	c.s.Stop = func() { once.Do(stop) }
	t.Cleanup(c.s.Stop)
	read := func(r io.Reader, into *bytes.Buffer) {
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			c.mu.Lock()
			into.Write(buf[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}
	c.readers.Go(func() { read(s.Stdout, &c.out) })
	if s.Stderr != nil {
		c.readers.Go(func() { read(s.Stderr, &c.err) })
	}
	return c
}

func (c *connected) says() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (c *connected) hears(text string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("output to hold %q", text), func() bool { return strings.Contains(c.says(), text) }, func() any { return c.says() })
}

func (c *connected) write(text string) {
	c.t.Helper()
	_, err := io.WriteString(c.s.Stdin, text)
	must(c.t, err)
}

// end waits for the end and returns it with all that was said.
func (c *connected) end() (code int, out, errOut string, err error) {
	c.t.Helper()
	e, err := c.s.Wait()
	c.readers.Wait()
	c.s.Stop()
	code = -1
	if e != nil {
		code = *e
	}
	return code, c.out.String(), c.err.String(), err
}

// sleeper is a container in which commands can be run.
func (n *node) sleeper(edit func(*Container)) Container {
	n.t.Helper()
	c := n.container(n.pod(), "out", "up", "sleep", "0")
	if edit != nil {
		edit(&c)
	}
	n.start(c)
	n.logged(c, "up")
	return c
}

func (n *node) command(c Container, cmd Command) *connected {
	n.t.Helper()
	s, err := n.rt.Open(c.PodUID, c.Name, c.Attempt, cmd)
	return connect(n.t, s, err)
}

func TestCommands(t *testing.T) {
	n := newNode(t)
	plain := n.sleeper(nil)
	alice := n.sleeper(func(c *Container) {
		c.User, c.Cwd, c.CapDrop, c.NoNewPrivileges = "alice", "/tmp", []string{"ALL"}, true
	})
	open := n.sleeper(func(c *Container) { c.Seccomp = "Unconfined" })
	tests := []struct {
		desc     string
		c        Container
		args     []string
		code     int
		out, err string
		failure  string
	}{
		{desc: "both outputs apart", c: plain, args: prog("out", "one", "err", "two"), out: "one\n", err: "two\n"},
		{desc: "exit code", c: plain, args: prog("exit", "42"), code: 42},
		{desc: "death by signal", c: plain, args: prog("kill", "15"), code: 143},
		{desc: "input is empty where none is wanted", c: plain, args: prog("echo"), out: "end of input\n"},
		{desc: "user, directory, environment", c: alice, args: prog("id", "cwd", "env", "NAME", "hostname"), out: "id 1000 1000 [50]\ncwd /tmp\nenv main\nhostname web-0\n"},
		{
			desc: "as confined as the container", c: plain, args: prog("status", "Seccomp", "status", "CapBnd", "status", "NoNewPrivs", "keyctl", "unshare", "newcall"),
			out: "Seccomp 2\nCapBnd 00000000a80425fb\nNoNewPrivs 0\nkeyctl: operation not permitted\nunshare: operation not permitted\nnewcall: function not implemented\n",
		},
		{desc: "as few rights", c: alice, args: prog("status", "Seccomp", "status", "CapBnd", "status", "NoNewPrivs"), out: "Seccomp 2\nCapBnd 0000000000000000\nNoNewPrivs 1\n"},
		{desc: "unconfined as the container", c: open, args: prog("status", "Seccomp"), out: "Seccomp 0\n"},
		{
			desc: "command that is not there", c: plain, args: []string{"nothing-here"}, code: 127,
			failure: `exec: "nothing-here": executable file not found in $PATH`,
		},
		{desc: "path that is not there", c: plain, args: []string{"/nothing/here"}, code: 127, failure: `exec: "/nothing/here": stat /nothing/here: no such file or directory`},
		{desc: "file that is not executable", c: plain, args: []string{"/notexec"}, code: 126, failure: `exec: "/notexec": permission denied`},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			code, out, errOut, err := n.command(tt.c, Command{Args: tt.args}).end()
			if d := cmp.Diff([]any{tt.code, tt.out, tt.err}, []any{code, out, errOut}); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
			if tt.failure == "" && err != nil || tt.failure != "" && (err == nil || !strings.Contains(err.Error(), tt.failure)) {
				t.Errorf("error %v, want %q", err, tt.failure)
			}
		})
	}
	x := n.command(plain, Command{Args: prog("fds", "out", "listed", "sleep", "0")})
	x.hears("listed\n")
	if got := n.beside(plain); got != 1 {
		t.Errorf("%d processes beside the container's in its cgroup, want the command", got)
	}
	same := x.says()
	for _, ours := range []string{"memfd", "socket", "filter", n.dir} {
		if strings.Contains(same, ours) {
			t.Errorf("a descriptor of ours is open:\n%s", same)
		}
	}
}

func TestCommandInput(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(func(c *Container) { c.User = "alice" })
	x := n.command(c, Command{Args: prog("echo", "exit", "3"), Stdin: true})
	x.write("hello\n")
	x.hears("hello\n")
	must(t, x.s.Stdin.Close())
	if code, out, _, err := x.end(); code != 3 || err != nil || out != "hello\nend of input\n" {
		t.Errorf("%d, %v, %q", code, err, out)
	}
}

func TestCommandTerminal(t *testing.T) {
	n := newNode(t)
	for _, user := range []string{"", "alice"} {
		c := n.sleeper(func(c *Container) { c.User = user })
		x := n.command(c, Command{Args: prog("tty", "winch", "echo", "exit", "5"), Stdin: true, TTY: true, Columns: 80, Rows: 24})
		x.hears("tty 0 80 24\r\ntty 1 80 24\r\ntty 2 80 24\r\nwatching\r\n")
		must(t, x.s.Resize(132, 43))
		x.hears("size 132 43\r\n")
		x.write("hello\n")
		x.hears("hello\r\nhello\r\n") // the terminal's echo, and the command's
		must(t, x.s.Stdin.Close())
		if code, out, _, err := x.end(); code != 5 || err != nil || !strings.HasSuffix(out, "end of input\r\n") {
			t.Errorf("%d, %v, %q", code, err, out)
		}
	}
	c := n.sleeper(nil)
	x := n.command(c, Command{Args: prog("winch", "sleep", "0"), Stdin: true, TTY: true})
	x.hears("watching")
	x.write("\x03")
	if code, _, _, err := x.end(); code != 130 && code != 2 || err != nil {
		t.Errorf("interrupted: %d, %v", code, err)
	}
	open := n.sleeper(func(c *Container) { c.Seccomp = "Unconfined" })
	if _, out, _, err := n.command(open, Command{Args: prog("status", "Seccomp"), TTY: true}).end(); out != "Seccomp 0\r\n" || err != nil {
		t.Errorf("unconfined: %q, %v", out, err)
	}
	if _, out, _, err := n.command(c, Command{Args: prog("status", "Seccomp", "env", "TERM"), TTY: true}).end(); out != "Seccomp 2\r\nenv xterm\r\n" || err != nil {
		t.Errorf("confined: %q, %v", out, err)
	}
	x = n.command(c, Command{Args: []string{"nothing-here"}, TTY: true})
	if code, _, _, err := x.end(); code != 127 || err == nil {
		t.Errorf("command that is not there: %d, %v", code, err)
	}
}

func TestCommandsEndWithTheirContainer(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	x := n.command(c, Command{Args: prog("out", "joined", "sleep", "0")})
	x.hears("joined")
	must(t, n.rt.Signal(context.Background(), c.PodUID, c.Name, c.Attempt, 9))
	if code, _, _, err := x.end(); code != 137 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	n.ended(c)
	if _, err := n.rt.Open(c.PodUID, c.Name, c.Attempt, Command{Args: prog("out", "x")}); err == nil {
		t.Error("a command runs in a container that has ended")
	}
}

// sleepers counts processes in a container beside its own.
func (n *node) beside(c Container) int {
	pids := n.rt.cg.pids(filepath.Join(podCgroup(c.PodUID), fmt.Sprintf("%s.%d", c.Name, c.Attempt)))
	return len(pids) - 1
}

func TestStoppedCommandsAreKilled(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	for _, tty := range []bool{false, true} {
		x := n.command(c, Command{Args: prog("spawn", "sleep", "0"), TTY: tty})
		x.hears("spawned")
		if got := n.beside(c); got != 2 {
			t.Errorf("%d processes beside the container's, want the command and its child", got)
		}
		x.s.Stop()
		if code, _, _, err := x.end(); code != 137 && code != 129 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
		eventually(t, "the command and its child to be gone", func() bool { return n.beside(c) == 0 }, func() any { return n.beside(c) })
	}
	if st := n.running(c); st.Phase != PhaseRunning {
		t.Errorf("%+v", st)
	}
	eventually(t, "launchers to leave", func() bool { return len(processesWithArg(string(c.PodUID))) == 1 }, func() any { return processesWithArg(string(c.PodUID)) })
	if left, _ := filepath.Glob(filepath.Join(n.rt.runDir(c.PodUID, c.Name, c.Attempt), "exec-*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestCommandsEndWithTheAgent(t *testing.T) {
	n := newNode(t)
	n.rt.Close()
	s := n.sandbox()
	c := n.container(s, "out", "up", "sleep", "0")
	o := agentOrder{Pods: []Sandbox{s}, Containers: []Container{c}, Done: filepath.Join(n.dir, "done"), Commands: []Command{
		{Args: prog("spawn", "sleep", "0")}, {Args: prog("spawn", "sleep", "0"), TTY: true, Stdin: true},
	}}
	agent := n.agent(o)
	eventually(t, "the agent to be done", func() bool { _, err := os.Stat(o.Done); return err == nil }, func() any { return nil })
	eventually(t, "two commands with a child each", func() bool { return n.beside(c) == 4 }, func() any { return n.beside(c) })
	must(t, agent.Process.Kill())
	_ = agent.Wait() // it was killed
	eventually(t, "the commands to be gone", func() bool { return n.beside(c) == 0 }, func() any { return n.beside(c) })
	eventually(t, "launchers to leave", func() bool { return len(processesWithArg(string(s.UID))) == 1 }, func() any { return processesWithArg(string(s.UID)) })
	n.open()
	if st := n.running(c); st.Phase != PhaseRunning {
		t.Errorf("%+v", st)
	}
}

// processesWithArg lists processes with text in their command line: the pod's
// shim, and launchers.
func processesWithArg(text string) []string {
	var out []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), text) {
			out = append(out, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// What a command leaves running is not killed when the command ends by itself.
func TestBackgroundOfACommandGoesOn(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	x := n.command(c, Command{Args: prog("spawn", "exit", "0")})
	x.hears("spawned")
	code, err := x.s.Wait()
	if err != nil || *code != 0 {
		t.Errorf("%v, %v", code, err)
	}
	x.s.Stop()
	x.readers.Wait()
	if got := n.beside(c); got != 1 {
		t.Errorf("%d processes beside the container's, want the command's child", got)
	}
}

func TestSlowReaderStopsTheCommand(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	s, err := n.rt.Open(c.PodUID, c.Name, c.Attempt, Command{Args: prog("flood", "10000000")})
	must(t, err)
	defer s.Stop()
	buf := make([]byte, 1000)
	_, err = io.ReadFull(s.Stdout, buf)
	must(t, err)
	rest, err := io.ReadAll(s.Stdout)
	must(t, err)
	if len(buf)+len(rest) != 10000000 {
		t.Errorf("%d bytes", len(buf)+len(rest))
	}
	if code, err := s.Wait(); err != nil || *code != 0 {
		t.Errorf("%v, %v", code, err)
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			s, err := n.rt.Open(c.PodUID, c.Name, c.Attempt, Command{Args: prog("out", fmt.Sprint(i), "exit", fmt.Sprint(i)), TTY: i%2 == 0})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Stop()
			out, err := io.ReadAll(s.Stdout)
			code, werr := s.Wait()
			if err != nil || werr != nil || *code != i || strings.TrimSpace(string(out)) != fmt.Sprint(i) {
				t.Errorf("command %d: %q, %v, %v, %v", i, out, code, err, werr)
			}
		})
	}
	all.Wait()
}

// TestCommandJoinsNobodyElse: the number of a container that has ended may be
// another process's by the time a command comes to join it, with other
// namespaces, the host's own among them.
func TestCommandJoinsNobodyElse(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	run, _, err := n.rt.find(c.PodUID, c.Name, c.Attempt)
	must(t, err)
	path := filepath.Join(run.dir, rundir.PID)
	was, err := os.ReadFile(path)
	must(t, err)
	ints, ok := rundir.ParseInts(was, 3)
	if !ok {
		t.Fatalf("%s holds %q", path, was)
	}
	must(t, os.WriteFile(path, rundir.Ints(int64(os.Getpid()), ints[1], ints[2]), 0o600))
	code, out, _, err := n.command(c, Command{Args: []string{"/proc/self/exe", "-test.list=^$"}}).end()
	if code != -1 || out != "" || err == nil || !strings.Contains(err.Error(), "the container is not running") {
		t.Errorf("code %d, said %q, error %v", code, out, err)
	}
	must(t, os.WriteFile(path, was, 0o600))
	if code, _, _, err := n.command(c, Command{Args: prog("exit", "7")}).end(); code != 7 || err != nil {
		t.Errorf("in the container itself: %d, %v", code, err)
	}
}
