package pod

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"gantry.dev/nodeagent/image"
)

func settled(t *testing.T, d *driver) time.Time {
	t.Helper()
	wake, err := d.settle()
	if err != nil {
		t.Fatal(err)
	}
	return wake
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	w.now = w.now.Add(d)
	w.mu.Unlock()
	w.turn()
}

// deleted marks a pod as the API does.
func deleted(w *world, p *corev1.Pod, grace int64) *corev1.Pod {
	p = p.DeepCopy()
	at := metav1.NewTime(w.clock().Add(time.Duration(grace) * time.Second))
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
	return p
}

func TestDeedsInOrder(t *testing.T) {
	host := testPod(corev1.RestartPolicyAlways, "a")
	host.Spec.HostNetwork = true
	always := testPod(corev1.RestartPolicyAlways, "a")
	always.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
	never := testPod(corev1.RestartPolicyAlways, "a")
	never.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
	for _, tt := range []struct {
		desc    string
		pod     *corev1.Pod
		present bool
		want    []string
	}{
		{"image is present", testPod(corev1.RestartPolicyAlways, "a"), true, []string{"Sandbox", "Attach", "Start a/0"}},
		{"image is missing", testPod(corev1.RestartPolicyAlways, "a"), false, []string{"Pull img for a/0", "Sandbox", "Attach", "Start a/0"}},
		{"always pull", always, true, []string{"Pull img for a/0", "Sandbox", "Attach", "Start a/0"}},
		{"never pull, missing", never, false, []string{"Sandbox", "Attach"}},
		{"two containers do not wait for each other", testPod(corev1.RestartPolicyAlways, "a", "b"), true,
			[]string{"Sandbox", "Attach", "Start a/0", "Start b/0"}},
		{"host network", host, true, []string{"Sandbox", "Start a/0"}},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			w := newWorld()
			if tt.present {
				w.images["img"] = testImage("img")
			}
			d := newDriver(w, wanted(tt.pod))
			settled(t, d)
			if diff := cmp.Diff(tt.want, d.deeds); diff != "" {
				t.Errorf("deeds (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRestartPolicies(t *testing.T) {
	for _, tt := range []struct {
		policy corev1.RestartPolicy
		code   int
		runs   int // within a minute
		phase  corev1.PodPhase
	}{
		{corev1.RestartPolicyAlways, 0, 4, corev1.PodRunning},
		{corev1.RestartPolicyAlways, 1, 4, corev1.PodRunning},
		{corev1.RestartPolicyOnFailure, 0, 1, corev1.PodSucceeded},
		{corev1.RestartPolicyOnFailure, 1, 4, corev1.PodRunning},
		{corev1.RestartPolicyNever, 0, 1, corev1.PodSucceeded},
		{corev1.RestartPolicyNever, 1, 1, corev1.PodFailed},
	} {
		t.Run(fmt.Sprintf("%s after exit %d", tt.policy, tt.code), func(t *testing.T) {
			w := newWorld()
			w.images["img"] = testImage("img")
			w.behave["a"] = func(int) behaviour { return behaviour{code: tt.code} }
			d := newDriver(w, wanted(testPod(tt.policy, "a")))
			d.pass(t, epoch.Add(time.Minute))
			if len(w.starts) != tt.runs {
				t.Errorf("runs: %v, want %d", w.starts, tt.runs)
			}
			if got := d.status().Phase; got != tt.phase {
				t.Errorf("phase %s, want %s", got, tt.phase)
			}
			if over := tt.phase != corev1.PodRunning; over != (len(w.sandboxes) == 0) {
				t.Errorf("phase %s with %d sandboxes", tt.phase, len(w.sandboxes))
			}
		})
	}
}

func gaps(times []time.Time) []time.Duration {
	var out []time.Duration
	for i := 1; i < len(times); i++ {
		out = append(out, times[i].Sub(times[i-1]))
	}
	return out
}

func TestBackOffDoublesAndIsForgiven(t *testing.T) {
	const s = time.Second
	w := newWorld()
	w.images["img"] = testImage("img")
	w.behave["a"] = func(attempt int) behaviour {
		if attempt == 8 {
			return behaviour{code: 1, after: 10 * time.Minute}
		}
		return behaviour{code: 1}
	}
	d := newDriver(w, wanted(testPod(corev1.RestartPolicyAlways, "a")))
	for range 40 {
		d.pass(t, w.clock().Add(time.Minute))
		// An agent that is restarted at any time changes nothing.
		d.failures, d.images = map[string]Failure{}, map[string]ImageSeen{}
	}
	want := []time.Duration{0, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 300 * s, 300 * s, 600 * s, 10 * s, 20 * s, 40 * s}
	if diff := cmp.Diff(want, gaps(w.startedAt)[:len(want)]); diff != "" {
		t.Errorf("time between starts (-want +got):\n%s", diff)
	}
	if sb := w.sandboxes[testUID]; len(sb.Containers) > 2 {
		t.Errorf("%d runs are kept, want the newest two", len(sb.Containers))
	}
}

func TestFailedStartBacksOff(t *testing.T) {
	w := newWorld()
	w.images["img"] = testImage("img")
	w.behave["a"] = func(int) behaviour { return behaviour{failed: true} }
	d := newDriver(w, wanted(testPod(corev1.RestartPolicyAlways, "a")))
	settled(t, d)
	first := d.status().ContainerStatuses[0]
	if got := first.State.Waiting; got == nil || got.Reason != ReasonRunContainerError || got.Message != "exec: not found" {
		t.Errorf("waiting: %+v", got)
	}
	d.pass(t, epoch.Add(65*time.Second))
	if diff := cmp.Diff([]time.Duration{10 * time.Second, 20 * time.Second}, gaps(w.startedAt)); diff != "" {
		t.Errorf("time between starts (-want +got):\n%s", diff)
	}
	later := d.status().ContainerStatuses[0]
	if got := later.State.Waiting; got == nil || got.Reason != ReasonCrashLoopBackOff {
		t.Errorf("waiting: %+v", got)
	}
	if got := later.LastTerminationState.Terminated; got == nil || got.Reason != "StartError" || got.ExitCode != 128 {
		t.Errorf("last: %+v", got)
	}
}

func TestPullBackOff(t *testing.T) {
	w := newWorld()
	w.pullErr["img"] = fmt.Errorf("pull img: %w", image.ErrNotFound)
	d := newDriver(w, wanted(testPod(corev1.RestartPolicyAlways, "a")))
	var pulls []time.Time
	var reasons []string
	for range 90 {
		before := len(d.deeds)
		settled(t, d)
		for _, deed := range d.deeds[before:] {
			if deed == "Pull img for a/0" {
				pulls = append(pulls, w.clock())
			}
		}
		reasons = append(reasons, d.status().ContainerStatuses[0].State.Waiting.Reason)
		w.advance(time.Second)
	}
	const s = time.Second
	if diff := cmp.Diff([]time.Duration{10 * s, 20 * s, 40 * s}, gaps(pulls)); diff != "" {
		t.Errorf("time between pulls (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{ReasonErrImagePull, ReasonErrImagePull, ReasonErrImagePull, ReasonImagePullBackOff}, reasons[:4]); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
	delete(w.pullErr, "img")
	d.pass(t, w.clock().Add(time.Minute))
	if d.status().Phase != corev1.PodRunning {
		t.Errorf("phase %s after the registry came back", d.status().Phase)
	}
}

func TestTermination(t *testing.T) {
	for _, tt := range []struct {
		desc    string
		ignores bool
		grace   int64
		shorter int64 // told 2 s later; negative: not
		stop    string
		signals []string
		ends    time.Duration
	}{
		{"listens", false, 30, -1, "", []string{"a/0 15"}, 0},
		{"listens to its own signal", false, 30, -1, "SIGQUIT", []string{"a/0 3"}, 0},
		{"ignores TERM", true, 30, -1, "", []string{"a/0 15", "a/0 9"}, 30 * time.Second},
		{"grace is shortened", true, 30, 1, "", []string{"a/0 15", "a/0 9"}, 3 * time.Second},
		{"no grace", true, 0, -1, "", []string{"a/0 9"}, 0},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			w := newWorld()
			img := testImage("img")
			img.Config.StopSignal = tt.stop
			w.images["img"] = img
			w.ignores["a"] = tt.ignores
			p := testPod(corev1.RestartPolicyAlways, "a")
			d := newDriver(w, wanted(p))
			settled(t, d)
			begin := w.clock()
			d.want.Pod = deleted(w, p, tt.grace)
			for range 60 {
				settled(t, d)
				if d.gone {
					break
				}
				w.advance(time.Second)
				if tt.shorter >= 0 && w.clock().Sub(begin) == 2*time.Second {
					d.want.Pod = deleted(w, p, tt.shorter)
				}
			}
			if diff := cmp.Diff(tt.signals, w.signals); diff != "" {
				t.Errorf("signals (-want +got):\n%s", diff)
			}
			if !d.gone || len(w.sandboxes)+len(w.addresses) != 0 {
				t.Fatalf("gone %v with %d sandboxes and %d addresses", d.gone, len(w.sandboxes), len(w.addresses))
			}
			if got := w.clock().Sub(begin); got != tt.ends {
				t.Errorf("ended after %s, want %s", got, tt.ends)
			}
			if c := d.status().ContainerStatuses[0]; c.State.Terminated == nil {
				t.Errorf("last state: %+v", c.State)
			}
			d.want.Removed = true
			settled(t, d)
			if !d.forgot {
				t.Error("the pod is not forgotten")
			}
		})
	}
}

func TestRemovedAtOnceKeepsItsGrace(t *testing.T) {
	w := newWorld()
	w.images["img"], w.ignores["a"] = testImage("img"), true
	p := testPod(corev1.RestartPolicyAlways, "a")
	grace := int64(5)
	p.Spec.TerminationGracePeriodSeconds = &grace
	d := newDriver(w, wanted(p))
	settled(t, d)
	d.want.Removed = true
	if wake := settled(t, d); wake.Sub(w.clock()) != 5*time.Second {
		t.Errorf("looks again in %s, want 5s", wake.Sub(w.clock()))
	}
	d.pass(t, w.clock().Add(6*time.Second))
	if !d.forgot || len(w.sandboxes) != 0 {
		t.Errorf("forgot %v, sandboxes %d", d.forgot, len(w.sandboxes))
	}
}

func TestOrphanIsOnlyRemoved(t *testing.T) {
	w := newWorld()
	w.images["img"] = testImage("img")
	d := newDriver(w, wanted(testPod(corev1.RestartPolicyAlways, "a")))
	settled(t, d)
	orphan := newDriver(w, Desired{UID: testUID, Removed: true})
	settled(t, orphan)
	if diff := cmp.Diff([]string{"RemoveSandbox", "Forget"}, slices.Compact(orphan.deeds)); diff != "" {
		t.Errorf("deeds (-want +got):\n%s", diff)
	}
}

func TestShimDiedAndReboot(t *testing.T) {
	for desc, fault := range map[string]func(*world){
		"shim died": func(w *world) { w.killShim(testUID) },
		"reboot":    func(w *world) { w.reboot() },
	} {
		for _, tt := range []struct {
			policy corev1.RestartPolicy
			runs   []string
			phase  corev1.PodPhase
		}{
			{corev1.RestartPolicyAlways, []string{"a/0", "a/1"}, corev1.PodRunning},
			{corev1.RestartPolicyOnFailure, []string{"a/0", "a/1"}, corev1.PodRunning},
			{corev1.RestartPolicyNever, []string{"a/0"}, corev1.PodFailed},
		} {
			t.Run(desc+" "+string(tt.policy), func(t *testing.T) {
				w := newWorld()
				w.images["img"] = testImage("img")
				d := newDriver(w, wanted(testPod(tt.policy, "a")))
				settled(t, d)
				w.advance(time.Hour)
				settled(t, d)
				fault(w)
				d.pass(t, w.clock().Add(time.Second))
				if diff := cmp.Diff(tt.runs, w.starts); diff != "" {
					t.Errorf("runs (-want +got):\n%s", diff)
				}
				status := d.status()
				if status.Phase != tt.phase {
					t.Errorf("phase %s, want %s", status.Phase, tt.phase)
				}
				c := status.ContainerStatuses[0]
				end := c.LastTerminationState.Terminated
				if tt.policy == corev1.RestartPolicyNever {
					end = c.State.Terminated
				}
				if end == nil || end.Reason != reasonUnknown || end.ExitCode != exitUnknown {
					t.Errorf("end of the lost run: %+v", end)
				}
			})
		}
	}
}

// TestWorlds throws faults at a pod in any order: it must always come to rest,
// never run a container twice, and leave nothing when it is deleted.
func TestWorlds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld()
		w.images["img"] = testImage("img")
		policy := rapid.SampledFrom([]corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}).Draw(rt, "policy")
		names := []string{"a", "b"}[:rapid.IntRange(1, 2).Draw(rt, "containers")]
		for _, name := range names {
			w.behave[name] = func(attempt int) behaviour {
				return rapid.SampledFrom([]behaviour{{after: -1}, {code: 0}, {code: 1}, {code: 1, after: 15 * time.Second}, {after: 11 * time.Minute}, {failed: true}}).Draw(rt, "behaviour")
			}
		}
		p := testPod(policy, names...)
		d := newDriver(w, wanted(p))
		written := d.rec // what a crash leaves
		check := func() {
			if len(w.wrong) > 0 {
				rt.Fatalf("wrong: %v\ndeeds: %v", w.wrong, d.deeds)
			}
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"step", "settle", "settle", "time", "shim", "reboot", "crash", "pull fails", "pull works"}).Draw(rt, "fault") {
			case "step":
				step, _, err := d.step()
				if err != nil {
					rt.Fatalf("%s: %v", step.Action, err)
				}
				switch step.Action.Do {
				case DoStart, DoAttach, DoRemoveSandbox:
					written = step.Record
				case DoSandbox, DoDetach:
					if len(step.Record.Containers) > 0 {
						written = step.Record
					}
				}
				w.turn()
			case "settle":
				if _, err := d.settle(); err != nil {
					rt.Fatal(err)
				}
				written = d.rec
			case "time":
				w.advance(time.Duration(rapid.IntRange(1, 400).Draw(rt, "seconds")) * time.Second)
			case "shim":
				w.killShim(testUID)
			case "reboot":
				w.reboot()
				d.rec, d.images, d.failures = written, map[string]ImageSeen{}, map[string]Failure{}
			case "crash":
				d.rec, d.images, d.failures = written, map[string]ImageSeen{}, map[string]Failure{}
			case "pull fails":
				w.pullErr["img"] = errors.New("registry down")
				delete(w.images, "img")
			case "pull works":
				delete(w.pullErr, "img")
			}
			check()
			d.status()
		}
		d.want.Pod = deleted(w, p, 30)
		for range 45 {
			if _, err := d.settle(); err != nil {
				rt.Fatal(err)
			}
			w.advance(time.Second)
		}
		check()
		if !d.gone || len(w.sandboxes)+len(w.addresses) != 0 {
			rt.Fatalf("after deletion: gone %v, %d sandboxes, %d addresses", d.gone, len(w.sandboxes), len(w.addresses))
		}
	})
}
