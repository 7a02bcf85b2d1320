// Package runtimetest has a runtime for tests that needs no kernel. It keeps the
// promises of the real one (contract.go checks both), and containers do what a
// test says.
package runtimetest

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime"
)

// Behaviour is what a container does. The zero value runs until a signal ends
// it: TERM with exit code 143, KILL with 137.
type Behaviour struct {
	Fail     string        // a reason (runtime.ReasonCommandNotFound, ...): it never runs
	Message  string        // of the failure, or the termination message
	Starts   time.Duration // how long it stays PhaseStarting
	Ends     bool          // ends by itself
	After    time.Duration // ... this long after its start
	ExitCode int
	OOM      bool
	Deaf     bool // ignores TERM
}

// Fake is a node's runtime in memory. All methods may be called at the same
// time. The zero value is not ready: use New.
type Fake struct {
	mu      sync.Mutex
	now     func() time.Time
	behave  func(runtime.Container) Behaviour
	exec    func(uid types.UID, name string, args []string) (runtime.ExecResult, error)
	pods    map[types.UID]*pod
	fail    map[string]error
	starts  map[string]int
	nextPID int

	set   map[types.UID]bool
	list  []types.UID
	more  chan struct{}
	wakes chan types.UID
	done  chan struct{}
	once  sync.Once
}

type pod struct {
	sandbox runtime.Sandbox
	pid     int
	runs    map[string]*run
}

type run struct {
	order  runtime.Container
	state  runtime.ContainerState
	doing  Behaviour
	timers []*time.Timer
}

// New returns a fake whose containers run until they are told to end. Close it.
func New() *Fake {
	f := &Fake{
		now: time.Now, pods: map[types.UID]*pod{}, fail: map[string]error{}, starts: map[string]int{}, nextPID: 1000,
		set: map[types.UID]bool{}, more: make(chan struct{}, 1), wakes: make(chan types.UID), done: make(chan struct{}),
		behave: func(runtime.Container) Behaviour { return Behaviour{} },
		exec: func(types.UID, string, []string) (runtime.ExecResult, error) {
			return runtime.ExecResult{}, nil
		},
	}
	go f.deliver()
	return f
}

// Close stops the fake's timers and its one goroutine.
func (f *Fake) Close() {
	f.once.Do(func() { close(f.done) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		for _, r := range p.runs {
			r.stop()
		}
	}
}

// Behave says what containers that are started from now on do.
func (f *Fake) Behave(script func(runtime.Container) Behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behave = script
}

// OnExec answers Exec from now on.
func (f *Fake) OnExec(answer func(uid types.UID, name string, args []string) (runtime.ExecResult, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exec = answer
}

// Clock replaces time.Now for the times in states.
func (f *Fake) Clock(now func() time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = now
}

// FailNext makes the next call of a method ("EnsureSandbox", "Start", "Signal",
// "Remove", "RemoveSandbox", "Sandbox", "Sandboxes") return this error.
func (f *Fake) FailNext(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[method] = err
}

// Exit ends a running container; false if it does not run.
func (f *Fake) Exit(uid types.UID, name string, attempt, code int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.find(uid, name, attempt)
	return r != nil && f.end(uid, r, code, 0, false)
}

// KillShim does what kill -9 of a pod's shim does.
func (f *Fake) KillShim(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pods[uid]
	if p == nil {
		return
	}
	p.pid = 0
	for _, r := range p.runs {
		if !r.state.Phase.Ended() {
			r.stop()
			r.state.Phase, r.state.PID, r.state.FinishedAt = runtime.PhaseUnknown, 0, f.now()
			r.state.Message = "the pod's shim died, so the end of this run was not seen"
		}
	}
	f.wake(uid)
}

// Reboot does what a reboot of the machine does: every pod is gone.
func (f *Fake) Reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for uid, p := range f.pods {
		for _, r := range p.runs {
			r.stop()
		}
		delete(f.pods, uid)
		f.wake(uid)
	}
}

// Started counts how often a container of that name was really started in the
// pod, over all attempts.
func (f *Fake) Started(uid types.UID, name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[string(uid)+"/"+name]
}

// Order returns what a run was started with; false if it never was.
func (f *Fake) Order(uid types.UID, name string, attempt int) (runtime.Container, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.find(uid, name, attempt); r != nil {
		return r.order, true
	}
	return runtime.Container{}, false
}

// EnsureSandbox is as Runtime.EnsureSandbox.
func (f *Fake) EnsureSandbox(ctx context.Context, s runtime.Sandbox) (runtime.SandboxState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(ctx, "EnsureSandbox"); err != nil {
		return runtime.SandboxState{}, err
	}
	p := f.pods[s.UID]
	if p == nil {
		p = &pod{sandbox: s, runs: map[string]*run{}}
		f.pods[s.UID] = p
	}
	if p.pid == 0 {
		p.pid = f.pid()
	}
	return p.see(), nil
}

// Start is as Runtime.Start.
func (f *Fake) Start(ctx context.Context, c runtime.Container) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(ctx, "Start"); err != nil {
		return err
	}
	p := f.pods[c.PodUID]
	if p == nil || p.pid == 0 {
		return fmt.Errorf("start %s of %s: %w", c.Name, c.PodUID, runtime.ErrNoSandbox)
	}
	k := key(c.Name, c.Attempt)
	if p.runs[k] != nil {
		return nil
	}
	f.starts[string(c.PodUID)+"/"+c.Name]++
	r := &run{order: c, doing: f.behave(c), state: runtime.ContainerState{
		Name: c.Name, Attempt: c.Attempt, Phase: runtime.PhaseStarting,
	}}
	p.runs[k] = r
	if r.doing.Starts > 0 {
		f.later(r, r.doing.Starts, func() { f.execute(c.PodUID, r) })
	} else {
		f.execute(c.PodUID, r)
	}
	return nil
}

