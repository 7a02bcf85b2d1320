//go:build linux

package runtime

import "testing"

// BenchmarkExec is the time of one command in a container, from asking for it
// to its exit code.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	c := n.sleeper(nil)
	for b.Loop() {
		res, err := n.rt.Exec(b.Context(), c.PodUID, c.Name, c.Attempt, prog("exit", "7"), 0)
		if err != nil || res.ExitCode != 7 {
			b.Fatal(res, err)
		}
	}
}
