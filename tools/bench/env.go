package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
	"gantry.dev/tools/cluster"
)

// Env is what benchmarks share: binaries and a scratch directory.
type Env struct {
	Bin string
}

func newEnv(bin string) (*Env, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(bin, cluster.NodeAgent)); err != nil {
		return nil, fmt.Errorf("no binaries in %s: run `task build` first: %w", bin, err)
	}
	return &Env{Bin: bin}, nil
}

const (
	registryAddress = "127.0.0.1:5050"
	sampleImage     = registryAddress + "/gantry/web:v1"
)

// withCluster runs fn on a fresh one-machine cluster that has the sample image
// in its registry and in the node's store, and takes it away afterwards.
func (e *Env) withCluster(ctx context.Context, fn func(*testbed) error, agentFlags ...string) (err error) {
	dir, err := os.MkdirTemp("", "gantry-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// As /run is on any distribution: in memory.
	runDir, err := os.MkdirTemp("/dev/shm", "gantry-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(runDir)) }()
	startCtx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := cluster.Start(startCtx, cluster.Options{
		Bin: e.Bin, StateDir: filepath.Join(dir, "state"), RunDir: runDir,
		Node: "bench-" + strconv.Itoa(os.Getpid()), Registry: registryAddress, LogLevel: "warn",
		AgentFlags: agentFlags,
	})
	if err != nil {
		return err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, c.Stop(stopCtx, false))
	}()
	credentials, err := bus.ReadUserCredentials(c.Credentials())
	if err != nil {
		return err
	}
	user, err := bus.ConnectUser(startCtx, credentials)
	if err != nil {
		return err
	}
	defer user.Close()
	t := &testbed{Env: e, Cluster: c, dir: dir, user: user}
	if err := t.pushSample(ctx); err != nil {
		return err
	}
	// One pod brings the image onto the node, so that no measurement pays for the pull.
	if err := t.apply(ctx, pod("warm", 0, "sleep")); err != nil {
		return err
	}
	if err := t.await(ctx, func(pods map[string]corev1.Pod) bool { return count(pods, running) == 1 }); err != nil {
		return err
	}
	if err := t.deleteAll(ctx); err != nil {
		return err
	}
	return fn(t)
}

// testbed is a running cluster to measure on.
type testbed struct {
	*Env
	*cluster.Cluster
	dir  string
	user *bus.UserConn
}

func command(ctx context.Context, stdin string, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

func (t *testbed) gantry(ctx context.Context, stdin string, args ...string) (string, error) {
	return command(ctx, stdin, filepath.Join(t.Bin, "gantry"), append([]string{"--credentials", t.Credentials()}, args...)...)
}

func (t *testbed) pushSample(ctx context.Context) error {
	images, layout := filepath.Join(t.Bin, "gantry-images"), filepath.Join(t.dir, "image")
	if _, err := command(ctx, "", images, "build", "-o", layout, "web"); err != nil {
		return err
	}
	_, err := command(ctx, "", images, "push", "--insecure", layout, sampleImage)
	return err
}

func (t *testbed) apply(ctx context.Context, manifest string) error {
	_, err := t.gantry(ctx, manifest, "apply", "-f", "-")
	return err
}

// pods lists the pods through the bus: starting the command line for each look
// would take a good part of the machine that is being measured.
func (t *testbed) pods(ctx context.Context) (map[string]corev1.Pod, string, error) {
	list, err := t.user.List(ctx, schemas.Pods, "default", metav1.ListOptions{})
	if err != nil {
		return nil, "", err
	}
	pods := map[string]corev1.Pod{}
	for _, item := range list.Items {
		var p corev1.Pod
		if err := json.Unmarshal(item, &p); err != nil {
			return nil, "", err
		}
		pods[p.Name] = p
	}
	return pods, list.ResourceVersion, nil
}

var errSeen = errors.New("seen")

// await watches the pods until they are as wanted.
func (t *testbed) await(ctx context.Context, done func(map[string]corev1.Pod) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	pods, revision, err := t.pods(ctx)
	if err != nil || done(pods) {
		return err
	}
	err = t.user.Watch(ctx, schemas.Pods, "default", metav1.ListOptions{ResourceVersion: revision}, func(e metav1.WatchEvent) error {
		var p corev1.Pod
		if err := json.Unmarshal(e.Object.Raw, &p); err != nil {
			return err
		}
		if e.Type == "DELETED" {
			delete(pods, p.Name)
		} else {
			pods[p.Name] = p
		}
		if done(pods) {
			return errSeen
		}
		return nil
	})
	if errors.Is(err, errSeen) {
		return nil
	}
	return fmt.Errorf("the pods do not become as wanted (%d of %d running): %w", count(pods, running), len(pods), err)
}

func running(p corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }

func count(pods map[string]corev1.Pod, is func(corev1.Pod) bool) int {
	n := 0
	for _, p := range pods {
		if is(p) {
			n++
		}
	}
	return n
}

func (t *testbed) deleteAll(ctx context.Context) error {
	pods, _, err := t.pods(ctx)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		return nil
	}
	args := []string{"delete", "pods", "--grace-period", "1", "--wait", "--timeout", "120s"}
	for _, p := range pods {
		args = append(args, p.Name)
	}
	_, err = t.gantry(ctx, "", args...)
	return err
}

// pod is the manifest of one pod that runs the sample program's subcommand.
func pod(prefix string, i int, subcommand ...string) string {
	args, err := json.Marshal(subcommand)
	if err != nil {
		panic(err) // strings always marshal
	}
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s-%d","labels":{"bench":"%s"}},
"spec":{"restartPolicy":"Never","terminationGracePeriodSeconds":1,"containers":[{"name":"c","image":"%s","args":%s,
"resources":{"requests":{"cpu":"1m","memory":"1Mi"},"limits":{"memory":"64Mi"}}}]}}
`, prefix, i, prefix, sampleImage, args)
}
