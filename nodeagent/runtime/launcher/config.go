//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/want"
)

// defaultCaps is what containers get elsewhere too; audit_write, mknod and
// net_raw are in it for the sake of images that rely on them.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
	"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
	"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
}

var readonlyPaths = []string{
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
}

// configure builds libcontainer's configuration directly; the way over an OCI
// spec would parse what we have at hand. Mounts are missing.
func configure(root string, w want.Run) (*configs.Config, error) {
	caps, err := capSet(w)
	if err != nil {
		return nil, err
	}
	c := &configs.Config{
		Rootfs:          root,
		Readonlyfs:      w.ReadonlyRootfs,
		RootPropagation: unix.MS_SLAVE | unix.MS_REC,
		// Network, IPC and UTS are not here: they are inherited from the shim.
		Namespaces:      configs.Namespaces{{Type: configs.NEWNS}, {Type: configs.NEWPID}},
		NoNewPrivileges: w.NoNewPrivileges,
		OomScoreAdj:     w.OOMScoreAdj,
		NoNewKeyring:    false,
		Cgroups:         &cgroups.Cgroup{Path: w.Cgroup, Resources: resources(w)},
		// One set for all: ambient stays empty, so a command that is not root
		// does not get them without being asked.
		Capabilities: &configs.Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
	if cgroups.IsCgroup2UnifiedMode() {
		c.Namespaces = append(c.Namespaces, configs.Namespace{Type: configs.NEWCGROUP})
	}
	// Nodes are in place (premount); these are the rights to them.
	if w.Privileged {
		c.Cgroups.Devices = []*devices.Rule{{
			Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard,
			Permissions: "rwm", Allow: true,
		}}
		return c, nil
	}
	c.MaskPaths, c.ReadonlyPaths = maskedPaths, readonlyPaths
	for _, d := range specconv.AllowedDevices {
		c.Cgroups.Devices = append(c.Cgroups.Devices, &d.Rule)
	}
	return c, nil
}

func filter(caps []string) (*configs.Seccomp, error) {
	profile, err := seccomp.GetDefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}},
	})
	if err != nil {
		return nil, err
	}
	return specconv.SetupSeccomp(profile)
}

// capSet applies the pod's wishes to the default set. What this kernel or our
// own bounding set lacks is left out of "all", but an error when named.
func capSet(w want.Run) ([]string, error) {
	known := capabilities.KnownCapabilities()
	if w.Privileged {
		return available(known), nil
	}
	set := slices.Clone(defaultCaps)
	normal := func(c string) (string, error) {
		c = strings.ToUpper(c)
		if c == "ALL" {
			return c, nil
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(known, c) {
			return "", fmt.Errorf("unknown capability %q", c)
		}
		return c, nil
	}
	// ALL first, in both lists, so that {drop ALL, add X} means X alone and
	// {add ALL, drop X} all but X.
	for _, c := range w.CapDrop {
		if strings.EqualFold(c, "ALL") {
			set = nil
		}
	}
	for _, c := range w.CapAdd {
		c, err := normal(c)
		if err != nil {
			return nil, err
		}
		if c == "ALL" {
			set = available(known)
			continue
		}
		if !slices.Contains(set, c) {
			set = append(set, c)
		}
	}
	for _, c := range w.CapDrop {
		c, err := normal(c)
		if err != nil {
			return nil, err
		}
		set = slices.DeleteFunc(set, func(have string) bool { return have == c && c != "ALL" })
	}
	return set, nil
}

// available is what of these is in our own bounding set: nothing more can be
// given away.
func available(known []string) []string {
	var out []string
	for i, name := range known { // in the order of the kernel's numbers
		if r, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && r == 1 {
			out = append(out, name)
		}
	}
	return out
}

func resources(w want.Run) *cgroups.Resources {
	r := &cgroups.Resources{}
	in := w.Resources
	r.Memory = in.MemoryLimit
	if in.MemoryLimit > 0 && swapAccounted() {
		r.MemorySwap = in.MemoryLimit // both together: no swap
	}
	r.CpuQuota, r.CpuPeriod = in.CPUQuota, in.CPUPeriod
	if in.CPUShares > 0 {
		if cgroups.IsCgroup2UnifiedMode() {
			r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(in.CPUShares)
		} else {
			r.CpuShares = max(in.CPUShares, 2) // the kernel refuses less
		}
	}
	if in.PidsLimit > 0 {
		r.PidsLimit = &in.PidsLimit
	}
	return r
}
