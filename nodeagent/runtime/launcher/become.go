//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// What libcontainer does for a container has two halves. The one that matters
// for safety runs in the container's first process: libcontainer.Init. The other
// starts that process, which takes three clones and another execution of this
// binary, hands it its orders, and leaves. The shim has started us in the new
// namespaces already, so we take the orders of the second half to the first
// ourselves: this process becomes the container.

// orders is what libcontainer.Init reads first. Its own type is not exported;
// TestOrders holds this one against it. What is not here stays zero there.
type orders struct {
	Config           rootOrder             `json:"config"`
	Args             []string              `json:"args"`
	Env              []string              `json:"env"`
	UID              int                   `json:"uid"`
	GID              int                   `json:"gid"`
	AdditionalGroups []int                 `json:"additional_groups"`
	Cwd              string                `json:"cwd"`
	Capabilities     *configs.Capabilities `json:"capabilities"`
	NoNewPrivileges  bool                  `json:"no_new_privileges"`
	ContainerID      string                `json:"containerid"`
	Cgroup2Path      string                `json:"cgroup2_path,omitempty"`
	CreateConsole    bool                  `json:"create_console"`
}

// rootOrder is what libcontainer.Init needs of a configuration. The whole type has
// ten times as much, whose shapes would have to be found out to be written down;
// TestRoot holds this one against it. Cgroups are ours (settle).
type rootOrder struct {
	Rootfs          string                `json:"rootfs"`
	Readonlyfs      bool                  `json:"readonlyfs,omitempty"`
	RootPropagation int                   `json:"rootPropagation,omitempty"`
	Mounts          []mountOrder          `json:"mounts"`
	Namespaces      []namespaceOrder      `json:"namespaces"`
	Capabilities    *configs.Capabilities `json:"capabilities,omitempty"`
	MaskPaths       []string              `json:"mask_paths,omitempty"`
	ReadonlyPaths   []string              `json:"readonly_paths,omitempty"`
	NoNewPrivileges bool                  `json:"no_new_privileges,omitempty"`
}

type mountOrder struct {
	Source           string `json:"source"`
	Destination      string `json:"destination"`
	Device           string `json:"device"`
	Flags            int    `json:"flags,omitempty"`
	ClearedFlags     int    `json:"cleared_flags,omitempty"`
	PropagationFlags []int  `json:"propagation_flags,omitempty"`
	Data             string `json:"data,omitempty"`
}

type namespaceOrder struct {
	Type configs.NamespaceType `json:"type"`
}

func rootOf(c *configs.Config) rootOrder {
	r := rootOrder{
		Rootfs: c.Rootfs, Readonlyfs: c.Readonlyfs, RootPropagation: c.RootPropagation, Capabilities: c.Capabilities,
		MaskPaths: c.MaskPaths, ReadonlyPaths: c.ReadonlyPaths, NoNewPrivileges: c.NoNewPrivileges,
	}
	for _, m := range c.Mounts {
		r.Mounts = append(r.Mounts, mountOrder{
			Source: m.Source, Destination: m.Destination, Device: m.Device, Flags: m.Flags,
			ClearedFlags: m.ClearedFlags, PropagationFlags: m.PropagationFlags, Data: m.Data,
		})
	}
	for _, ns := range c.Namespaces {
		r.Namespaces = append(r.Namespaces, namespaceOrder{Type: ns.Type})
	}
	return r
}

// replies are what libcontainer.Init waits to be told, in this order, and
// nothing else: mounts whose source it cannot reach and notifying filters, about
// which it would ask too, do not occur here.
var replies = []string{`{"type":"procHooksDone","flags":0}`, `{"type":"procRun","flags":0}`}

