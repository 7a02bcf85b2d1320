package pod

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/runtime"
)

// Plan says what a pod needs next. It is pure: the same inputs give the same
// step, and after the step was done, what is then seen leads on. When it
// answers DoNothing the pod is as it should be until something wakes it or
// Wake comes.
func Plan(want Desired, seen Seen, now time.Time) Step {
	p := planner{want: want, seen: seen, now: now}
	p.step.Record = seen.Record.clone()
	if p.step.Record.StartTime.IsZero() {
		p.step.Record.StartTime = now
	}
	p.note()
	switch {
	case want.Stopping():
		p.stop()
	case Finished(want, seen, now):
		p.finish()
	default:
		p.run()
	}
	return p.step
}

// Finished says that all containers have ended and none will run again.
func Finished(want Desired, seen Seen, now time.Time) bool {
	if want.Pod == nil {
		return false
	}
	for i := range want.Pod.Spec.Containers {
		r := runOf(want.Pod.Spec.Containers[i].Name, seen, now)
		if r.phase != runEnded || restarts(want.Pod.Spec.RestartPolicy, *r.end) {
			return false
		}
	}
	return true
}

type planner struct {
	want Desired
	seen Seen
	now  time.Time
	step Step
}

// note puts what was seen of the runs into the record, so that it outlives
// their files.
func (p *planner) note() {
	if p.want.Pod == nil {
		return
	}
	for i := range p.want.Pod.Spec.Containers {
		name := p.want.Pod.Spec.Containers[i].Name
		if r := runOf(name, p.seen, p.now); r.known {
			p.step.Record.setContainer(name, r.noted())
		}
	}
}

func (p *planner) do(a Action) { p.step.Action = a }

// blocked says that a deed failed and is not due again; it arranges the wake.
func (p *planner) blocked(key string) bool {
	at := p.seen.Failures[key].retryAt()
	if at.After(p.now) {
		p.step.at(at)
		return true
	}
	return false
}

// run leads a pod that is to run towards running.
func (p *planner) run() {
	if p.seen.Sandbox != nil && !alive(p.seen.Sandbox) {
		// The shim died or the machine was restarted. What ran in it cannot be
		// trusted to share one network namespace with what follows, so it all
		// goes; the record holds how it ended.
		p.dismantle()
		return
	}
	if p.seen.Sandbox == nil && p.seen.Record.NetPID != 0 {
		p.detach()
		return
	}
	type start struct {
		container *corev1.Container
		attempt   int
	}
	var due []start
	containers := p.want.Pod.Spec.Containers
	for i := range containers {
		c := &containers[i]
		r := runOf(c.Name, p.seen, p.now)
		switch r.phase {
		case runStarting, runRunning:
			continue
		case runEnded:
			if !restarts(p.want.Pod.Spec.RestartPolicy, *r.end) {
				continue
			}
		}
		attempt, at := r.next()
		if at.After(p.now) {
			p.step.at(at)
			continue
		}
		if p.pull(c, attempt) {
			return
		}
		due = append(due, start{c, attempt})
	}
	if len(due) > 0 && p.setUp() {
		return
	}
	if alive(p.seen.Sandbox) && p.networkReady() {
		for _, d := range due {
			if p.start(d.container, d.attempt) {
				return
			}
		}
	}
	p.removeOldRuns()
}

// pull asks for an image in the background where one is needed. It reports
// whether there is an action.
func (p *planner) pull(c *corev1.Container, attempt int) bool {
	seen := p.seen.Images[c.Name]
	if seen.Pulling || imageFor(c, seen, attempt) != nil || c.ImagePullPolicy == corev1.PullNever {
		return false
	}
	if errors.Is(seen.Err, image.ErrBadReference) {
		return false
	}
	if at := seen.retryAt(); at.After(p.now) {
		if shown := seen.FailedAt.Add(pullErrorShown); shown.After(p.now) {
			p.step.at(shown)
		}
		p.step.at(at)
		return false
	}
	p.do(Action{Do: DoPull, Container: c.Name, Attempt: attempt, Image: c.Image})
	return true
}

// imageFor is the image that a run may be started with; nil where there is none yet.
func imageFor(c *corev1.Container, seen ImageSeen, attempt int) *image.Image {
	if seen.Pulled != nil && seen.PulledFor == attempt {
		return seen.Pulled
	}
	if c.ImagePullPolicy == corev1.PullAlways {
		return nil
	}
	return seen.Present
}

// setUp brings up sandbox and network. It reports whether there is an action.
func (p *planner) setUp() bool {
	if !alive(p.seen.Sandbox) {
		if p.blocked(FailSandbox) {
			return false
		}
		p.do(Action{Do: DoSandbox, Sandbox: runtime.Sandbox{
			UID: p.want.UID, Namespace: p.want.Namespace, Name: p.want.Name,
			Hostname: hostname(p.want.Pod, p.seen.Host), HostNetwork: p.want.hostNetwork(),
			LogDir: LogDir(p.seen.Host, p.want.UID),
		}})
		return true
	}
	if p.networkReady() || p.blocked(FailNetwork) {
		return false
	}
	// Noted before the deed: an address that was given must be given back even
	// if the agent dies before it learns which one it was.
	p.step.Record.IP, p.step.Record.NetPID = "", p.seen.Sandbox.PID
	p.do(Action{Do: DoAttach})
	return true
}

func (p *planner) networkReady() bool {
	return p.want.hostNetwork() ||
		p.seen.Sandbox != nil && p.seen.Record.IP != "" && p.seen.Record.NetPID == p.seen.Sandbox.PID
}

