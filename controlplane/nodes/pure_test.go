package nodes

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"gantry.dev/schemas"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestVerdict(t *testing.T) {
	bound := func(change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "a"}}
		for _, c := range change {
			c(p)
		}
		return p
	}
	deleting := func(p *corev1.Pod) { now := metav1.NewTime(noon); p.DeletionTimestamp = &now }
	held := func(p *corev1.Pod) { p.Finalizers = []string{"example.com/hold"} }
	unbound := func(p *corev1.Pod) { p.Spec.NodeName = "" }
	for _, test := range []struct {
		desc                  string
		pod                   *corev1.Pod
		exists, deleted, gone bool
		orphanFor             time.Duration
		want                  deed
	}{
		{desc: "a pod on its node has its reports folded in", pod: bound(), exists: true, want: fold},
		{desc: "gone without having been deleted is a report like any other", pod: bound(), exists: true, gone: true, want: fold},
		{desc: "a pod that is being deleted stays while its node says nothing", pod: bound(deleting), exists: true, want: fold},
		{desc: "and goes when nothing of it is left there", pod: bound(deleting), exists: true, gone: true, want: remove},
		{desc: "a finalizer holds it", pod: bound(deleting, held), exists: true, gone: true, want: release},
		{desc: "a pod without a node needs nothing", pod: bound(unbound), want: nothing},
		{desc: "and goes at once when it is deleted", pod: bound(unbound, deleting), want: remove},
		{desc: "the pods of a deleted node go", pod: bound(), deleted: true, want: remove},
		{desc: "those of a node that was never there wait for it", pod: bound(), want: wait},
		{desc: "but not for ever", pod: bound(), orphanFor: orphanGrace, want: remove},
		{desc: "nobody can report a deleted pod of a node that is not there", pod: bound(deleting), want: remove},
	} {
		t.Run(test.desc, func(t *testing.T) {
			if got := verdict(test.pod, test.exists, test.deleted, test.gone, test.orphanFor); got != test.want {
				t.Errorf("deed is %d, want %d", got, test.want)
			}
		})
	}
}

func TestLifeOfAName(t *testing.T) {
	type step struct {
		at       time.Duration
		does     string // beat:<instance>, close, stop:<instance>
		refused  bool
		alive    bool
		instance string
	}
	for _, test := range []struct {
		desc  string
		steps []step
	}{
		{"an agent that beats lives", []step{
			{0, "beat:x", false, true, "x"}, {10, "beat:x", false, true, "x"}, {49, "", false, true, "x"}, {50, "", false, false, "x"},
		}},
		{"a closed connection is a loss only if it does not return", []step{
			{0, "beat:x", false, true, "x"}, {1, "close", false, true, "x"}, {10, "", false, true, "x"}, {11, "", false, false, "x"},
			{12, "beat:x", false, true, "x"}, {30, "", false, true, "x"},
		}},
		{"a second instance is refused while the first lives", []step{
			{0, "beat:x", false, true, "x"}, {5, "beat:y", true, true, "x"}, {10, "beat:x", false, true, "x"}, {20, "beat:y", true, true, "x"},
		}},
		{"it takes over from one that is silent", []step{
			{0, "beat:x", false, true, "x"}, {24, "beat:y", true, true, "x"}, {25, "beat:y", false, true, "y"}, {26, "beat:x", true, true, "y"},
		}},
		{"and at once from one whose connection closed", []step{
			{0, "beat:x", false, true, "x"}, {1, "close", false, true, "x"}, {2, "beat:y", false, true, "y"},
		}},
		{"or that said that it stops", []step{
			{0, "beat:x", false, true, "x"}, {1, "stop:x", false, true, ""}, {2, "beat:y", false, true, "y"},
		}},
	} {
		t.Run(test.desc, func(t *testing.T) {
			var l life
			for _, s := range test.steps {
				now := noon.Add(s.at * time.Second)
				refused := false
				switch {
				case len(s.does) > 5 && s.does[:5] == "beat:":
					refused = l.admit(s.does[5:], "host", now) != nil
				case len(s.does) > 5 && s.does[:5] == "stop:":
					l.release(s.does[5:])
				case s.does == "close":
					l.gone(now)
				}
				got := step{s.at, s.does, refused, l.alive(now), l.instance}
				if diff := cmp.Diff(s, got, cmp.AllowUnexported(step{})); diff != "" {
					t.Fatalf("at %d s: %s", s.at, diff)
				}
			}
		})
	}
}

