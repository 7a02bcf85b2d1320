//go:build linux

package runtime

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// messageBytes is how much of a termination message is handed on.
const messageBytes = 4 << 10

// Sandbox reads what is true now; false means that there is no such sandbox.
func (r *Runtime) Sandbox(uid types.UID) (SandboxState, bool, error) {
	p := r.pods.get(uid)
	if p == nil {
		return SandboxState{}, false, nil
	}
	st, err := r.state(p)
	return st, err == nil, err
}

// Sandboxes reads all of them, ordered by UID.
func (r *Runtime) Sandboxes() ([]SandboxState, error) {
	var out []SandboxState
	var errs []error
	r.pods.each(func(p *pod) {
		st, err := r.state(p)
		if err != nil {
			errs = append(errs, err)
			return
		}
		out = append(out, st)
	})
	slices.SortFunc(out, func(a, b SandboxState) int { return cmp.Compare(a.Sandbox.UID, b.Sandbox.UID) })
	return out, errors.Join(errs...)
}

func (r *Runtime) state(p *pod) (SandboxState, error) {
	st := SandboxState{Sandbox: p.sandbox}
	// The shim first: if it lives now, what the files lack was not lost before.
	alive := p.running()
	if alive != nil {
		st.PID = alive.pid
	}
	runs, err := r.listRuns(p.sandbox.UID)
	if err != nil {
		return st, fmt.Errorf("read sandbox %s: %w", p.sandbox.UID, err)
	}
	for _, run := range runs {
		c, ok := p.cached(run.name)
		if !ok {
			if c, ok = run.state(alive != nil); !ok {
				continue // being made or removed
			}
			p.cache(run.name, c)
		}
		st.Containers = append(st.Containers, c)
	}
	slices.SortFunc(st.Containers, func(a, b ContainerState) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Attempt, b.Attempt))
	})
	return st, nil
}

func (p *pod) cached(name string) (ContainerState, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.ended[name]
	return c, ok
}

// cache keeps what cannot change any more. Unknown is not kept: it can still be
// a guess about a shim that died a moment ago.
func (p *pod) cache(name string, c ContainerState) {
	if c.Phase != PhaseExited && c.Phase != PhaseFailed {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended[name] = c
}

func (p *pod) uncache(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ended, name)
}

// runFiles is the directory of one run.
type runFiles struct {
	name string // rundir.RunName
	dir  string
}

func (r *Runtime) listRuns(uid types.UID) ([]runFiles, error) {
	dir := filepath.Join(r.podDir(uid), rundir.Runs)
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	runs := make([]runFiles, 0, len(names))
	for _, n := range names {
		if _, _, ok := rundir.ParseRunName(n); ok {
			runs = append(runs, runFiles{name: n, dir: filepath.Join(dir, n)})
		}
	}
	return runs, nil
}

func (f runFiles) has(file string) bool {
	_, err := os.Lstat(filepath.Join(f.dir, file))
	return err == nil
}

func (f runFiles) read(file string) ([]byte, bool) {
	b, err := os.ReadFile(filepath.Join(f.dir, file))
	return b, err == nil
}

func (f runFiles) markLost() error {
	return replaceFile(filepath.Join(f.dir, rundir.Lost), rundir.Ints(time.Now().UnixNano()))
}

// state computes the phase from the files. The later a file comes in a run's
// life, the earlier it is looked at... except pid, which must be read before
// exit so that both belong to one moment.
func (f runFiles) state(shimAlive bool) (ContainerState, bool) {
	name, attempt, _ := rundir.ParseRunName(f.name)
	c := ContainerState{Name: name, Attempt: attempt}
	started := false
	if b, ok := f.read(rundir.PID); ok {
		if n, ok := rundir.ParseInts(b, 3); ok {
			started = true
			c.PID, c.StartedAt = int(n[0]), time.Unix(0, n[2])
		}
	}
	if b, ok := f.read(rundir.Exit); ok {
		if n, ok := rundir.ParseInts(b, 4); ok {
			c.Phase, c.PID = PhaseExited, 0
			c.ExitCode, c.Signal, c.OOMKilled = int(n[0]), int(n[1]), n[2] != 0
			c.FinishedAt = time.Unix(0, n[3])
			c.Message = f.message()
			return c, true
		}
	}
	if b, ok := f.read(rundir.Failed); ok {
		c.Phase, c.PID, c.StartedAt = PhaseFailed, 0, time.Time{}
		c.Reason, c.Message, c.FinishedAt = parseFailed(string(b))
		return c, true
	}
	if b, ok := f.read(rundir.Lost); ok {
		c.Phase, c.PID = PhaseUnknown, 0
		if n, ok := rundir.ParseInts(b, 1); ok {
			c.FinishedAt = time.Unix(0, n[0])
		}
		c.Message = "the pod's shim died, so the end of this run was not seen"
		return c, true
	}
	switch {
	case started && shimAlive:
		c.Phase = PhaseRunning
	case !f.has(rundir.Want):
		return c, false
	case shimAlive, !f.has(rundir.Claim):
		c.Phase = PhaseStarting
	default:
		c.Phase, c.PID = PhaseUnknown, 0
		c.Message = "the pod's shim died, so the end of this run was not seen"
	}
	return c, true
}

// parseFailed takes apart "reason\nnanoseconds\nmessage"; without reason, the
// message is the launcher's or libcontainer's own.
func parseFailed(s string) (reason, message string, at time.Time) {
	reason, s, _ = strings.Cut(s, "\n")
	when, message, _ := strings.Cut(s, "\n")
	if n, err := strconv.ParseInt(when, 10, 64); err == nil {
		at = time.Unix(0, n)
	}
	if reason != "" {
		return reason, message, at
	}
	var f want.Failure
	if err := json.Unmarshal([]byte(message), &f); err != nil {
		return ReasonStartError, message, at
	}
	return cmp.Or(f.Arg.Reason, want.Reason(f.Arg.Message)), f.Arg.Message, at
}

// message is the end of the termination message. The container wrote it, so it
// may be anything; a link cannot be, because it was bound as a file.
func (f runFiles) message() string {
	file, err := os.Open(filepath.Join(f.dir, rundir.Message))
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	if size, err := file.Seek(0, io.SeekEnd); err == nil && size > messageBytes {
		_, _ = file.Seek(-messageBytes, io.SeekEnd)
	} else {
		_, _ = file.Seek(0, io.SeekStart)
	}
	b, _ := io.ReadAll(io.LimitReader(file, messageBytes))
	return strings.ToValidUTF8(string(b), "\uFFFD")
}
