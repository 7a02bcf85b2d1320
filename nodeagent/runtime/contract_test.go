//go:build linux

package runtime_test

import (
	"testing"

	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/runtime/runtimetest"
)

func TestContract(t *testing.T) {
	rt, sandbox, container := runtime.ForContract(t)
	sleeper, ender, missing := container("sleeper", "sleep", "0"), container("ender", "exit", "3"), container("missing")
	missing.Args = []string{"not-there"}
	runtimetest.Contract(t, runtimetest.World{
		Runtime: rt, Sandbox: sandbox, Sleeper: sleeper, Ender: ender, Missing: missing,
	})
}