// TestRangesAreNeverGivenTwice lets nodes come and go at random.
func TestRangesAreNeverGivenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, err := newRanges("10.0.0.0/21") // eight pieces
		if err != nil {
			t.Fatal(err)
		}
		cluster := netip.MustParsePrefix("10.0.0.0/21")
		held := map[string]string{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			node := fmt.Sprintf("n%d", rapid.IntRange(0, 9).Draw(t, "node"))
			if rapid.Bool().Draw(t, "goes") {
				r.release(node)
				delete(held, node)
				continue
			}
			cidr, ok := r.give(node)
			if had, known := held[node]; known && had != cidr {
				t.Fatalf("%s had %s and is given %s", node, had, cidr)
			}
			if !ok {
				if len(held) != 8 {
					t.Fatalf("none left with %d held", len(held))
				}
				continue
			}
			for other, theirs := range held {
				if theirs == cidr && other != node {
					t.Fatalf("%s and %s both have %s", node, other, cidr)
				}
			}
			if p := netip.MustParsePrefix(cidr); p.Bits() != 24 || !cluster.Overlaps(p) {
				t.Fatalf("%s is no piece of %s", p, cluster)
			}
			held[node] = cidr
			// A control plane that starts anew reads what is stored.
			if rapid.Bool().Draw(t, "restart") {
				if r, err = newRanges("10.0.0.0/21"); err != nil {
					t.Fatal(err)
				}
				for n, c := range held {
					r.note(n, c)
				}
			}
		}
	})
}

func condition(t corev1.PodConditionType, s corev1.ConditionStatus, reason string) corev1.PodCondition {
	return corev1.PodCondition{Type: t, Status: s, Reason: reason}
}

func TestFoldKeepsWhatIsNotTheNodes(t *testing.T) {
	pod := &corev1.Pod{
		Spec: corev1.PodSpec{NodeName: "a"},
		Status: corev1.PodStatus{
			Phase: corev1.PodPending, QOSClass: corev1.PodQOSBurstable,
			Conditions: []corev1.PodCondition{condition(corev1.PodScheduled, corev1.ConditionTrue, "")},
		},
	}
	report := &schemas.PodHealth{Node: "a", Status: corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.42.0.2",
		Conditions: []corev1.PodCondition{
			condition(corev1.PodScheduled, corev1.ConditionFalse, "a node does not schedule"),
			condition(corev1.PodReady, corev1.ConditionTrue, ""),
		},
	}}
	got, hold := Fold(pod, report, nil, false, noon)
	want := corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.42.0.2", QOSClass: corev1.PodQOSBurstable,
		Conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionTrue, ""), condition(corev1.PodScheduled, corev1.ConditionTrue, "")},
	}
	if diff := cmp.Diff(want, got); diff != "" || hold != nil {
		t.Errorf("%s (held %v)", diff, hold)
	}
}

func TestPodOfALostNodeIsNotReadyUntilItReturns(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "a"}, Status: corev1.PodStatus{
		Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionTrue, "")},
	}}
	lost := pod.DeepCopy()
	var held *corev1.PodCondition
	lost.Status, held = Fold(pod, nil, nil, true, noon)
	c := lost.Status.Conditions[0]
	if c.Status != corev1.ConditionFalse || c.Reason != "NodeNotReady" || c.Message != "node a is not ready" || held == nil {
		t.Fatalf("condition is %+v, held %v", c, held)
	}
	again, stillHeld := Fold(lost, nil, held, true, noon.Add(time.Hour))
	if diff := cmp.Diff(lost.Status, again); diff != "" || stillHeld == nil {
		t.Errorf("a second look changes it: %s", diff)
	}
	back, none := Fold(lost, nil, held, false, noon.Add(time.Hour))
	if diff := cmp.Diff(pod.Status, back); diff != "" || none != nil {
		t.Errorf("after its return: %s", diff)
	}
}

