// Package pod decides and does what one pod needs next. Plan and Status are
// pure functions of what is wanted, what is seen and the time; an actor per
// pod observes, plans, does the one step and repeats until nothing is left.
package pod

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/runtime"
)

// Desired is what the control plane wants of one pod.
type Desired struct {
	UID       types.UID
	Namespace string
	Name      string
	Revision  uint64
	// Pod is the newest specification known. It is nil for a pod that this
	// node runs but has no record of: it can only be removed.
	Pod *corev1.Pod
	// Removed says that the object is gone, so whatever runs for it must go.
	Removed bool
}

// Stopping says that the pod is to end.
func (d Desired) Stopping() bool {
	return d.Removed || d.Pod == nil || d.Pod.DeletionTimestamp != nil
}

// hostNetwork says that the pod uses the node's own network.
func (d Desired) hostNetwork() bool { return d.Pod != nil && d.Pod.Spec.HostNetwork }

// Grace is how long the containers have between TERM and KILL.
func (d Desired) Grace() time.Duration {
	// Of more seconds than ever a Duration would make a negative number.
	const fallback, ever = 30, 100 * 365 * 24 * 60 * 60
	seconds := int64(fallback)
	switch {
	case d.Pod == nil:
		seconds = 0
	case d.Pod.DeletionTimestamp != nil && d.Pod.DeletionGracePeriodSeconds != nil:
		seconds = *d.Pod.DeletionGracePeriodSeconds
	case d.Pod.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *d.Pod.Spec.TerminationGracePeriodSeconds
	}
	return time.Duration(min(max(seconds, 0), ever)) * time.Second
}

// Seen is what runtime, image store, network and disk say of one pod.
type Seen struct {
	Host   Host
	Record Record
	// Sandbox is nil where there is none.
	Sandbox *runtime.SandboxState
	// Images says for each container what its image is like.
	Images map[string]ImageSeen
	// Failures says which deeds failed last time they were tried.
	Failures map[string]Failure
}

// Keys of Seen.Failures. A container's own is FailStart plus its name.
const (
	FailSandbox = "sandbox"
	FailNetwork = "network"
	FailRemove  = "remove"
	FailSignal  = "signal"
	FailStart   = "start/"
)

// Failure is a deed that did not succeed. Count is how often in a row.
type Failure struct {
	Count   int
	At      time.Time
	Reason  string // a word for users, such as CreateContainerError
	Message string
}

// ImageSeen is what is known of the image of one container.
type ImageSeen struct {
	// Present is in the store under the reference; nil where it is not.
	Present *image.Image
	// Pulled was fetched for the run PulledFor; nil where none was.
	Pulled    *image.Image
	PulledFor int
	Pulling   bool
	// Err is how the last pull ended, nil after a success. Failures counts
	// pulls that failed in a row, the last of them at FailedAt.
	Err      error
	Failures int
	FailedAt time.Time
}

// Host is what containers must know of the machine.
type Host struct {
	Node      string
	IP        string // empty where none is known
	MemBytes  int64  // capacity, for OOM scores; 0 where unknown
	PidsLimit int64  // per container; 0 for none
	// EtcDir holds one directory per pod for generated files, which are written
	// again before every run and need not outlive a reboot: in memory they cost
	// a fraction of what they do on disk. PodDir holds one per pod for volumes,
	// LogDir one for logs.
	EtcDir, PodDir, LogDir string
}

// Record is what the agent must remember of a pod because neither the
// specification nor the runtime's files tell it. It is written before the
// deed that it describes, and it survives a reboot.
type Record struct {
	// StartTime is when the agent first took the pod in.
	StartTime time.Time `json:"startTime,omitzero"`
	// NetPID is the shim whose network was asked for, IP the address that it got.
	IP     string `json:"ip,omitempty"`
	NetPID int    `json:"netPID,omitempty"`
	// StopAt is when the end began, KillAt when patience ends, and StopGrace
	// the grace that KillAt was computed from.
	StopAt    time.Time     `json:"stopAt,omitzero"`
	KillAt    time.Time     `json:"killAt,omitzero"`
	StopGrace time.Duration `json:"stopGrace,omitempty"`
	// Containers by name.
	Containers map[string]ContainerRecord `json:"containers,omitempty"`
	// Conditions by type, for stable transition times.
	Conditions map[corev1.PodConditionType]ConditionRecord `json:"conditions,omitempty"`
}

