//go:build linux

// Package forward connects to a port of a pod from within the pod's own
// network, where also what listens on loopback alone is heard.
package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/network"
	"gantry.dev/nodeagent/session"
)

const (
	dialPatience = 5 * time.Second
	pollSlice    = 100 * time.Millisecond
)

// Namespace opens the network namespace of a process. It may be closed once
// Dial has returned.
func Namespace(pid int) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	return f, nil
}

// Dial connects to a port on loopback within a network namespace: over IPv4,
// and where nobody listens there, over IPv6. The error is meant for users.
func Dial(ctx context.Context, ns *os.File, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	conn, err := dial(ctx, ns, unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENETUNREACH) {
		// Where neither answers, the first answer is the one to tell.
		if conn6, err6 := dial(ctx, ns, unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}); err6 == nil {
			return conn6, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("failed to connect to localhost:%d inside the pod: %w", port, err)
	}
	return conn, nil
}

// dial makes the socket within the namespace, where it stays, and connects it
// from here: a connection that takes its time holds no thread.
func dial(ctx context.Context, ns *os.File, family int, to unix.Sockaddr) (*net.TCPConn, error) {
	fd := -1
	err := network.Within(ns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer func() { _ = f.Close() }()
	if err := connect(ctx, fd, to); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("the connection is a %T", c)
	}
	return conn, nil
}

func connect(ctx context.Context, fd int, to unix.Sockaddr) error {
	err := unix.Connect(fd, to)
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, int(pollSlice/time.Millisecond)) // a slice only to look at ctx
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("nobody answered: %w", err)
		}
		if n <= 0 {
			continue
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return err
		}
		if code != 0 {
			return unix.Errno(code)
		}
		return nil
	}
}

// Work makes a session of a connection: what the client sends goes in, and the
// end of its input closes that half alone. The session ends when the pod has
// closed its half, as a connection that nothing can come from is of no use to
// a client that waits for its end.
func Work(conn *net.TCPConn) session.Work {
	stop := sync.OnceFunc(func() { _ = conn.Close() })
	return session.Work{Stdin: half{conn}, Stdout: conn, Stop: stop}
}

// half is the direction into the pod.
type half struct{ *net.TCPConn }

func (h half) Close() error { return h.CloseWrite() }
