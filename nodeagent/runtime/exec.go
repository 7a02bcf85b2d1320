//go:build linux

package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/want"
)

const (
	// execBytes is how much output of a command is kept.
	execBytes = 10 << 10
	// execPatience is how long a launcher gets to kill its command and leave.
	execPatience = 5 * time.Second
)

// Command is one more command in a running container.
type Command struct {
	Args  []string
	Stdin bool // without it the input is empty
	// TTY gives the command a terminal, on which it says everything.
	TTY           bool
	Columns, Rows uint16 // of the terminal; 0 leaves the size open
}

// Streams is a command, or a container's own process, while somebody is
// connected to it. What it has not is nil. Reads, writes and Wait are each for
// one goroutine.
type Streams struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.Reader
	Resize         func(columns, rows uint16) error
	// Wait returns when the process has ended and, for a container, when all it
	// said can be read. An error says why there is no exit code, or what was
	// wrong with the command: 127 is one that is not there and 126 one that
	// cannot be executed.
	Wait func() (exitCode *int, err error)
	// Stop lets go of it, and kills a command. Everything else returns then. It
	// must be called, once.
	Stop func()
}

// Exec runs one more command in a running container, as its user and with its
// environment, and waits for it. Timeout 0 means none. A command that took too
// long is killed and the error is context.DeadlineExceeded; one that could not
// be run is an error, and never an exit code.
func (r *Runtime) Exec(ctx context.Context, uid types.UID, name string, attempt int, args []string, timeout time.Duration) (ExecResult, error) {
	out, err := r.exec(ctx, uid, name, attempt, args, timeout)
	if err != nil {
		return out, fmt.Errorf("exec in %s of %s: %w", name, uid, err)
	}
	return out, nil
}

func (r *Runtime) exec(ctx context.Context, uid types.UID, name string, attempt int, args []string, timeout time.Duration) (ExecResult, error) {
	run, err := r.findRunning(uid, name, attempt)
	if err != nil {
		return ExecResult{}, err
	}
	if timeout > 0 {
		// The launcher keeps the time; this is for a launcher that hangs.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout+execPatience)
		defer cancel()
	}
	var output tail
	h, err := r.joinRun(run, want.Exec{Args: args, Timeout: int64(timeout)}, func(cmd *exec.Cmd) {
		cmd.Stdout, cmd.Stderr = &output, &output
		// What the command left running in the background may hold our pipe.
		cmd.WaitDelay = 500 * time.Millisecond
	})
	if err != nil {
		return ExecResult{}, err
	}
	stop := context.AfterFunc(ctx, h.stop)
	result, err := h.wait()
	stop()
	res := ExecResult{Output: output.bytes()}
	switch {
	case ctx.Err() != nil:
		return res, ctx.Err()
	case err != nil:
		return res, err
	case result.Reason != "":
		return res, fmt.Errorf("%s: %s", result.Reason, result.Message)
	case result.TimedOut:
		return res, fmt.Errorf("after %s: %w", timeout, context.DeadlineExceeded)
	}
	res.ExitCode = result.ExitCode
	return res, nil
}

// Open starts one more command in a running container and connects to it. It
// does not wait for the command to execute: what fails then is told by Wait. A
// command ends with its container, and with this process.
func (r *Runtime) Open(uid types.UID, name string, attempt int, c Command) (Streams, error) {
	s, err := r.openCommand(uid, name, attempt, c)
	if err != nil {
		return Streams{}, fmt.Errorf("exec in %s of %s: %w", name, uid, err)
	}
	return s, nil
}

