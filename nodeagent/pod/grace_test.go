package pod

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestGraceBeyondTheClock: whoever asks for more seconds than a clock counts
// is given many, not none.
func TestGraceBeyondTheClock(t *testing.T) {
	for _, seconds := range []int64{1<<63 - 1, 9_223_372_037, 10_000_000_000} {
		d := Desired{Pod: &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &seconds}}}
		if got := d.Grace(); got < 50*365*24*time.Hour {
			t.Errorf("%d seconds are %v", seconds, got)
		}
	}
}
