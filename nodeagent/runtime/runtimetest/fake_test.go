package runtimetest_test

import (
	"context"
	"errors"
	"testing"

	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/runtime/runtimetest"
)

func TestFakeKeepsTheContract(t *testing.T) {
	f := runtimetest.New()
	defer f.Close()
	f.Behave(func(c runtime.Container) runtimetest.Behaviour {
		switch c.Name {
		case "ender":
			return runtimetest.Behaviour{Ends: true, ExitCode: 3}
		case "missing":
			return runtimetest.Behaviour{Fail: runtime.ReasonCommandNotFound, Message: "no such command"}
		}
		return runtimetest.Behaviour{}
	})
	container := func(name string) runtime.Container {
		return runtime.Container{PodUID: "u", Name: name, Args: []string{name}}
	}
	runtimetest.Contract(t, runtimetest.World{
		Runtime: f, Sandbox: runtime.Sandbox{UID: "u"},
		Sleeper: container("sleeper"), Ender: container("ender"), Missing: container("missing"),
	})
	if n := f.Started("u", "sleeper"); n != 1 {
		t.Errorf("started %d times", n)
	}
}

func TestFakeFaults(t *testing.T) {
	f := runtimetest.New()
	defer f.Close()
	ctx := context.Background()
	boom := errors.New("boom")
	f.FailNext("EnsureSandbox", boom)
	if _, err := f.EnsureSandbox(ctx, runtime.Sandbox{UID: "u"}); !errors.Is(err, boom) {
		t.Error(err)
	}
	if _, err := f.EnsureSandbox(ctx, runtime.Sandbox{UID: "u"}); err != nil {
		t.Error(err)
	}
	if err := f.Start(ctx, runtime.Container{PodUID: "u", Name: "a"}); err != nil {
		t.Error(err)
	}
	f.KillShim("u")
	st, _, err := f.Sandbox("u")
	if err != nil || st.PID != 0 || st.Containers[0].Phase != runtime.PhaseUnknown {
		t.Errorf("%+v, %v", st, err)
	}
	f.Reboot()
	if _, found, _ := f.Sandbox("u"); found {
		t.Error("found after a reboot")
	}
}
