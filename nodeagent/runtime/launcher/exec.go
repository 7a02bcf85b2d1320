//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// Descriptors of exec: the order comes in on one and the result leaves on the
// other, so that standard input and output belong to the command.
const (
	fdOrder  = 3
	fdResult = 4
)

// execute runs one more command in the container whose run directory is the
// second argument.
func execute() {
	order, result := os.NewFile(fdOrder, "order"), os.NewFile(fdResult, "result")
	syscall.CloseOnExec(fdOrder)
	syscall.CloseOnExec(fdResult)
	said := listen()
	var o want.Exec
	err := json.NewDecoder(order).Decode(&o)
	var out want.ExecResult
	if err == nil {
		out, err = join(os.Args[2], o)
	}
	if err != nil {
		out.Reason, out.Message = explain(err)
		if said.Len() > 0 {
			out.Message += " (" + said.String() + ")"
		}
	}
	if err := json.NewEncoder(result).Encode(out); err != nil {
		os.Exit(3)
	}
}

// join runs the command as the container's own user, with its environment and
// limits, and waits for it.
func join(dir string, o want.Exec) (want.ExecResult, error) {
	var out want.ExecResult
	w, err := readWant(filepath.Join(dir, rundir.Want))
	if err != nil {
		return out, err
	}
	state, err := confinedState(dir, w)
	if err != nil {
		return out, fmt.Errorf("prepare state: %w", err)
	}
	defer func() { _ = os.RemoveAll(state) }()
	c, err := libcontainer.Load(state, rundir.ContainerID)
	if err != nil {
		return out, err
	}
	st, err := c.State()
	if err != nil {
		return out, err
	}
	w.Args = o.Args
	p, err := process(filepath.Join("/proc", strconv.Itoa(st.InitProcessPid), "root"), w)
	if err != nil {
		return out, err
	}
	if err := enterPod(st.InitProcessPid); err != nil {
		return out, fmt.Errorf("enter pod: %w", err)
	}
	if err := c.Run(p); err != nil {
		return out, err
	}
	var timer *time.Timer
	if o.Timeout > 0 {
		timer = time.AfterFunc(time.Duration(o.Timeout), func() { _ = p.Signal(os.Kill) })
	}
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

// confinedState is a copy of the container's state for libcontainer in which the
// seccomp filter is mentioned: the container got its own behind libcontainer's
// back, and commands that join it are to be confined just as much.
func confinedState(dir string, w want.Run) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, rundir.State, rundir.ContainerID, "state.json"))
	if err != nil {
		return "", err
	}
	if wantsFilter(w.Privileged, w.Seccomp) {
		var state, config map[string]json.RawMessage
		if err := json.Unmarshal(b, &state); err != nil {
			return "", err
		}
		if err := json.Unmarshal(state["config"], &config); err != nil {
			return "", err
		}
		caps, err := capSet(w)
		if err != nil {
			return "", err
		}
		rules, err := filter(caps)
		if err != nil {
			return "", err
		}
		if config["seccomp"], err = json.Marshal(rules); err != nil {
			return "", err
		}
		if state["config"], err = json.Marshal(config); err != nil {
			return "", err
		}
		if b, err = json.Marshal(state); err != nil {
			return "", err
		}
	}
	tmp, err := os.MkdirTemp(dir, "exec-")
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(tmp, rundir.ContainerID), 0o700); err != nil {
		return tmp, err
	}
	return tmp, os.WriteFile(filepath.Join(tmp, rundir.ContainerID, "state.json"), b, 0o600)
}
