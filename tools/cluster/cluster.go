// Package cluster starts and stops a one-machine cluster out of the real
// binaries. The demo, the benchmarks and the end-to-end tests share it.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where a cluster lies unless it is told otherwise: the defaults of the binaries.
const (
	DefaultStateDir = "/var/lib/gantry"
	DefaultRunDir   = "/run/gantry"
)

// Options of one cluster. Zero fields take the defaults that the binaries
// themselves have, so that `gantry` finds the cluster without flags.
type Options struct {
	Bin      string // directory of the binaries
	StateDir string // default DefaultStateDir
	RunDir   string // default DefaultRunDir
	Node     string // default "local"
	Listen   string // default 127.0.0.1:4222
	// Registry is where a registry with the sample image listens; empty for none.
	Registry string
	// AgentFlags and ControlFlags are handed on as they are.
	AgentFlags   []string
	ControlFlags []string
	LogLevel     string
	// Fresh refuses to start on state that is there already, so that taking the
	// cluster down removes nothing of others.
	Fresh bool
}

func (o *Options) defaults() {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&o.StateDir, DefaultStateDir)
	set(&o.RunDir, DefaultRunDir)
	set(&o.Node, "local")
	set(&o.Listen, "127.0.0.1:4222")
	set(&o.LogLevel, "info")
}

// Cluster is a cluster on this machine, running or not: what it knows stands
// in a file, so that another process can take it down.
type Cluster struct {
	Options
	procs map[string]Process
	found bool // its state was there before it was started
}

// Process is a daemon, told from a later one with the same pid by its start time.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, /proc/PID/stat field 22
}

type record struct {
	StateDir string             `json:"stateDir"`
	RunDir   string             `json:"runDir"`
	Node     string             `json:"node"`
	Bin      string             `json:"bin"`
	Procs    map[string]Process `json:"procs"`
}

// Names of the daemons in the record.
const (
	ControlPlane = "controlplane"
	NodeAgent    = "nodeagent"
	Registry     = "registry"
)

func recordPath(dir string) string { return filepath.Join(dir, "cluster.json") }

// Open finds the cluster that keeps its record in o.RunDir, or whose state lies
// in o.StateDir, as after a reboot, when nothing of it runs; os.ErrNotExist
// where there is neither.
func Open(o Options) (*Cluster, error) {
	o.defaults()
	r, err := readRecord(o.RunDir)
	if errors.Is(err, os.ErrNotExist) {
		r, err = readRecord(o.StateDir)
		r.RunDir, r.Procs = o.RunDir, map[string]Process{} // of before the reboot
	}
	if err != nil {
		return nil, err
	}
	o.StateDir, o.Node = r.StateDir, r.Node
	if o.Bin == "" {
		o.Bin = r.Bin
	}
	return &Cluster{Options: o, procs: r.Procs}, nil
}

func readRecord(dir string) (r record, err error) {
	data, err := os.ReadFile(recordPath(dir))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", recordPath(dir), err)
	}
	return r, nil
}

// ErrRunning says that a cluster already runs with this run directory.
var ErrRunning = errors.New("a cluster already runs here: `task down` removes it")

