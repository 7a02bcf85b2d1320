package pod

import (
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/nodeagent/image"
)

// Reasons of waiting containers, as users of Kubernetes know them.
const (
	ReasonContainerCreating    = "ContainerCreating"
	ReasonCrashLoopBackOff     = "CrashLoopBackOff"
	ReasonErrImagePull         = "ErrImagePull"
	ReasonImagePullBackOff     = "ImagePullBackOff"
	ReasonErrImageNeverPull    = "ErrImageNeverPull"
	ReasonInvalidImageName     = "InvalidImageName"
	ReasonCreateContainerError = "CreateContainerError"
	ReasonConfigError          = "CreateContainerConfigError"
	ReasonRunContainerError    = "RunContainerError"
)

// Status is what the node says of the pod, and the record with the transition
// times that it is based on. It is pure, and stable: while nothing changes, it
// answers the same.
func Status(want Desired, seen Seen, now time.Time) (corev1.PodStatus, Record) {
	rec := seen.Record.clone()
	if want.Pod == nil {
		return corev1.PodStatus{Phase: corev1.PodUnknown}, rec
	}
	status := corev1.PodStatus{
		QOSClass: QOS(want.Pod),
		HostIP:   seen.Host.IP,
	}
	if seen.Host.IP != "" {
		status.HostIPs = []corev1.HostIP{{IP: seen.Host.IP}}
	}
	if !rec.StartTime.IsZero() {
		t := metav1.NewTime(rec.StartTime.UTC().Truncate(time.Second))
		status.StartTime = &t
	}
	ip := rec.IP
	if want.hostNetwork() {
		ip = seen.Host.IP
	}
	if ip != "" {
		status.PodIP, status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
	var runs []run
	for i := range want.Pod.Spec.Containers {
		c := &want.Pod.Spec.Containers[i]
		r := runOf(c.Name, seen, now)
		runs = append(runs, r)
		status.ContainerStatuses = append(status.ContainerStatuses, containerStatus(want, c, r, seen, now))
	}
	slices.SortFunc(status.ContainerStatuses, func(a, b corev1.ContainerStatus) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	status.Phase = phase(want, runs)
	conditions(&status, &rec, want, seen, now)
	return status, rec
}

// phase follows from the runs alone.
func phase(want Desired, runs []run) corev1.PodPhase {
	var waiting, running, ok, failed int
	for _, r := range runs {
		switch r.phase {
		case runRunning:
			running++
		case runEnded:
			if r.end.ExitCode == 0 {
				ok++
			} else {
				failed++
			}
		default:
			if r.record.Last != nil {
				// Between two runs, what counts is how the last one ended.
				if r.record.Last.ExitCode == 0 {
					ok++
				} else {
					failed++
				}
				continue
			}
			waiting++
		}
	}
	policy := want.Pod.Spec.RestartPolicy
	switch {
	case waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case want.Stopping() && failed > 0:
		return corev1.PodFailed
	case want.Stopping():
		return corev1.PodSucceeded
	case policy == corev1.RestartPolicyNever && failed > 0:
		return corev1.PodFailed
	case policy != corev1.RestartPolicyNever && policy != corev1.RestartPolicyOnFailure:
		return corev1.PodRunning
	case failed == 0:
		return corev1.PodSucceeded
	}
	return corev1.PodRunning
}

func containerStatus(want Desired, c *corev1.Container, r run, seen Seen, now time.Time) corev1.ContainerStatus {
	started := r.phase == runRunning
	cs := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, ImageID: r.record.ImageID, Started: &started,
		Ready: started && (c.ReadinessProbe == nil || r.record.Ready),
	}
	if r.known {
		cs.RestartCount = int32(r.attempt)
		if r.record.Image != "" {
			cs.Image = r.record.Image
		}
		cs.ContainerID = containerID(want, c.Name, r.attempt)
	}
	if r.record.Last != nil {
		cs.LastTerminationState.Terminated = terminated(want, c.Name, *r.record.Last)
	}
	switch r.phase {
	case runRunning:
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: second(r.started)}
	case runEnded:
		if want.Stopping() || !restarts(want.Pod.Spec.RestartPolicy, *r.end) {
			cs.State.Terminated = terminated(want, c.Name, *r.end)
			return cs
		}
		w := waiting(want, c, r, seen, now)
		if w == nil {
			// The next run is due this moment; what is seen is the end of this one.
			cs.State.Terminated = terminated(want, c.Name, *r.end)
			return cs
		}
		cs.State.Waiting = w
		cs.LastTerminationState.Terminated = terminated(want, c.Name, *r.end)
	default:
		cs.State.Waiting = waiting(want, c, r, seen, now)
		if cs.State.Waiting == nil {
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: ReasonContainerCreating}
		}
	}
	return cs
}