// start asks for one run if its image is here and its specification holds.
func (p *planner) start(c *corev1.Container, attempt int) bool {
	img := imageFor(c, p.seen.Images[c.Name], attempt)
	if img == nil || p.blocked(FailStart+c.Name) {
		return false
	}
	spec, err := Build(p.want.Pod, c, *img, attempt, p.seen.Record.IP, p.seen.Host)
	if err != nil {
		return false // Status says so; only a change of the specification can help
	}
	rec := ContainerRecord{
		Attempt: attempt, Image: img.Ref, ImageID: imageID(*img), Content: img.ID, StopSignal: img.Config.StopSignal,
	}
	if r := runOf(c.Name, p.seen, p.now); r.phase == runEnded {
		rec.Streak, rec.Last = streakAfter(r.record.Streak, *r.end), r.end
	} else if r.phase == runAsked {
		rec.Streak, rec.Last = r.record.Streak, r.record.Last
	}
	p.step.Record.setContainer(c.Name, rec)
	p.do(Action{Do: DoStart, Container: c.Name, Attempt: attempt, Start: spec})
	return true
}

// removeOldRuns keeps the newest run and the one before, whose log
// 'logs --previous' shows.
func (p *planner) removeOldRuns() {
	if p.seen.Sandbox == nil || p.blocked(FailRemove) {
		return
	}
	for _, c := range p.seen.Sandbox.Containers {
		if n := newest(p.seen.Sandbox, c.Name); c.Attempt < n.Attempt-1 && final(c.Phase) {
			p.do(Action{Do: DoRemoveRun, Container: c.Name, Attempt: c.Attempt})
			return
		}
	}
}

// finish frees what a pod held whose containers have all ended for good; the
// record keeps how.
func (p *planner) finish() { p.dismantle() }

// dismantle takes down sandbox and network, and reports whether there was any.
func (p *planner) dismantle() bool {
	if p.seen.Sandbox != nil {
		if !p.blocked(FailRemove) {
			p.do(Action{Do: DoRemoveSandbox})
		}
		return true
	}
	if p.seen.Record.NetPID != 0 {
		p.detach()
		return true
	}
	return false
}

func (p *planner) detach() {
	if !p.blocked(FailNetwork) {
		p.do(Action{Do: DoDetach})
	}
}

// stop leads a pod to its end: TERM, patience, KILL, and then nothing left.
func (p *planner) stop() {
	p.patience()
	if alive(p.seen.Sandbox) && p.want.Pod != nil && p.ending() {
		return
	}
	if p.dismantle() {
		return
	}
	if p.want.Removed {
		p.do(Action{Do: DoForget})
		return
	}
	p.do(Action{Do: DoGone})
}

// patience settles until when the containers may take their time. A shorter
// grace that comes later is respected, a longer one is not.
func (p *planner) patience() {
	rec, grace := &p.step.Record, p.want.Grace()
	switch {
	case rec.StopAt.IsZero():
		rec.StopAt, rec.StopGrace, rec.KillAt = p.now, grace, p.now.Add(grace)
	case grace < rec.StopGrace:
		rec.StopGrace = grace
		if at := p.now.Add(grace); at.Before(rec.KillAt) {
			rec.KillAt = at
		}
	}
}

// ending ends what still runs. It reports false once nothing does, or once
// patience has run out even after KILL.
func (p *planner) ending() bool {
	kill := !p.now.Before(p.step.Record.KillAt)
	giveUp := p.step.Record.KillAt.Add(killPatience)
	if !p.now.Before(giveUp) {
		return false
	}
	busy := false
	for i := range p.want.Pod.Spec.Containers {
		name := p.want.Pod.Spec.Containers[i].Name
		r := runOf(name, p.seen, p.now)
		if r.phase != runRunning && r.phase != runStarting {
			continue
		}
		busy = true
		if r.phase == runStarting {
			continue // signalled as soon as it runs; the end of patience bounds it
		}
		rec := p.step.Record.Containers[name]
		signal := ""
		switch {
		case kill && !rec.KillSent:
			signal, rec.KillSent = "SIGKILL", true
		case !kill && !rec.TermSent:
			signal, rec.TermSent = stopSignal(rec.StopSignal), true
		}
		if signal == "" || p.blocked(FailSignal) {
			continue
		}
		p.step.Record.setContainer(name, rec)
		p.do(Action{Do: DoSignal, Container: name, Attempt: r.attempt, Signal: signal})
		return true
	}
	if !busy {
		return false
	}
	if kill {
		p.step.at(giveUp)
	} else {
		p.step.at(p.step.Record.KillAt)
	}
	return true
}

func stopSignal(fromImage string) string {
	if fromImage == "" {
		return "SIGTERM"
	}
	return fromImage
}

// imageID is what users see: the name and digest that was pulled, or the
// digest of the configuration of a loaded image.
func imageID(i image.Image) string {
	if i.RepoDigest != "" {
		return i.RepoDigest
	}
	return i.ID
}

func (a Action) String() string {
	switch a.Do {
	case DoNothing:
		return "nothing"
	case DoPull:
		return fmt.Sprintf("%s %s for %s/%d", a.Do, a.Image, a.Container, a.Attempt)
	case DoStart, DoRemoveRun:
		return fmt.Sprintf("%s %s/%d", a.Do, a.Container, a.Attempt)
	case DoSignal:
		return fmt.Sprintf("%s %s/%d %s", a.Do, a.Container, a.Attempt, a.Signal)
	}
	return string(a.Do)
}
