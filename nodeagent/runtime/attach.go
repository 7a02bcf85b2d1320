//go:build linux

package runtime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// Errors of Attach to ask for with errors.Is.
var (
	// ErrNoInput: the container was not asked for with an input.
	ErrNoInput = errors.New("has no standard input")
	// ErrInputClosed: the input is at its end.
	ErrInputClosed = errors.New("its standard input is closed")
)

// Attachment says how somebody connects to a container.
type Attachment struct {
	Stdin         bool   // needs a container that has one
	Columns, Rows uint16 // of the terminal, where the container has one; 0 leaves it as it is
}

// Attach connects to the streams of a running container, from now on. What the
// container says is read from its log, so a reader never slows it down, and
// what it hears goes straight into its input, so neither needs this process
// for longer than somebody is connected.
func (r *Runtime) Attach(uid types.UID, name string, attempt int, a Attachment) (Streams, error) {
	s, err := r.attach(uid, name, attempt, a)
	if err != nil {
		return Streams{}, fmt.Errorf("attach to %s of %s: %w", name, uid, err)
	}
	return s, nil
}

func (r *Runtime) attach(uid types.UID, name string, attempt int, a Attachment) (_ Streams, err error) {
	run, err := r.findRunning(uid, name, attempt)
	if err != nil {
		return Streams{}, err
	}
	p := r.pods.get(uid)
	if p == nil {
		return Streams{}, ErrNoSandbox
	}
	var w want.Run
	if text, ok := run.read(rundir.Want); !ok {
		return Streams{}, ErrNotRunning
	} else if err := json.Unmarshal(text, &w); err != nil {
		return Streams{}, fmt.Errorf("read order: %w", err)
	}
	s := Streams{}
	wake := func() error { return r.wakeShim(r.podDir(uid)) }
	var in *input
	if a.Stdin {
		if in, err = openInput(run, w.Container, wake); err != nil {
			return Streams{}, err
		}
		s.Stdin = in
	}
	l, err := followLog(r.LogPath(p.sandbox, name, attempt), run, func() (ContainerState, bool) { return run.state(p.running() != nil) })
	if err != nil {
		if in != nil {
			_ = in.file.Close() // not the container's: nobody was connected
		}
		return Streams{}, err
	}
	if w.TTY {
		s.Resize = func(columns, rows uint16) error {
			if err := replaceFile(filepath.Join(run.dir, rundir.Size), rundir.Ints(int64(columns), int64(rows))); err != nil {
				return err
			}
			return wake()
		}
		if a.Columns > 0 && a.Rows > 0 {
			err = s.Resize(a.Columns, a.Rows)
		}
	}
	if err == nil {
		err = touch(filepath.Join(run.dir, rundir.Follow))
	}
	if err == nil {
		err = wake()
	}
	if err != nil {
		l.stop()
		_ = l.log.Close()
		if in != nil {
			_ = in.file.Close()
		}
		return Streams{}, err
	}
	s.Stdout, s.Stderr = l.stdout, l.stderr
	go l.run()
	s.Wait = l.wait
	s.Stop = func() {
		l.stop()
		if in != nil {
			_ = in.file.Close() // whoever writes stops; the session then closes in
		}
	}
	return s, nil
}

// touch makes a file whose being there is all it says.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// makeInput makes what the shim needs to know of a run before it claims it.
func makeInput(dir string, c Container) error {
	if c.Stdin {
		if err := unix.Mkfifo(filepath.Join(dir, rundir.Stdin), 0o600); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make input: %w", err)
		}
	}
	if c.TTY {
		return touch(filepath.Join(dir, rundir.TTY))
	}
	return nil
}

// closeInputs closes the inputs to which somebody was connected through an
// earlier agent, and which are for one only.
func (r *Runtime) closeInputs(uid types.UID) error {
	runs, err := r.listRuns(uid)
	if err != nil {
		return err
	}
	closed := false
	for _, run := range runs {
		if !run.has(rundir.StdinUsed) || run.has(rundir.StdinClosed) {
			continue
		}
		if err := touch(filepath.Join(run.dir, rundir.StdinClosed)); err != nil {
			return err
		}
		closed = true
	}
	if !closed {
		return nil
	}
	return r.wakeShim(r.podDir(uid))
}

// input is the way into a container's standard input.
type input struct {
	file *os.File
	run  runFiles
	once bool
	wake func() error
}

