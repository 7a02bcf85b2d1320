package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// netns is a network namespace that lives as long as its file is open.
type netns struct{ file *os.File }

func newNetNS(t testing.TB) netns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	type result struct {
		file *os.File
		err  error
	}
	out := make(chan result)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and no
		// other one finds itself in this namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			out <- result{err: fmt.Errorf("unshare network: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		out <- result{f, err}
	}()
	r := <-out
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.file.Close() })
	ns := netns{r.file}
	ns.ip(t, "link set lo up")
	return ns
}

// try runs f on a thread in the namespace.
func (n netns) try(f func() error) error {
	out := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			out <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		out <- f()
	}()
	return <-out
}

func (n netns) run(name string, args ...string) (string, error) {
	var out []byte
	err := n.try(func() error {
		var err error
		if out, err = exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
	return string(out), err
}

func (n netns) ip(t testing.TB, args string) {
	t.Helper()
	if _, err := n.run("ip", strings.Fields(args)...); err != nil {
		t.Fatal(err)
	}
}

func (n netns) nft(t testing.TB, args ...string) string {
	t.Helper()
	out, err := n.run("nft", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
