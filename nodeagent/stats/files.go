//go:build linux

package stats

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoDevice is what reading a file of a cgroup says that was just removed.
const errNoDevice = unix.ENODEV

// tick is the kernel's unit of CPU time in /proc/stat as nanoseconds: 1/100 s,
// on every architecture that Go knows.
const tick = 10_000_000

// cgroupFiles is where the counters of a cgroup lie: in one hierarchy on v2, in
// one for each controller on v1.
type cgroupFiles struct {
	v2         bool
	cpuTop     string
	memoryTop  string
	controller error // why there is none, where there is none
}

func findFiles(mount string) cgroupFiles {
	if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err == nil {
		return cgroupFiles{v2: true, cpuTop: mount, memoryTop: mount}
	}
	var f cgroupFiles
	entries, err := os.ReadDir(mount)
	if err != nil {
		f.controller = err
		return f
	}
	for _, e := range entries {
		// "cpu,cpuacct" in some places, one directory for each in others.
		names := strings.Split(e.Name(), ",")
		if slices.Contains(names, "cpuacct") {
			f.cpuTop = filepath.Join(mount, e.Name())
		}
		if slices.Contains(names, "memory") {
			f.memoryTop = filepath.Join(mount, e.Name())
		}
	}
	if f.cpuTop == "" || f.memoryTop == "" {
		f.controller = fmt.Errorf("%s has no controllers cpuacct and memory: CPU and memory of containers cannot be measured", mount)
	}
	return f
}

// cpu is what a cgroup has used in all, in nanoseconds.
func (f cgroupFiles) cpu(path string) (uint64, error) {
	if f.controller != nil {
		return 0, f.controller
	}
	if !f.v2 {
		return readNumber(filepath.Join(f.cpuTop, path, "cpuacct.usage"))
	}
	name := filepath.Join(f.cpuTop, path, "cpu.stat")
	micros, err := readField(name, "usage_usec")
	return micros * 1000, err
}

// memory is the working set of a cgroup in bytes: what is charged to it
// without the pages of files that nobody has used of late, which the kernel
// takes back before it calls memory short.
func (f cgroupFiles) memory(path string) (uint64, error) {
	if f.controller != nil {
		return 0, f.controller
	}
	usage, inactive := "memory.current", "inactive_file"
	if !f.v2 {
		usage, inactive = "memory.usage_in_bytes", "total_inactive_file"
	}
	used, err := readNumber(filepath.Join(f.memoryTop, path, usage))
	if err != nil {
		return 0, err
	}
	idle, err := readField(filepath.Join(f.memoryTop, path, "memory.stat"), inactive)
	if err != nil {
		return 0, err
	}
	return used - min(idle, used), nil
}

func readNumber(name string) (uint64, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return n, nil
}

// readField reads one number of a file of "<name> <number>" lines.
func readField(name, field string) (uint64, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok || string(key) != field {
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s of %s: %w", field, name, err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("read %s: it has no %s", name, field)
}

// nodeCPU is what all processors of the machine have spent working, in
// nanoseconds.
func nodeCPU(proc string) (uint64, error) {
	name := filepath.Join(proc, "stat")
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	line, err := bufio.NewReader(f).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 5 || fields[0] != "cpu" {
		return 0, errors.Join(err, fmt.Errorf("read %s: %q is not what all processors did", name, line))
	}
	// user nice system idle iowait irq softirq steal; what guests use is part
	// of user already.
	var busy uint64
	for i, text := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		if idle := i == 3 || i == 4; !idle {
			busy += n
		}
	}
	return busy * tick, nil
}

// nodeMemory is what of the machine's memory cannot be had without pushing
// something out.
func nodeMemory(proc string) (uint64, error) {
	name := filepath.Join(proc, "meminfo")
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	kib := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
			kib[fields[0]] = n
		}
	}
	total, ok := kib["MemTotal:"]
	free, ok2 := kib["MemAvailable:"]
	if !ok || !ok2 {
		return 0, fmt.Errorf("read %s: it has no MemTotal and MemAvailable", name)
	}
	return (total - min(free, total)) << 10, nil
}
