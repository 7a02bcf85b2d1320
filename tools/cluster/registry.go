package cluster

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// startRegistry serves the cluster's own registry, a directory under the state
// directory, and waits until it accepts connections.
func (c *Cluster) startRegistry(ctx context.Context) error {
	if err := c.spawn(Registry, []string{"--listen", c.Registry, "--dir", filepath.Join(c.StateDir, "registry")}); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.DialTimeout("tcp", c.Registry, time.Second)
		if err == nil {
			return conn.Close()
		}
		if !c.Alive(Registry) {
			return fmt.Errorf("the registry ended before it was ready; its log %s ends:\n%s", c.LogPath(Registry), tail(c.LogPath(Registry), 10))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the registry: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
