package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/runtime"
)

// world is a machine that works: runtime, images and network in memory, with
// a clock that the test moves. It refuses what must never be asked for.
type world struct {
	mu        sync.Mutex
	now       time.Time
	sandboxes map[types.UID]*runtime.SandboxState
	behave    map[string]func(attempt int) behaviour // by container; default runs on
	ends      map[string]time.Time                   // when a running one ends by itself
	exit      map[string]behaviour
	ignores   map[string]bool // containers that ignore TERM
	images    map[string]image.Image
	pullErr   map[string]error
	addresses map[types.UID]netip.Addr
	pid       int
	wake      func(types.UID)
	wrong     []string // what must never happen
	starts    []string // "name/attempt" in order
	startedAt []time.Time
	signals   []string
}

type behaviour struct {
	code   int
	after  time.Duration // 0: at once; negative: never ends
	failed bool          // cannot be started
}

var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func newWorld() *world {
	return &world{
		now: epoch, sandboxes: map[types.UID]*runtime.SandboxState{}, behave: map[string]func(int) behaviour{},
		ends: map[string]time.Time{}, exit: map[string]behaviour{}, ignores: map[string]bool{},
		images: map[string]image.Image{}, pullErr: map[string]error{}, addresses: map[types.UID]netip.Addr{}, pid: 100,
		wake: func(types.UID) {},
	}
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func runKey(name string, attempt int) string { return fmt.Sprintf("%s/%d", name, attempt) }

func (w *world) EnsureSandbox(_ context.Context, sb runtime.Sandbox) (runtime.SandboxState, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.sandboxes[sb.UID]
	if ok && s.PID == 0 {
		return runtime.SandboxState{}, errors.New("the test wants dead sandboxes removed first")
	}
	if !ok {
		w.pid++
		s = &runtime.SandboxState{Sandbox: sb, PID: w.pid}
		w.sandboxes[sb.UID] = s
	}
	return copyState(s), nil
}

func copyState(s *runtime.SandboxState) runtime.SandboxState {
	out := *s
	out.Containers = slices.Clone(s.Containers)
	return out
}

func (w *world) Sandbox(uid types.UID) (runtime.SandboxState, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.sandboxes[uid]
	if !ok {
		return runtime.SandboxState{}, false, nil
	}
	return copyState(s), true, nil
}

func (w *world) Start(_ context.Context, c runtime.Container) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.sandboxes[c.PodUID]
	if !ok || s.PID == 0 {
		return runtime.ErrNoSandbox
	}
	for _, r := range s.Containers {
		if r.Name != c.Name {
			continue
		}
		if r.Attempt == c.Attempt {
			return nil
		}
		if !final(r.Phase) {
			w.wrong = append(w.wrong, fmt.Sprintf("two runs of %s at once: %d and %d", c.Name, r.Attempt, c.Attempt))
		}
		if r.Attempt > c.Attempt {
			w.wrong = append(w.wrong, fmt.Sprintf("run %d of %s after run %d", c.Attempt, c.Name, r.Attempt))
		}
	}
	key := runKey(c.Name, c.Attempt)
	if slices.Contains(w.starts, key) {
		w.wrong = append(w.wrong, "run "+key+" was started twice")
	}
	w.starts, w.startedAt = append(w.starts, key), append(w.startedAt, w.now)
	s.Containers = append(s.Containers, runtime.ContainerState{Name: c.Name, Attempt: c.Attempt, Phase: runtime.PhaseStarting})
	slices.SortFunc(s.Containers, func(a, b runtime.ContainerState) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Attempt, b.Attempt))
	})
	return nil
}

// turn lets what was started run, and what is due end.
func (w *world) turn() {
	w.mu.Lock()
	var woken []types.UID
	for uid, s := range w.sandboxes {
		if s.PID == 0 {
			continue
		}
		for i := range s.Containers {
			c := &s.Containers[i]
			key := runKey(c.Name, c.Attempt)
			before := c.Phase
			if c.Phase == runtime.PhaseStarting {
				b := behaviour{after: -1}
				if f := w.behave[c.Name]; f != nil {
					b = f(c.Attempt)
				}
				if b.failed {
					c.Phase, c.Reason, c.Message, c.FinishedAt = runtime.PhaseFailed, "CommandNotFound", "exec: not found", w.now
				} else {
					c.Phase, c.StartedAt, c.PID = runtime.PhaseRunning, w.now, 1000
					if b.after >= 0 {
						w.ends[key], w.exit[key] = w.now.Add(b.after), b
					}
				}
			}
			if at, ok := w.ends[key]; ok && c.Phase == runtime.PhaseRunning && !at.After(w.now) {
				c.Phase, c.FinishedAt, c.ExitCode, c.PID = runtime.PhaseExited, at, w.exit[key].code, 0
			}
			if c.Phase != before {
				woken = append(woken, uid)
			}
		}
	}
	w.mu.Unlock()
	for _, uid := range woken {
		w.wake(uid)
	}
}

