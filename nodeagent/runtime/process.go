//go:build linux

package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
)

var errLocked = errors.New("locked by another process")

// tryLock takes the lock on a file, which is made if missing. The lock belongs
// to the open file: it ends when the last process that has it is gone.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, errLocked
		}
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// lockRetry gives a holder that is just dying a moment.
func lockRetry(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		f, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		if wait(ctx, 5*time.Millisecond) != nil {
			return nil, err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// openProcess returns a pidfd of the process with this number and start time.
// The start time is looked at after opening, so it cannot be another's.
func openProcess(pid int, start int64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		_ = unix.Close(fd)
		return -1, unix.ESRCH
	}
	_, have, ok := rundir.ParseStat(b)
	if !ok || have != start {
		_ = unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// pidfdDead tells whether the process has ended.
func pidfdDead(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// awaitPidfd waits until the process has ended.
func awaitPidfd(ctx context.Context, fd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 100) // a slice only to look at ctx
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func sendSignal(pidfd *os.File, sig syscall.Signal) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// reap collects a child of ours, and only that one: others in this process
// wait for theirs.
func reap(pid int) {
	for {
		_, err := syscall.Wait4(pid, nil, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// spawner starts shims from one thread that sits in the shims' cgroup, so that
// they are born there: they must not end with the agent's unit or count towards
// its limits, and to move each of them after the start would cost a wait in the
// kernel for every controller.
type spawner struct {
	jobs   chan func()
	done   chan struct{}
	cgroup *os.File // v2 and hybrid: to be cloned into; nil otherwise
}

func newSpawner(cg cgroups) (*spawner, error) {
	s := &spawner{jobs: make(chan func()), done: make(chan struct{})}
	dirs, err := cg.make(shimCgroup)
	if err != nil {
		return nil, err
	}
	ready := make(chan error)
	go s.run(dirs, ready)
	return s, <-ready
}

func (s *spawner) run(dirs []string, ready chan<- error) {
	goruntime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not the main thread: it cannot end, and is what others see as us. While
		// we hold it, the next goroutine gets another one.
		go s.run(dirs, ready)
		for range s.done {
		}
		goruntime.UnlockOSThread()
		return
	}
	// Never unlocked: the thread ends with the goroutine.
	defer close(s.done)
	ready <- s.enter(dirs)
	for f := range s.jobs {
		f()
	}
}

const shimCgroup = "shims"

func (s *spawner) enter(dirs []string) error {
	for _, d := range dirs {
		if isCgroup2(d) {
			f, err := os.Open(d)
			if err != nil {
				return err
			}
			s.cgroup = f
			continue
		}
		if strings.Contains(d, "/cpuset/") {
			continue // has no room before its cpus are set, and no use for us
		}
		if err := os.WriteFile(filepath.Join(d, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *spawner) start(path string, args []string, attr *syscall.ProcAttr) (pid int, err error) {
	if s.cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(s.cgroup.Fd())
	}
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		pid, err = syscall.ForkExec(path, args, attr)
	}
	<-done
	return pid, err
}

func (s *spawner) close() {
	close(s.jobs)
	<-s.done
	if s.cgroup != nil {
		_ = s.cgroup.Close()
	}
}