// Start brings the control plane, the registry (where asked for) and the node
// agent up, and returns when the node has reported. Where it fails, what it
// made is removed again; state that was there before stays.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	o.defaults()
	if old, openErr := Open(o); openErr == nil && old.anyAlive() {
		return nil, ErrRunning
	}
	if err := mustBeFree(o.Listen, "stop it, or choose another address with --listen"); err != nil {
		return nil, err
	}
	if o.Registry != "" {
		if err := mustBeFree(o.Registry, "the cluster's registry needs it: stop that program"); err != nil {
			return nil, err
		}
	}
	_, statErr := os.Stat(o.StateDir)
	c := &Cluster{Options: o, procs: map[string]Process{}, found: statErr == nil}
	if c.found && o.Fresh {
		return nil, fmt.Errorf("%s holds the state of another cluster: `task down` removes one that `task up` made", o.StateDir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Abandon(ctx))
		}
	}()
	for _, dir := range []string{o.RunDir, c.logDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := c.StartControlPlane(ctx); err != nil {
		return nil, err
	}
	if o.Registry != "" {
		if err := c.startRegistry(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.StartAgent(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Abandon takes down what could not be brought up as a whole, though ctx has
// ended. State that was there before stays.
func (c *Cluster) Abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return c.Stop(ctx, c.found)
}

func mustBeFree(address, advice string) error {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is taken by another program: %s: %w", address, advice, err)
	}
	if err != nil {
		return fmt.Errorf("address %s cannot be used: %w", address, err)
	}
	return l.Close()
}

func (c *Cluster) logDir() string { return filepath.Join(c.StateDir, "log") }

// LogPath is where a daemon's log goes.
func (c *Cluster) LogPath(name string) string { return filepath.Join(c.logDir(), name+".log") }

// Credentials is the administrator's credentials file.
func (c *Cluster) Credentials() string {
	return filepath.Join(c.controlDir(), "credentials", "admin.json")
}

func (c *Cluster) controlDir() string { return filepath.Join(c.StateDir, "controlplane") }

// AgentStateDir and AgentRunDir are what the node agent is given.
func (c *Cluster) AgentStateDir() string { return filepath.Join(c.StateDir, "nodes", c.Node) }

// AgentRunDir is the node agent's runtime directory.
func (c *Cluster) AgentRunDir() string { return filepath.Join(c.RunDir, "nodes", c.Node) }

// CgroupRoot is the subtree that the node agent may use.
func (c *Cluster) CgroupRoot() string { return "gantry-" + c.Node }

// StartControlPlane starts the control plane and waits until it serves.
func (c *Cluster) StartControlPlane(ctx context.Context) error {
	ready := filepath.Join(c.controlDir(), "ready")
	if err := removeIfThere(ready); err != nil {
		return err
	}
	args := append([]string{
		"--state-dir", c.controlDir(), "--listen", c.Listen, "--node", c.Node,
		"--log-level", c.LogLevel,
	}, c.ControlFlags...)
	if err := c.spawn(ControlPlane, args); err != nil {
		return err
	}
	return c.await(ctx, ControlPlane, ready)
}

// StartAgent starts the node agent and waits until it serves.
func (c *Cluster) StartAgent(ctx context.Context) error {
	ready := filepath.Join(c.AgentRunDir(), "ready")
	if err := removeIfThere(ready); err != nil {
		return err
	}
	args := append(c.agentDirs(),
		"--credentials", filepath.Join(c.controlDir(), "credentials", "node-"+c.Node+".json"),
		"--log-level", c.LogLevel,
	)
	if c.Registry != "" {
		args = append(args, "--insecure-registry", c.Registry)
	}
	if err := c.spawn(NodeAgent, append(args, c.AgentFlags...)); err != nil {
		return err
	}
	return c.await(ctx, NodeAgent, ready)
}

func (c *Cluster) agentDirs() []string {
	return []string{
		"--node", c.Node, "--state-dir", c.AgentStateDir(), "--run-dir", c.AgentRunDir(),
		"--cgroup-root", c.CgroupRoot(),
	}
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// spawn starts one daemon in a session of its own, with a log file as output.
func (c *Cluster) spawn(name string, args []string) error {
	log, err := os.OpenFile(c.LogPath(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(filepath.Join(c.Bin, binary(name)), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("start %s: it ended at once; see %s", name, c.LogPath(name))
	}
	c.procs[name] = Process{PID: cmd.Process.Pid, Start: start}
	// Whoever started it reaps it; where that is another process by then, init does.
	go func() { _ = cmd.Wait() }()
	return c.save()
}

func binary(name string) string {
	if name == Registry {
		return "gantry-registry"
	}
	return name
}

func (c *Cluster) save() error {
	data, err := json.MarshalIndent(record{
		StateDir: c.StateDir, RunDir: c.RunDir, Node: c.Node, Bin: c.Bin, Procs: c.procs,
	}, "", "  ")
	if err != nil {
		return err
	}
	for _, dir := range []string{c.StateDir, c.RunDir} {
		tmp := recordPath(dir) + ".tmp"
		if err := os.WriteFile(tmp, data, 0o600); err != nil {
			return err
		}
		if err := os.Rename(tmp, recordPath(dir)); err != nil {
			return err
		}
	}
	return nil
}

// await returns when a daemon has written its ready file, or says what it
// logged last where it ended instead.
func (c *Cluster) await(ctx context.Context, name, ready string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return nil
		}
		if !c.Alive(name) {
			return fmt.Errorf("%s ended before it was ready; its log %s ends:\n%s", name, c.LogPath(name), tail(c.LogPath(name), 10))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; its log %s ends:\n%s", name, ctx.Err(), c.LogPath(name), tail(c.LogPath(name), 10))
		case <-tick.C:
		}
	}
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// startTime reads field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name may hold spaces and parentheses; the fields go on after the last one.
	_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	if fields[0] == "Z" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// PID of a daemon, 0 where it does not run.
func (c *Cluster) PID(name string) int {
	if !c.Alive(name) {
		return 0
	}
	return c.procs[name].PID
}

// Alive says whether a daemon that this cluster started still runs.
func (c *Cluster) Alive(name string) bool {
	p, ok := c.procs[name]
	if !ok {
		return false
	}
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

func (c *Cluster) anyAlive() bool {
	for name := range c.procs {
		if c.Alive(name) {
			return true
		}
	}
	return false
}

// Kill sends a signal to a daemon and, for a deadly one, waits until it is gone.
func (c *Cluster) Kill(ctx context.Context, name string, sig syscall.Signal) error {
	p, ok := c.procs[name]
	if !ok || !c.Alive(name) {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %d: pidfd_open: %w", name, p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !c.Alive(name) { // the pid now belongs to another
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s %d: signal %v: %w", name, p.PID, sig, err)
	}
	// The descriptor is readable once the last thread is gone, and with it the
	// process's locks and ports. /proc shows the first one as gone before.
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s %d: wait for its end: %w", name, p.PID, err)
		}
		if ready > 0 && err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s %d does not end: %w", name, p.PID, ctx.Err())
		}
	}
}

// Stop ends the daemons, the pods and all that belongs to them. Keep leaves
// the state directory (objects, images, logs) where it is.
func (c *Cluster) Stop(ctx context.Context, keep bool) error {
	var errs []error
	end := func(name string) {
		termCtx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := c.Kill(termCtx, name, unix.SIGTERM); err != nil {
			errs = append(errs, c.Kill(ctx, name, unix.SIGKILL))
		}
	}
	end(NodeAgent)
	if _, err := os.Stat(filepath.Join(c.Bin, NodeAgent)); err == nil {
		args := append([]string{"reset"}, c.agentDirs()...)
		if keep {
			args = append(args, "--keep-images")
		}
		if out, err := exec.CommandContext(ctx, filepath.Join(c.Bin, NodeAgent), args...).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("nodeagent reset: %w\n%s", err, out))
		}
	} else {
		errs = append(errs, fmt.Errorf("cannot remove what the node agent made: %w", err))
	}
	end(ControlPlane)
	end(Registry)
	if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(c.RunDir))
		if !keep {
			errs = append(errs, os.RemoveAll(c.StateDir))
		}
	}
	return errors.Join(errs...)
}
