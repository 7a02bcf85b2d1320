//go:build linux

package main

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The watching thread of Go's runtime looks every 20 microseconds for a thread
// that is stuck in a system call, and here there always is one: that took a
// tenth of the CPU time of a start. Timers of the threads that exist when calm
// is called may be late by lateness, which it spends asleep.
const lateness = "1000000" // nanoseconds

// calm must not be called by a thread that will execute something: the timers
// of its own are left alone, and the others end with this process.
func calm() {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	// Not gettid: the numbers in /proc are those of the host.
	self, err := os.Readlink("/proc/thread-self")
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(self) {
			continue
		}
		fd, err := unix.Open("/proc/"+e.Name()+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return // without the right to it, or the file: as ever
		}
		_, _ = unix.Write(fd, []byte(lateness))
		_ = unix.Close(fd)
	}
}
