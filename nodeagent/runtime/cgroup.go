//go:build linux

package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroups is this node's subtree in every hierarchy: one on v2, one for each
// group of controllers on v1. libcontainer makes the containers' own; here they
// are only looked at, killed and removed.
type cgroups struct {
	v2   bool
	tops []string // <hierarchy>/<root>
}

func findCgroups(root string) cgroups {
	if isCgroup2(cgroupMount) {
		return cgroups{v2: true, tops: []string{filepath.Join(cgroupMount, root)}}
	}
	var c cgroups
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return c
	}
	for _, e := range entries {
		if !e.IsDir() { // links such as cpu -> cpu,cpuacct
			continue
		}
		dir := filepath.Join(cgroupMount, e.Name())
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC) {
			c.tops = append(c.tops, filepath.Join(dir, root))
		}
	}
	return c
}

func isCgroup2(dir string) bool {
	var st unix.Statfs_t
	for unix.Statfs(dir, &st) != nil {
		if dir = filepath.Dir(dir); dir == "/" {
			return false
		}
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC
}

// memoryDir is where the shim finds OOM counters and processes of the pod.
func (c cgroups) memoryDir(sub string) string {
	for _, t := range c.tops {
		if c.v2 || strings.HasPrefix(t, cgroupMount+"/memory/") {
			return filepath.Join(t, sub)
		}
	}
	return ""
}

func (c cgroups) oomFile() string {
	if c.v2 {
		return "memory.events"
	}
	return "memory.oom_control"
}

func (c cgroups) make(sub string) ([]string, error) {
	var dirs []string
	for _, t := range c.tops {
		d := filepath.Join(t, sub)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

// kill ends every process below sub and waits until they are gone.
func (c cgroups) kill(ctx context.Context, sub string) error {
	for {
		pids := c.pids(sub)
		if len(pids) == 0 {
			return nil
		}
		for pid := range pids {
			if err := c.killOne(ctx, pid, sub); err != nil {
				return err
			}
		}
	}
}

func (c cgroups) killOne(ctx context.Context, pid int, sub string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Now the number cannot be used anew; was it, before?
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil || !strings.Contains(string(b), "/"+sub) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	return awaitPidfd(ctx, fd)
}

// pids lists the processes at and below sub in any hierarchy: a process that
// was just made is not yet in all of them.
func (c cgroups) pids(sub string) map[int]bool {
	found := map[int]bool{}
	for _, t := range c.tops {
		walkCgroup(filepath.Join(t, sub), func(dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					found[pid] = true
				}
			}
		})
	}
	return found
}

// removeEmpty removes sub and these cgroups directly below it, in every
// hierarchy. False means that something else is there, or a process: the kernel
// itself refuses to remove a cgroup that is not empty, so nothing is looked at
// beforehand.
func (c cgroups) removeEmpty(sub string, below []string) bool {
	for _, t := range c.tops {
		for _, b := range below {
			if err := unix.Rmdir(filepath.Join(t, sub, b)); err != nil && !errors.Is(err, unix.ENOENT) {
				return false
			}
		}
		if err := unix.Rmdir(filepath.Join(t, sub)); err != nil && !errors.Is(err, unix.ENOENT) {
			return false
		}
	}
	return true
}

// remove removes sub and what is below it in every hierarchy.
func (c cgroups) remove(ctx context.Context, sub string) error {
	for _, t := range c.tops {
		var dirs []string
		walkCgroup(filepath.Join(t, sub), func(d string) { dirs = append(dirs, d) })
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := removeCgroup(ctx, dirs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroup tries again while the kernel is still busy with the last
// process: there is nothing on v1 that could be waited for.
func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for d := time.Millisecond; ; d = min(2*d, 50*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || wait(ctx, d) != nil {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
}

// walkCgroup calls f for dir and every cgroup below it, parents first.
func walkCgroup(dir string, f func(string)) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	f(dir)
	for _, e := range entries {
		if e.IsDir() {
			walkCgroup(filepath.Join(dir, e.Name()), f)
		}
	}
}
