package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/controlplane/ringtest"
	"gantry.dev/schemas"
	"gantry.dev/tools/cluster"
)

// control is a control plane without nodes, on a disk of its own directory.
type control struct {
	bin, dir, listen string
	nodes            []string
	cmd              *exec.Cmd
	done             chan struct{}
	failed           error // of the process; read after done
}

// withControl runs fn on a fresh control plane and takes it away afterwards.
// Its state lies below the directory in; empty means the system's for temporary files.
func (e *Env) withControl(ctx context.Context, in string, nodes []string, fn func(*control) error) (err error) {
	dir, err := os.MkdirTemp(in, "gantry-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := &control{bin: e.Bin, dir: dir, listen: "127.0.0.1:4333", nodes: nodes}
	if _, err := c.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	return fn(c)
}

// start returns how long it took until the process wrote that it serves.
func (c *control) start(ctx context.Context) (time.Duration, error) {
	args := []string{"--state-dir", c.dir, "--listen", c.listen, "--log-level", "error", "--pod-cidr", "10.128.0.0/10"}
	for _, n := range c.nodes {
		args = append(args, "--node", n)
	}
	c.cmd = exec.Command(filepath.Join(c.bin, cluster.ControlPlane), args...)
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := c.cmd.Start(); err != nil {
		return 0, err
	}
	c.done = make(chan struct{})
	go func() {
		c.failed = c.cmd.Wait()
		close(c.done)
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	for {
		// The credentials of an earlier run serve this one; a first get answered
		// is what serving means.
		if user, err := c.connect(ctx); err == nil {
			_, err = user.Request(ctx, schemas.VerbGet, schemas.Namespaces, "", "default", nil)
			user.Close()
			if err == nil {
				return time.Since(began), nil
			}
		}
		select {
		case <-tick.C:
		case <-c.done:
			return 0, fmt.Errorf("control plane ended: %w", c.failed)
		case <-limit.C:
			return 0, errors.Join(errors.New("control plane does not serve within two minutes"), c.stop())
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), c.stop())
		}
	}
}

func (c *control) connect(ctx context.Context) (*bus.UserConn, error) {
	credentials, err := bus.ReadUserCredentials(filepath.Join(c.dir, "credentials", "admin.json"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return bus.ConnectUser(ctx, credentials)
}

// move stops the control plane and carries its state to a directory below in.
// The caller removes it after use, with what is returned.
func (c *control) move(in string) (remove func() error, err error) {
	if err := c.end(syscall.SIGTERM); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(in, "gantry-bench-")
	if err != nil {
		return nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	if err := os.CopyFS(dir, os.DirFS(c.dir)); err != nil {
		return nil, errors.Join(err, remove())
	}
	// Keys and credentials must stay their owner's alone: a copy is made with
	// wider rights.
	err = filepath.WalkDir(c.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chmod(filepath.Join(dir, rel), info.Mode().Perm())
	})
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	c.dir = dir
	return remove, nil
}

// simulate lets agents that pretend live on every node, until stop.
func (c *control) simulate(ctx context.Context) (stop func(), err error) {
	var all []*ringtest.Node
	stop = func() {
		for _, n := range all {
			n.Stop()
		}
	}
	for _, name := range c.nodes {
		credentials, err := bus.ReadNodeCredentials(filepath.Join(c.dir, "credentials", "node-"+name+".json"))
		if err != nil {
			stop()
			return nil, err
		}
		n, err := ringtest.StartNode(ctx, credentials, name, corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("250"),
		}, zerolog.Nop())
		if err != nil {
			stop()
			return nil, err
		}
		all = append(all, n)
	}
	user, err := c.connect(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	defer user.Close()
	err = until(ctx, time.Minute, func() (bool, error) {
		list, err := user.List(ctx, schemas.Nodes, "", metav1.ListOptions{})
		return len(list.Items) == len(c.nodes), err
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("the simulated nodes do not join: %w", err)
	}
	return stop, nil
}

// until asks again and again, with a pause between.
func until(ctx context.Context, limit time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// connections opens n of them.
func (c *control) connections(ctx context.Context, n int) ([]*bus.UserConn, func(), error) {
	var all []*bus.UserConn
	closeAll := func() {
		for _, u := range all {
			u.Close()
		}
	}
	for range n {
		u, err := c.connect(ctx)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		all = append(all, u)
	}
	return all, closeAll, nil
}

func (c *control) end(sig syscall.Signal) error {
	select {
	case <-c.done:
		return fmt.Errorf("control plane ended by itself: %w", c.failed)
	default:
	}
	if err := c.cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(40 * time.Second):
		return errors.Join(errors.New("control plane does not stop"), c.cmd.Process.Kill())
	}
}

// stop ends a control plane that may have ended already.
func (c *control) stop() error {
	select {
	case <-c.done:
		return nil
	default:
		return c.end(syscall.SIGTERM)
	}
}
