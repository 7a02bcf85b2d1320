// Package rundir names the files through which the agent, a pod's shim and the
// launcher talk, and how the tiny ones among them are written. It imports
// next to nothing, because the shim carries all of it once per pod.
package rundir

import (
	"strconv"
	"strings"
)

// Files in a pod's directory.
const (
	Sandbox  = "sandbox.json" // what the agent asked for; written before the shim starts
	ShimConf = "shim.conf"    // the same for the shim, one value per line
	ShimLock = "shim.lock"    // locked (OFD) by the shim, or by the agent that prepares one
	ShimPID  = "shim.pid"     // pid and start time of the shim
	ShimLog  = "shim.log"     // its standard error; empty unless it crashed
	Wake     = "wake"         // FIFO: a byte means "look again"
	Stop     = "stop"         // exists: start nothing more, kill all, leave
	Runs     = "c"            // directory with one directory per run
)

// Files in the directory of a run, in the order in which they appear.
const (
	Want    = "want"    // what to run, JSON; written by the agent, never changed
	Claim   = "claim"   // created exclusively by the shim before it starts anything
	Root    = "rootfs"  // where the launcher mounts the overlay, in its own mount namespace
	Dev     = "dev"     // where it prepares the container's /dev, likewise
	Stdin   = "stdin"   // FIFO into the standard input, made before want; only where there is one
	TTY     = "tty"     // made before want: the standard descriptors are a terminal
	Message = "message" // bound to the container's termination message path
	Gate    = "gate"    // FIFO at which the container's first process waits to be let through
	PID     = "pid"     // it executes
	Exit    = "exit"    // it ended
	Failed  = "failed"  // it could not be started
	Lost    = "lost"    // the shim died before it could see the end
)

// Files in the directory of a run by which the agent tells the shim, which it
// wakes, how somebody is connected to it.
const (
	StdinUsed   = "stdin.used"   // somebody was connected to an input that is for one only
	StdinClosed = "stdin.closed" // the input is at its end
	Size        = "size"         // of the terminal: columns and rows
	Follow      = "follow"       // somebody reads along: the log need not wait for the ends of lines
)

// Descriptors that the shim inherits.
const (
	FDLauncher = 3 // sealed memfd
	FDLock     = 4 // open file description that holds ShimLock
)

// Descriptors that the launcher inherits.
const (
	FDSync  = 3 // packet socket on which it says why nothing runs
	FDPeer  = 4 // the other end of FDSync, which the shim has too
	FDReady = 5 // pipe: one byte means that only Gate holds the command back
	// FDConsole is where the other end of the terminal is sent, where there is one.
	FDConsole = 6
)

// ContainerID is the id of every container towards libcontainer: each has a
// state directory of its own.
const ContainerID = "c"

// RunName is the name of the directory of a run. Container names are DNS
// labels, so the first dot ends them.
func RunName(name string, attempt int) string {
	return name + "." + strconv.Itoa(attempt)
}

// Layer is where, on disk, the writable layer of a run is and what the kernel
// keeps beside it. There is no directory around them: each costs.
func Layer(scratch string) (upper, work string) {
	return scratch + ".upper", scratch + ".work"
}

// ParseRunName is the reverse of RunName.
func ParseRunName(s string) (name string, attempt int, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i <= 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(s[i+1:])
	if err != nil || n < 0 {
		return "", 0, false
	}
	return s[:i], n, true
}

// Ints writes numbers as one line.
func Ints(n ...int64) []byte {
	b := make([]byte, 0, 64)
	for i, v := range n {
		if i > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendInt(b, v, 10)
	}
	return append(b, '\n')
}

// ParseInts reads exactly n numbers from the first line of b.
func ParseInts(b []byte, n int) ([]int64, bool) {
	s := string(b)
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		s = s[:i]
	}
	out := make([]int64, 0, n)
	for len(s) > 0 && len(out) <= n {
		word := s
		if i := strings.IndexByte(s, ' '); i >= 0 {
			word, s = s[:i], s[i+1:]
		} else {
			s = ""
		}
		v, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, false
		}
		out = append(out, v)
	}
	return out, len(out) == n
}

// ParseStat takes a process's state and start time (clock ticks since boot)
// from the content of /proc/PID/stat. The command may hold anything, so it is
// skipped by its last parenthesis.
func ParseStat(b []byte) (state byte, start int64, ok bool) {
	s := string(b)
	i := strings.LastIndexByte(s, ')')
	if i < 0 || len(s) < i+3 {
		return 0, 0, false
	}
	s = s[i+2:]
	state = s[0]
	for field := 3; ; field++ {
		j := strings.IndexByte(s, ' ')
		if j < 0 {
			return 0, 0, false
		}
		if field == 22 {
			start, err := strconv.ParseInt(s[:j], 10, 64)
			return state, start, err == nil
		}
		s = s[j+1:]
	}
}
