package pod

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/probe"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/schemas"
)

var errDied = errors.New("the agent died")

// life is one life of an agent on a world. After a number of deeds it dies,
// before or after the last of them; from then on nothing that it does counts.
type life struct {
	w     *world
	disk  *disk
	mu    sync.Mutex
	left  int // deeds until death; negative: lives on
	after bool
	dead  bool
	deeds int
	kill  context.CancelFunc
}

// disk is what the records leave.
type disk struct {
	mu      sync.Mutex
	records map[types.UID]Record
	forgot  map[types.UID]bool
}

// deed does one side effect, unless the agent dies first.
func (l *life) deed(do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return errDied
	}
	l.deeds++
	if l.left--; l.left == 0 {
		l.dead = true
		l.kill()
		if !l.after {
			return errDied
		}
		if err := do(); err != nil {
			return err
		}
		return errDied
	}
	return do()
}

func (l *life) EnsureSandbox(ctx context.Context, sb runtime.Sandbox) (s runtime.SandboxState, err error) {
	err = l.deed(func() (err error) { s, err = l.w.EnsureSandbox(ctx, sb); return err })
	return s, err
}
func (l *life) Start(ctx context.Context, c runtime.Container) error {
	return l.deed(func() error { return l.w.Start(ctx, c) })
}
func (l *life) Sandbox(uid types.UID) (runtime.SandboxState, bool, error) { return l.w.Sandbox(uid) }
func (l *life) Signal(ctx context.Context, uid types.UID, name string, attempt int, sig syscall.Signal) error {
	return l.deed(func() error { return l.w.Signal(ctx, uid, name, attempt, sig) })
}
func (l *life) Remove(ctx context.Context, uid types.UID, name string, attempt int) error {
	return l.deed(func() error { return l.w.Remove(ctx, uid, name, attempt) })
}
func (l *life) RemoveSandbox(ctx context.Context, uid types.UID) error {
	return l.deed(func() error { return l.w.RemoveSandbox(ctx, uid) })
}
func (l *life) Attach(ctx context.Context, uid types.UID, pid int) (ip netip.Addr, err error) {
	err = l.deed(func() (err error) { ip, err = l.w.Attach(ctx, uid, pid); return err })
	return ip, err
}
func (l *life) Detach(ctx context.Context, uid types.UID) error {
	return l.deed(func() error { return l.w.Detach(ctx, uid) })
}
func (l *life) Get(ref string) (image.Image, bool) { return l.w.Get(ref) }
func (l *life) Pull(ctx context.Context, ref string) (i image.Image, err error) {
	err = l.deed(func() (err error) { i, err = l.w.Pull(ctx, ref); return err })
	return i, err
}
func (l *life) Save(uid types.UID, rec Record) error {
	return l.deed(func() error {
		l.disk.mu.Lock()
		defer l.disk.mu.Unlock()
		l.disk.records[uid] = rec
		return nil
	})
}
func (l *life) Forget(uid types.UID) error {
	return l.deed(func() error {
		l.disk.mu.Lock()
		defer l.disk.mu.Unlock()
		delete(l.disk.records, uid)
		l.disk.forgot[uid] = true
		return nil
	})
}

// agentOn starts an agent on the world as the disk remembers it.
type running struct {
	*life
	set     *Set
	told    sync.Mutex
	reports []Report
	events  []string
	dir     string
}

func agentOn(t *testing.T, w *world, d *disk, dir string, left int, after bool, want Desired) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{life: &life{w: w, disk: d, left: left, after: after, kill: cancel}, dir: dir}
	r.set = New(ctx, Config{
		Host:    Host{Node: "n1", IP: "192.0.2.7", EtcDir: filepath.Join(dir, "etc"), PodDir: filepath.Join(dir, "pods"), LogDir: filepath.Join(dir, "logs")},
		Runtime: r.life, Images: r.life, Network: r.life, Records: r.life,
		Report: func(rep Report) {
			r.told.Lock()
			defer r.told.Unlock()
			r.reports = append(r.reports, rep)
		},
		Event: func(e schemas.PodEvent) {
			r.told.Lock()
			defer r.told.Unlock()
			r.events = append(r.events, e.Reason)
		},
		Log: zerolog.Nop(),
	})
	w.mu.Lock()
	w.wake = r.set.Wake
	w.mu.Unlock()
	d.mu.Lock()
	rec := d.records[want.UID]
	d.mu.Unlock()
	r.set.Apply(want, rec)
	return r
}

