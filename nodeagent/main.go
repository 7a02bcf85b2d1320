// Command nodeagent makes a machine a node of a Gantry cluster: it runs the
// pods that the control plane wants here, routes Services, and reports what is
// true. It only dials out, and what it runs outlives it.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/nodeagent/feed"
	"gantry.dev/nodeagent/node"
	"gantry.dev/nodeagent/state"
	"gantry.dev/schemas"
)

// Exit codes besides 0 and 1.
const (
	exitLocked  = 3 // another agent uses the same directory or machine
	exitRefused = 4 // the control plane refuses this agent, for example because another runs under its name
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "nodeagent:", err)
	switch {
	case errors.Is(err, state.ErrLocked), errors.Is(err, errNotAlone):
		os.Exit(exitLocked)
	case errors.Is(err, feed.ErrRefused):
		os.Exit(exitRefused)
	}
	os.Exit(1)
}

// options are the flags.
type options struct {
	node           string
	credentials    string
	stateDir       string
	runDir         string
	cgroupRoot     string
	insecure       []string
	maxPods        int64
	pidsLimit      int64
	reserved       map[string]string
	nodeIP         string
	table          string
	logLevel       string
	logFormat      string
	shim, launcher string
	keepImages     bool
}

func command() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "nodeagent",
		Short: "Run this machine as a node of a Gantry cluster",
		Long: "Run this machine as a node of a Gantry cluster.\n\n" +
			"Containers outlive the agent: stopping or killing it stops none of them.\n" +
			"'nodeagent reset' removes everything it made.",
		Version: node.Version, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.complete()
			if err != nil {
				return err
			}
			creds, err := readCredentials(o.credentials)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("node") && creds.Node != o.node {
				return fmt.Errorf("read credentials: %s is for node %q, not %q", o.credentials, creds.Node, o.node)
			}
			if !cmd.Flags().Changed("node") {
				o.node = creds.Node
			}
			return run(cmd.Context(), o, creds, log)
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.node, "node", "", "name of the node (default: that of the credentials, or the host name)")
	flags.StringVar(&o.stateDir, "state-dir", "", "what survives a reboot (default /var/lib/gantry/<node>)")
	flags.StringVar(&o.runDir, "run-dir", "", "what does not survive a reboot (default /run/gantry/<node>)")
	flags.StringVar(&o.cgroupRoot, "cgroup-root", "", "cgroup below every controller (default /gantry-<node>)")
	flags.StringVar(&o.table, "nft-table", "gantry", "name of the nftables table")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "console", "console or json")
	flags.StringVar(&o.shim, "shim", "", "path of gantry-shim (default: beside this program)")
	flags.StringVar(&o.launcher, "launcher", "", "path of gantry-launcher (default: beside this program)")
	own := root.Flags()
	own.StringVar(&o.credentials, "credentials", "", "file with the node's credentials")
	own.StringSliceVar(&o.insecure, "insecure-registry", nil, "host[:port] of a registry that may be reached without verified TLS (repeatable)")
	own.Int64Var(&o.maxPods, "max-pods", 110, "how many pods the node takes")
	own.Int64Var(&o.pidsLimit, "pids-limit", 4096, "processes and threads in one container; 0 for no limit")
	own.StringToStringVar(&o.reserved, "system-reserved", nil, "kept from pods, as cpu=500m,memory=512Mi")
	own.StringVar(&o.nodeIP, "node-ip", "", "address of the node (default: that of the default route)")
	root.AddCommand(resetCommand(&o))
	return root
}

// complete fills in what follows from the node's name, and makes the logger.
func (o *options) complete() (zerolog.Logger, error) {
	if o.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return zerolog.Nop(), fmt.Errorf("find host name: %w", err)
		}
		o.node = strings.ToLower(name)
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	level, err := zerolog.ParseLevel(o.logLevel)
	if err != nil {
		return zerolog.Nop(), fmt.Errorf("--log-level %q: %w", o.logLevel, err)
	}
	log := zerolog.New(os.Stderr)
	switch o.logFormat {
	case "json":
	case "console":
		log = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "2006-01-02T15:04:05.000Z07:00", NoColor: true})
	default:
		return zerolog.Nop(), fmt.Errorf("--log-format %q: want console or json", o.logFormat)
	}
	return log.Level(level).With().Timestamp().Logger(), nil
}

func (o *options) state() string { return or(o.stateDir, filepath.Join("/var/lib/gantry", o.node)) }
func (o *options) run() string   { return or(o.runDir, filepath.Join("/run/gantry", o.node)) }
func (o *options) cgroup() string {
	return or(o.cgroupRoot, "/gantry-"+o.node)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (o *options) machine() (node.Options, error) {
	out := node.Options{Node: o.node, StateDir: o.state(), MaxPods: o.maxPods, Reserved: corev1.ResourceList{}}
	for name, text := range o.reserved {
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return node.Options{}, fmt.Errorf("--system-reserved %s=%s: %w", name, text, err)
		}
		out.Reserved[corev1.ResourceName(name)] = q
	}
	if o.nodeIP != "" {
		ip, err := netip.ParseAddr(o.nodeIP)
		if err != nil {
			return node.Options{}, fmt.Errorf("--node-ip: %w", err)
		}
		out.IP = ip
	}
	return out, nil
}

func readCredentials(path string) (schemas.NodeCredentials, error) {
	var creds schemas.NodeCredentials
	if path == "" {
		return creds, errors.New("read credentials: --credentials is needed")
	}
	if err := readJSON(path, &creds); err != nil {
		return creds, fmt.Errorf("read credentials: %w", err)
	}
	if creds.Node == "" || creds.Seed == "" || len(creds.URLs) == 0 {
		return creds, fmt.Errorf("read credentials: %s lacks node, seed or urls", path)
	}
	return creds, nil
}
