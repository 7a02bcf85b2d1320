//go:build linux

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/rundir"
)

// pod is what this process keeps of a sandbox: a handle on the shim, and ends
// of runs, which never change once they are written.
type pod struct {
	sandbox Sandbox
	work    sync.Mutex // held while the sandbox is made or removed

	mu    sync.Mutex
	shim  *shim // nil: does not run
	ended map[string]ContainerState
}

func (p *pod) running() *shim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shim
}

func (p *pod) setShim(s *shim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shim = s
}

func (p *pod) letGo() {
	if s := p.running(); s != nil {
		s.letGo()
	}
}

// podMap holds the pods by UID.
type podMap struct {
	mu sync.Mutex
	m  map[types.UID]*pod
}

func (m *podMap) get(uid types.UID) *pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[uid]
}

// add returns the pod with that UID, made if it was not there.
func (m *podMap) add(s Sandbox) *pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.m[s.UID]; p != nil {
		return p
	}
	if m.m == nil {
		m.m = map[types.UID]*pod{}
	}
	p := &pod{sandbox: s, ended: map[string]ContainerState{}}
	m.m[s.UID] = p
	return p
}

func (m *podMap) remove(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.m, uid)
}

func (m *podMap) each(f func(*pod)) {
	m.mu.Lock()
	all := make([]*pod, 0, len(m.m))
	for _, p := range m.m {
		all = append(all, p)
	}
	m.mu.Unlock()
	for _, p := range all {
		f(p)
	}
}

// adopt finds the pods of an earlier agent.
func (r *Runtime) adopt(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(r.opt.RunDir, "pods"))
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, e := range entries {
		var s Sandbox
		dir := r.podDir(types.UID(e.Name()))
		b, err := os.ReadFile(filepath.Join(dir, rundir.Sandbox))
		if errors.Is(err, os.ErrNotExist) {
			// The agent died between making the directory and this file: no shim
			// was started, so nothing is lost with it.
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove unfinished sandbox: %w", err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read sandbox: %w", err)
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return fmt.Errorf("read sandbox %s: %w", e.Name(), err)
		}
		p := r.pods.add(s)
		lock, err := r.adoptOrLock(ctx, p)
		if err == nil && lock == nil {
			err = r.closeInputs(s.UID)
		}
		if err != nil {
			return fmt.Errorf("adopt sandbox %s: %w", s.UID, err)
		}
		if lock != nil {
			// Nobody lives there. Whoever asks for this pod decides what next.
			_ = lock.Close()
		}
		r.wakes.add(s.UID)
	}
	return nil
}

// EnsureSandbox makes the sandbox run and returns what is true then. A sandbox
// whose shim died is cleaned first: what was left of its containers is killed
// and those runs become PhaseUnknown.
func (r *Runtime) EnsureSandbox(ctx context.Context, s Sandbox) (SandboxState, error) {
	if err := checkName("pod UID", string(s.UID)); err != nil {
		return SandboxState{}, err
	}
	p := r.pods.add(s)
	p.work.Lock()
	defer p.work.Unlock()
	if p.running() == nil {
		if err := r.makeSandbox(ctx, p); err != nil {
			return SandboxState{}, fmt.Errorf("make sandbox %s: %w", s.UID, err)
		}
	}
	return r.state(p)
}

func (r *Runtime) makeSandbox(ctx context.Context, p *pod) error {
	dir := r.podDir(p.sandbox.UID)
	if _, err := os.Lstat(filepath.Join(dir, rundir.Stop)); err == nil {
		return ErrRemoving
	}
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	lock, err := r.adoptOrLock(ctx, p)
	if err != nil || lock == nil {
		return err
	}
	defer func() { _ = lock.Close() }() // the shim has it too
	// With the lock in hand nobody else starts anything for this pod.
	if err := r.bury(ctx, p); err != nil {
		return err
	}
	if err := r.writeSandbox(p.sandbox, dir); err != nil {
		return err
	}
	return r.startShim(p, dir, lock)
}