// next is when something ends by itself; zero where nothing will.
func (w *world) next() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var at time.Time
	for _, s := range w.sandboxes {
		for _, c := range s.Containers {
			if e, ok := w.ends[runKey(c.Name, c.Attempt)]; ok && c.Phase == runtime.PhaseRunning && (at.IsZero() || e.Before(at)) {
				at = e
			}
		}
	}
	return at
}

func (w *world) Signal(_ context.Context, uid types.UID, name string, attempt int, sig syscall.Signal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signals = append(w.signals, fmt.Sprintf("%s/%d %d", name, attempt, sig))
	s, ok := w.sandboxes[uid]
	if !ok {
		return nil
	}
	for i := range s.Containers {
		c := &s.Containers[i]
		if c.Name == name && c.Attempt == attempt && c.Phase == runtime.PhaseRunning && (sig == syscall.SIGKILL || !w.ignores[name]) {
			c.Phase, c.FinishedAt, c.ExitCode, c.Signal, c.PID = runtime.PhaseExited, w.now, 128+int(sig), int(sig), 0
		}
	}
	return nil
}

func (w *world) Remove(_ context.Context, uid types.UID, name string, attempt int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.sandboxes[uid]; ok {
		s.Containers = slices.DeleteFunc(s.Containers, func(c runtime.ContainerState) bool {
			return c.Name == name && c.Attempt == attempt
		})
	}
	return nil
}

func (w *world) RemoveSandbox(_ context.Context, uid types.UID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sandboxes, uid)
	return nil
}

// killShim is what happens when the pod's supervisor dies.
func (w *world) killShim(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.sandboxes[uid]; ok {
		s.PID = 0
		for i := range s.Containers {
			if !final(s.Containers[i].Phase) {
				s.Containers[i].Phase = runtime.PhaseUnknown
			}
		}
	}
}

// reboot is what a reboot leaves: nothing of the runtime.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.sandboxes)
}

func (w *world) Get(ref string) (image.Image, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.images[ref]
	return i, ok
}

func (w *world) Pull(_ context.Context, ref string) (image.Image, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.pullErr[ref]; err != nil {
		return image.Image{}, err
	}
	w.images[ref] = testImage(ref)
	return w.images[ref], nil
}

func testImage(ref string) image.Image {
	return image.Image{Ref: ref, ID: "sha256:1", RepoDigest: ref + "@sha256:2", Layers: []string{"/layer"},
		Config: image.Config{Entrypoint: []string{"/app"}}}
}

func (w *world) Attach(_ context.Context, uid types.UID, pid int) (netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.sandboxes[uid]; !ok || s.PID != pid {
		return netip.Addr{}, errors.New("no such process")
	}
	if _, ok := w.addresses[uid]; !ok {
		w.addresses[uid] = netip.AddrFrom4([4]byte{10, 1, 0, byte(2 + len(w.addresses))})
	}
	return w.addresses[uid], nil
}

func (w *world) Detach(_ context.Context, uid types.UID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.addresses, uid)
	return nil
}

const testUID = types.UID("uid-1")

// testPod has containers a, b, ... with the image img.
func testPod(policy corev1.RestartPolicy, containers ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: testUID},
		Spec:       corev1.PodSpec{RestartPolicy: policy},
	}
	for _, name := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name, Image: "img", ImagePullPolicy: corev1.PullIfNotPresent})
	}
	return p
}

func wanted(p *corev1.Pod) Desired {
	return Desired{UID: p.UID, Namespace: p.Namespace, Name: p.Name, Revision: 1, Pod: p}
}

// driver leads one pod by Plan alone, as the actor does, one deed at a time.
type driver struct {
	w        *world
	want     Desired
	rec      Record
	images   map[string]ImageSeen
	failures map[string]Failure
	gone     bool
	forgot   bool
	deeds    []string
}

