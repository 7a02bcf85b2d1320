//go:build linux

package main

import (
	"syscall"

	"gantry.dev/nodeagent/runtime/rundir"
)

// run is one run of one container. It is first its launcher, then the
// container's first process: pid and pidfd are those of whichever it is.
type run struct {
	name, dir string
	pid       int
	pidfd     int
	launching bool
	log       int
	out, err  stream
	console
}

// launch starts the launcher in a mount namespace of its own, so that what it
// mounts ends with the container and is never seen on the host.
func (s *shim) launch(name, dir string) {
	r := &run{name: name, dir: dir, launching: true, pidfd: -1, log: -1, console: console{in: -1, socket: -1}}
	r.out = stream{tag: " stdout ", fd: -1}
	r.err = stream{tag: " stderr ", fd: -1}
	var files []uintptr
	defer func() {
		for _, fd := range files {
			_ = syscall.Close(int(fd))
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
		// Not /proc/self: with a terminal, 3 is something else in the child already.
		r.pid, err = syscall.ForkExec("/proc/"+itoa(syscall.Getpid())+"/fd/3", []string{"gantry-launcher", "run"}, &syscall.ProcAttr{
			Dir: dir,
			// No collection in a process that lives for milliseconds.
			Env:   []string{"GOGC=off", "GOMAXPROCS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			Files: files,
			// If we die, so does a launcher under way: it must not bring a container
			// into a pod that is being buried.
			Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, PidFD: &r.pidfd, Pdeathsig: syscall.SIGKILL},
		})
	}
	if err != nil {
		s.fail(r, what+": "+err.Error())
		s.close(r)
		s.tell()
		return
	}
	s.runs = append(s.runs, r)
	s.tend(r)
}

// pipes makes the container's three standard descriptors.
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
	return files, nil
}

// launched is called when the launcher has ended: the container's first
// process is our child now, or there is none.
func (s *shim) launched(r *run, status syscall.WaitStatus) {
	_ = syscall.Close(r.pidfd)
	r.pidfd, r.launching = -1, false
	if status != 0 {
		s.notLaunched(r, status)
		return
	}
	b, err := readFile(r.dir + "/" + rundir.PID)
	n, ok := rundir.ParseInts(b, 3)
	if err != nil || !ok {
		s.notLaunched(r, status)
		return
	}
	r.pid = int(n[0])
	s.tell()
	for _, o := range s.orphans {
		if o.pid == r.pid {
			s.exited(r, o.status)
			return
		}
	}
	// It is our child and not reaped, so the number cannot be anyone else's.
	if r.pidfd, err = pidfdOpen(r.pid); err != nil {
		s.notLaunched(r, status)
		return
	}
	if s.stopping {
		kill(r.pidfd, syscall.SIGKILL)
	}
}

// notLaunched ends a run whose launcher failed. A launcher that was killed may
// have left a half-made container behind.
func (s *shim) notLaunched(r *run, status syscall.WaitStatus) {
	s.killCgroup(r)
	s.drain(r, &r.out, true)
	s.drain(r, &r.err, true)
	if syscall.Rename(r.dir+"/"+rundir.Failing, r.dir+"/"+rundir.Failed) != nil {
		why := "launcher left no result"
		if status.Signaled() {
			why = "launcher died: " + status.Signal().String()
		}
		s.fail(r, why)
	}
	s.close(r)
	s.forget(r)
}

func (s *shim) fail(r *run, why string) {
	sec, nsec := now()
	b := append([]byte("StartError\n"), rundir.Ints(sec*1e9+nsec)...)
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
	// The counter is read here and nowhere else: a channel to whoever watches
	// would be lost with the watcher.
	if b, err := readFile(s.conf.cgroups + "/" + r.name + "/" + s.conf.oomFile); err == nil && oomKills(b) > 0 && code != 0 {
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
	for _, fd := range []*int{&r.pidfd, &r.log, &r.out.fd, &r.err.fd, &r.in, &r.socket} {
		if *fd >= 0 {
			_ = syscall.Close(*fd)
			*fd = -1
		}
	}
}

func (s *shim) killCgroup(r *run) {
	b, err := readFile(s.conf.cgroups + "/" + r.name + "/cgroup.procs")
	if err != nil {
		return
	}
	pid := 0
	for _, c := range b {
		if c != '\n' {
			pid = pid*10 + int(c-'0')
			continue
		}
		if fd, err := pidfdOpen(pid); err == nil {
			kill(fd, syscall.SIGKILL)
			_ = syscall.Close(fd)
		}
		pid = 0
	}
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
