package network

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"gantry.dev/schemas"
)

// host is a machine: a network namespace with a network of ours in it.
type host struct {
	t    testing.TB
	file *os.File
	dir  string
	net  *Network
}

var record = schemas.NetworkRecord{PodCIDR: "10.244.1.0/24", ClusterPodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/16"}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	h := &host{t: t, dir: t.TempDir()}
	opened := make(chan error)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and no
		// other one finds itself in this namespace.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.file, err = os.Open("/proc/thread-self/ns/net")
		}
		opened <- err
	}()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.file.Close() })
	h.run("ip link set lo up")
	h.restart()
	h.setup(record)
	return h
}

// restart is what an agent's restart does: everything is opened anew.
func (h *host) restart() {
	h.t.Helper()
	h.do(func() error {
		n, err := New(Options{StateDir: h.dir, Log: zerolog.Nop()})
		if err != nil {
			return err
		}
		h.net = n
		h.t.Cleanup(func() { _ = n.Close() })
		return nil
	})
}

func (h *host) setup(r schemas.NetworkRecord) {
	h.t.Helper()
	h.do(func() error { return h.net.Setup(h.t.Context(), r) })
}

func enter(file *os.File, f func() error) error {
	out := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			out <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		out <- f()
	}()
	return <-out
}

// do runs f on a thread in the host's namespace.
func (h *host) do(f func() error) {
	h.t.Helper()
	if err := enter(h.file, f); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) run(command string) string {
	h.t.Helper()
	return runIn(h.t, h.file, command)
}

func runIn(t testing.TB, file *os.File, command string) string {
	t.Helper()
	var out []byte
	err := enter(file, func() (err error) {
		args := strings.Fields(command)
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// shim is a process that holds a pod's namespace.
type shim struct {
	t    testing.TB
	cmd  *exec.Cmd
	file *os.File
}

func newShim(t testing.TB) *shim {
	t.Helper()
	s := &shim{t: t, cmd: exec.Command("sleep", "600")}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// The death signal is tied to the thread that started the process.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // it is killed, so it never ends well
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.kill(); <-ended })
	var err error
	if s.file, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.file.Close() })
	return s
}

func (s *shim) pid() int { return s.cmd.Process.Pid }

func (s *shim) do(f func() error) {
	s.t.Helper()
	if err := enter(s.file, f); err != nil {
		s.t.Fatal(err)
	}
}

// kill ends the process and lets go of its namespace.
func (s *shim) kill() {
	_ = s.cmd.Process.Kill() // it may have ended already
	_ = s.file.Close()
	path := fmt.Sprintf("/proc/%d/ns/net", s.pid())
	eventually(s.t, "the shim is gone", func() bool {
		_, err := os.Readlink(path)
		return err != nil
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
