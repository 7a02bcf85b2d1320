// Package want says what one run of a container is, as the agent writes it for
// the launcher. It is apart from package runtime so that the launcher links
// nothing of the agent.
package want

import (
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

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
	// Stdin keeps the standard input open for those who connect to it, StdinOnce
	// until the first of them leaves. TTY gives the container a terminal.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
	TTY       bool `json:"tty,omitempty"`
	// TerminationMessagePath is inside the container; the last 4 KiB of it come
	// back in ContainerState.Message. Empty means none.
	TerminationMessagePath string `json:"terminationMessagePath,omitempty"`
}

// Reasons for a run that could not be started.
const (
	CommandNotFound  = "CommandNotFound"
	PermissionDenied = "PermissionDenied"
	InvalidUser      = "InvalidUser"
	InvalidMount     = "InvalidMount"
	ResourceLimit    = "ResourceLimit"
	StartError       = "StartError"
)

// Run is the order for one run: the container and what the agent adds.
type Run struct {
	Container
	// Cgroup is the path below every controller's mount.
	Cgroup string `json:"cgroup"`
	// Base is the directory under the lowest layer. It has what things are mounted
	// over in every container, so that it need not be made in each.
	Base string `json:"base,omitempty"`
	// Scratch is a path on disk for the writable layer (rundir.Layer); made by
	// the launcher.
	Scratch string `json:"scratch"`
	// Cache is a directory in which the launcher keeps what is costly to make.
	Cache string `json:"cache"`
	// HostNetwork tells that the pod has no network namespace of its own, so
	// that /sys has to stay what the host's is.
	HostNetwork bool `json:"hostNetwork,omitempty"`
}

// Exec is the order for one further command in a running container.
type Exec struct {
	Args    []string `json:"args"`
	Timeout int64    `json:"timeout"` // nanoseconds; 0 means none
	// TTY gives the command a terminal, whose other end is sent over the socket
	// that the launcher was started with. 0 columns or rows leave the size open.
	TTY     bool   `json:"tty,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
}

// ExecResult is what the launcher says about it.
type ExecResult struct {
	ExitCode int    `json:"exitCode"`
	TimedOut bool   `json:"timedOut,omitempty"`
	Reason   string `json:"reason,omitempty"` // one of the reasons above: it did not run
	Message  string `json:"message,omitempty"`
}

// Failure is the launcher's last word where nothing runs, in the form that
// libcontainer gives to its own.
type Failure struct {
	Type string `json:"type"` // FailureType
	Arg  struct {
		Message string `json:"message"`
		Reason  string `json:"reason,omitempty"` // one of those above; empty: to be found in the message
	} `json:"arg"`
}

// FailureType tells a Failure from other packets.
const FailureType = "procError"

// Reason finds the reason in a message. libcontainer's errors come as text from
// another process, so text is all there is to look at.
func Reason(message string) string {
	noFile := strings.Contains(message, "no such file or directory")
	switch {
	case strings.Contains(message, "executable file not found"),
		strings.Contains(message, "exec: \"") && noFile,
		noFile && (strings.HasPrefix(message, "stat ") || strings.Contains(message, "error during container init: stat ")):
		return CommandNotFound
	case strings.Contains(message, "exec: \"") && strings.Contains(message, "permission denied"),
		strings.Contains(message, "exec: \"") && strings.Contains(message, "is a directory"):
		return PermissionDenied
	case strings.Contains(message, "unable to set memory limit"),
		strings.Contains(message, "OOM-killed"):
		return ResourceLimit
	case strings.Contains(message, "error mounting"):
		return InvalidMount
	}
	return StartError
}
