package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/tools/cluster"
)

// run is the demo: each step holds or the whole fails, and whatever happens,
// everything that it made is removed.
func run(ctx context.Context, o cluster.Options, manifest string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	d := &demo{bin: o.Bin, steps: newSteps(os.Stdout)}
	err = d.steps.do("start control plane, registry and node agent", func() (string, error) {
		var err error
		d.cluster, err = cluster.Start(ctx, o)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("node %q is registered", d.cluster.Node), nil
	})
	if err != nil {
		return err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, takeDown(stopCtx, d.steps, d.cluster, false))
	}()
	image := registryAddress + "/gantry/web:v1"
	for _, step := range []struct {
		title string
		do    func() (string, error)
	}{
		{"build the sample image and push it to the registry", func() (string, error) { return image, pushSample(ctx, o.Bin, image) }},
		{"gantry apply -f " + manifest, func() (string, error) { return d.apply(ctx, manifest) }},
		{"wait until 3 replicas are ready", func() (string, error) { return d.awaitReady(ctx) }},
		{"ask the Service until all 3 pods have answered", func() (string, error) { return d.askService(ctx) }},
		{"kill one container with SIGKILL; it is replaced", func() (string, error) { return d.killContainer(ctx) }},
		{"kill -9 the node agent; no container restarts", func() (string, error) { return d.killAgent(ctx) }},
		{"gantry delete -f " + manifest, func() (string, error) { return d.remove(ctx, manifest) }},
	} {
		if err := d.steps.do(step.title, step.do); err != nil {
			return err
		}
	}
	fmt.Println("\nTo keep a cluster and look around: `task up -- -d`, later `task down`.")
	printHints(d.cluster)
	fmt.Println()
	return nil
}

type demo struct {
	bin     string
	steps   *steps
	cluster *cluster.Cluster
}

func (d *demo) gantry(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--credentials", d.cluster.Credentials()}, args...)
	return runBinary(ctx, filepath.Join(d.bin, "gantry"), args...)
}

func (d *demo) apply(ctx context.Context, manifest string) (string, error) {
	out, err := d.gantry(ctx, "apply", "-f", manifest)
	return strings.Join(strings.Split(strings.TrimSpace(out), "\n"), ", "), err
}

func (d *demo) pods(ctx context.Context) ([]corev1.Pod, error) {
	out, err := d.gantry(ctx, "get", "pods", "-l", "app=web", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("gantry get pods -o json: %w", err)
	}
	sort.Slice(list.Items, func(i, j int) bool { return list.Items[i].Name < list.Items[j].Name })
	return list.Items, nil
}

// await asks again until done says so; progress goes to standard error.
func await(ctx context.Context, done func() (bool, string, error)) error {
	last := ""
	for {
		ok, progress, err := done()
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
		if progress != last {
			fmt.Fprintln(os.Stderr, "      "+progress)
			last = progress
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w while: %s", ctx.Err(), progress)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *demo) awaitReady(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var deployment appsv1.Deployment
	err := await(ctx, func() (bool, string, error) {
		out, err := d.gantry(ctx, "get", "deployment", "web", "-o", "json")
		if err != nil {
			return false, "", err
		}
		deployment = appsv1.Deployment{}
		if err := json.Unmarshal([]byte(out), &deployment); err != nil {
			return false, "", err
		}
		pods, err := d.pods(ctx)
		if err != nil {
			return false, "", err
		}
		s := deployment.Status
		return s.ObservedGeneration == deployment.Generation && s.ReadyReplicas == 3 && s.UpdatedReplicas == 3,
			fmt.Sprintf("%d of 3 replicas ready: %s", s.ReadyReplicas, strings.Join(states(pods), ", ")), nil
	})
	return fmt.Sprintf("%d of 3 ready", deployment.Status.ReadyReplicas), err
}

func states(pods []corev1.Pod) []string {
	out := []string{}
	for _, p := range pods {
		state := string(p.Status.Phase)
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Waiting != nil && s.State.Waiting.Reason != "" {
				state = s.State.Waiting.Reason
			}
			if s.Ready {
				state = "Ready"
			}
		}
		out = append(out, state)
	}
	sort.Strings(out)
	return out
}

// askService asks the cluster IP over fresh connections until every ready pod
// has answered under its own name.
func (d *demo) askService(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := d.gantry(ctx, "get", "service", "web", "-o", "json")
	if err != nil {
		return "", err
	}
	var service corev1.Service
	if err := json.Unmarshal([]byte(out), &service); err != nil {
		return "", err
	}
	pods, err := d.pods(ctx)
	if err != nil {
		return "", err
	}
	url := fmt.Sprintf("http://%s:%d/", service.Spec.ClusterIP, service.Spec.Ports[0].Port)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answered := map[string]int{}
	total := 0
	err = await(ctx, func() (bool, string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false, "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, "", err
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if closeErr := resp.Body.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return false, "", err
		}
		total++
		for _, p := range pods {
			if strings.Contains(string(body), p.Name) {
				answered[p.Name]++
			}
		}
		return len(answered) == len(pods) && len(pods) == 3, fmt.Sprintf("%d of 3 pods have answered", len(answered)), nil
	})
	return fmt.Sprintf("%s: %d requests, %d pods answered", url, total, len(answered)), err
}

