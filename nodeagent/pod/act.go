package pod

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/image"
	"gantry.dev/schemas"
)

// actTimeout bounds one deed; what takes longer is tried again.
const actTimeout = 2 * time.Minute

// act does one action. Whatever comes of it is seen by the next observation;
// only failures are remembered, for their back-off.
func (a *actor) act(ctx context.Context, want Desired, seen Seen, do Action) {
	ctx, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	cfg := &a.set.cfg
	switch do.Do {
	case DoSandbox:
		if !a.keepRuns(FailSandbox) {
			return
		}
		_, err := cfg.Runtime.EnsureSandbox(ctx, do.Sandbox)
		// A success does not clear the count: a sandbox that dies at once must
		// not be made over and over without a rest.
		if err != nil {
			a.fail(FailSandbox, "", err)
			a.event(want, "", corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		}
	case DoAttach:
		if err := a.save(); err != nil {
			a.fail(FailNetwork, "", err)
			return
		}
		ip, err := cfg.Network.Attach(ctx, a.uid, a.rec.NetPID)
		if a.done(FailNetwork, err) {
			a.rec.IP = ip.String()
		} else {
			a.event(want, "", corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to set up the pod's network: "+err.Error())
		}
	case DoStart:
		a.start(ctx, want, seen, do)
	case DoSignal:
		err := cfg.Runtime.Signal(ctx, a.uid, do.Container, do.Attempt, signalNumber(do.Signal))
		if !a.done(FailSignal, err) {
			rec := a.rec.Containers[do.Container]
			rec.TermSent, rec.KillSent = a.before.Containers[do.Container].TermSent, false
			a.rec = a.rec.clone()
			a.rec.setContainer(do.Container, rec)
			return
		}
		if do.Signal != "SIGKILL" {
			a.event(want, do.Container, corev1.EventTypeNormal, "Killing", "Stopping container "+do.Container)
		}
		if err := a.save(); err != nil {
			a.log.Error().Err(err).Msg("cannot save the pod's record")
		}
	case DoRemoveRun:
		a.done(FailRemove, cfg.Runtime.Remove(ctx, a.uid, do.Container, do.Attempt))
	case DoRemoveSandbox:
		a.removeSandbox(ctx, want, seen)
	case DoDetach:
		if !a.keepRuns(FailNetwork) {
			return
		}
		if a.done(FailNetwork, cfg.Network.Detach(ctx, a.uid)) {
			a.rec.NetPID = 0
			// A pod that has ended for good goes on to show the address that it had;
			// one that gets another sandbox must not, until it has a new one.
			if !Finished(want, seen, cfg.Now()) {
				a.rec.IP = ""
			}
		}
	default:
		a.log.Error().Stringer("action", do).Msg("no such action")
	}
}

// keepRuns saves how runs ended whose sandbox is gone: once there is a new one,
// nothing else tells them from runs that were never begun. A pod that has run
// nothing yet has nothing to lose, and is spared the write.
// A failure is noted under key.
func (a *actor) keepRuns(key string) bool {
	if len(a.rec.Containers) == 0 {
		return true
	}
	if err := a.save(); err != nil {
		a.fail(key, "", err)
		return false
	}
	return true
}

func (a *actor) start(ctx context.Context, want Desired, seen Seen, do Action) {
	key := FailStart + do.Container
	fail := func(err error) {
		// The record of the run stays: the same attempt is tried again.
		a.fail(key, ReasonCreateContainerError, err)
		a.event(want, do.Container, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	}
	if err := a.portsFree(want, do.Container); err != nil {
		// Nothing was asked for yet, so nothing is on record.
		a.rec = a.rec.clone()
		if rec, known := a.before.Containers[do.Container]; known {
			a.rec.Containers[do.Container] = rec
		} else {
			delete(a.rec.Containers, do.Container)
		}
		a.fail(key, ReasonCreateContainerError, err)
		a.event(want, do.Container, corev1.EventTypeWarning, "FailedHostPort", err.Error())
		return
	}
	if err := writeFiles(want.Pod, a.rec.IP, seen.Host); err != nil {
		fail(err)
		return
	}
	if err := a.save(); err != nil {
		fail(err)
		return
	}
	if err := a.set.cfg.Runtime.Start(ctx, do.Start); err != nil {
		fail(err)
		return
	}
	delete(a.failures, key)
	if !a.pulled(do.Container, do.Attempt) {
		a.event(want, do.Container, corev1.EventTypeNormal, "Pulled",
			fmt.Sprintf("Container image %q already present on machine", imageName(want, do.Container)))
	}
	a.event(want, do.Container, corev1.EventTypeNormal, "Created", "Created container: "+do.Container)
}

// portsFree checks what a container on the host network declares: the kernel
// would refuse it too, but only the container's log would say so.
func (a *actor) portsFree(want Desired, container string) error {
	if !want.hostNetwork() || a.set.cfg.PortTaken == nil {
		return nil
	}
	for _, c := range want.Pod.Spec.Containers {
		if c.Name != container {
			continue
		}
		for _, p := range c.Ports {
			protocol := p.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			if a.set.cfg.PortTaken(protocol, p.ContainerPort) {
				return fmt.Errorf("container %q: port %d/%s is already taken on the host network of node %s",
					container, p.ContainerPort, protocol, a.set.cfg.Host.Node)
			}
		}
	}
	return nil
}

func (a *actor) removeSandbox(ctx context.Context, want Desired, seen Seen) {
	// The files that say how the runs ended go with the sandbox.
	if err := a.save(); err != nil {
		a.fail(FailRemove, "", err)
		return
	}
	broken := !want.Stopping() && !Finished(want, seen, a.set.cfg.Now()) &&
		(len(seen.Sandbox.Containers) > 0 || seen.Record.NetPID != 0)
	if !a.done(FailRemove, a.set.cfg.Runtime.RemoveSandbox(ctx, a.uid)) || !broken {
		return
	}
	a.fail(FailSandbox, "", errors.New("the pod's supervisor died"))
	a.event(want, "", corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
}

// signalNumber reads what an image calls its stop signal: a name with or
// without SIG, or a number. What it cannot read is TERM.
func signalNumber(s string) syscall.Signal {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n
	}
	return syscall.SIGTERM
}

// pull fetches in the background, so that a pod can be stopped meanwhile.
func (a *actor) pull(ctx context.Context, want Desired, do Action) {
	a.mu.Lock()
	p := a.pulls[do.Container]
	p.Pulling = true
	a.pulls[do.Container] = p
	a.mu.Unlock()
	a.event(want, do.Container, corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", do.Image))
	a.set.background.Go(func() {
		begin := a.set.cfg.Now()
		img, err := a.set.pull(ctx, do.Image)
		now := a.set.cfg.Now()
		a.mu.Lock()
		p := a.pulls[do.Container]
		p.Pulling = false
		if err == nil {
			p.Pulled, p.PulledFor, p.Err, p.Failures = &img, do.Attempt, nil, 0
		} else {
			p.Err, p.FailedAt = err, now
			p.Failures++
		}
		a.pulls[do.Container] = p
		a.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			a.event(want, do.Container, corev1.EventTypeNormal, "Pulled", fmt.Sprintf(
				"Successfully pulled image %q in %s. Image size: %d bytes.", do.Image, now.Sub(begin).Round(time.Millisecond), img.Size))
		default:
			a.log.Warn().Err(err).Str("image", do.Image).Int("failures", p.Failures).Msg("cannot pull the image")
			reason := ReasonErrImagePull
			if errors.Is(err, image.ErrBadReference) {
				reason = ReasonInvalidImageName
			}
			a.event(want, do.Container, corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", do.Image, err))
			a.event(want, do.Container, corev1.EventTypeWarning, "Failed", "Error: "+reason)
		}
		a.poke()
	})
}

// pulled says that the image was fetched for this very run.
func (a *actor) pulled(container string, attempt int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pulls[container]
	return p.Pulled != nil && p.PulledFor == attempt
}

func imageName(want Desired, container string) string {
	if want.Pod == nil {
		return ""
	}
	for _, c := range want.Pod.Spec.Containers {
		if c.Name == container {
			return c.Image
		}
	}
	return ""
}

// done notes the outcome of a deed and reports success.
func (a *actor) done(key string, err error) bool {
	if err != nil {
		a.fail(key, "", err)
		return false
	}
	delete(a.failures, key)
	return true
}

func (a *actor) fail(key, reason string, err error) {
	f := a.failures[key]
	a.failures[key] = Failure{Count: f.Count + 1, At: a.set.cfg.Now(), Reason: reason, Message: err.Error()}
	a.log.Warn().Err(err).Str("deed", key).Int("failures", f.Count+1).Msg("deed failed")
}

// announce tells as events what the record shows to be new.
func (a *actor) announce(want Desired, before, after Record, now time.Time) {
	if want.Pod == nil {
		return
	}
	running := true
	for i := range want.Pod.Spec.Containers {
		name := want.Pod.Spec.Containers[i].Name
		new, known := after.Containers[name]
		if !known {
			running = false
			continue
		}
		old := before.Containers[name]
		if old.Attempt != new.Attempt {
			old = ContainerRecord{}
		}
		running = running && !new.StartedAt.IsZero() && new.End == nil
		if old.StartedAt.IsZero() && !new.StartedAt.IsZero() {
			a.event(want, name, corev1.EventTypeNormal, "Started", "Started container "+name)
		}
		if old.End != nil || new.End == nil || want.Stopping() {
			continue
		}
		if new.End.Reason == reasonStartError {
			a.event(want, name, corev1.EventTypeWarning, "Failed", "Error: "+new.End.Message)
		}
		streak := streakAfter(new.Streak, *new.End)
		if restarts(want.Pod.Spec.RestartPolicy, *new.End) && new.End.Finished.Add(restartDelay(streak, *new.End)).After(now) {
			a.event(want, name, corev1.EventTypeWarning, "BackOff", fmt.Sprintf(
				"Back-off restarting failed container %s in pod %s_%s(%s)", name, want.Name, want.Namespace, want.UID))
		}
	}
	if running {
		delete(a.failures, FailSandbox)
	}
}

func (a *actor) event(want Desired, container, kind, reason, message string) {
	a.set.cfg.Event(schemas.PodEvent{
		Node: a.set.cfg.Host.Node, Namespace: want.Namespace, Pod: want.Name, UID: want.UID,
		Container: container, Type: kind, Reason: reason, Message: message, Time: a.set.cfg.Now(),
	})
}
