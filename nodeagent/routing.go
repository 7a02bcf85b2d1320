package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/rs/zerolog"

	"gantry.dev/netfilter"
	"gantry.dev/netfilter/kernel"
	"gantry.dev/nodeagent/network"
	"gantry.dev/schemas"
)

// localPodsNamed is how many of a node's addresses are named in the ruleset
// ahead: as many as an ordinary range of a node has.
const localPodsNamed = 1024

// routing is the Services' part of the kernel.
type routing struct {
	table   *kernel.Table
	program *kernel.Programmer
}

func openNetwork(o options, log zerolog.Logger) (*network.Network, error) {
	return network.New(network.Options{
		StateDir: filepath.Join(o.state(), "network"), Log: log.With().Str("part", "network").Logger(),
	})
}

func openRouting(o options, conntrack kernel.Conntrack, log zerolog.Logger) (*routing, error) {
	table, err := kernel.Open(kernel.Options{Table: o.table, Log: log})
	if err != nil {
		return nil, err
	}
	return &routing{table: table, program: kernel.NewProgrammer(kernel.ProgrammerOptions{Kernel: table, Conntrack: conntrack, Log: log})}, nil
}

func (r *routing) run(ctx context.Context) { r.program.Run(ctx) }

// close leaves the table in force.
func (r *routing) close() error { return r.table.Close() }

// setUpNetwork brings up the node's part of the network and says what of it
// the Services' ruleset needs to know.
func setUpNetwork(ctx context.Context, net *network.Network, table string, r schemas.NetworkRecord) (netfilter.Frame, error) {
	service, err := netip.ParsePrefix(r.ServiceCIDR)
	if err != nil {
		return netfilter.Frame{}, fmt.Errorf("read range of services: %w", err)
	}
	cluster, err := netip.ParsePrefix(r.ClusterPodCIDR)
	if err != nil {
		return netfilter.Frame{}, fmt.Errorf("read range of all pods: %w", err)
	}
	own, err := netip.ParsePrefix(r.PodCIDR)
	if err != nil {
		return netfilter.Frame{}, fmt.Errorf("read range of the node's pods: %w", err)
	}
	if err := net.Setup(ctx, r); err != nil {
		return netfilter.Frame{}, err
	}
	return netfilter.Frame{
		Table: table, ServiceCIDR: service, PodCIDR: cluster, Gateway: net.Gateway(),
		LocalPods: netfilter.Addresses(own, localPodsNamed),
	}, nil
}
