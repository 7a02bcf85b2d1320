package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpuGroup is a cgroup that a benchmark makes to account CPU time exactly:
// /proc/PID/stat counts in 10 ms ticks and forgets threads and children that
// another process reaped.
type cpuGroup struct{ dir string }

// cpuRoot is where cgroups account CPU time: the cpuacct hierarchy on cgroup
// v1, the one tree on v2.
func cpuRoot() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/cpuacct"
}

func newCPUGroup(name string) (*cpuGroup, error) {
	g := &cpuGroup{filepath.Join(cpuRoot(), name)}
	if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return g, nil
}

func (g *cpuGroup) add(pid int) error {
	return os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// remove moves what is left in the group to the root and removes it.
func (g *cpuGroup) remove() error {
	data, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(data)) {
		// It may have ended meanwhile.
		_ = os.WriteFile(filepath.Join(cpuRoot(), "cgroup.procs"), []byte(pid), 0)
	}
	return os.Remove(g.dir)
}

// seconds is the CPU time of the group and all below it, of the dead too.
func cpuSeconds(dir string) (float64, error) {
	if data, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
		ns, err := strconv.ParseFloat(strings.TrimSpace(string(data)), 64)
		return ns / 1e9, err
	}
	f, err := os.Open(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if us, ok := strings.CutPrefix(scan.Text(), "usage_usec "); ok {
			v, err := strconv.ParseFloat(us, 64)
			return v / 1e6, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", dir)
}

// pss is the proportional set size of one process in MiB: shared pages count
// in parts.
func pss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/smaps_rollup has no Pss", pid)
}

// processesOf lists the processes that run one of the named binaries of dir.
func processesOf(dir string, names ...string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil {
			continue // a kernel thread, or it ended
		}
		for _, n := range names {
			if exe == filepath.Join(dir, n) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// processCPU is the user and system seconds of one process and its threads.
func processCPU(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, err // USER_HZ is 100 on Linux
}
