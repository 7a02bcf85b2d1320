package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/runtime"
)

// Reasons of ended runs.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "ContainerStatusUnknown"

	exitStartError = 128
	exitUnknown    = 137

	unknownMessage = "The container could not be located when the agent looked for it: its supervisor died or the machine was restarted"
)

type runPhase int

const (
	runNone     runPhase = iota // never asked for
	runAsked                    // recorded, but the runtime has not heard of it
	runStarting                 // the runtime is at it
	runRunning
	runEnded
)

// run is the newest run of one container, from the record and the runtime's files.
type run struct {
	phase   runPhase
	attempt int
	started time.Time // of a running one
	end     *RunEnd   // of an ended one
	record  ContainerRecord
	known   bool // record exists
}

// final says that a phase never changes again.
func final(p runtime.Phase) bool {
	return p == runtime.PhaseExited || p == runtime.PhaseFailed || p == runtime.PhaseUnknown
}

// alive says that the sandbox has its shim.
func alive(sb *runtime.SandboxState) bool { return sb != nil && sb.PID != 0 }

// newest finds the run with the highest attempt; nil where there is none.
func newest(sb *runtime.SandboxState, container string) *runtime.ContainerState {
	if sb == nil {
		return nil
	}
	var found *runtime.ContainerState
	for i := range sb.Containers {
		c := &sb.Containers[i]
		if c.Name == container && (found == nil || c.Attempt > found.Attempt) {
			found = c
		}
	}
	return found
}

// runOf tells the newest run of a container. now dates the end of a run that
// vanished unseen.
func runOf(name string, s Seen, now time.Time) run {
	rec, known := s.Record.Containers[name]
	state := newest(s.Sandbox, name)
	if state != nil && (!known || state.Attempt > rec.Attempt) {
		// The record was lost; the files know better.
		last := rec.Last
		if known && rec.End != nil {
			last = rec.End
		}
		rec, known = ContainerRecord{Attempt: state.Attempt, Streak: state.Attempt, Last: last}, true
	}
	if !known {
		return run{attempt: -1}
	}
	r := run{attempt: rec.Attempt, record: rec, known: true}
	if state != nil && state.Attempt == rec.Attempt {
		switch {
		case final(state.Phase):
			r.phase, r.end = runEnded, endOf(*state, rec, now)
			return r
		case !alive(s.Sandbox):
			r.phase, r.end = runEnded, rec.End
			if r.end == nil {
				r.end = unknownEnd(rec, state.StartedAt, now)
			}
			return r
		case state.Phase == runtime.PhaseRunning:
			r.phase, r.started = runRunning, state.StartedAt
			return r
		default:
			r.phase = runStarting
			return r
		}
	}
	if rec.End != nil {
		r.phase, r.end = runEnded, rec.End
		return r
	}
	if alive(s.Sandbox) {
		// Recorded and not begun: the agent died in between.
		r.phase = runAsked
		return r
	}
	r.phase, r.end = runEnded, unknownEnd(rec, rec.StartedAt, now)
	return r
}

func unknownEnd(rec ContainerRecord, started, now time.Time) *RunEnd {
	return &RunEnd{
		Attempt: rec.Attempt, Started: started, Finished: now, ExitCode: exitUnknown,
		Reason: reasonUnknown, Message: unknownMessage, ImageID: rec.ImageID,
	}
}

func endOf(c runtime.ContainerState, rec ContainerRecord, now time.Time) *RunEnd {
	end := &RunEnd{
		Attempt: c.Attempt, Started: c.StartedAt, Finished: c.FinishedAt,
		ExitCode: c.ExitCode, Signal: c.Signal, Message: c.Message, ImageID: rec.ImageID,
	}
	if end.Finished.IsZero() {
		end.Finished = now
		// What was noted first stays, or the back-off would move with the clock.
		if rec.End != nil && rec.End.Attempt == c.Attempt {
			end.Finished = rec.End.Finished
		}
	}
	switch {
	case c.Phase == runtime.PhaseUnknown:
		end.ExitCode, end.Reason = exitUnknown, reasonUnknown
		if end.Message == "" {
			end.Message = unknownMessage
		}
	case c.Phase == runtime.PhaseFailed:
		end.ExitCode, end.Reason, end.Started = exitStartError, reasonStartError, time.Time{}
		if end.Message == "" {
			end.Message = c.Reason
		}
	case c.OOMKilled:
		end.Reason = reasonOOMKilled
	case c.ExitCode == 0:
		end.Reason = reasonCompleted
	default:
		end.Reason = reasonError
	}
	return end
}

// restarts says whether a policy wants another run after this end.
func restarts(policy corev1.RestartPolicy, end RunEnd) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return end.ExitCode != 0
	}
	return true
}

// next is the number of the run that follows, and when it is due.
func (r run) next() (attempt int, due time.Time) {
	switch r.phase {
	case runNone:
		return 0, time.Time{}
	case runAsked:
		return r.attempt, time.Time{}
	}
	streak := streakAfter(r.record.Streak, *r.end)
	return r.attempt + 1, r.end.Finished.Add(restartDelay(streak, *r.end))
}

// noted is the record with what was seen of the run in it.
func (r run) noted() ContainerRecord {
	rec := r.record
	switch {
	case r.phase == runEnded:
		rec.End = r.end
		if rec.StartedAt.IsZero() {
			rec.StartedAt = r.end.Started
		}
	case r.phase == runRunning && rec.StartedAt.IsZero():
		rec.StartedAt = r.started
	}
	return rec
}
