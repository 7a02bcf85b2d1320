package session

import (
	"context"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

const (
	// requestsAtOnce bounds the requests of one kind about one session: one of
	// the client, and those that it gave up and that still wait.
	requestsAtOnce = 4
	maxWait        = 20 * time.Second
	// sendWait is how long a send waits for room where it does not say.
	sendWait = 5 * time.Second
)

// Recv answers schemas.NodeMethodRecv.
func (e *Engine) Recv(ctx context.Context, header map[string][]string, _ []byte) ([]byte, map[string][]string, error) {
	h, err := decodeRecv(header)
	if err != nil {
		return nil, nil, err
	}
	s, err := e.find(h.session, h.pod)
	if err != nil {
		return nil, nil, err
	}
	if !s.begin(schemas.VerbRecv) {
		return nil, nil, busy(s.id)
	}
	defer s.finished(schemas.VerbRecv)
	a, err := s.recv(ctx, h)
	if err != nil {
		return nil, nil, err
	}
	if a.settled {
		e.release(s)
	}
	return a.body, a.header(), nil
}

// received is an answer to recv.
type received struct {
	channel string
	body    []byte
	next    int64
	eof     bool
	code    *int
	settled bool // nothing is left to be fetched
}

func (a received) header() map[string][]string {
	h := map[string][]string{schemas.HeaderCursor: {strconv.FormatInt(a.next, 10)}}
	if a.channel != "" {
		h[schemas.HeaderChannel] = []string{a.channel}
	}
	if a.eof {
		h[schemas.HeaderEOF] = []string{"true"}
	}
	if a.code != nil {
		h[schemas.HeaderExitCode] = []string{strconv.Itoa(*a.code)}
	}
	return h
}

func (s *session) recv(ctx context.Context, h recvHeader) (received, error) {
	timer := time.NewTimer(h.wait)
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.cursor > s.out.end() {
		return received{}, badRequest("header %s: %d bytes cannot have been received of session %q, it gave %d", schemas.HeaderCursor, h.cursor, s.id, s.out.end())
	}
	for late := false; ; {
		switch {
		case s.stopped != "":
			return received{}, gone(s.id, s.stopped)
		case h.cursor < s.out.base:
			return received{}, status(http.StatusGone, metav1.StatusReasonExpired,
				"header %s: %d lies before %d, up to which session %q was acknowledged", schemas.HeaderCursor, h.cursor, s.out.base, s.id)
		}
		if s.out.base < h.cursor {
			s.out.forget(h.cursor)
			s.change() // there is room
		}
		channel, body := s.out.piece(h.limit)
		if len(body) > 0 {
			return received{channel: channel, body: body, next: h.cursor + int64(len(body))}, nil
		}
		if s.done {
			return s.farewell(h.cursor), nil
		}
		if late {
			return received{next: h.cursor}, nil
		}
		changed := s.changed()
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			late = true
		}
		s.mu.Lock()
	}
}

// farewell is the last answer. It is the same however often it is asked for:
// the text of an error does not count as received.
func (s *session) farewell(cursor int64) received {
	if !s.told {
		s.told = true
		s.idle.Reset(min(linger, s.engine.o.Idle))
	}
	a := received{next: cursor, eof: true, code: s.code, settled: true}
	if s.err != nil {
		a.channel, a.body = schemas.ChannelError, []byte(s.err.Error())
		a.body = a.body[:min(len(a.body), schemas.MaxSessionPiece)]
	}
	return a
}

// Send answers schemas.NodeMethodSend.
func (e *Engine) Send(ctx context.Context, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	h, err := decodeSend(header, len(body))
	if err != nil {
		return nil, nil, err
	}
	s, err := e.find(h.session, h.pod)
	if err != nil {
		return nil, nil, err
	}
	if h.close {
		s.end("it was closed")
		return nil, nil, nil
	}
	if !s.begin(schemas.VerbSend) {
		return nil, nil, busy(s.id)
	}
	defer s.finished(schemas.VerbSend)
	if h.resize {
		if err := s.resize(h.columns, h.rows); err != nil {
			return nil, nil, err
		}
	}
	total, over, err := s.send(ctx, h, body)
	if err != nil {
		return nil, nil, err
	}
	answer := map[string][]string{schemas.HeaderOffset: {strconv.FormatInt(total, 10)}}
	if over {
		answer[schemas.HeaderEOF] = []string{"true"}
	}
	return nil, answer, nil
}

// send takes input in. It waits for room where it could take nothing. over
// says that the work takes no input any more.
func (s *session) send(ctx context.Context, h sendHeader, body []byte) (total int64, over bool, err error) {
	timer := time.NewTimer(h.wait)
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for late := false; ; {
		switch {
		case s.stopped != "":
			return 0, false, gone(s.id, s.stopped)
		case !s.in.present && len(body) > 0:
			return 0, false, badRequest("session %q was opened without input", s.id)
		}
		before := s.in.total
		complete := s.in.take(h.offset, body)
		if h.last && complete && h.offset+int64(len(body)) == s.in.total {
			s.in.last = true
		}
		s.change()
		if complete || late || s.in.total > before || s.in.last || h.offset > s.in.total {
			return s.in.total, s.in.over, nil
		}
		changed := s.changed()
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			late = true
		}
		s.mu.Lock()
	}
}

func (s *session) resize(columns, rows uint16) error {
	s.mu.Lock()
	resize, running := s.work.Resize, s.running
	s.mu.Unlock()
	switch {
	case !running:
		return nil // ended: there is nothing that could be seen wrongly
	case resize == nil:
		return badRequest("session %q has no terminal", s.id)
	}
	if err := resize(columns, rows); err != nil {
		return status(http.StatusInternalServerError, metav1.StatusReasonInternalError, "resize terminal of session %q: %v", s.id, err)
	}
	return nil
}

func busy(id string) error {
	return status(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
		"%d requests about session %q wait already; ask one at a time", requestsAtOnce, id)
}

func badRequest(format string, args ...any) error {
	return status(http.StatusBadRequest, metav1.StatusReasonBadRequest, format, args...)
}
