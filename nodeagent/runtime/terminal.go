//go:build linux

package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/want"
)

// openTerminal starts a command with a terminal. The terminal is made within
// the container, and its other end comes to us over a socket once it is there.
func (r *Runtime) openTerminal(run runFiles, order want.Exec, stdin bool) (Streams, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Streams{}, fmt.Errorf("make console socket: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "console")
	h, err := r.joinRun(run, order, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{theirs} })
	_ = theirs.Close()
	if err == nil {
		err = unix.SetNonblock(fds[0], true) // so that it is waited for in the poller
	}
	ours := os.NewFile(uintptr(fds[0]), "console")
	if err != nil {
		_ = ours.Close()
		return Streams{}, err
	}
	t := &terminal{ready: make(chan struct{})}
	go t.receive(ours)
	s := Streams{
		Stdout: t, Resize: t.resize, Wait: h.outcome,
		Stop: func() {
			h.stop()
			_ = ours.Close()
			t.close()
		},
	}
	if stdin {
		s.Stdin = terminalInput{t}
	}
	return s, nil
}

// terminal is the other end of a terminal, which may not be there yet.
type terminal struct {
	ready  chan struct{} // closed when file is there or will never be
	mu     sync.Mutex
	file   *os.File
	closed bool
}

func (t *terminal) receive(socket *os.File) {
	fd, err := receiveFile(socket)
	_ = socket.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(t.ready)
	if err != nil {
		return // the launcher says why there is none
	}
	if err := unix.SetNonblock(fd, true); err != nil || t.closed {
		_ = unix.Close(fd)
		return
	}
	t.file = os.NewFile(uintptr(fd), "terminal")
}

func (t *terminal) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.file != nil {
		_ = t.file.Close()
	}
}

// Read ends with io.EOF when nobody has the terminal any more.
func (t *terminal) Read(b []byte) (int, error) {
	<-t.ready
	if t.file == nil {
		return 0, io.EOF
	}
	n, err := t.file.Read(b)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

func (t *terminal) resize(columns, rows uint16) error {
	<-t.ready
	if t.file == nil {
		return errors.New("there is no terminal")
	}
	conn, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := conn.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	}); err != nil {
		return err
	}
	return set
}

// terminalInput writes to a terminal. There is no end of input but the
// character that stands for it.
type terminalInput struct{ t *terminal }

func (i terminalInput) Write(b []byte) (int, error) {
	<-i.t.ready
	if i.t.file == nil {
		return 0, io.ErrClosedPipe
	}
	return i.t.file.Write(b)
}

func (i terminalInput) Close() error {
	_, err := i.Write([]byte{endOfTransmission})
	return err
}

const endOfTransmission = 4

// receiveFile receives one descriptor.
func receiveFile(socket *os.File) (int, error) {
	conn, err := socket.SyscallConn()
	if err != nil {
		return -1, err
	}
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n := 0
	var got error
	if err := conn.Read(func(fd uintptr) bool {
		_, n, _, _, got = unix.Recvmsg(int(fd), text, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(got, unix.EAGAIN) && !errors.Is(got, unix.EINTR)
	}); err != nil {
		return -1, err
	}
	if got != nil {
		return -1, got
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) > 0 {
			return fds[0], nil
		}
	}
	return -1, io.EOF
}
