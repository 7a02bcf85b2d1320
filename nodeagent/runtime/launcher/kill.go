//go:build linux

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// leader is a command that may be killed until it is waited for: from then on
// its number may be anybody's.
type leader struct {
	pid   int
	mu    sync.Mutex
	ended bool
}

// kill kills the command and its session, if it has not ended.
func (l *leader) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		killSession(l.pid)
	}
}

// await returns when the command has ended. It is still to be waited for, and
// not to be killed any more.
func (l *leader) await() {
	for errors.Is(unix.Waitid(unix.P_PID, l.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}

// killSession kills a command and all that it started and that did not leave
// its session, as a shell's jobs do not. The command comes last: while it is
// there, its number cannot be another's.
func killSession(leader int) {
	// What forks while it is looked for is found the next time.
	for range 100 {
		found := false
		for _, pid := range processes() {
			if pid == leader || sessionOf(pid) != leader {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			if sessionOf(pid) == leader { // still the one that was looked at
				found = found || unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
			}
			_ = unix.Close(fd)
		}
		if !found {
			break
		}
	}
	if err := unix.Kill(leader, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return
	}
}

func processes() []int {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sessionOf is the session of a process that lives, 0 where it cannot be told.
func sessionOf(pid int) int {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// After the command in parentheses: state, parent, group, session.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 4 || string(f[0]) == "Z" {
		return 0
	}
	sid, _ := strconv.Atoi(string(f[3]))
	return sid
}
