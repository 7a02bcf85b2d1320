//go:build linux

package forward

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/network"
)

// pod makes a network namespace with loopback up.
func pod(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	type made struct {
		ns  *os.File
		err error
	}
	out := make(chan made)
	go func() {
		// The thread is never unlocked: it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			out <- made{nil, err}
			return
		}
		if text, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			out <- made{nil, errors.New(string(text))}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		out <- made{ns, err}
	}()
	m := <-out
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { _ = m.ns.Close() })
	return m.ns
}

// listen listens in the pod and answers each connection with serve.
func listen(t *testing.T, ns *os.File, address string, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	var l net.Listener
	if err := network.Within(ns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.TCPConn))
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// upper answers with what it was sent, once it has heard all of it.
func upper(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	said, err := io.ReadAll(c)
	if err == nil {
		_, _ = io.WriteString(c, strings.ToUpper(string(said)))
	}
}

func TestDialFromWithin(t *testing.T) {
	ns := pod(t)
	for desc, address := range map[string]string{"IPv4": "127.0.0.1:0", "IPv6 alone": "[::1]:0"} {
		t.Run(desc, func(t *testing.T) {
			port := listen(t, ns, address, upper)
			conn, err := Dial(t.Context(), ns, port)
			if err != nil {
				t.Fatal(err)
			}
			w := Work(conn)
			defer w.Stop()
			if _, err := io.WriteString(w.Stdin, "hello"); err != nil {
				t.Fatal(err)
			}
			// The end of the input closes one half: the answer still comes.
			if err := w.Stdin.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(w.Stdout); err != nil || string(got) != "HELLO" {
				t.Errorf("answered %q, %v", got, err)
			}
		})
	}
}

func TestDialRefused(t *testing.T) {
	ns := pod(t)
	_, err := Dial(t.Context(), ns, 81)
	if !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), "failed to connect to localhost:81 inside the pod") {
		t.Errorf("nobody listens: %v", err)
	}
	// A process of the host: this one's first thread may be in a pod.
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = child.Wait()
	}()
	home, err := Namespace(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = home.Close() }()
	// The host's network: what listens there is heard, what the pod has is not.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	conn, err := Dial(t.Context(), home, port)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if _, err := Dial(t.Context(), ns, port); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port of the host, from the pod: %v", err)
	}
	if _, err := Namespace(1 << 30); err == nil {
		t.Error("a process that is not there has a network")
	}
}

// TestStopEndsReads: a session that ends must not leave a goroutine behind
// that waits for the pod.
func TestStopEndsReads(t *testing.T) {
	ns := pod(t)
	port := listen(t, ns, "127.0.0.1:0", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	conn, err := Dial(t.Context(), ns, port)
	if err != nil {
		t.Fatal(err)
	}
	w := Work(conn)
	done := make(chan error)
	go func() {
		_, err := io.ReadAll(w.Stdout)
		done <- err
	}()
	w.Stop()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the read ended with %v", err)
	}
}
