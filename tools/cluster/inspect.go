package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// ContainerPID finds the first process of a pod's container by its cgroup,
// without asking the node agent.
func (c *Cluster) ContainerPID(podUID, container string) (int, error) {
	dir := "/" + c.CgroupRoot() + "/pod" + podUID + "/" + container
	best := 0
	err := eachProcess(func(pid int, cgroups string) {
		if strings.Contains(cgroups, dir) && (best == 0 || pid < best) {
			best = pid
		}
	})
	if err != nil {
		return 0, err
	}
	if best == 0 {
		return 0, fmt.Errorf("no process in cgroup %s: %w", dir, os.ErrNotExist)
	}
	return best, nil
}

func eachProcess(fn func(pid int, cgroups string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, err := startTime(pid); err != nil {
			continue // it ended, whether or not its parent has noticed
		}
		data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil {
			continue
		}
		fn(pid, string(data))
	}
	return nil
}

// Leftovers lists what of this cluster can still be found on the machine
// after Stop: each entry names one thing.
func (c *Cluster) Leftovers() ([]string, error) {
	var left []string
	for _, name := range []string{ControlPlane, NodeAgent, Registry} {
		if c.Alive(name) {
			left = append(left, fmt.Sprintf("process %s %d", name, c.procs[name].PID))
		}
	}
	err := eachProcess(func(pid int, cgroups string) {
		if strings.Contains(cgroups, "/"+c.CgroupRoot()+"/") {
			left = append(left, fmt.Sprintf("process %d in cgroup %s", pid, c.CgroupRoot()))
		}
	})
	if err != nil {
		return nil, err
	}
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer func() { _ = mounts.Close() }()
	for scan := bufio.NewScanner(mounts); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		if len(fields) > 1 && (strings.HasPrefix(fields[1], c.StateDir+"/") || strings.HasPrefix(fields[1], c.RunDir+"/")) {
			left = append(left, "mount "+fields[1])
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "gantry") || strings.HasPrefix(l.Name, "gy") {
			left = append(left, "link "+l.Name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + c.CgroupRoot(), "/sys/fs/cgroup/" + c.CgroupRoot()} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, d := range dirs {
			left = append(left, "cgroup "+d)
		}
	}
	// The nft command is there for looking only; without it the table goes unseen.
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		for line := range strings.SplitSeq(string(out), "\n") {
			if strings.Contains(line, "gantry") {
				left = append(left, "nftables "+line)
			}
		}
	}
	for _, dir := range []string{c.RunDir} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			left = append(left, "directory "+dir)
		}
	}
	return left, nil
}