func (f *Fake) execute(uid types.UID, r *run) {
	defer f.wake(uid)
	b := r.doing
	if b.Fail != "" {
		r.state.Phase, r.state.Reason, r.state.Message, r.state.FinishedAt = runtime.PhaseFailed, b.Fail, b.Message, f.now()
		return
	}
	r.state.Phase, r.state.PID, r.state.StartedAt = runtime.PhaseRunning, f.pid(), f.now()
	switch {
	case b.Ends && b.After > 0:
		f.later(r, b.After, func() { f.end(uid, r, b.ExitCode, 0, b.OOM) })
	case b.Ends:
		f.end(uid, r, b.ExitCode, 0, b.OOM)
	}
}

func (f *Fake) end(uid types.UID, r *run, code, sig int, oom bool) bool {
	if r.state.Phase != runtime.PhaseRunning {
		return false
	}
	r.stop()
	r.state.Phase, r.state.PID, r.state.FinishedAt = runtime.PhaseExited, 0, f.now()
	r.state.ExitCode, r.state.Signal, r.state.OOMKilled, r.state.Message = code, sig, oom, r.doing.Message
	f.wake(uid)
	return true
}

// Sandbox is as Runtime.Sandbox.
func (f *Fake) Sandbox(uid types.UID) (runtime.SandboxState, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(context.Background(), "Sandbox"); err != nil {
		return runtime.SandboxState{}, false, err
	}
	p := f.pods[uid]
	if p == nil {
		return runtime.SandboxState{}, false, nil
	}
	return p.see(), true, nil
}

// Sandboxes is as Runtime.Sandboxes.
func (f *Fake) Sandboxes() ([]runtime.SandboxState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(context.Background(), "Sandboxes"); err != nil {
		return nil, err
	}
	var out []runtime.SandboxState
	for _, p := range f.pods {
		out = append(out, p.see())
	}
	slices.SortFunc(out, func(a, b runtime.SandboxState) int { return cmp.Compare(a.Sandbox.UID, b.Sandbox.UID) })
	return out, nil
}

// Signal is as Runtime.Signal.
func (f *Fake) Signal(ctx context.Context, uid types.UID, name string, attempt int, sig syscall.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(ctx, "Signal"); err != nil {
		return err
	}
	if f.pods[uid] == nil {
		return fmt.Errorf("signal %s of %s: %w", name, uid, runtime.ErrNoSandbox)
	}
	r := f.find(uid, name, attempt)
	if r == nil || r.state.Phase == runtime.PhaseStarting {
		return fmt.Errorf("signal %s of %s: %w", name, uid, runtime.ErrNotRunning)
	}
	switch {
	case sig == syscall.SIGKILL:
		f.end(uid, r, 137, 9, false)
	case sig == syscall.SIGTERM && !r.doing.Deaf:
		f.end(uid, r, 143, 15, false)
	}
	return nil
}

