package session

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"gantry.dev/schemas"
)

const (
	// bufferBytes is what is kept of each direction.
	bufferBytes = 256 << 10
	chunkBytes  = 32 << 10
	// drainPatience is how long an output may stay silent after the command has
	// ended: what the command left in the background holds it open, maybe for ever.
	drainPatience = 500 * time.Millisecond
	// linger is how long a session that told its end is kept, for the case that
	// this answer was lost.
	linger = 10 * time.Second
)

// session is one of them. It is over in two steps: done says that nothing runs
// any more and the rest can be fetched, stopped that it is not to be used.
type session struct {
	engine   *Engine
	id, pod  string
	order    [sha256.Size]byte // of what was asked for
	ready    chan struct{}     // closed when the start has succeeded or failed
	startErr error             // written before ready is closed
	released atomic.Bool

	mu      sync.Mutex
	waker   chan struct{} // closed at the next change; nil while nobody waits
	work    Work
	running bool   // work is there and not stopped
	stopped string // why it ended before the client had its end
	killed  string // why its work was stopped
	done    bool
	told    bool // that it is done
	code    *int
	err     error

	out      output
	in       input
	reads    map[string]time.Time // outputs that are not at their end, by channel: since when they wait for bytes, zero while they do not
	requests map[string]int       // under way, by verb
	last     time.Time            // of the newest request's end
	idle     *time.Timer
}

func newSession(e *Engine, id, pod string) *session {
	return &session{engine: e, id: id, pod: pod, ready: make(chan struct{}), requests: map[string]int{}, reads: map[string]time.Time{}, last: time.Now()}
}

// change wakes all who wait. The caller holds mu.
func (s *session) change() {
	if s.waker != nil {
		close(s.waker)
		s.waker = nil
	}
}

// changed is closed at the next change. The caller holds mu.
func (s *session) changed() <-chan struct{} {
	if s.waker == nil {
		s.waker = make(chan struct{})
	}
	return s.waker
}

// start takes the work in, so that requests find it. False means that the
// session was ended before; the work is stopped then.
func (s *session) start(work Work) bool {
	s.mu.Lock()
	if s.stopped != "" || s.killed != "" {
		s.mu.Unlock()
		finish(work)
		return false
	}
	defer s.mu.Unlock()
	s.work, s.running = work, true
	s.in.present = work.Stdin != nil
	s.idle = time.AfterFunc(s.engine.o.Idle, s.look)
	return true
}

// run is the session's life.
func (s *session) run(work Work) {
	var pumps, writer sync.WaitGroup
	outputs := map[string]io.Reader{schemas.ChannelStdout: work.Stdout, schemas.ChannelStderr: work.Stderr}
	s.mu.Lock()
	for channel, r := range outputs {
		if r != nil {
			s.reads[channel] = time.Time{}
			pumps.Go(func() { s.pump(channel, r) })
		}
	}
	s.mu.Unlock()
	if work.Stdin != nil {
		writer.Go(func() { s.feed(work.Stdin) })
	}
	var code *int
	var err error
	if work.Wait != nil {
		code, err = work.Wait()
		s.drained()
	}
	pumps.Wait()
	s.mu.Lock()
	s.in.end()
	s.change()
	s.mu.Unlock()
	s.stop()
	writer.Wait()
	s.mu.Lock()
	if s.killed != "" && code == nil && err == nil {
		err = errors.New(s.killed)
	}
	s.done, s.code, s.err = true, code, err
	settled := s.out.empty()
	s.change()
	s.mu.Unlock()
	if settled {
		s.engine.release(s)
	}
}

// finish ends work that came too late.
func finish(w Work) {
	if w.Stop != nil {
		w.Stop()
	}
	if w.Stdin != nil {
		_ = w.Stdin.Close()
	}
	if w.Wait != nil {
		_, _ = w.Wait() // nobody is there to hear how it ended, but a process is waited for
	}
}

// why says why it ended before it began.
func (s *session) why() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.stopped, s.killed)
}

