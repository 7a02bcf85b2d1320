package e2e

import (
	"strings"
	"testing"
)

// TestAutomation: a shell script, a Python program and a Node program each
// drive a cluster through the bus, and nothing stays behind.
func TestAutomation(t *testing.T) {
	s := newStage(t)
	out := s.must("automation")
	for _, want := range []string{
		"deployment automated ready", "serves on", ": exit 0: automated-",
		`refused: Invalid: Deployment.apps "automated" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0`,
		"deployment automated deleted",
	} {
		if n := strings.Count(out, want); n != 3 {
			t.Errorf("%q is said %d times, not by each of the 3 programs", want, n)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
	s.nothingLeft()
}
