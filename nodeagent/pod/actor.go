package pod

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/probe"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/schemas"
)

// Runtime runs sandboxes and containers; see nodeagent/runtime for the promises.
type Runtime interface {
	EnsureSandbox(ctx context.Context, sb runtime.Sandbox) (runtime.SandboxState, error)
	Start(ctx context.Context, c runtime.Container) error
	Sandbox(uid types.UID) (runtime.SandboxState, bool, error)
	Signal(ctx context.Context, uid types.UID, name string, attempt int, sig syscall.Signal) error
	Remove(ctx context.Context, uid types.UID, name string, attempt int) error
	RemoveSandbox(ctx context.Context, uid types.UID) error
}

// Images keeps images. Pull may be called for one reference from several goroutines.
type Images interface {
	Get(ref string) (image.Image, bool)
	Pull(ctx context.Context, ref string) (image.Image, error)
}

// Network gives sandboxes their addresses. Both methods may be repeated.
type Network interface {
	Attach(ctx context.Context, uid types.UID, shimPID int) (netip.Addr, error)
	Detach(ctx context.Context, uid types.UID) error
}

// Prober watches running containers. It must not block.
type Prober interface {
	// Watch begins to probe, or goes on with what it has for the key.
	Watch(key probe.Key, target probe.Target)
	// Keep drops all that it has for the pod except these.
	Keep(uid types.UID, keys map[probe.Key]bool)
}

// Records keeps what the agent must remember of its pods.
type Records interface {
	// Save returns once the record survives the death of the agent.
	Save(uid types.UID, rec Record) error
	// Forget drops the record and the desired state of the pod.
	Forget(uid types.UID) error
}

// Report is what an actor tells of its pod.
type Report struct {
	Want   Desired
	Status corev1.PodStatus
	Gone   bool
	// Urgent reports change what others act upon; the rest may wait a little
	// for the next to replace them.
	Urgent bool
}

// Config is what all actors share. Prober may be nil; the functions must not block.
type Config struct {
	Host    Host
	Runtime Runtime
	Images  Images
	Network Network
	Prober  Prober
	Records Records
	Report  func(Report)
	Event   func(schemas.PodEvent)
	// PortTaken says whether a port of the host network is in use.
	PortTaken func(protocol corev1.Protocol, port int32) bool
	// Parallel bounds how many pods are worked on at once; default 8.
	Parallel int
	Now      func() time.Time
	Log      zerolog.Logger
}

// actor leads one pod. Everything without a comment belongs to its goroutine.
type actor struct {
	set  *Set
	uid  types.UID
	log  zerolog.Logger
	wake chan struct{} // capacity 1

	mu    sync.Mutex // guards want, ready, pulls and view
	want  Desired
	ready map[probe.Key]bool
	pulls map[string]ImageSeen
	// view is the newest record and runs, for readers.
	view View

	rec       Record
	saved     Record
	failures  map[string]Failure
	images    map[string]heldImage
	before    Record // the record before the newest plan
	reported  *Report
	pulling   context.Context // ends when the pod is to stop; set once
	stopPulls context.CancelFunc
}

type heldImage struct {
	ref string
	img *image.Image
}