func TestPodThatHasEndedStaysEnded(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}
	got, _ := Fold(pod, &schemas.PodHealth{Status: corev1.PodStatus{Phase: corev1.PodRunning}}, nil, false, noon)
	if got.Phase != corev1.PodSucceeded {
		t.Errorf("phase is %s", got.Phase)
	}
}

func ready(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

func TestComposeFollowsANodesLife(t *testing.T) {
	who := life{instance: "x", host: "h"}
	report := &schemas.NodeHealth{Node: "a", Labels: map[string]string{"disk": "ssd"}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "AgentReady"}, {Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}},
		NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "arm64"},
	}}
	fresh := Compose("a", nil, nil, who, "10.42.0.0/24", false, noon)
	if got := ready(fresh); got != "Unknown NodeStatusNeverUpdated" || fresh.Spec.PodCIDR != "10.42.0.0/24" {
		t.Errorf("a new node is ready: %s, range %s", got, fresh.Spec.PodCIDR)
	}
	live := Compose("a", fresh, report, who, "10.42.9.0/24", false, noon.Add(time.Second))
	if got := ready(live); got != "True AgentReady" || live.Spec.PodCIDR != "10.42.0.0/24" {
		t.Errorf("after its report it is ready: %s, range %s", got, live.Spec.PodCIDR)
	}
	wantLabels := map[string]string{"disk": "ssd", "kubernetes.io/hostname": "a", "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
	if diff := cmp.Diff(wantLabels, live.Labels); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(live, Compose("a", live, report, who, "", false, noon.Add(time.Hour))); diff != "" {
		t.Errorf("the same report an hour later changes it: %s", diff)
	}
	lost := Compose("a", live, report, who, "", true, noon.Add(2*time.Hour))
	if got := ready(lost); got != "Unknown NodeStatusUnknown" {
		t.Errorf("a lost node is ready: %s", got)
	}
	if diff := cmp.Diff(lost, Compose("a", lost, report, who, "", true, noon.Add(3*time.Hour))); diff != "" {
		t.Errorf("a second look at a lost node changes it: %s", diff)
	}
	if got := ready(Compose("a", lost, report, who, "", false, noon.Add(4*time.Hour))); got != "True AgentReady" {
		t.Errorf("a node that is back is ready: %s", got)
	}
	if got := ready(Compose("a", lost, nil, who, "", false, noon.Add(4*time.Hour))); got != "True NodeAgentReady" {
		t.Errorf("one that is back under a new control plane is ready: %s", got)
	}
}

func TestOnlyAStartUnderWayMayWait(t *testing.T) {
	creating := corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reasonCreating}}}
	because := func(reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	runs := corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	again := creating
	again.RestartCount = 1
	now := metav1.NewTime(noon)
	for _, test := range []struct {
		desc   string
		stored corev1.Pod
		phase  corev1.PodPhase
		said   []corev1.ContainerStatus
		want   bool
	}{
		{desc: "all are being created", phase: corev1.PodPending, said: []corev1.ContainerStatus{creating, creating}, want: true},
		{desc: "one runs", phase: corev1.PodPending, said: []corev1.ContainerStatus{creating, runs}},
		{desc: "an image cannot be pulled", phase: corev1.PodPending, said: []corev1.ContainerStatus{because("ErrImagePull", "no such image")}},
		{desc: "something is in the way", phase: corev1.PodPending, said: []corev1.ContainerStatus{because(reasonCreating, "no address is free")}},
		{desc: "it is not the first time", phase: corev1.PodPending, said: []corev1.ContainerStatus{again}},
		{desc: "nothing is said of containers", phase: corev1.PodPending},
		{desc: "the pod has failed", phase: corev1.PodFailed, said: []corev1.ContainerStatus{creating}},
		{
			desc: "it is news that they do not run any more", phase: corev1.PodPending, said: []corev1.ContainerStatus{creating},
			stored: corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{runs}}},
		},
		{
			desc: "the pod is being deleted", phase: corev1.PodPending, said: []corev1.ContainerStatus{creating},
			stored: corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}},
		},
	} {
		if got := onTheWay(&test.stored, &corev1.PodStatus{Phase: test.phase, ContainerStatuses: test.said}); got != test.want {
			t.Errorf("%s: may wait is %v, want %v", test.desc, got, test.want)
		}
	}
}
