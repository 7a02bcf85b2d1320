//go:build linux

package main

import (
	"strconv"
	"syscall"
	"unsafe"
)

const (
	pollIn  = 1
	pollOut = 4

	sysPidfdSendSignal = 424 // the same on every architecture
)

type pollFd struct {
	fd      int32 // negative: ignored
	events  int16
	revents int16
}

// poll waits without end; false means that it was interrupted.
func poll(fds []pollFd) bool {
	_, _, e := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), 0, 0, 0, 0)
	return e == 0
}

func pause() {
	t := syscall.Timespec{Nsec: 200e6}
	_ = syscall.Nanosleep(&t, nil)
}

func now() (sec, nsec int64) {
	var tv syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 0, uintptr(unsafe.Pointer(&tv)), 0)
	return tv.Sec, tv.Nsec
}

func kill(pidfd int, sig syscall.Signal) {
	if pidfd >= 0 {
		_, _, _ = syscall.RawSyscall6(sysPidfdSendSignal, uintptr(pidfd), uintptr(sig), 0, 0, 0, 0)
	}
}

// ignore sets a signal to be ignored behind the back of Go's runtime, which
// would die of it; os/signal costs package os.
func ignore(sig syscall.Signal) {
	act := struct{ handler, flags, restorer, mask uintptr }{handler: 1}
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
}

// calm lets the timers of all threads but this one, from which others are
// started, be late: the runtime's watching thread would look every 20
// microseconds for a thread that is stuck in a system call, and ours always is.
func calm() {
	tids, err := readDir("/proc/self/task")
	if err != nil {
		return
	}
	self := itoa(syscall.Gettid())
	for _, tid := range tids {
		if tid != self && writeTo("/proc/"+tid+"/timerslack_ns", []byte("1000000")) != nil {
			return // without the right to it: as ever
		}
	}
}

func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Close(fd) }()
	req := struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(req.name[:], "lo")
	if _, _, e := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	return nil
}

func readFile(path string) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Close(fd) }()
	var out []byte
	var buf [1024]byte
	for {
		n, err := syscall.Read(fd, buf[:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		out = append(out, buf[:n]...)
	}
}

// writeFile makes the content appear whole or not at all.
func writeFile(path string, b []byte, sync bool) error {
	tmp := path + ".tmp"
	fd, err := syscall.Open(tmp, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	n, err := syscall.Write(fd, b)
	if err == nil && n < len(b) {
		err = syscall.ENOSPC
	}
	if err == nil && sync {
		err = syscall.Fsync(fd)
	}
	if e := syscall.Close(fd); err == nil {
		err = e
	}
	if err == nil {
		err = syscall.Rename(tmp, path)
	}
	return err
}

func writeTo(path string, b []byte) error {
	fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = syscall.Write(fd, b)
	_ = syscall.Close(fd)
	return err
}

func exists(path string) bool {
	var st syscall.Stat_t
	return syscall.Lstat(path, &st) == nil
}

func mkdirAll(path string) error {
	err := syscall.Mkdir(path, 0o755)
	if err != syscall.ENOENT {
		if err == syscall.EEXIST {
			return nil
		}
		return err
	}
	i := len(path) - 1
	for i > 0 && path[i] != '/' {
		i--
	}
	if i <= 0 {
		return err
	}
	if err := mkdirAll(path[:i]); err != nil {
		return err
	}
	if err := syscall.Mkdir(path, 0o755); err != nil && err != syscall.EEXIST {
		return err
	}
	return nil
}

func readDir(path string) ([]string, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Close(fd) }()
	var names []string
	var buf [2048]byte
	for {
		n, err := syscall.ReadDirent(fd, buf[:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = syscall.ParseDirent(buf[:n], -1, names)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func die(what string, err error) {
	_, _ = syscall.Write(2, []byte("gantry-shim: "+what+": "+err.Error()+"\n"))
	syscall.Exit(1)
}
