//go:build linux

package main

import (
	"syscall"

	"gantry.dev/nodeagent/runtime/rundir"
)

// run is one run of one container, and the process that is first the launcher
// and then the container's.
type run struct {
	name, dir string
	pid       int
	pidfd     int
	launching bool
	log       int
	out, err  stream
	words     int // the launcher's, until the command executes
	ready     int // tells that the launcher has done its work
	gate      int // held open, so that the command is not stopped at it
	console
}

// launch starts the launcher in namespaces of its own, so that what it mounts
// ends with the container and is never seen on the host. It becomes the
// container.
func (s *shim) launch(name, dir string) {
	r := &run{
		name: name, dir: dir, launching: true, pidfd: -1, log: -1, words: -1, ready: -1, gate: -1,
		console: console{in: -1, socket: -1},
	}
	r.out = stream{tag: " stdout ", fd: -1}
	r.err = stream{tag: " stderr ", fd: -1}
	var files []uintptr
	defer func() {
		for i, fd := range files {
			if i != rundir.FDPeer {
				_ = syscall.Close(int(fd))
			}
		}
	}()
	what, err := "open log", s.openLog(r)
	if err == nil {
		what = "make pipes"
		files, err = r.pipes()
	}
	if err == nil {
		what = "open input"
		files, err = r.openInput(files)
	}
	if err == nil {
		what = "start launcher"
		// Not /proc/self: 3 is something else in the child already.
		r.pid, err = syscall.ForkExec("/proc/"+itoa(syscall.Getpid())+"/fd/3", []string{"gantry-launcher", "run"}, &syscall.ProcAttr{
			Dir: dir,
			// No collection in a process that lives for milliseconds.
			Env:   []string{"GOGC=off", "GOMAXPROCS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			Files: files,
			Sys:   &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Setsid: true, PidFD: &r.pidfd},
		})
	}
	if err != nil {
		s.fail(r, "StartError", what+": "+err.Error())
		s.close(r)
		s.tell()
		return
	}
	s.runs = append(s.runs, r)
	s.tend(r)
}

// pipes makes the descriptors of the launcher: the container's three, and those
// of package rundir.
func (r *run) pipes() ([]uintptr, error) {
	null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	files := []uintptr{uintptr(null)}
	for _, st := range []*stream{&r.out, &r.err} {
		var p [2]int
		if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
			return files, err
		}
		st.fd = p[0]
		files = append(files, uintptr(p[1]))
		if err := syscall.SetNonblock(p[0], true); err != nil {
			return files, err
		}
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return files, err
	}
	r.words = pair[1]
	files = append(files, uintptr(pair[0]), uintptr(pair[1]))
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return files, err
	}
	r.ready = p[0]
	return append(files, uintptr(p[1])), nil
}

// letThrough is called when only the gate holds the command back, or when there
// will be no command. What it writes is there before the command can do
// anything: whoever sees its work can find its process.
func (s *shim) letThrough(r *run) {
	var b [1]byte
	n, err := syscall.Read(r.ready, b[:])
	if err == syscall.EINTR || err == syscall.EAGAIN {
		return
	}
	_ = syscall.Close(r.ready)
	r.ready = -1
	if n != 1 {
		return // it is about to be reaped
	}
	// What failed in the last moment has said so before it could tell this.
	if said := s.lastWords(r); said != "" {
		s.fail(r, "", said)
		return
	}
	if err := s.open(r); err != nil {
		s.fail(r, "StartError", "release command: "+err.Error())
		kill(r.pidfd, syscall.SIGKILL)
		return
	}
	r.launching = false
	_ = syscall.Close(r.words)
	r.words = -1
	s.tell()
}