// waiting says why a container does not run although it should; nil where
// nothing stands in its way.
func waiting(want Desired, c *corev1.Container, r run, seen Seen, now time.Time) *corev1.ContainerStateWaiting {
	if r.phase == runStarting {
		return nil
	}
	attempt, due := r.next()
	if due.After(now) {
		if r.end.Reason == reasonStartError && streakAfter(r.record.Streak, *r.end) == 1 {
			return &corev1.ContainerStateWaiting{Reason: ReasonRunContainerError, Message: r.end.Message}
		}
		return &corev1.ContainerStateWaiting{
			Reason: ReasonCrashLoopBackOff,
			Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
				due.Sub(r.end.Finished), c.Name, want.Name, want.Namespace, want.UID),
		}
	}
	img := seen.Images[c.Name]
	usable := imageFor(c, img, attempt)
	if usable == nil {
		return imageWaiting(c, img, now)
	}
	if f := seen.Failures[FailStart+c.Name]; f.Count > 0 {
		reason := f.Reason
		if reason == "" {
			reason = ReasonCreateContainerError
		}
		return &corev1.ContainerStateWaiting{Reason: reason, Message: f.Message}
	}
	if _, err := Build(want.Pod, c, *usable, attempt, seen.Record.IP, seen.Host); err != nil {
		return &corev1.ContainerStateWaiting{Reason: ReasonConfigError, Message: err.Error()}
	}
	for _, key := range []string{FailSandbox, FailNetwork} {
		if f := seen.Failures[key]; f.Count > 0 {
			return &corev1.ContainerStateWaiting{Reason: ReasonContainerCreating, Message: f.Message}
		}
	}
	return nil
}

func imageWaiting(c *corev1.Container, seen ImageSeen, now time.Time) *corev1.ContainerStateWaiting {
	switch {
	case c.ImagePullPolicy == corev1.PullNever:
		return &corev1.ContainerStateWaiting{
			Reason:  ReasonErrImageNeverPull,
			Message: fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image),
		}
	case seen.Err == nil:
		return nil
	case errors.Is(seen.Err, image.ErrBadReference):
		return &corev1.ContainerStateWaiting{
			Reason:  ReasonInvalidImageName,
			Message: fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, seen.Err),
		}
	case now.Before(seen.FailedAt.Add(pullErrorShown)):
		return &corev1.ContainerStateWaiting{Reason: ReasonErrImagePull, Message: seen.Err.Error()}
	}
	return &corev1.ContainerStateWaiting{
		Reason:  ReasonImagePullBackOff,
		Message: fmt.Sprintf("Back-off pulling image %q: %s: %v", c.Image, ReasonErrImagePull, seen.Err),
	}
}

func terminated(want Desired, container string, end RunEnd) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode: int32(end.ExitCode), Signal: int32(end.Signal), Reason: end.Reason, Message: end.Message,
		StartedAt: second(end.Started), FinishedAt: second(end.Finished),
		ContainerID: containerID(want, container, end.Attempt),
	}
}

func containerID(want Desired, container string, attempt int) string {
	return fmt.Sprintf("gantry://%s/%s/%d", want.UID, container, attempt)
}

// second cuts a time to what the API keeps; zero stays zero.
func second(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.UTC().Truncate(time.Second))
}

// conditions adds the conditions that are the agent's to tell. PodScheduled is
// the scheduler's.
func conditions(status *corev1.PodStatus, rec *Record, want Desired, seen Seen, now time.Time) {
	var unready []string
	for _, c := range status.ContainerStatuses {
		if !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	over := status.Phase == corev1.PodSucceeded || status.Phase == corev1.PodFailed
	set := func(kind corev1.PodConditionType, ok bool, reason, message string) {
		value := corev1.ConditionFalse
		if ok {
			value, reason, message = corev1.ConditionTrue, "", ""
			if over && kind == corev1.PodInitialized {
				reason = "PodCompleted"
			}
		}
		old, known := rec.Conditions[kind]
		if !known || old.Status != value {
			old = ConditionRecord{Status: value, Since: now}
			if rec.Conditions == nil {
				rec.Conditions = map[corev1.PodConditionType]ConditionRecord{}
			}
			rec.Conditions[kind] = old
		}
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: kind, Status: value, Reason: reason, Message: message, LastTransitionTime: second(old.Since),
			ObservedGeneration: want.Pod.Generation,
		})
	}
	network := alive(seen.Sandbox) && (want.hostNetwork() ||
		seen.Record.IP != "" && seen.Record.NetPID == seen.Sandbox.PID)
	set(corev1.PodReadyToStartContainers, network, "", "")
	set(corev1.PodInitialized, true, "", "")
	reason, message := "ContainersNotReady", fmt.Sprintf("containers with unready status: %v", unready)
	if over {
		reason, message = "PodCompleted", ""
		if status.Phase == corev1.PodFailed {
			reason = "PodFailed"
		}
	}
	set(corev1.PodReady, len(unready) == 0 && !over, reason, message)
	set(corev1.ContainersReady, len(unready) == 0 && !over, reason, message)
}
