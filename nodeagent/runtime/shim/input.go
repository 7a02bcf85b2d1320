//go:build linux

package main

import (
	"syscall"
	"unsafe"

	"gantry.dev/nodeagent/runtime/rundir"
)

// console is what of a run's standard input, and of its terminal, is with us.
// Most runs have neither.
type console struct {
	// in is, without a terminal, a writing end of the input's FIFO, which is held
	// so that the input does not end when those who are connected leave. With one
	// it is the reading end, because what is typed goes through us.
	in     int
	socket int // where the terminal comes from; -1 once it is there
	tty    bool
	typing []byte // read, and not yet taken by the terminal
	size   [2]uint16
}

// openInput puts the run's input in the place of the first of the files, and
// adds the socket for its terminal.
func (r *run) openInput(files []uintptr) ([]uintptr, error) {
	fifo := r.dir + "/" + rundir.Stdin
	r.tty = exists(r.dir + "/" + rundir.TTY)
	if r.tty {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return files, err
		}
		r.socket = pair[0]
		files = append(files, uintptr(pair[1]))
		if err := syscall.SetNonblock(r.socket, true); err != nil {
			return files, err
		}
	}
	if !exists(fifo) {
		r.out.eager, r.err.eager = r.tty, r.tty
		return files, nil
	}
	r.out.eager, r.err.eager = true, true
	if r.tty {
		// For both, so that it never reports the end of file.
		fd, err := syscall.Open(fifo, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		r.in = fd
		return files, err
	}
	// Opened without waiting for a writer, and then made as commands expect it.
	fd, err := syscall.Open(fifo, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return files, err
	}
	_ = syscall.Close(int(files[0]))
	files[0] = uintptr(fd)
	if r.in, err = syscall.Open(fifo, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0); err != nil {
		return files, err
	}
	return files, syscall.SetNonblock(fd, false)
}

// input is the descriptor on which something may come for the run.
func (r *run) input() int32 {
	switch {
	case r.socket >= 0:
		return int32(r.socket)
	case r.tty && len(r.typing) == 0:
		return int32(r.in)
	}
	return -1
}

// pendingOut says whether to wait for the terminal to take what was typed.
func (r *run) pendingOut() int16 {
	if len(r.typing) > 0 {
		return pollOut
	}
	return 0
}

// hear takes what has come for the run: its terminal, or what is typed there.
func (s *shim) hear(r *run) {
	if r.socket >= 0 {
		s.receive(r)
		return
	}
	n, err := syscall.Read(r.in, s.buf[:1024])
	if err == nil && n > 0 {
		r.typed(s.buf[:n])
	}
}

// receive takes the other end of the terminal, which takes the place of the
// pipe for the output.
func (s *shim) receive(r *run) {
	var text [256]byte
	var oob [64]byte
	_, n, _, _, err := syscall.Recvmsg(r.socket, text[:], oob[:], syscall.MSG_CMSG_CLOEXEC)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return
	}
	_ = syscall.Close(r.socket)
	r.socket = -1
	if err != nil {
		return // the launcher fails, and says why
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return
	}
	if r.out.fd >= 0 {
		_ = syscall.Close(r.out.fd)
	}
	r.out.fd = fds[0]
	_ = syscall.SetNonblock(r.out.fd, true)
	s.tend(r)
}

// typed passes to the terminal what is left of former input and then b, and
// keeps what it does not take.
func (r *run) typed(b []byte) {
	b = append(r.typing, b...)
	r.typing = nil
	for len(b) > 0 && r.out.fd >= 0 {
		n, err := syscall.Write(r.out.fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.EAGAIN {
			r.typing = append([]byte(nil), b...)
			return
		}
		if err != nil {
			return
		}
		b = b[n:]
	}
}

// tend does for a run what the agent has asked for since.
func (s *shim) tend(r *run) {
	if r.in >= 0 && r.socket < 0 && exists(r.dir+"/"+rundir.StdinClosed) {
		if r.tty {
			r.drainInput(s)
			r.typed([]byte{4}) // the character that ends the input of a terminal
		}
		_ = syscall.Close(r.in)
		r.in = -1
	}
	if !r.out.eager && exists(r.dir+"/"+rundir.Follow) {
		r.out.eager, r.err.eager = true, true
		s.hurry(&r.out)
		s.hurry(&r.err)
		s.flush(r)
	}
	if r.tty && r.socket < 0 && r.out.fd >= 0 {
		r.resize()
	}
}

// drainInput takes what was typed before the input was closed.
func (r *run) drainInput(s *shim) {
	for {
		n, err := syscall.Read(r.in, s.buf[:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		r.typed(s.buf[:n])
	}
}

func (r *run) resize() {
	b, err := readFile(r.dir + "/" + rundir.Size)
	if err != nil {
		return
	}
	n, ok := rundir.ParseInts(b, 2)
	if !ok {
		return
	}
	size := [2]uint16{uint16(n[0]), uint16(n[1])}
	if size == r.size {
		return
	}
	r.size = size
	window := struct{ rows, columns, x, y uint16 }{rows: size[1], columns: size[0]}
	_, _, _ = syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(r.out.fd), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&window)))
}