// killContainer kills the first pod's process behind the agent's back.
func (d *demo) killContainer(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pods, err := d.pods(ctx)
	if err != nil {
		return "", err
	}
	victim := pods[0]
	old, err := d.cluster.ContainerPID(string(victim.UID), "web")
	if err != nil {
		return "", err
	}
	if err := unix.Kill(old, syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("kill %d: %w", old, err)
	}
	start := time.Now()
	var fresh int
	err = await(ctx, func() (bool, string, error) {
		pid, err := d.cluster.ContainerPID(string(victim.UID), "web")
		if err != nil || pid == old {
			return false, "waiting for the new process", nil //nolint:nilerr // between the two there is none
		}
		fresh = pid
		return true, "", nil
	})
	if err != nil {
		return "", err
	}
	took := time.Since(start)
	err = await(ctx, func() (bool, string, error) {
		pods, err := d.pods(ctx)
		if err != nil {
			return false, "", err
		}
		for _, p := range pods {
			if p.UID == victim.UID && len(p.Status.ContainerStatuses) == 1 {
				s := p.Status.ContainerStatuses[0]
				ended := s.LastTerminationState.Terminated
				return s.RestartCount == 1 && s.Ready && ended != nil && ended.ExitCode == 137, "waiting for RESTARTS 1 and ready", nil
			}
		}
		return false, "", fmt.Errorf("pod %s is gone", victim.Name)
	})
	return fmt.Sprintf("%s: process %d -> %d after %.0f ms, RESTARTS 1, exit code 137 kept", victim.Name, old, fresh, took.Seconds()*1000), err
}

// killAgent kills the node agent, sees that the containers go on, starts it
// again and sees that it took them over as they were.
func (d *demo) killAgent(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	before, err := d.processes(ctx)
	if err != nil {
		return "", err
	}
	if err := d.cluster.Kill(ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
		return "", err
	}
	if text, err := d.askService(ctx); err != nil {
		return text, fmt.Errorf("the Service while the agent is dead: %w", err)
	}
	if err := d.cluster.StartAgent(ctx); err != nil {
		return "", err
	}
	after, err := d.processes(ctx)
	if err != nil {
		return "", err
	}
	if before != after {
		return "", fmt.Errorf("before: %s; after: %s", before, after)
	}
	return "the Service answered meanwhile; " + after, nil
}

// processes lists pid and restart count of each pod.
func (d *demo) processes(ctx context.Context) (string, error) {
	pods, err := d.pods(ctx)
	if err != nil {
		return "", err
	}
	var pids, restarts []string
	for _, p := range pods {
		pid, err := d.cluster.ContainerPID(string(p.UID), "web")
		if err != nil {
			return "", err
		}
		pids = append(pids, fmt.Sprint(pid))
		for _, s := range p.Status.ContainerStatuses {
			restarts = append(restarts, fmt.Sprint(s.RestartCount))
		}
	}
	return fmt.Sprintf("pids %s, restarts %s", strings.Join(pids, " "), strings.Join(restarts, " ")), nil
}

func (d *demo) remove(ctx context.Context, manifest string) (string, error) {
	if _, err := d.gantry(ctx, "delete", "-f", manifest, "--wait", "--timeout", "60s"); err != nil {
		return "", err
	}
	err := await(ctx, func() (bool, string, error) {
		pods, err := d.pods(ctx)
		return len(pods) == 0, fmt.Sprintf("%d pods left", len(pods)), err
	})
	return "no pod left", err
}
