package probe

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Key names one run of one container.
type Key struct {
	UID       types.UID
	Container string
	Attempt   int
}

// Target is what to probe and how.
type Target struct {
	// Probe is never nil.
	Probe *corev1.Probe
	// IP is the pod's address, or the node's for a pod on the host network.
	IP string
	// Ports of the container, for probes that name one.
	Ports []corev1.ContainerPort
	// Started is when the run began; the initial delay counts from it.
	Started time.Time
	// Ready is the verdict to begin with: an agent that was restarted goes on
	// with what the one before it knew.
	Ready bool
}

// Verdict is the outcome of a probe after the thresholds.
type Verdict struct {
	Key   Key
	Ready bool
	// Failure says why the newest single probe failed; empty after a success.
	Failure string
	// Changed says that Ready differs from the verdict before.
	Changed bool
}
