package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/schemas"
	"gantry.dev/tools/cluster"
)

// podStartCPU compares the CPU time of one pod's start, from its record heard
// until its program executes and that is reported (namespaces, network,
// cgroups, overlay, limits), with that of `runc run` of the same program in the
// same file tree, A B A B. On both sides the program's own time is in the
// figure. `runc run` also waits and deletes; what our side spends on a pod's
// end is measured apart and noted.
func podStartCPU(ctx context.Context, e *Env) ([]Sample, error) {
	const rounds, perRound = 7, 5
	var samples []Sample
	err := e.withCluster(ctx, func(t *testbed) (err error) {
		group, err := newCPUGroup("gantry-bench-agent")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, group.remove()) }()
		if err := group.add(t.PID(cluster.NodeAgent)); err != nil {
			return err
		}
		peer, err := newRunc(ctx, t)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, peer.close()) }()
		spent := func(do func() error) (agent, pods float64, err error) {
			dirs := []string{group.dir, filepath.Join(cpuRoot(), t.CgroupRoot())}
			var before, after [2]float64
			for i, dir := range dirs {
				if before[i], err = cpuSeconds(dir); err != nil {
					return 0, 0, err
				}
			}
			if err := do(); err != nil {
				return 0, 0, err
			}
			for i, dir := range dirs {
				if after[i], err = cpuSeconds(dir); err != nil {
					return 0, 0, err
				}
			}
			return (after[0] - before[0]) / perRound * 1000, (after[1] - before[1]) / perRound * 1000, nil
		}
		var ours, theirs, ratios, agents, ends []float64
		for round := range rounds {
			agent, pods, err := spent(func() error {
				for i := range perRound {
					if err := t.apply(ctx, pod("start", round*perRound+i, "sleep")); err != nil {
						return err
					}
					if err := t.await(ctx, func(p map[string]corev1.Pod) bool { return count(p, running) == i+1 }); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			endAgent, endPods, err := spent(func() error { return t.deleteAll(ctx) })
			if err != nil {
				return err
			}
			b, err := peer.run(ctx, perRound)
			if err != nil {
				return err
			}
			a := agent + pods
			ours, theirs, ratios = append(ours, a), append(theirs, b), append(ratios, a/b)
			agents, ends = append(agents, agent), append(ends, endAgent+endPods)
		}
		s := summary("pod.start.cpu_ratio", ratios)
		s.Ours, s.PeerValue, s.PeerUnit = median(ours), median(theirs), "ms CPU"
		s.Peer = fmt.Sprintf("%s run of the same program, files, limits, capabilities and seccomp profile, without network, interleaved", peer.version)
		s.Note = fmt.Sprintf("of ours %.1f ms in the agent's cgroup and the rest in the pod's; a pod's end costs %.1f ms more", median(agents), median(ends))
		samples = append(samples, s)
		return nil
	})
	return samples, err
}

// runc is the peer: a bundle of the same program, run by runc.
type runc struct {
	path, version, bundle string
	group                 *cpuGroup
	n                     int
}