// pump moves an output into the buffer while there is room in it.
func (s *session) pump(channel string, r io.Reader) {
	buf := make([]byte, chunkBytes)
	for {
		room := s.room(channel)
		if room == 0 {
			break
		}
		n, err := r.Read(buf[:min(room, len(buf))])
		s.mu.Lock()
		if s.stopped == "" {
			s.out.add(channel, buf[:n])
		}
		s.reads[channel] = time.Time{}
		s.change()
		s.mu.Unlock()
		if err != nil {
			break
		}
	}
	s.mu.Lock()
	delete(s.reads, channel)
	s.change()
	s.mu.Unlock()
}

// room waits until an output may be read; 0 when the session has ended.
func (s *session) room(channel string) int {
	s.mu.Lock()
	for s.stopped == "" && s.out.room() == 0 {
		changed := s.changed()
		s.mu.Unlock()
		<-changed
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.stopped != "" {
		return 0
	}
	s.reads[channel] = time.Now()
	return s.out.room()
}

// drained returns when the outputs of a command that has ended are at their
// end or silent for so long that their end will not come; these are closed.
func (s *session) drained() {
	ended := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.reads) > 0 && s.stopped == "" {
		silent, wait := true, drainPatience
		for _, since := range s.reads {
			if since.IsZero() { // waits for the client to make room
				silent = false
				continue
			}
			if since.Before(ended) {
				since = ended
			}
			if left := drainPatience - time.Since(since); left > 0 {
				silent, wait = false, min(wait, left)
			}
		}
		if silent {
			s.mu.Unlock()
			s.stop()
			s.mu.Lock()
			return
		}
		changed := s.changed()
		s.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		s.mu.Lock()
	}
}

// feed moves the input to the work. What it no longer takes is thrown away, as
// a pipe without a reader would do it.
func (s *session) feed(w io.WriteCloser) {
	defer func() { _ = w.Close() }()
	buf := make([]byte, chunkBytes)
	for {
		n := s.input(buf)
		if n == 0 {
			return
		}
		_, err := w.Write(buf[:n])
		s.mu.Lock()
		s.in.written(n)
		if err != nil {
			s.in.end()
		}
		s.change()
		s.mu.Unlock()
	}
}

// input waits for input and copies some into buf; 0 when no more will come.
func (s *session) input(buf []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.in.over && len(s.in.buf) == 0 && !s.in.last && s.stopped == "" {
		changed := s.changed()
		s.mu.Unlock()
		<-changed
		s.mu.Lock()
	}
	if s.in.over || s.stopped != "" {
		return 0
	}
	return copy(buf, s.in.buf)
}

// stop stops the work, once.
func (s *session) stop() {
	s.mu.Lock()
	stop := s.work.Stop
	was := s.running
	s.running = false
	s.mu.Unlock()
	if was && stop != nil {
		stop()
	}
}

// kill stops the work. The rest of what it said, and its end, can be fetched.
func (s *session) kill(why string) {
	s.mu.Lock()
	if s.killed == "" {
		s.killed = why
	}
	s.mu.Unlock()
	s.stop()
}

// end ends the session: nothing of it can be fetched any more.
func (s *session) end(why string) {
	s.mu.Lock()
	if s.stopped != "" {
		s.mu.Unlock()
		return
	}
	s.stopped = why
	s.out.clear()
	s.in.end()
	if s.idle != nil {
		s.idle.Stop()
	}
	s.change()
	s.mu.Unlock()
	s.stop()
	s.engine.drop(s, why)
}

// begin counts a request in. False means that too many of its kind wait.
func (s *session) begin(verb string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests[verb] >= requestsAtOnce {
		return false
	}
	s.requests[verb]++
	return true
}

// finished counts a request out.
func (s *session) finished(verb string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[verb]--
	s.last = time.Now()
}

// look ends the session if its client is gone.
func (s *session) look() {
	s.mu.Lock()
	if s.stopped != "" {
		s.mu.Unlock()
		return
	}
	patience, why := s.engine.o.Idle, "its client did not ask for it for so long that it was ended"
	if s.told {
		patience, why = min(patience, linger), "it has ended"
	}
	left := patience - time.Since(s.last)
	for _, n := range s.requests {
		if n > 0 {
			left = patience
		}
	}
	if left > 0 {
		s.idle.Reset(left)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	s.engine.o.Log.Debug().Str("session", s.id).Str("pod", s.pod).Msg("session ends: " + why)
	s.end(why)
}