func (r *Runtime) openCommand(uid types.UID, name string, attempt int, c Command) (Streams, error) {
	run, err := r.findRunning(uid, name, attempt)
	if err != nil {
		return Streams{}, err
	}
	order := want.Exec{Args: c.Args, TTY: c.TTY, Columns: c.Columns, Rows: c.Rows}
	if c.TTY {
		return r.openTerminal(run, order, c.Stdin)
	}
	var s Streams
	var ours, theirs []*os.File
	pipe := func() (*os.File, *os.File) {
		if err != nil {
			return nil, nil
		}
		var r, w *os.File
		if r, w, err = os.Pipe(); err != nil {
			return nil, nil
		}
		return r, w
	}
	var stdin *os.File
	if c.Stdin {
		r, w := pipe()
		stdin, s.Stdin = r, w
		ours, theirs = append(ours, w), append(theirs, r)
	}
	outR, outW := pipe()
	errR, errW := pipe()
	ours, theirs = append(ours, outR, errR), append(theirs, outW, errW)
	if err != nil {
		closeAll(append(ours, theirs...)...)
		return Streams{}, err
	}
	h, err := r.joinRun(run, order, func(cmd *exec.Cmd) {
		if stdin != nil { // a nil file in an interface would be no nil
			cmd.Stdin = stdin
		}
		cmd.Stdout, cmd.Stderr = outW, errW
	})
	closeAll(theirs...)
	if err != nil {
		closeAll(ours...)
		return Streams{}, err
	}
	s.Stdout, s.Stderr = outR, errR
	s.Wait = func() (*int, error) { return h.outcome() }
	s.Stop = func() {
		h.stop()
		closeAll(ours...)
	}
	return s, nil
}

func (r *Runtime) findRunning(uid types.UID, name string, attempt int) (runFiles, error) {
	run, st, err := r.find(uid, name, attempt)
	if err == nil && st.Phase != PhaseRunning {
		err = ErrNotRunning
	}
	return run, err
}

// joined is a launcher that looks after one command.
type joined struct {
	cmd    *exec.Cmd
	life   *os.File // the launcher kills the command when it is closed
	result *os.File
	done   chan struct{}
	closed sync.Once
}

// joinRun starts a launcher in the directory of a run. set may add standard
// descriptors and further files, which the launcher finds from 5 on.
func (r *Runtime) joinRun(run runFiles, order want.Exec, set func(*exec.Cmd)) (*joined, error) {
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.launcher.Fd()))
	cmd.Args = []string{"gantry-launcher", "exec", run.dir}
	cmd.Env = []string{"GOGC=off", "GOMAXPROCS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	set(cmd)
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	resultR, resultW, err := os.Pipe()
	if err != nil {
		closeAll(orderR, orderW)
		return nil, err
	}
	cmd.ExtraFiles = append([]*os.File{orderR, resultW}, cmd.ExtraFiles...)
	err = cmd.Start()
	closeAll(orderR, resultW)
	if err == nil {
		if _, err = orderW.Write(text); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	}
	if err != nil {
		closeAll(orderW, resultR)
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	return &joined{cmd: cmd, life: orderW, result: resultR, done: make(chan struct{})}, nil
}

// stop has the command killed. A launcher that does not leave is killed too.
func (h *joined) stop() {
	h.closed.Do(func() {
		_ = h.life.Close()
		go func() {
			timer := time.NewTimer(execPatience)
			defer timer.Stop()
			select {
			case <-h.done:
			case <-timer.C:
				_ = h.cmd.Process.Kill()
			}
		}()
	})
}

// wait returns when the command has ended. It must be called, once.
func (h *joined) wait() (want.ExecResult, error) {
	said, rerr := io.ReadAll(h.result)
	err := h.cmd.Wait()
	close(h.done)
	h.closed.Do(func() { _ = h.life.Close() })
	_ = h.result.Close()
	var result want.ExecResult
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return result, fmt.Errorf("launcher: %w", err)
	}
	if rerr != nil {
		return result, rerr
	}
	if err := json.Unmarshal(said, &result); err != nil {
		return result, fmt.Errorf("read result: %w", err)
	}
	return result, nil
}

// outcome is wait in the words of Streams.
func (h *joined) outcome() (*int, error) {
	result, err := h.wait()
	if err != nil {
		return nil, err
	}
	code := result.ExitCode
	switch result.Reason {
	case "":
		return &code, nil
	case want.CommandNotFound:
		code = 127
	case want.PermissionDenied:
		code = 126
	default:
		return nil, fmt.Errorf("cannot run the command: %s", result.Message)
	}
	return &code, fmt.Errorf("cannot run the command: %s", result.Message)
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	buf bytes.Buffer
}

func (t *tail) Write(b []byte) (int, error) {
	n := len(b)
	if len(b) > execBytes {
		b = b[len(b)-execBytes:]
	}
	if over := t.buf.Len() + len(b) - execBytes; over > 0 {
		t.buf.Next(over)
	}
	t.buf.Write(b)
	return n, nil
}

func (t *tail) bytes() []byte { return t.buf.Bytes() }
