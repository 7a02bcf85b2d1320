// Command demo runs Gantry's main job from end to end on this machine and
// checks each step, or brings a cluster up to stay (up) and takes it away
// again (down).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"gantry.dev/tools/cluster"
)

const usage = `usage: demo run|up|down|automation [flags]

  run         bring a cluster up, run examples/web.yaml on it, break it, remove it
  up          bring a cluster up and leave it running (-d: in the background)
  down        remove the cluster that 'up' made (--keep-state: all but its state)
  automation  bring a cluster up, run the programs of examples/automation, remove it
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, name string, args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes namespaces, cgroups and nftables rules; run it with sudo")
	}
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flags.PrintDefaults()
	}
	bin := flags.String("bin", defaultBin(), "directory of the binaries")
	o := cluster.Options{Registry: registryAddress}
	flags.StringVar(&o.StateDir, "state-dir", cluster.DefaultStateDir, "what survives a reboot; gantry finds its credentials there without flags only by the default")
	flags.StringVar(&o.RunDir, "run-dir", cluster.DefaultRunDir, "what does not survive a reboot")
	flags.StringVar(&o.Node, "node", "local", "name of the node; two clusters on one machine need two")
	switch name {
	case "run":
		manifest := flags.String("manifest", "examples/web.yaml", "what to apply")
		flags.StringVar(&o.Listen, "listen", defaultListen, "address of the bus")
		_ = flags.Parse(args) // ExitOnError
		o.Bin, o.Fresh = *bin, true
		return run(ctx, o, *manifest)
	case "automation":
		dir := flags.String("programs", "examples/automation", "where the programs are")
		flags.StringVar(&o.Listen, "listen", defaultListen, "address of the bus")
		_ = flags.Parse(args)
		o.Bin, o.Fresh, o.ControlFlags = *bin, true, []string{"--websocket", defaultWebsocket}
		return automation(ctx, o, *dir)
	case "up":
		detach := flags.Bool("d", false, "leave it running in the background")
		flags.StringVar(&o.Listen, "listen", defaultListen, "address of the bus")
		_ = flags.Parse(args)
		o.Bin = *bin
		return up(ctx, o, *detach)
	case "down":
		keep := flags.Bool("keep-state", false, "keep the state directory: objects, keys, images and logs")
		_ = flags.Parse(args)
		o.Bin = *bin
		return down(ctx, o, *keep)
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("unknown command %q", name)
}

// defaultBin is the directory of this binary, or bin/ under go run.
func defaultBin() string {
	if exe, err := os.Executable(); err == nil {
		if _, err := os.Stat(filepath.Join(filepath.Dir(exe), cluster.NodeAgent)); err == nil {
			return filepath.Dir(exe)
		}
	}
	bin, err := filepath.Abs("bin")
	if err != nil {
		return "bin"
	}
	return bin
}

const (
	registryAddress = "127.0.0.1:5050"
	defaultListen   = "127.0.0.1:4222"
)

func up(ctx context.Context, o cluster.Options, detach bool) error {
	steps := newSteps(os.Stdout)
	startCtx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var c *cluster.Cluster
	err := steps.do("start control plane, registry and node agent", func() (string, error) {
		var err error
		c, err = cluster.Start(startCtx, o)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("pids %d, %d and %d", c.PID(cluster.ControlPlane), c.PID(cluster.Registry), c.PID(cluster.NodeAgent)), nil
	})
	if err != nil {
		return err
	}
	err = steps.do("push the sample image", func() (string, error) {
		return "127.0.0.1:5050/gantry/web:v1", pushSample(startCtx, o.Bin, registryAddress+"/gantry/web:v1")
	})
	if err != nil {
		return errors.Join(err, c.Abandon(ctx))
	}
	printHints(c)
	if detach {
		fmt.Printf("\nIt runs in the background; `%s` removes it.\n", howRemoved(c))
		return nil
	}
	fmt.Println("\nLogs follow; Ctrl-C takes the cluster down.")
	follow(ctx, c)
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	return takeDown(stopCtx, steps, c, false)
}

func down(ctx context.Context, o cluster.Options, keep bool) error {
	c, err := cluster.Open(o)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Println("no cluster is up here")
		return nil
	}
	if err != nil {
		return err
	}
	stopCtx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return takeDown(stopCtx, newSteps(os.Stdout), c, keep)
}

func takeDown(ctx context.Context, steps *steps, c *cluster.Cluster, keep bool) error {
	return steps.do("remove everything", func() (string, error) {
		if err := c.Stop(ctx, keep); err != nil {
			return "", err
		}
		left, err := c.Leftovers()
		if err != nil {
			return "", err
		}
		if len(left) > 0 {
			return "", fmt.Errorf("left behind: %v", left)
		}
		if keep {
			return "kept: " + c.StateDir, nil
		}
		return "no process, mount, namespace, link, cgroup, table or directory left", nil
	})
}
