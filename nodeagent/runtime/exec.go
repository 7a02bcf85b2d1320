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
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/want"
)

// execBytes is how much output of a command is kept.
const execBytes = 10 << 10

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
	run, st, err := r.find(uid, name, attempt)
	if err != nil {
		return ExecResult{}, err
	}
	if st.Phase != PhaseRunning {
		return ExecResult{}, ErrNotRunning
	}
	order, err := json.Marshal(want.Exec{Args: args, Timeout: int64(timeout)})
	if err != nil {
		return ExecResult{}, err
	}
	if timeout > 0 {
		// The launcher keeps the time; this is for a launcher that hangs.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout+5*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.launcher.Fd()))
	cmd.Args = []string{"gantry-launcher", "exec", run.dir}
	cmd.Env = []string{"GOGC=off", "GOMAXPROCS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var output tail
	cmd.Stdout, cmd.Stderr = &output, &output
	// What the command left running in the background may hold our pipe.
	cmd.WaitDelay = 500 * time.Millisecond
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return ExecResult{}, err
	}
	resultR, resultW, err := os.Pipe()
	if err != nil {
		closeAll(orderR, orderW)
		return ExecResult{}, err
	}
	defer closeAll(orderW, resultR)
	cmd.ExtraFiles = []*os.File{orderR, resultW}
	err = cmd.Start()
	closeAll(orderR, resultW)
	if err != nil {
		return ExecResult{}, fmt.Errorf("start launcher: %w", err)
	}
	_, werr := orderW.Write(order)
	_ = orderW.Close()
	said, rerr := io.ReadAll(resultR)
	err = cmd.Wait()
	res := ExecResult{Output: output.bytes()}
	if ctx.Err() != nil {
		return res, ctx.Err()
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return res, fmt.Errorf("launcher: %w", err)
	}
	if err := errors.Join(werr, rerr); err != nil {
		return res, err
	}
	var result want.ExecResult
	if err := json.Unmarshal(said, &result); err != nil {
		return res, fmt.Errorf("read result: %w", err)
	}
	switch {
	case result.Reason != "":
		return res, fmt.Errorf("%s: %s", result.Reason, result.Message)
	case result.TimedOut:
		return res, fmt.Errorf("after %s: %w", timeout, context.DeadlineExceeded)
	}
	res.ExitCode = result.ExitCode
	return res, nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		_ = f.Close()
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
