package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/tools/cluster"
)

// idle measures what the daemons weigh with 10 pods and what each further idle
// pod adds (shims, agent and control plane together), by processes and by
// proportional set size.
func idle(ctx context.Context, e *Env) ([]Sample, error) {
	const few, many = 10, 90
	var samples []Sample
	err := e.withCluster(ctx, func(t *testbed) error {
		if err := t.startIdle(ctx, 0, few); err != nil {
			return err
		}
		first, err := t.weight()
		if err != nil {
			return err
		}
		const window = 60 * time.Second
		before, err := t.daemonCPU()
		if err != nil {
			return err
		}
		select { // the window is what is measured, not a wait for something
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(window):
		}
		after, err := t.daemonCPU()
		if err != nil {
			return err
		}
		settled, err := t.weight()
		if err != nil {
			return err
		}
		total := summary("node.idle.pss", []float64{first.daemons, settled.daemons})
		total.Value = settled.daemons
		total.Note = fmt.Sprintf("control plane %.1f, agent %.1f MiB, after %v idle; the 10 shims %.1f MiB more", settled.control, settled.agent, window, settled.shims)
		cpu := summary("node.idle.cpu", []float64{(after - before) / window.Seconds() * 100})
		cpu.Note = "control plane and agent, of one core"
		samples = append(samples, total, cpu)
		if err := t.startIdle(ctx, few, many); err != nil {
			return err
		}
		last, err := t.weight()
		if err != nil {
			return err
		}
		perPod := func(a, b float64) float64 { return (b - a) / many }
		slope := summary("pod.idle.pss", []float64{perPod(settled.daemons+settled.shims, last.daemons+last.shims)})
		slope.Note = fmt.Sprintf("from %d to %d pods: shims %.2f, agent %.2f, control plane %.2f MiB per pod", few, few+many,
			perPod(settled.shims, last.shims), perPod(settled.agent, last.agent), perPod(settled.control, last.control))
		procs := summary("pod.idle.processes", []float64{perPod(settled.processes, last.processes)})
		samples = append(samples, slope, procs)
		return t.deleteAll(ctx)
	})
	return samples, err
}

func (t *testbed) startIdle(ctx context.Context, from, n int) error {
	var manifest strings.Builder
	for i := range n {
		manifest.WriteString(pod("idle", from+i, "sleep"))
		manifest.WriteString("---\n")
	}
	if err := t.apply(ctx, manifest.String()); err != nil {
		return err
	}
	return t.await(ctx, func(p map[string]corev1.Pod) bool { return count(p, running) == from+n })
}

type weight struct {
	control, agent, shims, daemons float64 // MiB
	processes                      float64
}

func (t *testbed) weight() (weight, error) {
	var w weight
	var err error
	if w.control, err = pss(t.PID(cluster.ControlPlane)); err != nil {
		return w, err
	}
	if w.agent, err = pss(t.PID(cluster.NodeAgent)); err != nil {
		return w, err
	}
	w.daemons = w.control + w.agent
	shims, err := processesOf(t.Bin, "gantry-shim", "gantry-launcher")
	if err != nil {
		return w, err
	}
	for _, pid := range shims {
		v, err := pss(pid)
		if err != nil {
			return w, err
		}
		w.shims += v
	}
	w.processes = float64(len(shims) + 2)
	return w, nil
}

// daemonCPU is the CPU seconds that the two daemons have used. /proc counts in
// 10 ms steps, which is 0.02 % of a core over the window.
func (t *testbed) daemonCPU() (float64, error) {
	var total float64
	for _, name := range []string{cluster.ControlPlane, cluster.NodeAgent} {
		v, err := processCPU(t.PID(name))
		if err != nil {
			return 0, err
		}
		total += v
	}
	return total, nil
}