func newRunc(ctx context.Context, t *testbed) (*runc, error) {
	r := &runc{path: "runc", bundle: filepath.Join(t.dir, "bundle")}
	out, err := command(ctx, "", r.path, "--version")
	if err != nil {
		return nil, fmt.Errorf("the peer is missing: %w", err)
	}
	r.version, _, _ = strings.Cut(out, "\n")
	rootfs := filepath.Join(r.bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	if _, err := command(ctx, "", filepath.Join(t.Bin, "gantry-images"), "rootfs", "-o", rootfs, "web"); err != nil {
		return nil, err
	}
	if _, err := command(ctx, "", r.path, "spec", "--bundle", r.bundle); err != nil {
		return nil, err
	}
	if err := editSpec(filepath.Join(r.bundle, "config.json"), "/gantry-bench-runc/c"); err != nil {
		return nil, err
	}
	r.group, err = newCPUGroup("gantry-bench-runc")
	return r, err
}

// run returns the CPU milliseconds of one `runc run`, averaged over n.
func (r *runc) run(ctx context.Context, n int) (float64, error) {
	before, err := cpuSeconds(r.group.dir)
	if err != nil {
		return 0, err
	}
	for range n {
		r.n++
		// The shell enters the cgroup and becomes runc, so that nothing escapes the account.
		script := `echo $$ > "$1/cgroup.procs" && exec "$2" run --bundle "$3" "$4"`
		if _, err := command(ctx, "", "sh", "-c", script, "sh", r.group.dir, r.path, r.bundle, fmt.Sprintf("bench-%d-%d", os.Getpid(), r.n)); err != nil {
			return 0, err
		}
	}
	after, err := cpuSeconds(r.group.dir)
	return (after - before) / float64(n) * 1000, err
}

// close removes the parent cgroups that runc made for the peer's containers and
// leaves behind, one in each hierarchy.
func (r *runc) close() error {
	name := filepath.Base(r.group.dir)
	err := r.group.remove()
	dirs, globErr := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", name))
	for _, d := range dirs {
		err = errors.Join(err, os.Remove(d))
	}
	return errors.Join(err, globErr)
}

// applyToRunning measures from the start of `gantry apply` until the program
// in the container executes: it prints a line first thing, and the log says when.
func applyToRunning(ctx context.Context, e *Env) ([]Sample, error) {
	const runs = 15
	var values []float64
	err := e.withCluster(ctx, func(t *testbed) error {
		for i := range runs {
			start := time.Now()
			if err := t.apply(ctx, pod("one", i, "sleep")); err != nil {
				return err
			}
			if err := t.await(ctx, func(p map[string]corev1.Pod) bool { return count(p, running) == 1 }); err != nil {
				return err
			}
			at, err := t.firstLine(ctx, fmt.Sprintf("one-%d", i))
			if err != nil {
				return err
			}
			values = append(values, at.Sub(start).Seconds())
			if err := t.deleteAll(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return []Sample{summary("pod.apply_to_running", values)}, err
}

// firstLine is when the first line of a pod's log was written.
func (t *testbed) firstLine(ctx context.Context, name string) (time.Time, error) {
	reply, err := t.user.Request(ctx, schemas.VerbLog, schemas.Pods, "default", name, []byte(`{"waitSeconds":10}`))
	if err != nil {
		return time.Time{}, err
	}
	stamp, _, _ := strings.Cut(string(reply.Body), " ")
	return time.Parse(time.RFC3339Nano, stamp)
}

// pods100 measures 100 pods of one container, applied as one file, until the
// last program executes.
func pods100(ctx context.Context, e *Env) ([]Sample, error) {
	const runs, pods = 3, 100
	var values, cpu, node, control []float64
	err := e.withCluster(ctx, func(t *testbed) (err error) {
		agent, err := newCPUGroup("gantry-bench-agent")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, agent.remove()) }()
		if err := agent.add(t.PID(cluster.NodeAgent)); err != nil {
			return err
		}
		spent := func() (node, control float64, err error) {
			for _, dir := range []string{agent.dir, filepath.Join(cpuRoot(), t.CgroupRoot())} {
				s, err := cpuSeconds(dir)
				if err != nil {
					return 0, 0, err
				}
				node += s
			}
			control, err = processCPU(t.PID(cluster.ControlPlane))
			return node, control, err
		}
		for run := range runs {
			var manifest strings.Builder
			for i := range pods {
				manifest.WriteString(pod(fmt.Sprintf("many%d", run), i, "sleep"))
				manifest.WriteString("---\n")
			}
			cpuBefore, err := machineCPU()
			if err != nil {
				return err
			}
			nodeBefore, controlBefore, err := spent()
			if err != nil {
				return err
			}
			start := time.Now()
			if err := t.apply(ctx, manifest.String()); err != nil {
				return err
			}
			if err := t.await(ctx, func(p map[string]corev1.Pod) bool { return count(p, running) == pods }); err != nil {
				return err
			}
			cpuAfter, err := machineCPU()
			if err != nil {
				return err
			}
			wall := time.Since(start).Seconds()
			nodeAfter, controlAfter, err := spent()
			if err != nil {
				return err
			}
			last := start
			for i := range pods {
				at, err := t.firstLine(ctx, fmt.Sprintf("many%d-%d", run, i))
				if err != nil {
					return err
				}
				if at.After(last) {
					last = at
				}
			}
			values = append(values, pods/last.Sub(start).Seconds())
			cpu = append(cpu, (cpuAfter-cpuBefore)/wall)
			node = append(node, (nodeAfter-nodeBefore)/pods*1000)
			control = append(control, (controlAfter-controlBefore)/pods*1000)
			if err := t.deleteAll(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	s := summary("pods100.per_s", values)
	s.Note = fmt.Sprintf("the machine's cores busy meanwhile: %.2f; of CPU, a pod cost %.1f ms on the node and %.1f ms in the control plane",
		median(cpu), median(node), median(control))
	return []Sample{s}, err
}

// machineCPU is the CPU seconds that the whole machine has been busy.
func machineCPU() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var user, nice, system, idle, iowait, irq, softirq float64
	if _, err := fmt.Sscanf(line, "cpu %f %f %f %f %f %f %f", &user, &nice, &system, &idle, &iowait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	return (user + nice + system + irq + softirq) / 100, nil // USER_HZ is 100 on Linux
}
