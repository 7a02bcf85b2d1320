//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// run starts the container described by the file want in the working
// directory, which is the directory of the run. The shim has put this process
// into a mount namespace of its own; network, IPC and UTS are the pod's.
func run() error {
	w, err := readWant(rundir.Want)
	if err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	// Slave and not private: an unmount on the host must not be held up by us.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mount namespace: %w", err)
	}
	root := filepath.Join(dir, rundir.Root)
	if err := mountRoot(root, w.Layers, w.Scratch); err != nil {
		return fmt.Errorf("mount root filesystem: %w", err)
	}
	dev := filepath.Join(dir, rundir.Dev)
	if err := premount(root, dev, w); err != nil {
		return fmt.Errorf("prepare root filesystem: %w", err)
	}
	if w.TerminationMessagePath != "" {
		if err := touch(rundir.Message); err != nil {
			return fmt.Errorf("make termination message: %w", err)
		}
		w.Mounts = append(w.Mounts, want.Mount{
			Type: "bind", Source: filepath.Join(dir, rundir.Message), Destination: w.TerminationMessagePath,
			Options: []string{"bind", "rprivate"},
		})
	}
	p, err := process(root, w)
	if err != nil {
		return err
	}
	config, err := configure(root, dev, w)
	if err != nil {
		return err
	}
	var guarded *os.File
	var rules []byte
	if wantsFilter(w.Privileged, w.Seccomp) {
		if rules, err = program(w.Cache, config.Capabilities.Bounding); err != nil {
			return fmt.Errorf("make seccomp filter: %w", err)
		}
		var theirs *os.File
		if guarded, theirs, err = filterSocket(); err != nil {
			return fmt.Errorf("make seccomp filter: %w", err)
		}
		p.ExtraFiles = []*os.File{theirs}
	}
	if w.TTY {
		p.ConsoleSocket = os.NewFile(fdRunConsole, "console")
		unix.CloseOnExec(fdRunConsole)
	}
	c, err := libcontainer.Create(filepath.Join(dir, rundir.State), rundir.ContainerID, config)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	p.Init = true
	if err := pinned(func() error { return c.Start(p) }); err != nil {
		return err
	}
	if guarded != nil {
		_ = p.ExtraFiles[0].Close() // so that the death of the other end is seen
		if err := confine(guarded, rules); err != nil {
			_ = p.Signal(os.Kill)
			return fmt.Errorf("confine process: %w", err)
		}
	}
	// Written before the command runs: whoever sees the command's work can find
	// its process. If this process dies in between, the shim kills what waits.
	if err := writePID(p); err != nil {
		_ = p.Signal(os.Kill)
		return fmt.Errorf("write pid: %w", err)
	}
	if err := c.Exec(); err != nil {
		if killed(p) {
			return nil // like any command: the shim, to which it falls, says how it ended
		}
		_ = p.Signal(os.Kill)
		return fmt.Errorf("release command: %w", err)
	}
	return nil
}

// fdRunConsole is where the shim waits for the other end of the terminal.
const fdRunConsole = 3

// killed tells whether the process was ended by a signal, as it can be from the
// moment on at which its number is written. It is not reaped.
func killed(p *libcontainer.Process) bool {
	pid, err := p.Pid()
	if err != nil {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	// It has let go of us, which it does not do alive; give it time to die.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
	const killed, dumped = 2, 3 // CLD_KILLED, CLD_DUMPED
	var info unix.Siginfo
	err = unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && (info.Code == killed || info.Code == dumped)
}

func writePID(p *libcontainer.Process) error {
	pid, err := p.Pid()
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return err
	}
	_, start, ok := rundir.ParseStat(b)
	if !ok {
		return fmt.Errorf("parse stat of %d", pid)
	}
	return writeFile(rundir.PID, rundir.Ints(int64(pid), start, time.Now().UnixNano()))
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	if err := f.Chmod(0o666); err != nil { // whatever the umask is
		_ = f.Close()
		return err
	}
	return f.Close()
}

// mountRoot mounts the layers, lowest first, under a fresh writable layer.
func mountRoot(root string, layers []string, scratch string) error {
	if len(layers) == 0 {
		return fmt.Errorf("no layers")
	}
	for _, l := range layers {
		if _, err := os.Stat(l); err != nil {
			return err
		}
	}
	// An attempt number can come again after a reboot: begin clean.
	if _, err := os.Lstat(scratch); err == nil {
		if err := os.RemoveAll(scratch); err != nil {
			return err
		}
	}
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	for _, d := range []string{work, root} {
		if err := os.Mkdir(d, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	lower, err := lowerDirs(layers)
	if err != nil {
		return err
	}
	// volatile: this layer is thrown away with the run, so nobody gains from
	// its fsyncs, and the unmount need not write the whole filesystem back.
	// Kernels before 5.10 do not know it.
	options := "lowerdir=" + lower + ",upperdir=" + escape(upper) + ",workdir=" + escape(work)
	err = unix.Mount("overlay", root, "overlay", 0, options+",volatile")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("overlay", root, "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(layers), err)
	}
	return nil
}

// lowerDirs is the value of lowerdir, topmost first. The kernel takes one page
// of options, so many layers go through short links in the working directory.
func lowerDirs(layers []string) (string, error) {
	names := make([]string, 0, len(layers))
	length := 0
	for i := len(layers) - 1; i >= 0; i-- {
		n := escape(layers[i])
		names = append(names, n)
		length += len(n) + 1
	}
	if length <= 3000 {
		return strings.Join(names, ":"), nil
	}
	for i := range names {
		link := "l" + strconv.Itoa(i)
		if err := os.Symlink(layers[len(layers)-1-i], link); err != nil && !os.IsExist(err) {
			return "", err
		}
		names[i] = link
	}
	return strings.Join(names, ":"), nil
}

// escape protects what has a meaning in the options of an overlay.
func escape(path string) string {
	if !strings.ContainsAny(path, `:,\`) {
		return path
	}
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}