func openInput(run runFiles, c Container, wake func() error) (*input, error) {
	if !c.Stdin {
		return nil, ErrNoInput
	}
	if run.has(rundir.StdinClosed) {
		return nil, ErrInputClosed
	}
	// Without waiting: nobody at the other end means that it was closed there.
	fd, err := unix.Open(filepath.Join(run.dir, rundir.Stdin), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, ErrInputClosed
	}
	if err != nil {
		return nil, fmt.Errorf("open input: %w", err)
	}
	if c.StdinOnce {
		if err := touch(filepath.Join(run.dir, rundir.StdinUsed)); err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
	}
	return &input{file: os.NewFile(uintptr(fd), "input"), run: run, once: c.StdinOnce, wake: wake}, nil
}

func (i *input) Write(b []byte) (int, error) { return i.file.Write(b) }

// Close ends the container's input only where it is for one: others stay open
// for those who connect later.
func (i *input) Close() error {
	err := i.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if !i.once {
		return err
	}
	if e := touch(filepath.Join(i.run.dir, rundir.StdinClosed)); e != nil {
		if errors.Is(e, os.ErrNotExist) {
			return err // the run was removed
		}
		return errors.Join(err, e)
	}
	return errors.Join(err, i.wake())
}

// follower reads along in a log and undoes its format.
type follower struct {
	log     *os.File
	events  *os.File // inotify: of the log, and of the directory of the run
	state   func() (ContainerState, bool)
	stdout  *io.PipeReader
	stderr  *io.PipeReader
	toOut   *io.PipeWriter
	toErr   *io.PipeWriter
	line    []byte // begun and not at its end
	done    chan struct{}
	code    *int
	err     error
	stopped sync.Once
}

func followLog(path string, run runFiles, state func() (ContainerState, bool)) (_ *follower, err error) {
	l := &follower{state: state, done: make(chan struct{})}
	if l.log, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer func() {
		if err != nil {
			_ = l.log.Close()
		}
	}()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch log: %w", err)
	}
	l.events = os.NewFile(uintptr(fd), "inotify")
	_, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY)
	if err == nil {
		// Here appears the word about the end.
		_, err = unix.InotifyAddWatch(fd, run.dir, unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF)
	}
	if err != nil {
		_ = l.events.Close()
		return nil, fmt.Errorf("watch log: %w", err)
	}
	if _, err := l.log.Seek(0, io.SeekEnd); err != nil {
		_ = l.events.Close()
		return nil, fmt.Errorf("read log: %w", err)
	}
	l.stdout, l.toOut = io.Pipe()
	l.stderr, l.toErr = io.Pipe()
	return l, nil
}

// run copies until the container has ended, or until it is stopped.
func (l *follower) run() {
	defer close(l.done)
	defer func() {
		_ = l.toOut.Close()
		_ = l.toErr.Close()
		_ = l.log.Close()
		_ = l.events.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		// The end is looked for before the log is read: all that was said lies
		// there by then.
		st, ok := l.state()
		if err := l.copy(buf); err != nil {
			l.err = err
			return
		}
		if !ok || st.Phase.Ended() {
			l.end(st, ok)
			return
		}
		if _, err := l.events.Read(buf); err != nil {
			l.err = errors.New("nobody reads along any more")
			return
		}
	}
}

func (l *follower) end(st ContainerState, ok bool) {
	switch {
	case ok && st.Phase == PhaseExited:
		l.code = &st.ExitCode
	case ok && st.Message != "":
		l.err = errors.New(st.Message)
	default:
		l.err = errors.New("the container is gone")
	}
}

// copy reads what the log has got.
func (l *follower) copy(buf []byte) error {
	for {
		n, err := l.log.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				l.line = append(l.line, b...)
				break
			}
			line := b[:i+1]
			if len(l.line) > 0 {
				l.line = append(l.line, line...)
				line = l.line
			}
			if err := l.say(line); err != nil {
				return err
			}
			l.line, b = l.line[:0], b[i+1:]
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}

// say passes on one line of the log: "<time> stdout|stderr F|P <text>\n".
func (l *follower) say(line []byte) error {
	part := bytes.SplitN(line, []byte(" "), 4)
	if len(part) < 4 {
		return nil // not ours
	}
	to, text := l.toOut, part[3]
	if string(part[1]) == "stderr" {
		to = l.toErr
	}
	if string(part[2]) == "P" {
		text = text[:len(text)-1]
	}
	if _, err := to.Write(text); err != nil {
		return errors.New("nobody reads along any more")
	}
	return nil
}

func (l *follower) wait() (*int, error) {
	<-l.done
	return l.code, l.err
}

func (l *follower) stop() {
	l.stopped.Do(func() {
		_ = l.events.Close()
		_ = l.stdout.Close()
		_ = l.stderr.Close()
	})
}
