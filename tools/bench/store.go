package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

const (
	storedPods    = 100_000
	storedWriters = 64
	podsPerNode   = 250
)

// store measures what a control plane weighs with 100,000 pods, and how long
// it takes from its start until it serves them again: after it was stopped, and
// after it was killed. The pods look like a Deployment's and run on 400 nodes that
// pretend, whose connections count, too, and who come back after each restart.
// The pods are made with the state in memory, because a hundred thousand synced writes take
// minutes, and read again from the disk.
func store(ctx context.Context, e *Env) (samples []Sample, err error) {
	var nodes []string
	for i := range storedPods / podsPerNode {
		nodes = append(nodes, fmt.Sprintf("sim-%d", i))
	}
	err = e.withControl(ctx, "/dev/shm", nodes, func(c *control) (err error) {
		stop, err := c.simulate(ctx)
		if err != nil {
			return err
		}
		defer stop()
		if err := c.fill(ctx, storedPods); err != nil {
			return err
		}
		if err := c.allRunning(ctx); err != nil {
			return err
		}
		var weights, times []float64
		weigh := func() error {
			if err := c.settle(ctx); err != nil {
				return err
			}
			v, err := residentMiB(c.cmd.Process.Pid)
			weights = append(weights, v)
			return err
		}
		if err := weigh(); err != nil {
			return err
		}
		remove, err := c.move("")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.stop(), remove()) }()
		first, err := c.start(ctx)
		if err != nil {
			return err
		}
		times = append(times, first.Seconds())
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
			if err := c.end(sig); err != nil {
				return err
			}
			took, err := c.start(ctx)
			if err != nil {
				return err
			}
			times = append(times, took.Seconds())
		}
		if err := c.complete(ctx); err != nil {
			return err
		}
		if err := weigh(); err != nil {
			return err
		}
		rss := summary("store.pods100k.rss", weights)
		rss.Value = weights[0]
		for _, w := range weights {
			rss.Value = max(rss.Value, w)
		}
		rss.Note = fmt.Sprintf("resident, %d pods of %d bytes bound to %d nodes: %.0f after they were made, %.0f after a restart; the larger is quoted",
			storedPods, len(storedPod(0)), storedPods/podsPerNode, weights[0], weights[1])
		restart := summary("store.restart100k.time", times)
		restart.Note = "start of the process to the first answer, with all in the view; 3 times after SIGTERM, 2 after SIGKILL, files in the page cache"
		samples = append(samples, rss, restart)
		return nil
	})
	return samples, err
}

// fill makes pods through the API, many writers at once.
func (c *control) fill(ctx context.Context, n int) error {
	users, closeAll, err := c.connections(ctx, storedWriters)
	if err != nil {
		return err
	}
	defer closeAll()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for _, u := range users {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if i > 0 && i%20000 == 0 {
					fmt.Fprintf(os.Stderr, "  %d pods stored\n", i)
				}
				if _, err := u.Request(ctx, schemas.VerbCreate, schemas.Pods, "default", podName(i), []byte(storedPod(i))); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func podName(i int) string { return fmt.Sprintf("web-%05d-%05d", i/1000, i) }

// storedPod is a pod as a Deployment's replica set makes them.
func storedPod(i int) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"generateName":"web-%05d-","labels":{"app":"web-%05d","pod-template-hash":"7c5b8d9f4"},
"annotations":{"example.com/owner":"team-%d","example.com/source":"https://git.example.com/team/web/commit/7c5b8d9f47c5b8d9f47c5b8d9f47c5b8d9f47c5b"}},
"spec":{"nodeName":"sim-%d","containers":[{"name":"app","image":"registry.example/team/web:1.2.3","args":["serve","--port","8080"],
"env":[{"name":"MODE","value":"production"},{"name":"POD_IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}}],
"ports":[{"name":"http","containerPort":8080}],"resources":{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"memory":"128Mi"}},
"readinessProbe":{"httpGet":{"path":"/ready","port":"http"},"periodSeconds":5}}]}}`,
		podName(i), i/1000, i/1000, i%40, i/podsPerNode)
}

// complete says that the view holds every pod: a stored one of each thousand is
// there to be read.
func (c *control) complete(ctx context.Context) error {
	u, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer u.Close()
	for i := 0; i < storedPods; i += 1000 {
		if _, err := u.Request(ctx, schemas.VerbGet, schemas.Pods, "default", podName(i), nil); err != nil {
			return err
		}
	}
	return nil
}

// allRunning waits until the nodes' reports are folded into the pods.
func (c *control) allRunning(ctx context.Context) error {
	u, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer u.Close()
	return until(ctx, 10*time.Minute, func() (bool, error) {
		list, err := u.List(ctx, schemas.Pods, "", metav1.ListOptions{FieldSelector: "status.phase!=Running", Limit: 1})
		return err == nil && len(list.Items) == 0, err
	})
}

// settle waits until the process has given back what a burst took, which it
// does when it has been calm for a while: until its size has stayed within 1 %
// for half a minute.
func (c *control) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var first float64
	for same := 0; same < 30; {
		v, err := residentMiB(c.cmd.Process.Pid)
		if err != nil {
			return err
		}
		if v > first*0.99 && v < first*1.01 {
			same++
		} else {
			same, first = 0, v
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the control plane's size does not settle: %w", ctx.Err())
		}
	}
	return nil
}

// residentMiB is the resident set of a process.
func residentMiB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident float64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		return 0, fmt.Errorf("read size of process %d: %w", pid, err)
	}
	return resident * float64(os.Getpagesize()) / (1 << 20), nil
}