// ConditionRecord is since when a condition has its value.
type ConditionRecord struct {
	Status corev1.ConditionStatus `json:"status"`
	Since  time.Time              `json:"since"`
}

// ContainerRecord is what is remembered of one container. It exists once the
// container has been asked for.
type ContainerRecord struct {
	// Attempt is the newest run that was asked for; runs count from 0.
	Attempt int `json:"attempt"`
	// Streak is how many runs before Attempt ended in a row without one that
	// lasted long enough to forgive them.
	Streak int `json:"streak,omitempty"`
	// Image, ImageID, Content (the digest of its configuration) and StopSignal
	// are those that Attempt was started with.
	Image      string `json:"image,omitempty"`
	ImageID    string `json:"imageID,omitempty"`
	Content    string `json:"content,omitempty"`
	StopSignal string `json:"stopSignal,omitempty"`
	// End is how Attempt ended, noted before its files go; Last is the run before.
	End  *RunEnd `json:"end,omitempty"`
	Last *RunEnd `json:"last,omitempty"`
	// Ready is the newest verdict of Attempt's readiness probe.
	Ready bool `json:"ready,omitempty"`
	// StartedAt is when Attempt began to run, zero until that was seen (and
	// told as an event). TermSent and KillSent say that Attempt was told to end.
	StartedAt time.Time `json:"startedAt,omitzero"`
	TermSent  bool      `json:"termSent,omitempty"`
	KillSent  bool      `json:"killSent,omitempty"`
}

// RunEnd is how one run ended.
type RunEnd struct {
	Attempt  int       `json:"attempt"`
	Started  time.Time `json:"started,omitzero"` // zero where it never ran
	Finished time.Time `json:"finished"`
	ExitCode int       `json:"exitCode"`
	Signal   int       `json:"signal,omitempty"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message,omitempty"`
	ImageID  string    `json:"imageID,omitempty"`
}

// clone copies the record so that a plan can change its own.
func (r Record) clone() Record {
	r.Containers = maps.Clone(r.Containers)
	r.Conditions = maps.Clone(r.Conditions)
	return r
}

func (r *Record) setContainer(name string, c ContainerRecord) {
	if r.Containers == nil {
		r.Containers = map[string]ContainerRecord{}
	}
	r.Containers[name] = c
}

// Do is the kind of an action.
type Do string

// What a pod can need next.
const (
	DoNothing       Do = ""
	DoPull          Do = "Pull"          // in the background
	DoSandbox       Do = "Sandbox"       // EnsureSandbox
	DoAttach        Do = "Attach"        // give the sandbox an address
	DoStart         Do = "Start"         // ask for one run
	DoSignal        Do = "Signal"        // to one run
	DoRemoveRun     Do = "RemoveRun"     // files of an old run
	DoRemoveSandbox Do = "RemoveSandbox" // whatever is left of it
	DoDetach        Do = "Detach"        // give the address back
	DoGone          Do = "Gone"          // tell that nothing is left
	DoForget        Do = "Forget"        // drop the pod's record and files
)

// Action is one deed; doing it twice is harmless.
type Action struct {
	Do        Do
	Container string // Pull, Start, Signal, RemoveRun
	Attempt   int
	Image     string // Pull: the reference
	Signal    string // Signal: a name or number
	Sandbox   runtime.Sandbox
	Start     runtime.Container
}

// Step is the answer of Plan: the record as it must be before the action is
// done, the action, and when to look again if nothing else happens (zero: never).
type Step struct {
	Record Record
	Action Action
	Wake   time.Time
}

// at makes the step look again at t if that is earlier than what it has.
func (s *Step) at(t time.Time) {
	if s.Wake.IsZero() || t.Before(s.Wake) {
		s.Wake = t
	}
}
