//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// Descriptors of exec: the order comes in on one and the result leaves on the
// other, so that standard input and output belong to the command. The agent
// holds the order's other end open for as long as the command may run: it is
// closed by whatever ends the agent, kill -9 included. A signal at the death of
// the parent would not do, it comes at the death of the thread that forked.
const (
	fdOrder   = 3
	fdResult  = 4
	fdConsole = 5 // only with a terminal: where the other end of it is sent
)

// execute runs one more command in the container whose run directory is the
// second argument.
func execute() {
	order, result := os.NewFile(fdOrder, "order"), os.NewFile(fdResult, "result")
	syscall.CloseOnExec(fdOrder)
	syscall.CloseOnExec(fdResult)
	said := listen()
	var o want.Exec
	var out want.ExecResult
	err := json.NewDecoder(order).Decode(&o)
	if err == nil {
		out, err = join(os.Args[2], o, order)
	}
	if err != nil {
		out.Reason, out.Message = explain(err)
		if said.Len() > 0 {
			out.Message += " (" + strings.TrimSpace(said.String()) + ")"
		}
	}
	if err := json.NewEncoder(result).Encode(out); err != nil {
		os.Exit(3)
	}
}

// join runs the command as the container's own user, with its environment and
// limits, and waits for it, or for the agent to let go of life.
func join(dir string, o want.Exec, life *os.File) (want.ExecResult, error) {
	var out want.ExecResult
	w, err := readWant(filepath.Join(dir, rundir.Want))
	if err != nil {
		return out, err
	}
	state, err := writeState(dir, w)
	if err != nil {
		return out, fmt.Errorf("prepare state: %w", err)
	}
	defer func() { _ = os.RemoveAll(state) }()
	c, err := libcontainer.Load(state, rundir.ContainerID)
	if err != nil {
		return out, err
	}
	first, err := openFirst(dir)
	if err != nil {
		return out, err
	}
	defer first.close()
	w.Args = o.Args
	p, err := process(filepath.Join("/proc", strconv.Itoa(first.pid), "root"), w)
	if err != nil {
		return out, err
	}
	if err := confineJoined(p, w); err != nil {
		return out, fmt.Errorf("make seccomp filter: %w", err)
	}
	if o.TTY {
		p.ConsoleSocket = os.NewFile(fdConsole, "console")
		p.ConsoleWidth, p.ConsoleHeight = o.Columns, o.Rows
		if !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
			p.Env = append(slices.Clip(p.Env), "TERM=xterm")
		}
		syscall.CloseOnExec(fdConsole)
	}
	if err := enterPod(first.pid); err != nil {
		return out, fmt.Errorf("enter pod: %w", err)
	}
	if err := c.Run(p); err != nil {
		return out, err
	}
	if o.TTY {
		_ = p.ConsoleSocket.Close() // so that the agent sees that no terminal comes
	}
	pid, err := p.Pid()
	if err != nil {
		return out, err
	}
	command := &leader{pid: pid}
	var timer *time.Timer
	if o.Timeout > 0 {
		timer = time.AfterFunc(time.Duration(o.Timeout), command.kill)
	}
	if first.dead() {
		// Its namespaces were found by its number, which may have been another's by
		// then. In the container itself nothing would live on either.
		command.kill()
	}
	go func() {
		_, _ = io.Copy(io.Discard, life)
		command.kill()
	}()
	command.await()
	end, err := p.Wait()
	if timer != nil && !timer.Stop() {
		out.TimedOut = true
	}
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		return out, err
	}
	ws := end.Sys().(syscall.WaitStatus)
	out.ExitCode = ws.ExitStatus()
	if ws.Signaled() {
		out.ExitCode = 128 + int(ws.Signal())
	}
	return out, nil
}

// firstProcess is the container's. As long as it lives its number is its own,
// and what is found by the number belongs to the container.
type firstProcess struct{ pid, fd int }

// openFirst finds the process whose number and start time the shim has noted.
func openFirst(dir string) (firstProcess, error) {
	gone := errors.New("the container is not running")
	b, err := os.ReadFile(filepath.Join(dir, rundir.PID))
	if err != nil {
		return firstProcess{}, err
	}
	n, ok := rundir.ParseInts(b, 3)
	if !ok {
		return firstProcess{}, fmt.Errorf("parse %s", rundir.PID)
	}
	fd, err := unix.PidfdOpen(int(n[0]), 0)
	if errors.Is(err, unix.ESRCH) {
		return firstProcess{}, gone
	}
	if err != nil {
		return firstProcess{}, fmt.Errorf("open the container's first process: %w", err)
	}
	p := firstProcess{int(n[0]), fd}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "stat"))
	if _, start, ok := rundir.ParseStat(stat); err != nil || !ok || start != n[1] || p.dead() {
		p.close()
		return firstProcess{}, gone
	}
	return p, nil
}

// dead says that the process has ended.
func (p firstProcess) dead() bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}

func (p firstProcess) close() { _ = unix.Close(p.fd) }

// enterPod puts this thread, and the children that are started from it, into
// the namespaces that containers inherit from the shim: libcontainer does not
// know of them, so it does not join them.
func enterPod(pid int) error {
	runtime.LockOSThread()
	for name, kind := range map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS} {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns", name))
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), kind)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("join %s: %w", name, err)
		}
	}
	return nil
}

// confineJoined passes the container's filter to a command that joins it, and
// gives the command a session keyring that is not ours.
func confineJoined(p *libcontainer.Process, w want.Run) error {
	runtime.LockOSThread()
	// One without a name is new. A kernel without keyrings has none to share.
	_, _, e := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	if e != 0 && e != unix.ENOSYS {
		return fmt.Errorf("make session keyring: %w", e)
	}
	if !wantsFilter(w.Privileged, w.Seccomp) {
		return nil
	}
	caps, err := capSet(w)
	if err != nil {
		return err
	}
	rules, err := program(w.Cache, caps)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("filter", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "filter")
	if _, err := f.WriteAt(rules, 0); err != nil {
		return err
	}
	p.ExtraFiles = []*os.File{f}
	return nil
}
