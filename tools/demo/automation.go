package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gantry.dev/tools/cluster"
)

// defaultWebsocket is where the control plane listens for the Node program.
const defaultWebsocket = "127.0.0.1:8222"

// automation runs the programs of examples/automation, one after the other, on
// a fresh cluster, and removes everything afterwards.
func automation(ctx context.Context, o cluster.Options, dir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s := newSteps(os.Stdout)
	var c *cluster.Cluster
	err = s.do("start control plane, registry and node agent", func() (string, error) {
		var err error
		c, err = cluster.Start(ctx, o)
		return "websockets on " + defaultWebsocket, err
	})
	if err != nil {
		return err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, takeDown(stopCtx, s, c, false))
	}()
	image := registryAddress + "/gantry/web:v1"
	if err := s.do("build the sample image and push it to the registry", func() (string, error) { return image, pushSample(ctx, o.Bin, image) }); err != nil {
		return err
	}
	for _, program := range []struct{ title, command, file string }{
		{"shell and the nats command line", "sh", "automate.sh"},
		{"Python and a socket", "python3", "automate.py"},
		{"Node and a websocket", "node", "automate.mjs"},
	} {
		var out string
		err := s.do(program.title, func() (string, error) {
			var err error
			out, err = automate(ctx, c, dir, program.command, program.file)
			return program.file, err
		})
		fmt.Print(indent(out))
		if err != nil {
			return err
		}
	}
	return nil
}

func automate(ctx context.Context, c *cluster.Cluster, dir, command, file string) (string, error) {
	cmd := exec.CommandContext(ctx, command, file, "deployment.json")
	cmd.Dir = dir
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(),
		"GANTRY_CREDENTIALS="+c.Credentials(),
		"GANTRY_NATS_CONTEXT="+filepath.Join(filepath.Dir(c.Credentials()), "nats-context.json"),
		"PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w", command, file, err)
	}
	return string(out), nil
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("      " + line)
	}
	return b.String()
}
