// Package runtime runs pods: a tiny shim per pod holds its namespaces and
// outlives the agent, a short-lived launcher starts each container through
// libcontainer, and files say what happened.
package runtime

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
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

// Mount is a bind mount or a fresh filesystem in a container.
type Mount struct {
	Source      string   `json:"source,omitempty"` // empty for tmpfs and the like
	Destination string   `json:"destination"`
	Type        string   `json:"type"` // "bind", "tmpfs", ...
	Options     []string `json:"options,omitempty"`
}

// Resources are limits as the kernel takes them; 0 means none.
type Resources struct {
	CPUShares   uint64 `json:"cpuShares,omitempty"`   // cgroup v1 scale, 2 to 262144; converted on v2
	CPUQuota    int64  `json:"cpuQuota,omitempty"`    // microseconds per period
	CPUPeriod   uint64 `json:"cpuPeriod,omitempty"`   // microseconds
	MemoryLimit int64  `json:"memoryLimit,omitempty"` // bytes
	PidsLimit   int64  `json:"pidsLimit,omitempty"`
}

// Container is one run of one container. Attempt tells runs of the same
// container apart and starts at 0.
type Container struct {
	PodUID  types.UID `json:"podUID"`
	Name    string    `json:"name"`
	Attempt int       `json:"attempt"`

	Args []string `json:"args"` // never empty; Args[0] is looked up in PATH of Env
	Env  []string `json:"env"`
	Cwd  string   `json:"cwd"`
	// User is as in an image: "", "name", "uid", "uid:gid", "name:group";
	// resolved inside the container's root.
	User             string   `json:"user,omitempty"`
	AdditionalGroups []int64  `json:"additionalGroups,omitempty"`
	Layers           []string `json:"layers"` // directories, lowest first
	Mounts           []Mount  `json:"mounts,omitempty"`

	Resources       Resources `json:"resources"`
	CapAdd          []string  `json:"capAdd,omitempty"` // "NET_ADMIN" or "CAP_NET_ADMIN", "ALL"
	CapDrop         []string  `json:"capDrop,omitempty"`
	Privileged      bool      `json:"privileged,omitempty"`
	NoNewPrivileges bool      `json:"noNewPrivileges,omitempty"`
	ReadonlyRootfs  bool      `json:"readonlyRootfs,omitempty"`
	// Seccomp is "RuntimeDefault" or "Unconfined".
	Seccomp     string `json:"seccomp,omitempty"`
	OOMScoreAdj *int   `json:"oomScoreAdj,omitempty"`
	// TerminationMessagePath is inside the container; the last 4 KiB of it come
	// back in ContainerState.Message. Empty means none.
	TerminationMessagePath string `json:"terminationMessagePath,omitempty"`
}

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