// become hands this process to libcontainer and returns only if that was not
// possible; what goes wrong later is told to the shim by libcontainer.
func become(config *configs.Config, paths map[string]string, p *libcontainer.Process, tty bool, rules []byte) error {
	o := orders{
		Config: rootOf(config), Args: p.Args, Env: p.Env, UID: p.UID, GID: p.GID, AdditionalGroups: p.AdditionalGroups,
		Cwd: p.Cwd, Capabilities: config.Capabilities, NoNewPrivileges: config.NoNewPrivileges,
		ContainerID: rundir.ContainerID, CreateConsole: tty,
	}
	if paths["devices"] == "" {
		paths = nil // mounted elsewhere: libcontainer finds them
	}
	cg, err := manager.NewWithPaths(config.Cgroups, paths)
	if err != nil {
		return fmt.Errorf("prepare cgroups: %w", err)
	}
	if cgroups.IsCgroup2UnifiedMode() {
		o.Cgroup2Path = cg.Path("")
	}
	order, err := write(o)
	if err != nil {
		return fmt.Errorf("write orders: %w", err)
	}
	gate, err := makeGate()
	if err != nil {
		return fmt.Errorf("make gate: %w", err)
	}
	for _, r := range replies {
		if _, err := unix.Write(rundir.FDPeer, []byte(r)); err != nil {
			return fmt.Errorf("write replies: %w", err)
		}
	}
	_ = unix.Close(rundir.FDPeer)
	logs, err := attend(rules)
	if err != nil {
		return fmt.Errorf("prepare start: %w", err)
	}
	if err := settle(cg, config); err != nil {
		return err
	}
	// The death of the shim ends us up to here. From now on whoever buries the
	// pod finds us in its cgroup.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("reset death signal: %w", err)
	}
	os.Clearenv()
	pass := map[string]int{"INITPIPE": order, "SYNCPIPE": rundir.FDSync, "LOGPIPE": logs, "FIFOFD": gate}
	if tty {
		unix.CloseOnExec(rundir.FDConsole)
		pass["CONSOLE"] = rundir.FDConsole
	}
	for name, fd := range pass {
		if err := os.Setenv("_LIBCONTAINER_"+name, strconv.Itoa(fd)); err != nil {
			return err
		}
	}
	if err := os.Setenv("_LIBCONTAINER_INITTYPE", "standard"); err != nil {
		return err
	}
	libcontainer.Init()
	return errors.New("libcontainer has returned") // it does not
}

// settle puts this process into its cgroups, with their limits, and makes it
// otherwise what a container's first process is before libcontainer.Init.
func settle(cg cgroups.Manager, config *configs.Config) error {
	if config.OomScoreAdj != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*config.OomScoreAdj)), 0); err != nil {
			return fmt.Errorf("set oom_score_adj: %w", err)
		}
	}
	// Our own number, as our namespace sees us.
	if err := cg.Apply(os.Getpid()); err != nil {
		return fmt.Errorf("join cgroups: %w", err)
	}
	if err := cg.Set(config.Cgroups.Resources); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	if config.Namespaces.Contains(configs.NEWCGROUP) {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("make cgroup namespace: %w", err)
		}
	}
	// Whatever we were bound to, the container may use all that its cgroup may.
	var all unix.CPUSet
	for i := range all {
		all[i] = ^all[i]
	}
	_ = unix.SchedSetaffinity(0, &all)
	return nil
}

// write puts the orders where libcontainer reads them: whatever their size, in
// one piece.
func write(o orders) (int, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("orders", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for at := 0; at < len(b); {
		n, err := unix.Pwrite(fd, b[at:], int64(at))
		if err != nil {
			return -1, err
		}
		at += n
	}
	return fd, nil
}

// makeGate makes the FIFO at which libcontainer waits before it executes the
// command, as the command's user; the shim opens the other end.
func makeGate() (int, error) {
	defer unix.Umask(unix.Umask(0))
	if err := unix.Mkfifo(rundir.Gate, 0o622); err != nil {
		return -1, err
	}
	return unix.Open(rundir.Gate, unix.O_PATH|unix.O_CLOEXEC, 0)
}

// logged is what libcontainer has logged so far: standard error is the
// container's.
var logged *strings.Builder

// fail tells the shim why nothing runs and returns our exit code.
func fail(words int, err error) int {
	f := want.Failure{Type: want.FailureType}
	f.Arg.Reason, f.Arg.Message = explain(err)
	if logged.Len() > 0 {
		f.Arg.Message += " (" + strings.TrimSpace(logged.String()) + ")"
	}
	const most = 16 << 10 // it must fit into one packet
	f.Arg.Message = f.Arg.Message[:min(len(f.Arg.Message), most)]
	b, err := json.Marshal(f)
	if err != nil {
		return 3
	}
	if _, err := unix.Write(words, b); err != nil {
		return 3
	}
	return 1
}