func (r *running) last() Report {
	r.told.Lock()
	defer r.told.Unlock()
	if len(r.reports) == 0 {
		return Report{}
	}
	return r.reports[len(r.reports)-1]
}

// until waits for a condition, letting the world turn meanwhile.
func until(t *testing.T, w *world, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		w.now = time.Now()
		w.mu.Unlock()
		w.turn()
		if ok() {
			return
		}
	}
	t.Fatalf("not reached: %s", what)
}

// stop ends an agent as a crash does: its context is gone, its pods are not.
func (r *running) stop() {
	r.mu.Lock()
	r.dead = true
	r.mu.Unlock()
	r.kill()
	r.set.Wait()
}

// story is a pod's whole life, told by as many agents as die on the way: it is
// started, restarted once after a failure, deleted and forgotten.
func story(t *testing.T, left int, after bool) (deeds int, w *world) {
	w = newWorld()
	w.behave["a"] = func(attempt int) behaviour {
		if attempt == 0 {
			return behaviour{code: 1}
		}
		return behaviour{after: -1}
	}
	d := &disk{records: map[types.UID]Record{}, forgot: map[types.UID]bool{}}
	dir := t.TempDir()
	p := testPod(corev1.RestartPolicyAlways, "a", "b")
	want := wanted(p)
	agent := agentOn(t, w, d, dir, left, after, want)
	defer func() { agent.stop() }()
	alive := func(what string, ok func() bool) {
		t.Helper()
		until(t, w, what, func() bool {
			agent.mu.Lock()
			dead := agent.dead
			agent.mu.Unlock()
			if dead {
				deeds += agent.deeds
				agent.set.Wait()
				agent = agentOn(t, w, d, dir, -1, false, want)
			}
			return ok()
		})
	}
	alive("running after a restart", func() bool {
		rep := agent.last()
		return rep.Status.Phase == corev1.PodRunning && len(rep.Status.ContainerStatuses) == 2 &&
			rep.Status.ContainerStatuses[0].RestartCount == 1 && rep.Status.ContainerStatuses[0].Ready && rep.Status.ContainerStatuses[1].Ready
	})
	want.Pod, want.Revision = deleted(w, p, 30), 2
	agent.set.Apply(want, Record{})
	alive("gone", func() bool { return agent.last().Gone })
	want.Removed, want.Revision = true, 3
	agent.set.Apply(want, Record{})
	alive("forgotten", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.forgot[testUID]
	})
	agent.set.Wait2(t)
	deeds += agent.deeds
	if len(w.wrong) > 0 {
		t.Errorf("wrong: %v", w.wrong)
	}
	if diff := cmp.Diff(map[string]int{"a/0": 1, "a/1": 1, "b/0": 1}, count(w.starts)); diff != "" {
		t.Errorf("runs (-want +got):\n%s", diff)
	}
	if len(w.sandboxes)+len(w.addresses) != 0 {
		t.Errorf("left: %d sandboxes, %d addresses", len(w.sandboxes), len(w.addresses))
	}
	for _, sub := range []string{"pods", "logs"} {
		if _, err := os.Stat(filepath.Join(dir, sub, string(testUID))); !os.IsNotExist(err) {
			t.Errorf("left: %s of the pod (%v)", sub, err)
		}
	}
	return deeds, w
}

// Wait2 waits until the set has no pods.
func (s *Set) Wait2(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if len(s.List()) == 0 {
			return
		}
	}
	t.Fatal("the set still has pods")
}

func count(keys []string) map[string]int {
	out := map[string]int{}
	for _, k := range keys {
		out[k]++
	}
	return out
}

