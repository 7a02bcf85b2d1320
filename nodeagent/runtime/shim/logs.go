//go:build linux

package main

import (
	"syscall"

	"gantry.dev/nodeagent/runtime/rundir"
)

// maxLine is the longest piece of a line that is written in one go; longer
// lines come as several pieces marked P, the last one F.
const maxLine = 16 << 10

// stream is one of a container's two outputs.
type stream struct {
	tag  string // " stdout " or " stderr "
	fd   int
	part []byte // beginning of a line whose end was not read yet
	// eager is set where somebody may read along: what was read is written at
	// once, in pieces marked P. It is for each terminal, with its prompts.
	eager bool
}

// openLog opens the file of this run. It is opened for appending: an attempt
// number can come again after a reboot, and what is there is kept.
func (s *shim) openLog(r *run) error {
	name, attempt, ok := rundir.ParseRunName(r.name)
	if !ok {
		return syscall.EINVAL
	}
	dir := s.conf.logDir + "/" + name
	if err := mkdirAll(dir); err != nil {
		return err
	}
	fd, err := syscall.Open(dir+"/"+itoa(attempt)+".log", syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT|syscall.O_CLOEXEC, 0o640)
	r.log = fd
	return err
}

// drain moves what the pipe holds into the log: one read, or at the end of the
// run all of it.
func (s *shim) drain(r *run, st *stream, end bool) {
	for st.fd >= 0 {
		n, err := syscall.Read(st.fd, s.buf[:])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 {
			// Closed by everyone who had it. A terminal says it by an error, and
			// would go on to wake us.
			if n == 0 || err == syscall.EIO {
				_ = syscall.Close(st.fd)
				st.fd = -1
			}
			break
		}
		s.record(r, st, s.buf[:n])
		if !end {
			return
		}
	}
	if end && len(st.part) > 0 {
		s.begin(st)
		s.line = append(append(append(s.line, "F "...), st.part...), '\n')
		st.part = nil
		s.flush(r)
	}
}

// record cuts b into lines, each with the time at which it was read.
func (s *shim) record(r *run, st *stream, b []byte) {
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != '\n' && len(st.part)+i < maxLine {
			i++
		}
		if i == len(b) {
			st.part = append(st.part, b...)
			break
		}
		s.begin(st)
		if b[i] == '\n' {
			s.line = append(s.line, "F "...)
		} else {
			s.line = append(s.line, "P "...)
		}
		s.line = append(append(append(s.line, st.part...), b[:i]...), '\n')
		st.part = nil
		if b[i] == '\n' {
			i++
		}
		b = b[i:]
		if len(s.line) > maxLine {
			s.flush(r)
		}
	}
	s.hurry(st)
	s.flush(r)
}

// hurry begins to write a line whose end was not read.
func (s *shim) hurry(st *stream) {
	if !st.eager || len(st.part) == 0 {
		return
	}
	s.begin(st)
	s.line = append(append(append(s.line, "P "...), st.part...), '\n')
	st.part = nil
}

// flush writes whole lines. What cannot be written is dropped: the other
// choice, to stop reading, would stop the container when the disk is full.
func (s *shim) flush(r *run) {
	b := s.line
	for len(b) > 0 {
		n, err := syscall.Write(r.log, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			break
		}
		b = b[n:]
	}
	s.line = s.line[:0]
	if cap(s.line) > 4*maxLine {
		s.line = nil
	}
}

func (s *shim) begin(st *stream) {
	sec, nsec := now()
	s.line = append(appendTime(s.line, sec, nsec), st.tag...)
}

// appendTime writes a UTC time as 2006-01-02T15:04:05.000000000Z. Package time
// would do, with its tables of zones in our memory.
func appendTime(b []byte, sec, nsec int64) []byte {
	days, rest := sec/86400, sec%86400
	// Days since 0000-03-01, in eras of 400 years, so that the leap day is the
	// last of its year.
	z := days + 719468
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day := doy - (153*mp+2)/5 + 1
	month := mp + 3
	year := yoe + era*400
	if month > 12 {
		month -= 12
		year++
	}
	b = appendN(b, year, 4)
	b = append(b, '-')
	b = appendN(b, month, 2)
	b = append(b, '-')
	b = appendN(b, day, 2)
	b = append(b, 'T')
	b = appendN(b, rest/3600, 2)
	b = append(b, ':')
	b = appendN(b, rest/60%60, 2)
	b = append(b, ':')
	b = appendN(b, rest%60, 2)
	b = append(b, '.')
	b = appendN(b, nsec, 9)
	return append(b, 'Z')
}

func appendN(b []byte, v int64, width int) []byte {
	at := len(b)
	for range width {
		b = append(b, '0')
	}
	for i := at + width - 1; i >= at; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
	return b
}