// bury ends what a dead shim left: kills what still runs and marks the runs
// whose end nobody saw. An exit code is never invented.
func (r *Runtime) bury(ctx context.Context, p *pod) error {
	runs, err := r.listRuns(p.sandbox.UID)
	if err != nil || len(runs) == 0 {
		return err
	}
	if err := r.cg.kill(ctx, podCgroup(p.sandbox.UID)); err != nil {
		return fmt.Errorf("kill what a dead shim left: %w", err)
	}
	for _, run := range runs {
		if !run.has(rundir.Claim) || run.has(rundir.Exit) || run.has(rundir.Failed) || run.has(rundir.Lost) {
			continue
		}
		if err := run.markLost(); err != nil {
			return fmt.Errorf("mark lost run: %w", err)
		}
		r.log.Warn().Str("pod", string(p.sandbox.UID)).Str("run", run.name).Msg("shim died, end of the run was not seen")
	}
	return nil
}

// RemoveSandbox ends the pod and removes all that was made for it, logs
// excepted. It returns nil only when nothing is left; removing what is not
// there is no error.
func (r *Runtime) RemoveSandbox(ctx context.Context, uid types.UID) error {
	if err := checkName("pod UID", string(uid)); err != nil {
		return err
	}
	p := r.pods.add(Sandbox{UID: uid})
	p.work.Lock()
	defer p.work.Unlock()
	if err := r.tearDown(ctx, p); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", uid, err)
	}
	r.pods.remove(uid)
	return nil
}

func (r *Runtime) tearDown(ctx context.Context, p *pod) error {
	uid := p.sandbox.UID
	dir := r.podDir(uid)
	if _, err := os.Lstat(dir); err == nil {
		if err := r.stopShim(ctx, p, dir); err != nil {
			return err
		}
		lock, err := lockRetry(ctx, filepath.Join(dir, rundir.ShimLock))
		if err != nil {
			return fmt.Errorf("wait for shim: %w", err)
		}
		defer func() { _ = lock.Close() }()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := r.removeCgroups(ctx, uid); err != nil {
		return err
	}
	if err := os.RemoveAll(r.scratchDir(uid)); err != nil {
		return err
	}
	// Last, because it says that there is something to remove.
	return os.RemoveAll(dir)
}

// Erase removes every sandbox and all that a runtime makes, the directories'
// own content included, and closes it. Logs stay: they are not in its
// directories.
func (r *Runtime) Erase(ctx context.Context) error {
	var uids []types.UID
	r.pods.each(func(p *pod) { uids = append(uids, p.sandbox.UID) })
	var errs []error
	for _, uid := range uids {
		errs = append(errs, r.RemoveSandbox(ctx, uid))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.Close() // also moves the last thread of ours out of the cgroups
	if err := r.cg.remove(ctx, ""); err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	for _, path := range []string{
		filepath.Join(r.opt.StateDir, "pods"), filepath.Join(r.opt.RunDir, "pods"),
		r.cacheDir(), r.baseDir(), r.wakePath(), filepath.Join(r.opt.RunDir, "agent.lock"),
	} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups is quick where the shim has left nothing behind, and thorough
// where it has.
func (r *Runtime) removeCgroups(ctx context.Context, uid types.UID) error {
	runs, err := r.listRuns(uid)
	if err != nil {
		return err
	}
	var names []string
	for _, run := range runs {
		names = append(names, run.name)
	}
	if r.cg.removeEmpty(podCgroup(uid), names) {
		return nil
	}
	if err := r.cg.kill(ctx, podCgroup(uid)); err != nil {
		return fmt.Errorf("kill containers: %w", err)
	}
	if err := r.cg.remove(ctx, podCgroup(uid)); err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	return nil
}

func podCgroup(uid types.UID) string { return "pod" + string(uid) }
