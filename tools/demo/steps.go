package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gantry.dev/tools/cluster"
)

// steps prints one line for each step, with its time.
type steps struct {
	out   io.Writer
	begin time.Time
	n     int
}

func newSteps(out io.Writer) *steps { return &steps{out: out, begin: time.Now()} }

// do runs one step; fn's text is what the step showed.
func (s *steps) do(title string, fn func() (string, error)) error {
	s.n++
	start := time.Now()
	text, err := fn()
	took := time.Since(start)
	mark := "ok"
	if err != nil {
		mark = "FAILED"
	}
	fmt.Fprintf(s.out, "%2d. %-52s %-6s %8.3f s", s.n, title, mark, took.Seconds())
	if err == nil && text != "" {
		fmt.Fprintf(s.out, "  %s", text)
	}
	fmt.Fprintln(s.out)
	if err != nil {
		return fmt.Errorf("step %d, %s: %w", s.n, title, err)
	}
	return nil
}

// command runs one of our binaries and returns what it printed; an error
// carries what it said on standard error.
func runBinary(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	// It may have something to clean up, so it is asked before it is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return out.String(), fmt.Errorf("%s %s: %w", filepath.Base(path), strings.Join(args, " "), ctx.Err())
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

func pushSample(ctx context.Context, bin, ref string) error {
	dir, err := os.MkdirTemp("", "gantry-image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	images := filepath.Join(bin, "gantry-images")
	if _, err := runBinary(ctx, images, "build", "-o", dir, "web"); err != nil {
		return err
	}
	_, err = runBinary(ctx, images, "push", "--insecure", dir, ref)
	return err
}

func printHints(c *cluster.Cluster) {
	gantry := filepath.Join(c.Bin, "gantry")
	context := filepath.Join(c.StateDir, "controlplane", "credentials", "nats-context.json")
	fmt.Printf(`
Look further:
  %[1]s apply -f examples/web.yaml
  %[1]s get pods -o wide
  %[1]s get svc,deploy,nodes
  %[1]s logs deploy/web
  %[1]s events
With the NATS command line (go run github.com/nats-io/natscli/nats@v0.5.1):
  nats --context %[2]s kv ls
  nats --context %[2]s kv get objects deployments.default.web --raw
  nats --context %[2]s kv watch desired
  nats --context %[2]s sub 'health.>'
  nats --context %[2]s micro info api
  nats --context %[2]s req api.list.pods.default ''
Credentials: %[3]s (%[4]s)
`, gantry, context, c.Credentials(), howFound(c))
}

// howFound says how gantry comes to the cluster's credentials: it looks for
// them at the default place alone.
func howFound(c *cluster.Cluster) string {
	if c.StateDir == cluster.DefaultStateDir {
		return "gantry finds them here without flags"
	}
	return "gantry is told: export GANTRY_CREDENTIALS=" + c.Credentials()
}

// howRemoved is the command that takes a cluster away which runs in the
// background.
func howRemoved(c *cluster.Cluster) string {
	if c.StateDir == cluster.DefaultStateDir && c.RunDir == cluster.DefaultRunDir {
		return "task down"
	}
	return fmt.Sprintf("task down -- --state-dir=%s --run-dir=%s", c.StateDir, c.RunDir)
}

// follow prints the daemons' logs until ctx ends.
func follow(ctx context.Context, c *cluster.Cluster) {
	names := []string{cluster.ControlPlane, cluster.NodeAgent}
	offsets := map[string]int64{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, name := range names {
			offsets[name] += copyFrom(c.LogPath(name), offsets[name], os.Stdout)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func copyFrom(path string, offset int64, to io.Writer) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0
	}
	n, err := io.Copy(to, f)
	if err != nil {
		return 0
	}
	return n
}
