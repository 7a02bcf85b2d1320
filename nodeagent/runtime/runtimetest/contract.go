package runtimetest

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime"
)

// Runtime is what the contract asks of both the real runtime and the fake.
type Runtime interface {
	EnsureSandbox(context.Context, runtime.Sandbox) (runtime.SandboxState, error)
	Start(context.Context, runtime.Container) error
	Sandbox(types.UID) (runtime.SandboxState, bool, error)
	Sandboxes() ([]runtime.SandboxState, error)
	Signal(ctx context.Context, uid types.UID, name string, attempt int, sig syscall.Signal) error
	Remove(ctx context.Context, uid types.UID, name string, attempt int) error
	RemoveSandbox(context.Context, types.UID) error
	Exec(ctx context.Context, uid types.UID, name string, attempt int, args []string, timeout time.Duration) (runtime.ExecResult, error)
	Wakes() <-chan types.UID
}

// World is a runtime with something to run: Sleeper ends by TERM or KILL only,
// Ender at once with exit code 3, Missing has no command.
type World struct {
	Runtime                 Runtime
	Sandbox                 runtime.Sandbox
	Sleeper, Ender, Missing runtime.Container
}

// Contract checks what whoever uses a runtime relies on.
func Contract(t *testing.T, w World) {
	ctx := context.Background()
	rt, uid := w.Runtime, w.Sandbox.UID
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	until := func(c runtime.Container, ok func(runtime.ContainerState) bool) runtime.ContainerState {
		t.Helper()
		var last runtime.ContainerState
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			st, _, err := rt.Sandbox(uid)
			check("read sandbox", err)
			for _, s := range st.Containers {
				if s.Name == c.Name && s.Attempt == c.Attempt {
					if last = s; ok(s) {
						return s
					}
				}
			}
		}
		t.Fatalf("run of %s stays %+v", c.Name, last)
		return last
	}
	ended := func(s runtime.ContainerState) bool { return s.Phase.Ended() }
	runs := func(s runtime.ContainerState) bool { return s.Phase == runtime.PhaseRunning }

	_, found, err := rt.Sandbox(uid)
	check("read a sandbox that is not there", err)
	if found {
		t.Error("found a sandbox that is not there")
	}
	is("start without a sandbox", rt.Start(ctx, w.Sleeper), runtime.ErrNoSandbox)
	check("remove a sandbox that is not there", rt.RemoveSandbox(ctx, uid))

	first, err := rt.EnsureSandbox(ctx, w.Sandbox)
	check("make sandbox", err)
	again, err := rt.EnsureSandbox(ctx, w.Sandbox)
	check("make sandbox again", err)
	if first.PID == 0 || first.PID != again.PID {
		t.Errorf("sandbox %d became %d", first.PID, again.PID)
	}
	is("signal before the start", rt.Signal(ctx, uid, w.Sleeper.Name, 0, syscall.SIGTERM), runtime.ErrNotRunning)
	check("remove a run that is not there", rt.Remove(ctx, uid, "nobody", 0))

	check("start", rt.Start(ctx, w.Sleeper))
	st := until(w.Sleeper, runs)
	if st.PID == 0 || st.StartedAt.IsZero() {
		t.Errorf("running as %+v", st)
	}
	check("start again", rt.Start(ctx, w.Sleeper))
	is("remove while it runs", rt.Remove(ctx, uid, w.Sleeper.Name, 0), runtime.ErrRunning)
	check("kill", rt.Signal(ctx, uid, w.Sleeper.Name, 0, syscall.SIGKILL))
	st = until(w.Sleeper, ended)
	if st.Phase != runtime.PhaseExited || st.ExitCode != 137 || st.Signal != 9 || st.PID != 0 || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("killed, ended as %+v", st)
	}
	check("signal after the end", rt.Signal(ctx, uid, w.Sleeper.Name, 0, syscall.SIGKILL))
	check("start what has ended", rt.Start(ctx, w.Sleeper))
	_, err = rt.Exec(ctx, uid, w.Sleeper.Name, 0, []string{"x"}, time.Second)
	is("exec after the end", err, runtime.ErrNotRunning)

	check("start ender", rt.Start(ctx, w.Ender))
	if st = until(w.Ender, ended); st.Phase != runtime.PhaseExited || st.ExitCode != 3 || st.Signal != 0 {
		t.Errorf("ended as %+v", st)
	}
	check("start missing", rt.Start(ctx, w.Missing))
	if st = until(w.Missing, ended); st.Phase != runtime.PhaseFailed || st.Reason != runtime.ReasonCommandNotFound || st.Message == "" {
		t.Errorf("failed as %+v", st)
	}
	if st = until(w.Sleeper, ended); st.ExitCode != 137 {
		t.Errorf("an end has changed: %+v", st)
	}
	check("remove", rt.Remove(ctx, uid, w.Ender.Name, w.Ender.Attempt))
	all, err := rt.Sandboxes()
	check("list", err)
	if len(all) != 1 || len(all[0].Containers) != 2 {
		t.Errorf("listed %+v", all)
	}
	select {
	case <-rt.Wakes():
	case <-time.After(30 * time.Second):
		t.Error("nothing woke")
	}
	check("remove sandbox", rt.RemoveSandbox(ctx, uid))
	if _, found, err = rt.Sandbox(uid); found || err != nil {
		t.Errorf("after its removal: found %v, %v", found, err)
	}
}
