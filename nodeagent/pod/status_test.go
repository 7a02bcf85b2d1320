package pod

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/runtime"
)

// brief is what a person would read off a status first.
type brief struct {
	Phase   corev1.PodPhase
	Ready   corev1.ConditionStatus
	Waiting string
	Message string
	Ended   string
	Last    string
	Count   int32
}

func briefOf(s corev1.PodStatus) brief {
	b := brief{Phase: s.Phase}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			b.Ready = c.Status
		}
	}
	c := s.ContainerStatuses[0]
	b.Count = c.RestartCount
	if c.State.Waiting != nil {
		b.Waiting, b.Message = c.State.Waiting.Reason, c.State.Waiting.Message
	}
	if c.State.Terminated != nil {
		b.Ended = c.State.Terminated.Reason
	}
	if c.LastTerminationState.Terminated != nil {
		b.Last = c.LastTerminationState.Terminated.Reason
	}
	return b
}

func TestStatus(t *testing.T) {
	now := epoch.Add(time.Hour)
	ran := func(phase runtime.Phase, code int, oom bool) *runtime.SandboxState {
		c := runtime.ContainerState{Name: "a", Phase: phase, StartedAt: epoch, ExitCode: code, OOMKilled: oom}
		if final(phase) {
			c.FinishedAt = now.Add(-time.Second)
		}
		return &runtime.SandboxState{PID: 7, Containers: []runtime.ContainerState{c}}
	}
	img := testImage("img")
	present := map[string]ImageSeen{"a": {Present: &img}}
	rec := func(streak int, ready bool) Record {
		return Record{NetPID: 7, IP: "10.1.0.2", Containers: map[string]ContainerRecord{"a": {Streak: streak, Ready: ready}}}
	}
	probed := testPod(corev1.RestartPolicyAlways, "a")
	probed.Spec.Containers[0].ReadinessProbe = &corev1.Probe{}
	never := testPod(corev1.RestartPolicyNever, "a")
	neverPull := testPod(corev1.RestartPolicyAlways, "a")
	neverPull.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
	always := testPod(corev1.RestartPolicyAlways, "a")
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	for _, tt := range []struct {
		desc string
		pod  *corev1.Pod
		seen Seen
		want brief
	}{
		{"nothing yet", always, Seen{Images: present}, brief{Phase: corev1.PodPending, Ready: no, Waiting: ReasonContainerCreating}},
		{"pulling", always, Seen{Images: map[string]ImageSeen{"a": {Pulling: true}}}, brief{Phase: corev1.PodPending, Ready: no, Waiting: ReasonContainerCreating}},
		{"bad name", always, Seen{Images: map[string]ImageSeen{"a": {Err: image.ErrBadReference, Failures: 1, FailedAt: now}}},
			brief{Phase: corev1.PodPending, Ready: no, Waiting: ReasonInvalidImageName, Message: `Failed to apply default image tag "img": invalid image reference`}},
		{"never pull", neverPull, Seen{},
			brief{Phase: corev1.PodPending, Ready: no, Waiting: ReasonErrImageNeverPull, Message: `Container image "img" is not present with pull policy of Never`}},
		{"sandbox fails", always, Seen{Images: present, Failures: map[string]Failure{FailSandbox: {Count: 1, At: now, Message: "no room"}}},
			brief{Phase: corev1.PodPending, Ready: no, Waiting: ReasonContainerCreating, Message: "no room"}},
		{"starting", always, Seen{Images: present, Record: rec(0, false), Sandbox: ran(runtime.PhaseStarting, 0, false)},
			brief{Phase: corev1.PodPending, Ready: no, Waiting: ReasonContainerCreating}},
		{"running", always, Seen{Record: rec(0, false), Sandbox: ran(runtime.PhaseRunning, 0, false)}, brief{Phase: corev1.PodRunning, Ready: yes}},
		{"running, probe silent", probed, Seen{Record: rec(0, false), Sandbox: ran(runtime.PhaseRunning, 0, false)}, brief{Phase: corev1.PodRunning, Ready: no}},
		{"running, probe content", probed, Seen{Record: rec(0, true), Sandbox: ran(runtime.PhaseRunning, 0, false)}, brief{Phase: corev1.PodRunning, Ready: yes}},
		{"completed", never, Seen{Record: rec(0, false), Sandbox: ran(runtime.PhaseExited, 0, false)}, brief{Phase: corev1.PodSucceeded, Ready: no, Ended: "Completed"}},
		{"failed", never, Seen{Record: rec(0, false), Sandbox: ran(runtime.PhaseExited, 2, false)}, brief{Phase: corev1.PodFailed, Ready: no, Ended: "Error"}},
		{"out of memory", never, Seen{Record: rec(0, false), Sandbox: ran(runtime.PhaseExited, 137, true)}, brief{Phase: corev1.PodFailed, Ready: no, Ended: "OOMKilled"}},
		{"crash loop", testPod(corev1.RestartPolicyOnFailure, "a"), Seen{Images: present, Record: Record{Containers: map[string]ContainerRecord{"a": {
			Attempt: 3, Streak: 3, StartedAt: now.Add(-3 * time.Second), End: &RunEnd{Attempt: 3, Started: now.Add(-3 * time.Second), Finished: now.Add(-2 * time.Second), ExitCode: 1, Reason: reasonError}}}}},
			brief{Phase: corev1.PodRunning, Ready: no, Waiting: ReasonCrashLoopBackOff, Last: "Error", Count: 3,
				Message: "back-off 40s restarting failed container=a pod=web_default(uid-1)"}},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			status, rec := Status(wanted(tt.pod), tt.seen, now)
			if diff := cmp.Diff(tt.want, briefOf(status)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			tt.seen.Record = rec
			later, _ := Status(wanted(tt.pod), tt.seen, now.Add(time.Millisecond))
			if diff := cmp.Diff(status, later); diff != "" && tt.desc != "bad name" {
				t.Errorf("the status changes while nothing does (-before +after):\n%s", diff)
			}
		})
	}
}

func TestConditionsKeepTheirTimes(t *testing.T) {
	w := newWorld()
	w.images["img"] = testImage("img")
	d := newDriver(w, wanted(testPod(corev1.RestartPolicyAlways, "a")))
	settled(t, d)
	first := d.status()
	w.advance(time.Hour)
	settled(t, d)
	if diff := cmp.Diff(first, d.status()); diff != "" {
		t.Errorf("after an hour without news (-before +after):\n%s", diff)
	}
	if got := first.Conditions[2]; got.Type != corev1.PodReady || !got.LastTransitionTime.Equal(ptr(second(epoch))) {
		t.Errorf("ready: %+v", got)
	}
	if got, want := first.PodIP, "10.1.0.2"; got != want {
		t.Errorf("address %s, want %s", got, want)
	}
}
