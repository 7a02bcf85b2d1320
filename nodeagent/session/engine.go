// Package session keeps what carries bytes between a client and a pod: a
// command, a container's own streams, a connection, a copy. A session is asked
// for and about in single requests, so the client sets the pace, and an answer
// that was lost is given again.
package session

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// Work is what a session runs. Any field may be nil. Reads, writes and Wait are
// each called from a goroutine of their own.
type Work struct {
	// Stdin takes what the client sends. It is closed exactly once: when the
	// client has closed its side and all was written, or when the session ends.
	Stdin io.WriteCloser
	// Stdout and Stderr are read as fast as the client asks and to their end; an
	// error ends them like io.EOF.
	Stdout, Stderr io.Reader
	// Resize sets the size of the terminal; nil where there is none.
	Resize func(columns, rows uint16) error
	// Wait returns when the work has ended: with its exit code where it is a
	// command, with an error that is meant for the client's eyes, or both. Where
	// it is nil the work ends with its outputs.
	Wait func() (exitCode *int, err error)
	// Stop is called exactly once, however the session ends. It kills what still
	// runs and frees what is held; after it reads, writes and Wait must return.
	Stop func()
}

// Options bound an engine. Zero values take the defaults.
type Options struct {
	PerNode int           // sessions that are open at once, 256
	PerPod  int           // of them with one pod, 32
	Idle    time.Duration // how long a session waits for its client, schemas.SessionIdleSeconds
	Log     zerolog.Logger
}

const (
	defaultPerNode = 256
	defaultPerPod  = 32
	// remembered is how many ids of sessions that are over are known, so that a
	// late repetition of a request does not run a command again.
	remembered = 4096
)

// Engine keeps the sessions of one node. Its methods may be called at once.
type Engine struct {
	o Options

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session
	live     int            // sessions that still hold something
	ofPod    map[string]int // of them by pod
	over     map[string]string
	overIDs  []string // in the order in which they ended
	running  sync.WaitGroup
}

// New returns an engine without sessions.
func New(o Options) *Engine {
	if o.PerNode == 0 {
		o.PerNode = defaultPerNode
	}
	if o.PerPod == 0 {
		o.PerPod = defaultPerPod
	}
	if o.Idle == 0 {
		o.Idle = schemas.SessionIdleSeconds * time.Second
	}
	return &Engine{o: o, sessions: map[string]*session{}, ofPod: map[string]int{}, over: map[string]string{}}
}

// Open opens a session with a pod, which is named by its UID, and starts what
// it runs. Asked again with the same id and order, which is what was asked for,
// it starts nothing, waits for the first start and says false. An error of start
// is returned as it is, and the same id may then be tried again. Other errors
// carry a Status.
func (e *Engine) Open(id, pod string, order []byte, start func() (Work, error)) (opened bool, err error) {
	if err := CheckID(id); err != nil {
		return false, err
	}
	s, fresh, err := e.admit(id, pod, sha256.Sum256(order))
	if err != nil {
		return false, err
	}
	if !fresh {
		<-s.ready
		return false, s.startErr
	}
	defer close(s.ready)
	s.startErr = errors.New("the session's work could not be started") // where start panics
	defer func() {
		if s.startErr != nil {
			e.drop(s, "")
			e.running.Done()
		}
	}()
	work, err := start()
	if err == nil && !s.start(work) {
		err = gone(id, s.why())
	}
	s.startErr = err
	if err != nil {
		return false, err
	}
	go func() {
		defer e.running.Done()
		s.run(work)
	}()
	return true, nil
}

// admit finds the session or makes one that is not started.
func (e *Engine) admit(id, pod string, order [sha256.Size]byte) (s *session, fresh bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.sessions[id]; s != nil {
		if s.pod != pod {
			return nil, false, status(http.StatusConflict, metav1.StatusReasonConflict, "session %q is of another pod; draw another id", id)
		}
		if s.order != order {
			return nil, false, status(http.StatusConflict, metav1.StatusReasonConflict, "session %q was opened with another request; draw another id", id)
		}
		return s, false, nil
	}
	if why, ok := e.over[id]; ok {
		return nil, false, gone(id, why)
	}
	switch {
	case e.closed:
		return nil, false, status(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "the node agent is stopping; try again")
	case e.live >= e.o.PerNode:
		return nil, false, apierrors.NewTooManyRequests(fmt.Sprintf("the node has %d sessions open, which is its limit; close one or try again", e.live), 1)
	case e.ofPod[pod] >= e.o.PerPod:
		return nil, false, apierrors.NewTooManyRequests(fmt.Sprintf("the pod has %d sessions open, which is its limit; close one or try again", e.ofPod[pod]), 1)
	}
	e.running.Add(1)
	s = newSession(e, id, pod)
	s.order = order
	e.sessions[id] = s
	e.live++
	e.ofPod[pod]++
	return s, true, nil
}

// release takes a session that holds nothing any more out of the count.
func (e *Engine) release(s *session) {
	if !s.released.CompareAndSwap(false, true) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live--
	if e.ofPod[s.pod]--; e.ofPod[s.pod] == 0 {
		delete(e.ofPod, s.pod)
	}
}

// drop forgets a session. With a reason its id is remembered.
func (e *Engine) drop(s *session, why string) {
	e.release(s)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sessions[s.id] != s {
		return
	}
	delete(e.sessions, s.id)
	if why == "" {
		return
	}
	if len(e.overIDs) >= remembered {
		delete(e.over, e.overIDs[0])
		e.overIDs = e.overIDs[1:]
	}
	e.over[s.id] = why
	e.overIDs = append(e.overIDs, s.id)
}

// find returns a session that was opened. pod may be empty; otherwise the
// session must be of that pod.
func (e *Engine) find(id, pod string) (*session, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	e.mu.Lock()
	s, why, over := e.sessions[id], e.over[id], false
	if s == nil {
		_, over = e.over[id]
	}
	e.mu.Unlock()
	switch {
	case over:
		return nil, gone(id, why)
	case s == nil, pod != "" && s.pod != pod:
		return nil, status(http.StatusNotFound, metav1.StatusReasonNotFound,
			"session %q not found: it was not opened with this pod, or the node agent was started anew since", id)
	}
	<-s.ready
	return s, s.startErr
}

// EndPod stops what sessions with a pod run. What was said can still be fetched.
func (e *Engine) EndPod(pod string) {
	for _, s := range e.list() {
		if s.pod == pod {
			s.kill("the pod was removed")
		}
	}
}

// Close ends every session and returns when nothing of them runs.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	for _, s := range e.list() {
		s.end("the node agent has stopped")
	}
	e.running.Wait()
}

func (e *Engine) list() []*session {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*session, 0, len(e.sessions))
	for _, s := range e.sessions {
		all = append(all, s)
	}
	return all
}

func gone(id, why string) error {
	return status(http.StatusGone, metav1.StatusReasonGone, "session %q is over: %s", id, why)
}

func status(code int32, reason metav1.StatusReason, format string, args ...any) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: fmt.Sprintf(format, args...),
	}}
}