func newDriver(w *world, want Desired) *driver {
	return &driver{w: w, want: want, images: map[string]ImageSeen{}, failures: map[string]Failure{}}
}

func (d *driver) seen() Seen {
	s := Seen{Host: Host{Node: "n1", IP: "192.0.2.7", EtcDir: "/etcs", PodDir: "/pods", LogDir: "/logs"}, Record: d.rec, Failures: d.failures, Images: map[string]ImageSeen{}}
	if sb, ok, _ := d.w.Sandbox(d.want.UID); ok {
		s.Sandbox = &sb
	}
	if d.want.Pod != nil {
		for _, c := range d.want.Pod.Spec.Containers {
			img := d.images[c.Name]
			if i, ok := d.w.Get(c.Image); ok {
				img.Present = &i
			}
			s.Images[c.Name] = img
		}
	}
	return s
}

func (d *driver) status() corev1.PodStatus {
	s, rec := Status(d.want, d.seen(), d.w.clock())
	d.rec = rec
	return s
}

// step does one deed and reports whether there was one.
func (d *driver) step() (Step, bool, error) {
	ctx := context.Background()
	step := Plan(d.want, d.seen(), d.w.clock())
	d.rec = step.Record
	a := step.Action
	if a.Do != DoNothing {
		d.deeds = append(d.deeds, a.String())
	}
	var err error
	switch a.Do {
	case DoNothing:
		return step, false, nil
	case DoGone:
		d.gone = true
		return step, false, nil
	case DoForget:
		d.forgot = true
		return step, false, nil
	case DoPull:
		img := d.images[a.Container]
		if i, err := d.w.Pull(ctx, a.Image); err == nil {
			img.Pulled, img.PulledFor, img.Err, img.Failures = &i, a.Attempt, nil, 0
		} else {
			img.Err, img.FailedAt = err, d.w.clock()
			img.Failures++
		}
		d.images[a.Container] = img
	case DoSandbox:
		_, err = d.w.EnsureSandbox(ctx, a.Sandbox)
	case DoAttach:
		var ip netip.Addr
		if ip, err = d.w.Attach(ctx, d.want.UID, d.rec.NetPID); err == nil {
			d.rec.IP = ip.String()
		}
	case DoDetach:
		err = d.w.Detach(ctx, d.want.UID)
		d.rec.IP, d.rec.NetPID = "", 0
	case DoStart:
		err = d.w.Start(ctx, a.Start)
	case DoSignal:
		err = d.w.Signal(ctx, d.want.UID, a.Container, a.Attempt, signalNumber(a.Signal))
	case DoRemoveRun:
		err = d.w.Remove(ctx, d.want.UID, a.Container, a.Attempt)
	case DoRemoveSandbox:
		err = d.w.RemoveSandbox(ctx, d.want.UID)
	}
	return step, true, err
}

// settle goes on until nothing is to be done, and returns when to look again.
func (d *driver) settle() (time.Time, error) {
	const enough = 60
	for range enough {
		step, more, err := d.step()
		if err != nil {
			return time.Time{}, fmt.Errorf("%s: %w", step.Action, err)
		}
		d.w.turn()
		if !more {
			if again := Plan(d.want, d.seen(), d.w.clock()); again.Action.Do == step.Action.Do {
				return again.Wake, nil
			}
		}
	}
	return time.Time{}, fmt.Errorf("no rest after %d deeds: %v", enough, d.deeds[max(0, len(d.deeds)-8):])
}

// pass lets time go by until at, stopping wherever something is due.
func (d *driver) pass(t *testing.T, at time.Time) {
	t.Helper()
	for {
		wake, err := d.settle()
		if err != nil {
			t.Fatal(err)
		}
		next := d.w.next()
		if next.IsZero() || !wake.IsZero() && wake.Before(next) {
			next = wake
		}
		if next.IsZero() || next.After(at) {
			d.w.mu.Lock()
			d.w.now = at
			d.w.mu.Unlock()
			d.w.turn()
			if _, err := d.settle(); err != nil {
				t.Fatal(err)
			}
			return
		}
		d.w.mu.Lock()
		d.w.now = maxTime(d.w.now, next)
		d.w.mu.Unlock()
		d.w.turn()
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
