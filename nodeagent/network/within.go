package network

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Within runs fn on a thread that is in a network namespace. What fn opens
// there, sockets above all, stays there; fn must start no goroutine that counts
// on it, and be quick: the thread is nobody else's meanwhile.
func Within(ns *os.File, fn func() error) error {
	out := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			out <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			out <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = fn()
		// A thread that cannot come back stays locked, and ends with this
		// goroutine: nobody else may run on it.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		out <- err
	}()
	return <-out
}
