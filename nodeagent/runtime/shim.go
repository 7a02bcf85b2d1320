//go:build linux

package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
)

// patience is how long a shim gets to end its containers by itself, after
// SIGKILL was sent to them, before it is killed too.
const patience = 10 * time.Second

// shim is a handle on a shim that runs.
type shim struct {
	pid   int
	pidfd *os.File
	dead  chan struct{} // closed when it has ended and, being ours, was reaped
}

// letGo stops watching and leaves the shim alone.
func (s *shim) letGo() { _ = s.pidfd.Close() }

// startShim starts a shim that inherits the lock: there is no moment at which
// it runs and the lock is free.
func (r *Runtime) startShim(p *pod, dir string, lock *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	log, err := os.OpenFile(filepath.Join(dir, rundir.ShimLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	flags := uintptr(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if !p.sandbox.HostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	pidfd := -1
	pid, err := r.spawn.start(r.opt.Shim, []string{"gantry-shim", string(p.sandbox.UID)}, &syscall.ProcAttr{
		Dir: dir,
		// One thread's worth of caches, and a collection long before 4 MiB.
		Env:   []string{"GOMAXPROCS=1", "GOGC=10"},
		Files: []uintptr{null.Fd(), null.Fd(), log.Fd(), r.launcher.Fd(), lock.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, PidFD: &pidfd},
	})
	if err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	return r.watch(p, pid, pidfd, true)
}

// adoptOrLock takes over the shim that holds the pod's lock, or returns the lock
// where none does. A shim may not have written who it is yet if the agent that
// started it died in that moment; and what a shim forked as it died has the lock
// until it executes.
func (r *Runtime) adoptOrLock(ctx context.Context, p *pod) (*os.File, error) {
	dir := r.podDir(p.sandbox.UID)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		lock, err := tryLock(filepath.Join(dir, rundir.ShimLock))
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		if b, err := os.ReadFile(filepath.Join(dir, rundir.ShimPID)); err == nil {
			if n, ok := rundir.ParseInts(b, 2); ok {
				if fd, err := openProcess(int(n[0]), n[1]); err == nil {
					return nil, r.watch(p, int(n[0]), fd, false)
				}
			}
		}
		if wait(ctx, 2*time.Millisecond) != nil {
			return nil, errors.New("the shim's lock is held, but it does not say who it is")
		}
	}
}

// watch wakes the pod when its shim ends. It waits in the poller, so that a
// thousand shims cost no thread each.
func (r *Runtime) watch(p *pod, pid, pidfd int, child bool) error {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		_ = unix.Close(pidfd)
		return err
	}
	s := &shim{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "shim"), dead: make(chan struct{})}
	conn, err := s.pidfd.SyscallConn()
	if err != nil {
		s.letGo()
		return err
	}
	p.setShim(s)
	r.readers.Add(1)
	go func() {
		defer r.readers.Done()
		err := conn.Read(func(fd uintptr) bool { return pidfdDead(int(fd)) })
		if err != nil {
			return // let go
		}
		if child {
			reap(pid)
		}
		p.setShim(nil)
		close(s.dead)
		s.letGo()
		if b, err := os.ReadFile(filepath.Join(r.podDir(p.sandbox.UID), rundir.ShimLog)); err == nil && len(b) > 0 {
			r.log.Error().Str("pod", string(p.sandbox.UID)).Bytes("said", b[max(0, len(b)-2000):]).Msg("shim ended")
		}
		r.wakes.add(p.sandbox.UID)
	}()
	return nil
}

// stopShim asks the shim to end its containers and leave, and sees it gone.
func (r *Runtime) stopShim(ctx context.Context, p *pod, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, rundir.Stop), nil, 0o600); err != nil {
		return err
	}
	s := p.running()
	if s == nil {
		return nil
	}
	if err := r.wakeShim(dir); err != nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-s.dead:
			return nil
		case <-timer.C:
			r.log.Warn().Str("pod", string(p.sandbox.UID)).Msg("shim does not leave, killing it")
			if err := sendSignal(s.pidfd, unix.SIGKILL); err != nil {
				return fmt.Errorf("kill shim: %w", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wakeShim makes a shim look again. One that has not opened its FIFO yet will
// look anyway when it has.
func (r *Runtime) wakeShim(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, rundir.Wake), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wake shim: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Full means that it has been woken often enough.
	if _, err := unix.Write(fd, []byte{1}); err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("wake shim: %w", err)
	}
	return nil
}

// writeSandbox writes what the shim needs before it starts.
func (r *Runtime) writeSandbox(s Sandbox, dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, rundir.Sandbox), b); err != nil {
		return err
	}
	hostname, ownNet := s.Hostname, "1"
	if s.HostNetwork {
		hostname, ownNet = "", "0"
		if s.Hostname != "" {
			// The UTS namespace is the pod's own, so a name can be set all the same.
			hostname = s.Hostname
		}
	}
	fields := []string{
		string(s.UID), hostname, s.LogDir, r.wakePath(),
		r.cg.memoryDir(podCgroup(s.UID)), r.cg.oomFile(), ownNet,
	}
	for _, f := range fields {
		if strings.ContainsRune(f, '\n') {
			return fmt.Errorf("line break in %q", f)
		}
	}
	if err := replaceFile(filepath.Join(dir, rundir.ShimConf), []byte(strings.Join(fields, "\n")+"\n")); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, rundir.Runs), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	err = unix.Mkfifo(filepath.Join(dir, rundir.Wake), 0o600)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make wake: %w", err)
	}
	return nil
}

// launcherFile is the launcher in memory, sealed, so that libcontainer need not
// copy the binary for every container and an upgrade cannot change it under a
// shim. A shim of an earlier agent may hold the same one already.
func (r *Runtime) launcherFile() (*os.File, error) {
	src, err := os.Open(r.opt.Launcher)
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("gantry-launcher-%d-%d-%d-%d", st.Dev, st.Ino, st.Size, st.Mtim.Nano())
	if f := r.inherited(name); f != nil {
		return f, nil
	}
	// Executable memory files can be forbidden or need to be asked for.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before kernel 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := io.Copy(f, src); err != nil {
		_ = f.Close()
		return nil, err
	}
	if err = f.Chmod(0o511); err == nil {
		err = seal(f)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("seal memory file: %w", err)
	}
	return f, nil
}

// seal tries again while the kernel itself still holds a page that was just
// written, which it does for longer on a machine that is busy.
func seal(f *os.File) error {
	for try := 0; ; try++ {
		_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals)
		if !errors.Is(err, unix.EBUSY) || try == 50 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const allSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// inherited finds the memory file in a shim that was adopted; nil if there is
// none, which only costs memory.
func (r *Runtime) inherited(name string) (found *os.File) {
	r.pods.each(func(p *pod) {
		s := p.running()
		if s == nil || found != nil {
			return
		}
		path := fmt.Sprintf("/proc/%d/fd/%d", s.pid, rundir.FDLauncher)
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, "/memfd:"+name+" ") {
			return
		}
		f, err := os.Open(path)
		if err != nil {
			return
		}
		if have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || have&allSeals != allSeals {
			_ = f.Close()
			return
		}
		found = f
	})
	return found
}

// replaceFile makes the content appear whole or not at all.
func replaceFile(path string, b []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return nil
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