func TestAgentDiesAtEveryDeed(t *testing.T) {
	deeds, _ := story(t, -1, false)
	if deeds < 10 {
		t.Fatalf("the story has only %d deeds", deeds)
	}
	for n := 1; n <= deeds; n++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("deed %d after %v", n, after), func(t *testing.T) {
				t.Parallel()
				story(t, n, after)
			})
		}
	}
}

func TestHostPortTakenIsNamed(t *testing.T) {
	w := newWorld()
	w.images["img"] = testImage("img")
	p := testPod(corev1.RestartPolicyAlways, "a")
	p.Spec.HostNetwork = true
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	d := &disk{records: map[types.UID]Record{}, forgot: map[types.UID]bool{}}
	r := &running{life: &life{w: w, disk: d, left: -1}, dir: t.TempDir()}
	ctx, cancel := context.WithCancel(t.Context())
	r.kill = cancel
	var mu sync.Mutex
	taken := true
	r.set = New(ctx, Config{
		Host:    Host{Node: "n1", IP: "192.0.2.7", EtcDir: r.dir, PodDir: r.dir, LogDir: r.dir},
		Runtime: r.life, Images: r.life, Network: r.life, Records: r.life,
		Report: func(rep Report) {
			r.told.Lock()
			defer r.told.Unlock()
			r.reports = append(r.reports, rep)
		},
		Event: func(e schemas.PodEvent) {
			r.told.Lock()
			defer r.told.Unlock()
			r.events = append(r.events, e.Reason+": "+e.Message)
		},
		PortTaken: func(proto corev1.Protocol, port int32) bool {
			mu.Lock()
			defer mu.Unlock()
			return taken && proto == corev1.ProtocolTCP && port == 8080
		},
		Log: zerolog.Nop(),
	})
	w.mu.Lock()
	w.wake = r.set.Wake
	w.mu.Unlock()
	defer r.stop()
	r.set.Apply(wanted(p), Record{})
	const message = `container "a": port 8080/TCP is already taken on the host network of node n1`
	until(t, w, "waiting for the port", func() bool {
		cs := r.last().Status.ContainerStatuses
		return len(cs) == 1 && cs[0].State.Waiting != nil && cs[0].State.Waiting.Message == message &&
			cs[0].State.Waiting.Reason == ReasonCreateContainerError
	})
	r.told.Lock()
	events := fmt.Sprint(r.events)
	r.told.Unlock()
	if want := "FailedHostPort: " + message; events != "["+want+"]" {
		t.Errorf("events %s, want %s", events, want)
	}
	if len(w.starts) != 0 {
		t.Errorf("started all the same: %v", w.starts)
	}
}

func TestReadinessFollowsTheProbe(t *testing.T) {
	w := newWorld()
	w.images["img"] = testImage("img")
	p := testPod(corev1.RestartPolicyAlways, "a")
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{}
	d := &disk{records: map[types.UID]Record{}, forgot: map[types.UID]bool{}}
	agent := agentOn(t, w, d, t.TempDir(), -1, false, wanted(p))
	ready := func() bool {
		cs := agent.last().Status.ContainerStatuses
		return len(cs) == 1 && cs[0].Ready
	}
	until(t, w, "running", func() bool { return agent.last().Status.Phase == corev1.PodRunning })
	if ready() {
		t.Error("ready before the probe said so")
	}
	agent.set.Verdict(probe.Verdict{Key: probe.Key{UID: testUID, Container: "a"}, Ready: true, Changed: true})
	until(t, w, "ready", ready)
	// The next agent goes on with what this one knew.
	agent.stop()
	agent = agentOn(t, w, d, t.TempDir(), -1, false, wanted(p))
	until(t, w, "ready after a restart of the agent", ready)
	if first := agent.reports[0]; !first.Status.ContainerStatuses[0].Ready {
		t.Error("the new agent called the pod unready first")
	}
	agent.set.Verdict(probe.Verdict{Key: probe.Key{UID: testUID, Container: "a"}, Changed: true, Failure: "connection refused"})
	until(t, w, "unready", func() bool { return !ready() })
	agent.stop()
}