func (a *actor) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends or the pod is forgotten.
func (a *actor) run(ctx context.Context) {
	defer a.stopPulls()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		wake, forgotten := a.settle(ctx)
		if forgotten {
			return
		}
		timer.Stop()
		if !wake.IsZero() {
			timer.Reset(max(wake.Sub(a.set.cfg.Now()), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
	}
}

// settle observes, plans and acts until nothing is to be done. It returns when
// to look again, and whether the pod is forgotten.
func (a *actor) settle(ctx context.Context) (wake time.Time, forgotten bool) {
	for ctx.Err() == nil {
		a.mu.Lock()
		want := a.want
		a.mu.Unlock()
		now := a.set.cfg.Now()
		seen, err := a.observe(want)
		if err != nil {
			// What cannot be seen must not be acted upon.
			a.log.Error().Err(err).Msg("cannot observe the pod")
			return now.Add(retryFirst), false
		}
		step := Plan(want, seen, now)
		a.announce(want, a.rec, step.Record, now)
		a.before, a.rec = a.rec, step.Record
		seen.Record = step.Record
		switch step.Action.Do {
		case DoNothing, DoPull, DoGone, DoRemoveSandbox, DoStart:
			a.report(want, seen, now, step.Action.Do == DoGone)
		}
		a.watch(want, seen, now)
		a.publish(want, seen)
		switch step.Action.Do {
		case DoNothing, DoGone:
			if err := a.save(); err != nil {
				a.log.Error().Err(err).Msg("cannot save the pod's record")
				return now.Add(retryFirst), false
			}
			return step.Wake, false
		case DoForget:
			if err := a.forget(want); err != nil {
				a.log.Error().Err(err).Msg("cannot drop the pod's files")
				return now.Add(retryMax), false
			}
			return time.Time{}, true
		case DoPull:
			a.pull(a.pulling, want, step.Action)
			continue
		}
		a.log.Debug().Stringer("action", step.Action).Msg("do")
		if !a.set.acquire(ctx) {
			return time.Time{}, false
		}
		a.act(ctx, want, seen, step.Action)
		a.set.release()
	}
	return time.Time{}, false
}

// observe builds what is seen. Probe verdicts go into the record here.
func (a *actor) observe(want Desired) (Seen, error) {
	seen := Seen{Host: a.set.cfg.Host, Failures: a.failures, Images: map[string]ImageSeen{}}
	state, ok, err := a.set.cfg.Runtime.Sandbox(a.uid)
	if err != nil {
		return Seen{}, fmt.Errorf("observe sandbox: %w", err)
	}
	if ok {
		seen.Sandbox = &state
	}
	if want.Pod == nil {
		seen.Record = a.rec
		return seen, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range want.Pod.Spec.Containers {
		c := &want.Pod.Spec.Containers[i]
		img := a.pulls[c.Name]
		if held := a.images[c.Name]; held.ref == c.Image {
			img.Present = held.img
		}
		// What is running needs no look into the store.
		if r := newest(seen.Sandbox, c.Name); img.Present == nil || r == nil || r.Phase != runtime.PhaseRunning {
			img.Present = nil
			if found, ok := a.set.cfg.Images.Get(c.Image); ok {
				img.Present = &found
			}
			a.images[c.Name] = heldImage{c.Image, img.Present}
		}
		seen.Images[c.Name] = img
		rec, known := a.rec.Containers[c.Name]
		if !known {
			continue
		}
		if ready, ok := a.ready[probe.Key{UID: a.uid, Container: c.Name, Attempt: rec.Attempt}]; ok && ready != rec.Ready {
			next := a.rec.clone()
			rec.Ready = ready
			next.setContainer(c.Name, rec)
			a.rec = next
		}
	}
	seen.Record = a.rec
	return seen, nil
}

// report computes the status and passes it on where it changed.
func (a *actor) report(want Desired, seen Seen, now time.Time, gone bool) {
	if want.Pod == nil {
		return
	}
	status, rec := Status(want, seen, now)
	a.rec = rec
	next := Report{Want: want, Status: status, Gone: gone}
	if old := a.reported; old != nil {
		if old.Gone == gone && old.Want.Revision == want.Revision && equality.Semantic.DeepEqual(old.Status, status) {
			return
		}
	}
	next.Urgent = gone || status.Phase != corev1.PodPending || troubled(status)
	a.reported = &next
	a.set.cfg.Report(next)
}

// troubled says that something other than the normal way up is told.
func troubled(status corev1.PodStatus) bool {
	for _, c := range status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != ReasonContainerCreating {
			return true
		}
	}
	return false
}

// watch tells the prober which runs to probe.
func (a *actor) watch(want Desired, seen Seen, now time.Time) {
	if a.set.cfg.Prober == nil || want.Pod == nil {
		return
	}
	ip := seen.Record.IP
	if want.hostNetwork() {
		ip = seen.Host.IP
	}
	var keys map[probe.Key]bool
	probed := false
	for i := range want.Pod.Spec.Containers {
		c := &want.Pod.Spec.Containers[i]
		if c.ReadinessProbe == nil {
			continue
		}
		probed = true
		r := runOf(c.Name, seen, now)
		if r.phase != runRunning {
			continue
		}
		key := probe.Key{UID: a.uid, Container: c.Name, Attempt: r.attempt}
		if keys == nil {
			keys = map[probe.Key]bool{}
		}
		keys[key] = true
		a.set.cfg.Prober.Watch(key, probe.Target{
			Probe: c.ReadinessProbe, IP: ip, Ports: c.Ports, Started: r.started, Ready: r.record.Ready,
		})
	}
	if probed {
		a.set.cfg.Prober.Keep(a.uid, keys)
	}
}

// publish keeps what readers of the set are told.
func (a *actor) publish(want Desired, seen Seen) {
	view := View{Want: want, Record: seen.Record}
	if seen.Sandbox != nil {
		view.Containers = seen.Sandbox.Containers
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.view = view
}

// save writes the record if it changed.
func (a *actor) save() error {
	if reflect.DeepEqual(a.saved, a.rec) {
		return nil
	}
	if err := a.set.cfg.Records.Save(a.uid, a.rec); err != nil {
		return err
	}
	a.saved = a.rec
	return nil
}

func (a *actor) forget(want Desired) error {
	if a.set.cfg.Prober != nil {
		a.set.cfg.Prober.Keep(a.uid, nil)
	}
	if err := removeFiles(want, a.set.cfg.Host); err != nil {
		return err
	}
	if err := a.set.cfg.Records.Forget(a.uid); err != nil {
		return err
	}
	a.set.drop(a)
	return nil
}