func (s *shim) open(r *run) error {
	// It is our child and not reaped, so the number is no other's.
	b, err := readFile("/proc/" + itoa(r.pid) + "/stat")
	if err != nil {
		return err
	}
	_, start, ok := rundir.ParseStat(b)
	if !ok {
		return syscall.EINVAL
	}
	sec, nsec := now()
	if err := writeFile(r.dir+"/"+rundir.PID, rundir.Ints(int64(r.pid), start, sec*1e9+nsec), false); err != nil {
		return err
	}
	// For reading and writing: it waits for nobody.
	r.gate, err = syscall.Open(r.dir+"/"+rundir.Gate, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	return err
}

// notLaunched ends a run whose launcher ended before the command could execute.
func (s *shim) notLaunched(r *run, status syscall.WaitStatus) {
	s.drain(r, &r.out, true)
	s.drain(r, &r.err, true)
	switch said := s.lastWords(r); {
	case exists(r.dir + "/" + rundir.Failed): // said before
	case said != "":
		s.fail(r, "", said)
	case status.Signaled() && s.oomKilled(r):
		s.fail(r, "ResourceLimit", "OOM-killed before the command could execute: the memory limit is too low")
	case status.Signaled():
		s.fail(r, "StartError", "launcher died: "+status.Signal().String())
	default:
		s.fail(r, "StartError", "launcher left no result")
	}
	s.close(r)
	s.forget(r)
}

// lastWords is the packet in which the launcher said why nothing runs.
func (s *shim) lastWords(r *run) string {
	const is = `{"type":"procError"`
	for {
		n, _, err := syscall.Recvfrom(r.words, s.buf[:], syscall.MSG_DONTWAIT)
		// It was reset if the launcher left without reading all that it was told;
		// that is said once, and before what it said itself.
		if err == syscall.EINTR || err == syscall.ECONNRESET {
			continue
		}
		if err != nil || n <= 0 {
			return ""
		}
		if n > len(is) && string(s.buf[:len(is)]) == is {
			return string(s.buf[:n])
		}
	}
}

// fail writes down why there is no command: a reason and a text, or without
// reason the launcher's own words.
func (s *shim) fail(r *run, reason, why string) {
	sec, nsec := now()
	b := append([]byte(reason+"\n"), rundir.Ints(sec*1e9+nsec)...)
	_ = writeFile(r.dir+"/"+rundir.Failed, append(b, why...), true)
}

// exited writes down how the container ended. By now nobody is left in its PID
// namespace, so what the pipes hold is all that they will.
func (s *shim) exited(r *run, status syscall.WaitStatus) {
	s.drain(r, &r.out, true)
	s.drain(r, &r.err, true)
	code, sig := int64(status.ExitStatus()), int64(0)
	if status.Signaled() {
		sig = int64(status.Signal())
		code = 128 + sig
	}
	oom := int64(0)
	if code != 0 && s.oomKilled(r) {
		oom = 1
	}
	sec, nsec := now()
	// A full disk must not make an end go unseen: try again until it is written.
	for writeFile(r.dir+"/"+rundir.Exit, rundir.Ints(code, sig, oom, sec*1e9+nsec), true) != nil {
		if !exists(r.dir) {
			break // removed under us: nobody wants to know
		}
		pause()
	}
	s.close(r)
	s.forget(r)
}

func (s *shim) close(r *run) {
	for _, fd := range []*int{&r.pidfd, &r.log, &r.out.fd, &r.err.fd, &r.words, &r.ready, &r.gate, &r.in, &r.socket} {
		if *fd >= 0 {
			_ = syscall.Close(*fd)
			*fd = -1
		}
	}
}

// oomKilled reads the counter. It is read at the end and nowhere else: a channel
// to whoever watches would be lost with the watcher.
func (s *shim) oomKilled(r *run) bool {
	b, err := readFile(s.conf.cgroups + "/" + r.name + "/" + s.conf.oomFile)
	return err == nil && oomKills(b) > 0
}

// oomKills finds the line "oom_kill N", which v1 and v2 have in common.
func oomKills(b []byte) int {
	const key = "oom_kill "
	for i := 0; i+len(key) <= len(b); i++ {
		if (i == 0 || b[i-1] == '\n') && string(b[i:i+len(key)]) == key {
			n := 0
			for _, c := range b[i+len(key):] {
				if c < '0' || c > '9' {
					break
				}
				n = n*10 + int(c-'0')
			}
			return n
		}
	}
	return 0
}
