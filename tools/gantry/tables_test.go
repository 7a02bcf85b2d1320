package main

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodStatus(t *testing.T) {
	waiting := func(reason string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}
	}
	ended := func(reason string, code, signal int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code, Signal: signal}}}
	}
	running := corev1.ContainerStatus{Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	ready := []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	deleted := &metav1.Time{Time: time.Unix(1, 0)}
	for _, tc := range []struct {
		desc     string
		phase    corev1.PodPhase
		reason   string
		deleted  *metav1.Time
		init     []corev1.ContainerStatus
		statuses []corev1.ContainerStatus
		ready    []corev1.PodCondition
		want     string
	}{
		{desc: "new", phase: corev1.PodPending, want: "Pending"},
		{desc: "no status at all", want: "Unknown"},
		{desc: "being made", phase: corev1.PodPending, statuses: []corev1.ContainerStatus{waiting("ContainerCreating")}, want: "ContainerCreating"},
		{desc: "running", phase: corev1.PodRunning, statuses: []corev1.ContainerStatus{running}, want: "Running"},
		{desc: "crashing", phase: corev1.PodRunning, statuses: []corev1.ContainerStatus{running, waiting("CrashLoopBackOff")}, want: "CrashLoopBackOff"},
		{desc: "no image", phase: corev1.PodPending, statuses: []corev1.ContainerStatus{waiting("ImagePullBackOff")}, want: "ImagePullBackOff"},
		{desc: "done", phase: corev1.PodSucceeded, statuses: []corev1.ContainerStatus{ended("Completed", 0, 0)}, want: "Completed"},
		{desc: "killed for memory", phase: corev1.PodFailed, statuses: []corev1.ContainerStatus{ended("OOMKilled", 137, 9)}, want: "OOMKilled"},
		{desc: "signal without a reason", phase: corev1.PodFailed, statuses: []corev1.ContainerStatus{ended("", 0, 15)}, want: "Signal:15"},
		{desc: "code without a reason", phase: corev1.PodFailed, statuses: []corev1.ContainerStatus{ended("", 3, 0)}, want: "ExitCode:3"},
		{desc: "one done, one goes on", phase: corev1.PodRunning, statuses: []corev1.ContainerStatus{ended("Completed", 0, 0), running}, ready: ready, want: "Running"},
		{desc: "and is not ready", phase: corev1.PodRunning, statuses: []corev1.ContainerStatus{ended("Completed", 0, 0), running}, want: "NotReady"},
		{desc: "evicted", phase: corev1.PodFailed, reason: "Evicted", want: "Evicted"},
		{desc: "ending", phase: corev1.PodRunning, deleted: deleted, statuses: []corev1.ContainerStatus{running}, want: "Terminating"},
		{desc: "ended and deleted", phase: corev1.PodSucceeded, deleted: deleted, statuses: []corev1.ContainerStatus{ended("Completed", 0, 0)}, want: "Completed"},
		{desc: "on a lost node", phase: corev1.PodRunning, reason: "NodeLost", deleted: deleted, want: "Unknown"},
		{desc: "preparing", phase: corev1.PodPending, init: []corev1.ContainerStatus{ended("Completed", 0, 0), waiting("")}, want: "Init:1/2"},
		{desc: "preparing in vain", phase: corev1.PodPending, init: []corev1.ContainerStatus{ended("Error", 1, 0)}, want: "Init:Error"},
	} {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: tc.deleted},
			Spec:       corev1.PodSpec{InitContainers: make([]corev1.Container, len(tc.init))},
			Status:     corev1.PodStatus{Phase: tc.phase, Reason: tc.reason, InitContainerStatuses: tc.init, ContainerStatuses: tc.statuses, Conditions: tc.ready},
		}
		if got := podStatus(p); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.desc, got, tc.want)
		}
	}
}

func TestPodCells(t *testing.T) {
	now := time.Unix(10_000, 0)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: make([]corev1.Container, 2)},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.42.0.9", ContainerStatuses: []corev1.ContainerStatus{
			{Ready: true, RestartCount: 2, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.Unix(9_700, 0)}}},
			{RestartCount: 1, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}},
		}},
	}
	want := []any{"p", "1/2", "CrashLoopBackOff", "3 (5m ago)", "2h", "10.42.0.9", "n1", none, none}
	if diff := cmp.Diff(want, podCells(p, "2h", now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEventsOfBothForms(t *testing.T) {
	now := time.Unix(10_000, 0)
	counted := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e"}, Type: "Warning", Reason: "BackOff", Message: "again\n", Count: 7,
		FirstTimestamp: metav1.Unix(9_000, 0), LastTimestamp: metav1.Unix(9_990, 0),
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "p"}, Source: corev1.EventSource{Component: "agent", Host: "n1"},
	}
	want := []any{"10s (x7 over 16m)", "Warning", "BackOff", "pod/p", "again", "", "agent, n1", "16m", int32(7), "e"}
	if diff := cmp.Diff(want, eventCells(counted, now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	single := &corev1.Event{EventTime: metav1.NewMicroTime(time.Unix(9_940, 0)), ReportingController: "scheduler"}
	if got := eventCells(single, now); got[0] != "60s" || got[6] != "scheduler" {
		t.Errorf("cells = %v", got)
	}
}

func TestSortBy(t *testing.T) {
	rows := []row{
		{raw: []byte(`{"metadata":{"name":"b"},"n":10}`)},
		{raw: []byte(`{"metadata":{"name":"a"},"n":9}`)},
		{raw: []byte(`{"metadata":{"name":"c"}}`)},
	}
	names := func() (out string) {
		for _, r := range rows {
			o, err := loose(r.raw)
			if err != nil {
				t.Fatal(err)
			}
			out += o.GetName()
		}
		return out
	}
	for _, tc := range []struct{ path, want string }{{"", "bac"}, {".n", "cab"}, {"{.metadata.name}", "abc"}} {
		if err := sortRows(rows, tc.path); err != nil || names() != tc.want {
			t.Errorf("%q: %s, %v", tc.path, names(), err)
		}
	}
	if err := sortRows(rows, "{.a["); err == nil {
		t.Error("a broken path was taken")
	}
}

func TestParseFor(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}}}
	for arg, want := range map[string]bool{
		"condition=Ready": false, "condition=ready=false": true, "condition=Ready=True": false, "condition=Other": false,
		"jsonpath={.status.phase}=Running": true, "jsonpath='{.status.phase}'=Running": true, "jsonpath=.status.phase=Running": true,
		"jsonpath={.status.phase}=Pending": false, "jsonpath={.status.podIP}": false, "jsonpath={.status.phase}": true,
		"create": true,
	} {
		c, _, _, err := parseFor(arg)
		if err != nil {
			t.Errorf("%s: %v", arg, err)
			continue
		}
		if got, err := c(pod); err != nil || got != want {
			t.Errorf("%s = %t, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "ready", "condition", "jsonpath={.a[", "jsonpath={.a}="} {
		if _, _, _, err := parseFor(arg); err == nil {
			t.Errorf("%q was taken", arg)
		}
	}
}

func TestLinesThatAreNotOursAreShownAsTheyAre(t *testing.T) {
	var out bytes.Buffer
	w := &lineWriter{out: &out, mu: &sync.Mutex{}}
	for _, p := range []string{"odd\n2026 stdout F", " ok\n", "tail"} {
		if err := w.piece([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	expect(t, "lines", "odd\nok\ntail\n", out.String())
}
