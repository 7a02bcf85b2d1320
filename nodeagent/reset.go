package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/state"
)

// resetTimeout bounds the removal of one pod.
const resetTimeout = time.Minute

func resetCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Stop this node's pods and remove everything the agent made",
		Long: "Stop this node's pods and remove everything the agent made: processes, cgroups,\n" +
			"network links, the nftables table, state and logs. The agent must not run.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.complete()
			if err != nil {
				return err
			}
			return reset(cmd.Context(), *o, log)
		},
	}
	cmd.Flags().BoolVar(&o.keepImages, "keep-images", false, "keep the image store")
	return cmd
}

// reset removes every trace. It goes on past failures, and reports them all;
// the state goes last, so that a reset that failed can be repeated.
func reset(ctx context.Context, o options, log zerolog.Logger) error {
	store, _, err := state.Open(o.state(), "", o.node, log)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }() // its directory is gone by then
	release, err := alone(o.node, aloneLock)
	if err != nil {
		return err
	}
	defer release()
	errs := []error{removePods(ctx, o, log)}
	net, err := openNetwork(o, log)
	if err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, net.Teardown(ctx), net.Close())
	}
	if routes, err := openRouting(o, nil, log); err != nil {
		errs = append(errs, fmt.Errorf("open netfilter: %w", err))
	} else {
		errs = append(errs, routes.table.Remove(), routes.close())
	}
	errs = append(errs, removeCgroups(o.cgroup()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return errors.Join(os.RemoveAll(o.run()), removeState(o))
}

func removePods(ctx context.Context, o options, log zerolog.Logger) error {
	rt, err := runtime.Open(ctx, o.runtime(log))
	if err != nil {
		return fmt.Errorf("open runtime: %w", err)
	}
	defer rt.Close()
	sandboxes, err := rt.Sandboxes()
	errs := []error{err}
	for _, s := range sandboxes {
		timed, cancel := context.WithTimeout(ctx, resetTimeout)
		errs = append(errs, rt.RemoveSandbox(timed, s.Sandbox.UID))
		cancel()
	}
	return errors.Join(errs...)
}

// removeCgroups removes the node's subtree, empty by now, from every hierarchy.
func removeCgroups(root string) error {
	mounts, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	var errs []error
	for _, mount := range append(mounts, "/sys/fs/cgroup") {
		errs = append(errs, removeEmpty(filepath.Join(mount, root)))
	}
	return errors.Join(errs...)
}

// removeEmpty removes directories from the leaves up; files in them are the
// kernel's and go with them.
func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return nil
	}
	if err != nil {
		if info, statErr := os.Stat(dir); statErr != nil || !info.IsDir() {
			return nil
		}
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeEmpty(filepath.Join(dir, e.Name())))
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeState removes the state directory, images excepted where they are to
// be kept. The parent goes too if nothing else is in it.
func removeState(o options) error {
	if !o.keepImages {
		err := os.RemoveAll(o.state())
		_ = os.Remove(filepath.Dir(o.run()))   // fails while other nodes use it
		_ = os.Remove(filepath.Dir(o.state())) // likewise
		return err
	}
	entries, err := os.ReadDir(o.state())
	if err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != "images" {
			errs = append(errs, os.RemoveAll(filepath.Join(o.state(), e.Name())))
		}
	}
	return errors.Join(errs...)
}