// Remove is as Runtime.Remove.
func (f *Fake) Remove(ctx context.Context, uid types.UID, name string, attempt int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(ctx, "Remove"); err != nil {
		return err
	}
	r := f.find(uid, name, attempt)
	if r == nil {
		return nil
	}
	if !r.state.Phase.Ended() {
		return fmt.Errorf("remove %s of %s: %w", name, uid, runtime.ErrRunning)
	}
	delete(f.pods[uid].runs, key(name, attempt))
	return nil
}

// RemoveSandbox is as Runtime.RemoveSandbox.
func (f *Fake) RemoveSandbox(ctx context.Context, uid types.UID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(ctx, "RemoveSandbox"); err != nil {
		return err
	}
	p := f.pods[uid]
	if p == nil {
		return nil
	}
	for _, r := range p.runs {
		r.stop()
	}
	delete(f.pods, uid)
	f.wake(uid)
	return nil
}

// Exec answers what OnExec says; by default success with no output.
func (f *Fake) Exec(ctx context.Context, uid types.UID, name string, attempt int, args []string, _ time.Duration) (runtime.ExecResult, error) {
	f.mu.Lock()
	if err := f.failure(ctx, "Exec"); err != nil {
		f.mu.Unlock()
		return runtime.ExecResult{}, err
	}
	r, answer := f.find(uid, name, attempt), f.exec
	up := r != nil && r.state.Phase == runtime.PhaseRunning
	f.mu.Unlock()
	if !up {
		return runtime.ExecResult{}, fmt.Errorf("exec in %s of %s: %w", name, uid, runtime.ErrNotRunning)
	}
	return answer(uid, name, args)
}

// Wakes is as Runtime.Wakes.
func (f *Fake) Wakes() <-chan types.UID { return f.wakes }

// LogPath is as Runtime.LogPath. The fake writes no logs; a test may.
func (f *Fake) LogPath(s runtime.Sandbox, name string, attempt int) string {
	return filepath.Join(s.LogDir, name, strconv.Itoa(attempt)+".log")
}

// failure takes the error that FailNext has left for this method.
func (f *Fake) failure(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := f.fail[method]
	delete(f.fail, method)
	return err
}

func (f *Fake) find(uid types.UID, name string, attempt int) *run {
	if p := f.pods[uid]; p != nil {
		return p.runs[key(name, attempt)]
	}
	return nil
}

func (f *Fake) pid() int {
	f.nextPID++
	return f.nextPID
}

func (f *Fake) later(r *run, d time.Duration, do func()) {
	r.timers = append(r.timers, time.AfterFunc(d, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !r.state.Phase.Ended() {
			do()
		}
	}))
}

func (r *run) stop() {
	for _, t := range r.timers {
		t.Stop()
	}
	r.timers = nil
}

func (p *pod) see() runtime.SandboxState {
	st := runtime.SandboxState{Sandbox: p.sandbox, PID: p.pid}
	for _, r := range p.runs {
		st.Containers = append(st.Containers, r.state)
	}
	slices.SortFunc(st.Containers, func(a, b runtime.ContainerState) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Attempt, b.Attempt))
	})
	return st
}

func key(name string, attempt int) string { return name + "." + strconv.Itoa(attempt) }

func (f *Fake) wake(uid types.UID) {
	if !f.set[uid] {
		f.set[uid] = true
		f.list = append(f.list, uid)
	}
	select {
	case f.more <- struct{}{}:
	default:
	}
}

func (f *Fake) deliver() {
	for {
		f.mu.Lock()
		var uid types.UID
		if len(f.list) > 0 {
			uid, f.list = f.list[0], f.list[1:]
			delete(f.set, uid)
		}
		f.mu.Unlock()
		if uid == "" {
			select {
			case <-f.more:
				continue
			case <-f.done:
				return
			}
		}
		select {
		case f.wakes <- uid:
		case <-f.done:
			return
		}
	}
}
