//go:build linux

// Command gantry-shim is the one process of ours that stays with a pod: it
// holds the pod's namespaces, starts the launcher, drains logs, and writes down
// how each run ended, whether or not an agent is there to read it.
//
// It runs once per pod, so it is written against package syscall alone, in one
// goroutine around one ppoll: package os and what it pulls in would cost more
// memory than everything here together.
package main

import (
	"runtime"
	"syscall"

	"gantry.dev/nodeagent/runtime/rundir"
)

// shim is the whole state: what it must not forget is on disk.
type shim struct {
	conf     conf
	wake     int
	runs     []*run
	stopping bool
	buf      [32 << 10]byte
	line     []byte
}

// conf is what the agent wrote to rundir.ShimConf.
type conf struct {
	uid       string
	hostname  string // "" leaves it (host network)
	logDir    string
	agentWake string // FIFO of the agent
	cgroups   string // directory under which the runs' cgroups are, for OOM counts and kills
	oomFile   string
	ownNet    bool
}

func main() {
	// The one fact that others cannot see from outside is that we live: the
	// lock came with us as an open file, so it ends exactly when we do.
	syscall.CloseOnExec(rundir.FDLauncher)
	syscall.CloseOnExec(rundir.FDLock)
	// Children are told of the death of the thread that made them.
	runtime.LockOSThread()
	calm()
	become()
	s := &shim{conf: readConf()}
	s.setUp()
	s.scan()
	for {
		if s.stopping && len(s.runs) == 0 {
			syscall.Exit(0)
		}
		s.turn()
	}
}

// become makes us deaf to a TERM for everybody, and writes who we are.
func become() {
	ignore(syscall.SIGTERM)
	ignore(syscall.SIGINT)
	ignore(syscall.SIGHUP)
	stat, err := readFile("/proc/self/stat")
	if err != nil {
		die("read own start time", err)
	}
	_, start, ok := rundir.ParseStat(stat)
	if !ok {
		die("read own start time", syscall.EINVAL)
	}
	if err := writeFile(rundir.ShimPID, rundir.Ints(int64(syscall.Getpid()), start), false); err != nil {
		die("write pid", err)
	}
}

func readConf() conf {
	b, err := readFile(rundir.ShimConf)
	if err != nil {
		die("read configuration", err)
	}
	var field [7]string
	for i := range field {
		j := 0
		for j < len(b) && b[j] != '\n' {
			j++
		}
		if j == len(b) {
			die("read configuration", syscall.EINVAL)
		}
		field[i], b = string(b[:j]), b[j+1:]
	}
	return conf{
		uid: field[0], hostname: field[1], logDir: field[2], agentWake: field[3],
		cgroups: field[4], oomFile: field[5], ownNet: field[6] == "1",
	}
}

func (s *shim) setUp() {
	if s.conf.hostname != "" {
		if err := syscall.Sethostname([]byte(s.conf.hostname)); err != nil {
			die("set host name", err)
		}
	}
	if s.conf.ownNet {
		if err := loopbackUp(); err != nil {
			die("set loopback up", err)
		}
		// As other runtimes do: port 80 needs no capability inside a pod.
		_ = writeTo("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"))
	}
	// Read and write, so that the FIFO never reports the end of file.
	fd, err := syscall.Open(rundir.Wake, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		die("open wake", err)
	}
	s.wake = fd
}

// perRun is how many descriptors of a run are waited for.
const perRun = 5

// turn waits for one thing to happen and handles what did.
func (s *shim) turn() {
	fds := make([]pollFd, 1, 1+perRun*len(s.runs))
	fds[0] = pollFd{fd: int32(s.wake), events: pollIn}
	for _, r := range s.runs {
		fds = append(fds,
			pollFd{fd: int32(r.pidfd), events: pollIn},
			pollFd{fd: int32(r.out.fd), events: pollIn | r.pendingOut()},
			pollFd{fd: int32(r.err.fd), events: pollIn},
			pollFd{fd: r.input(), events: pollIn},
			pollFd{fd: int32(r.ready), events: pollIn})
	}
	if !poll(fds) {
		return
	}
	ended := false
	for i, r := range s.runs {
		f := fds[1+perRun*i:]
		if f[4].revents != 0 {
			s.letThrough(r)
		}
		if f[1].revents&pollOut != 0 {
			r.typed(nil)
		}
		if f[1].revents&^pollOut != 0 {
			s.drain(r, &r.out, false)
		}
		if f[2].revents != 0 {
			s.drain(r, &r.err, false)
		}
		if f[3].revents != 0 {
			s.hear(r)
		}
		ended = ended || f[0].revents != 0
	}
	if ended {
		s.reap()
	}
	if fds[0].revents != 0 {
		for {
			n, err := syscall.Read(s.wake, s.buf[:])
			if n < len(s.buf) || err != nil {
				break
			}
		}
		s.scan()
	}
}

// scan starts what is wanted and was not claimed. It keeps no list of what it
// has seen: the claim file is the list.
func (s *shim) scan() {
	if exists(rundir.Stop) {
		s.stopping = true
		for _, r := range s.runs {
			kill(r.pidfd, syscall.SIGKILL)
		}
		return
	}
	for _, r := range s.runs {
		s.tend(r)
	}
	names, err := readDir(rundir.Runs)
	if err != nil {
		return // not made yet
	}
	for _, n := range names {
		dir := rundir.Runs + "/" + n
		if !exists(dir + "/" + rundir.Want) {
			continue
		}
		fd, err := syscall.Open(dir+"/"+rundir.Claim, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			continue // claimed before
		}
		_ = syscall.Close(fd)
		s.launch(n, dir)
	}
}

// reap collects every child that has ended.
func (s *shim) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			break
		}
		r := s.byPID(pid)
		switch {
		case r == nil: // none of ours
		case r.launching:
			s.notLaunched(r, status)
		default:
			s.exited(r, status)
		}
	}
}

func (s *shim) byPID(pid int) *run {
	for _, r := range s.runs {
		if r.pid == pid {
			return r
		}
	}
	return nil
}

func (s *shim) forget(r *run) {
	for i := range s.runs {
		if s.runs[i] == r {
			s.runs = append(s.runs[:i:i], s.runs[i+1:]...)
			break
		}
	}
	s.tell()
}

// tell wakes the agent. It says only whose pod it is; losing it is harmless.
func (s *shim) tell() {
	fd, err := syscall.Open(s.conf.agentWake, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return // nobody there: the next agent reads everything
	}
	_, _ = syscall.Write(fd, append([]byte(s.conf.uid), '\n'))
	_ = syscall.Close(fd)
}
