// Package runtime runs pods: a tiny shim per pod holds its namespaces and
// outlives the agent, a short-lived launcher starts each container through
// libcontainer, and files say what happened.
package runtime

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/want"
)

// Sandbox is what a pod needs before its first container: a shim that holds
// its network, IPC and UTS namespaces, and its cgroup.
type Sandbox struct {
	UID         types.UID `json:"uid"`
	Namespace   string    `json:"namespace"`
	Name        string    `json:"name"`
	Hostname    string    `json:"hostname"`
	HostNetwork bool      `json:"hostNetwork,omitempty"`
	LogDir      string    `json:"logDir"` // one directory per pod; files are <container>/<attempt>.log
}

// SandboxState is what is seen of a sandbox.
type SandboxState struct {
	Sandbox Sandbox
	// PID of the shim; 0 where it does not run (any more).
	PID int
	// Containers holds every run that has files, ordered by name and attempt.
	Containers []ContainerState
}

// The words for one run of a container are shared with the launcher.
type (
	// Mount is a bind mount or a fresh filesystem in a container.
	Mount = want.Mount
	// Resources are limits as the kernel takes them; 0 means none.
	Resources = want.Resources
	// Container is one run of one container. Attempt tells runs of the same
	// container apart and starts at 0.
	Container = want.Container
)

// Phase of one run.
type Phase string

// Phases of one run: asked for, executing, ended, or never begun.
const (
	PhaseStarting Phase = "Starting"
	PhaseRunning  Phase = "Running"
	PhaseExited   Phase = "Exited"
	PhaseFailed   Phase = "Failed"  // could not be started; Message says why
	PhaseUnknown  Phase = "Unknown" // it ran, it is gone, and nobody saw how it ended
)

// Ended tells whether nothing more will happen to a run in this phase.
func (p Phase) Ended() bool {
	return p == PhaseExited || p == PhaseFailed || p == PhaseUnknown
}

// Reasons for PhaseFailed.
const (
	ReasonCommandNotFound  = want.CommandNotFound
	ReasonPermissionDenied = want.PermissionDenied
	ReasonInvalidUser      = want.InvalidUser
	ReasonInvalidMount     = want.InvalidMount
	ReasonResourceLimit    = want.ResourceLimit
	ReasonStartError       = want.StartError
)

// ContainerState is what is seen of one run.
type ContainerState struct {
	Name       string
	Attempt    int
	Phase      Phase
	PID        int // 0 unless running
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int // 128+n for a death by signal n
	Signal     int
	OOMKilled  bool
	// Reason is a word for PhaseFailed: "CommandNotFound", "PermissionDenied",
	// "InvalidUser", "InvalidMount", "ResourceLimit" or "StartError".
	Reason  string
	Message string
}

// ExecResult is the end of a command that ran inside a container.
type ExecResult struct {
	ExitCode int
	Output   []byte // stdout and stderr together, at most 10 KiB, the end is kept
}
