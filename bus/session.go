package bus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/schemas"
)

const (
	// recvWait is how many seconds a node holds a recv back while nothing comes,
	// and recvMargin how much longer its answer may take on the way. Their sum is
	// how late the loss of an answer is noticed where the connection stands.
	recvWait   = 10
	recvMargin = 5 * time.Second
	sendTime   = 15 * time.Second
	// keepAlive is how long a session's node hears nothing, at most, while its
	// reader is slow: well below schemas.SessionIdleSeconds.
	keepAlive = 20 * time.Second
	// sessionPatience is how long requests go unanswered before the session is
	// given up: the node has given it up then, too.
	sessionPatience = schemas.SessionIdleSeconds * time.Second
	// openPatience is how long the answer to the first request is asked for
	// again where it was lost.
	openPatience = 10 * time.Second
	// readAhead is how many pieces are fetched before they are asked for. With
	// the one on its way they are all that a slow reader costs.
	readAhead = 2
)

// ErrSessionLost is a session that neither side can go on with: the node's
// agent was started anew, or was out of reach for too long.
var ErrSessionLost = errors.New("the session is lost")

// Session is a stream of bytes to and from a pod; see schemas.ExecRequest and
// its siblings. It outlives restarts of the control plane. Recv on the one
// hand, and Send and CloseInput on the other, are for one goroutine each; the
// other methods are safe for concurrent use.
type Session struct {
	// Container is the one that was taken where the request named none.
	Container string

	u               *UserConn
	id              string
	namespace, name string
	ctx             context.Context
	cancel          context.CancelCauseFunc
	pieces          chan Piece
	failed          error // set before pieces is closed
	sent            int64 // bytes that the node has
	asked           atomic.Int64
	closing         sync.Once
	closeErr        error
	loops           sync.WaitGroup
	final           *Piece // once it was given
}

// Piece is some bytes of a session.
type Piece struct {
	// Channel is schemas.ChannelStdout or schemas.ChannelStderr.
	Channel string
	Data    []byte
	// EOF says that nothing more will come. Then ExitCode says how a command
	// ended, nil where it is none, and Err why a session ended that did not do
	// what it was opened for; nil where it did.
	EOF      bool
	ExitCode *int
	Err      error
}

// Exec runs a command in a container. Session, namespace and pod of the request are filled in.
func (u *UserConn) Exec(ctx context.Context, namespace, pod string, req schemas.ExecRequest) (*Session, error) {
	return u.open(ctx, schemas.VerbExec, namespace, pod, &req.Session, &req)
}

// Attach joins a container's own streams. The request is filled in as in Exec.
func (u *UserConn) Attach(ctx context.Context, namespace, pod string, req schemas.AttachRequest) (*Session, error) {
	return u.open(ctx, schemas.VerbAttach, namespace, pod, &req.Session, &req)
}

// PortForward makes one connection to a port of a pod. The request is filled
// in as in Exec.
func (u *UserConn) PortForward(ctx context.Context, namespace, pod string, req schemas.PortForwardRequest) (*Session, error) {
	return u.open(ctx, schemas.VerbPortForward, namespace, pod, &req.Session, &req)
}

// Copy carries a tar stream out of a container or into it. The request is
// filled in as in Exec. What is left out, or not as it was, comes as lines on
// schemas.ChannelStderr.
func (u *UserConn) Copy(ctx context.Context, namespace, pod string, req schemas.CopyRequest) (*Session, error) {
	return u.open(ctx, schemas.VerbCopy, namespace, pod, &req.Session, &req)
}

// open opens a session. It lasts until it ends, Close, or ctx ends.
func (u *UserConn) open(ctx context.Context, verb, namespace, pod string, id *string, req any) (*Session, error) {
	*id = rand.Text()
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	s := &Session{u: u, id: *id, namespace: namespace, name: pod, pieces: make(chan Piece, readAhead)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	var reply Reply
	// The node opens nothing new for an id that it knows, so a lost answer may
	// be asked for again. A node that is away is not waited for: nothing would
	// be lost with the session yet.
	lost := func(err error) bool {
		return unanswered(err) || errors.Is(err, errReconnected) || apierrors.IsTimeout(err)
	}
	err = s.patiently(s.ctx, openPatience, userTimeout, lost, func(ctx context.Context) (err error) {
		reply, err = u.Request(ctx, verb, schemas.Pods, namespace, pod, body)
		return err
	})
	if err != nil {
		s.cancel(nil)
		return nil, err
	}
	var opened schemas.SessionReply
	if err := json.Unmarshal(reply.Body, &opened); err != nil {
		s.cancel(nil)
		return nil, fmt.Errorf("open session: decode answer: %w", err)
	}
	s.Container = opened.Container
	s.asked.Store(time.Now().UnixNano())
	s.loops.Go(s.receive)
	s.loops.Go(s.keepAlive)
	return s, nil
}

// patiently asks until there is an answer, or only errors that may pass came
// within patience. Each attempt takes at most limit, and ends when the
// connection breaks: its answer would be lost.
func (s *Session) patiently(ctx context.Context, patience, limit time.Duration, passing func(error) bool, ask func(context.Context) error) error {
	begin := time.Now()
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := s.u.whileConnected(ctx, limit, ask)
		if err == nil {
			s.asked.Store(time.Now().UnixNano())
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !passing(err) {
			return err
		}
		if time.Since(begin) > patience {
			return err
		}
		if wait(ctx, delay) != nil {
			return context.Cause(ctx)
		}
	}
}

// passing says that the same request may succeed later.
func passing(err error) bool {
	return unanswered(err) || errors.Is(err, errReconnected) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}

// whileConnected gives up what it waits for when the connection breaks.
func (u *UserConn) whileConnected(ctx context.Context, limit time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	defer u.link.onLoss(func() { lost(errReconnected) })()
	err := ask(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errReconnected) {
		return errReconnected
	}
	return err
}

// receive fetches pieces ahead of Recv until the last one.
func (s *Session) receive() {
	defer close(s.pieces)
	cursor := int64(0)
	for {
		p, next, err := s.recvOnce(cursor)
		if err != nil {
			s.failed = s.lost(err)
			return
		}
		cursor = next
		if !p.EOF && len(p.Data) == 0 {
			continue
		}
		select {
		case s.pieces <- p:
		case <-s.ctx.Done():
			s.failed = context.Cause(s.ctx)
			return
		}
		if p.EOF {
			return
		}
	}
}

func (s *Session) recvOnce(cursor int64) (p Piece, next int64, err error) {
	header := map[string][]string{
		schemas.HeaderSession: {s.id},
		schemas.HeaderCursor:  {strconv.FormatInt(cursor, 10)},
		schemas.HeaderWait:    {strconv.Itoa(recvWait)},
		schemas.HeaderMax:     {strconv.Itoa(schemas.MaxSessionPiece)},
	}
	var reply Reply
	err = s.patiently(s.ctx, sessionPatience, recvWait*time.Second+recvMargin, passing, func(ctx context.Context) (err error) {
		reply, err = s.u.RequestWith(ctx, schemas.VerbRecv, schemas.Pods, s.namespace, s.name, header, nil)
		return err
	})
	if err != nil {
		return p, 0, err
	}
	p = Piece{Channel: headerOf(reply, schemas.HeaderChannel), Data: reply.Body, EOF: headerOf(reply, schemas.HeaderEOF) == "true"}
	if text := headerOf(reply, schemas.HeaderExitCode); text != "" {
		code, err := strconv.Atoi(text)
		if err != nil {
			return p, 0, fmt.Errorf("read answer: header %s: %w", schemas.HeaderExitCode, err)
		}
		p.ExitCode = &code
	}
	if p.Channel == schemas.ChannelError {
		p.Err, p.Channel, p.Data = errors.New(string(reply.Body)), "", nil
	}
	next, err = strconv.ParseInt(headerOf(reply, schemas.HeaderCursor), 10, 64)
	if err != nil || next < cursor {
		return p, 0, fmt.Errorf("read answer: header %s says %q after %d", schemas.HeaderCursor, headerOf(reply, schemas.HeaderCursor), cursor)
	}
	return p, next, nil
}

func headerOf(r Reply, name string) string {
	if v := r.Header[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// lost says what an error means for the session as a whole.
func (s *Session) lost(err error) error {
	switch code := statusCode(err); {
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case code == http.StatusNotFound, code == http.StatusGone, passing(err):
		return fmt.Errorf("%w: %w", ErrSessionLost, err)
	}
	return err
}

func statusCode(err error) int32 {
	var known apierrors.APIStatus
	if errors.As(err, &known) {
		return known.Status().Code
	}
	return 0
}

// Recv returns the next bytes. The last piece has EOF set, and comes again
// when asked for again. Data belongs to the caller.
func (s *Session) Recv(ctx context.Context) (Piece, error) {
	if s.final != nil {
		return *s.final, nil
	}
	select {
	case p, ok := <-s.pieces:
		if !ok {
			return Piece{}, s.failed
		}
		if p.EOF {
			s.final = &p
		}
		return p, nil
	case <-ctx.Done():
		return Piece{}, ctx.Err()
	}
}

// Send gives the session all of data and returns when the node has it. io.EOF
// means that nobody takes more: the session may still have an end to tell.
func (s *Session) Send(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		piece := data[:min(len(data), schemas.MaxSessionPiece)]
		n, err := s.sendOnce(ctx, piece, false)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// CloseInput says that nothing more will be sent.
func (s *Session) CloseInput(ctx context.Context) error {
	_, err := s.sendOnce(ctx, nil, true)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// sendOnce sends a piece and returns how much of it the node took.
func (s *Session) sendOnce(ctx context.Context, piece []byte, last bool) (int, error) {
	header := map[string][]string{
		schemas.HeaderSession: {s.id},
		schemas.HeaderOffset:  {strconv.FormatInt(s.sent, 10)},
	}
	if last {
		header[schemas.HeaderLast] = []string{"true"}
	}
	reply, err := s.tell(ctx, header, piece)
	if err != nil {
		return 0, err
	}
	total, err := strconv.ParseInt(headerOf(reply, schemas.HeaderOffset), 10, 64)
	if err != nil || total < s.sent || total > s.sent+int64(len(piece)) {
		return 0, fmt.Errorf("read answer: header %s says %q after %d", schemas.HeaderOffset, headerOf(reply, schemas.HeaderOffset), s.sent)
	}
	n := int(total - s.sent)
	s.sent = total
	if headerOf(reply, schemas.HeaderEOF) == "true" {
		return n, io.EOF
	}
	return n, nil
}

// tell sends what is no request for bytes.
func (s *Session) tell(ctx context.Context, header map[string][]string, body []byte) (reply Reply, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	err = s.patiently(ctx, sessionPatience, sendTime, passing, func(ctx context.Context) (err error) {
		reply, err = s.u.RequestWith(ctx, schemas.VerbSend, schemas.Pods, s.namespace, s.name, header, body)
		return err
	})
	if err != nil {
		return reply, s.lost(err)
	}
	return reply, nil
}

// Resize sets the size of the session's terminal.
func (s *Session) Resize(ctx context.Context, columns, rows uint16) error {
	_, err := s.tell(ctx, map[string][]string{
		schemas.HeaderSession: {s.id}, schemas.HeaderResize: {fmt.Sprintf("%dx%d", columns, rows)},
	}, nil)
	return err
}

// keepAlive lets the node know that there is a client, however slow its reader.
func (s *Session) keepAlive() {
	tick := time.NewTicker(keepAlive / 2)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if time.Since(time.Unix(0, s.asked.Load())) < keepAlive {
			continue
		}
		// What it fails with is found by those who wait for something.
		_, _ = s.tell(s.ctx, map[string][]string{schemas.HeaderSession: {s.id}}, nil)
	}
}

// errClosed is what waits on a session that Close has ended gets.
var errClosed = errors.New("the session was closed")

// Close ends the session and what it runs, if it has not ended, and frees what
// the node keeps of it. It may be called again.
func (s *Session) Close() error {
	s.closing.Do(func() {
		// Not the caller's context: that may be why the session is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 3*time.Second)
		defer cancel()
		s.cancel(errClosed)
		_, err := s.u.RequestWith(ctx, schemas.VerbSend, schemas.Pods, s.namespace, s.name, map[string][]string{
			schemas.HeaderSession: {s.id}, schemas.HeaderClose: {"true"},
		}, nil)
		if code := statusCode(err); code != http.StatusNotFound && code != http.StatusGone {
			s.closeErr = err
		}
		s.loops.Wait()
	})
	return s.closeErr
}

// Streams are what Pump connects a session with. Each may be nil: input is
// closed then, and output dropped.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Pump carries the bytes of a session until it ends, closes it, and returns its
// last piece. Where an output fails the session is closed and the failure
// returned. A read of In that blocks for ever does not keep Pump: the reader
// stays behind in its goroutine.
func (s *Session) Pump(ctx context.Context, streams Streams) (Piece, error) {
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if streams.In != nil {
		go func() {
			if err := s.feed(ctx, streams.In); err != nil {
				cancel(err)
			}
		}()
	}
	for {
		p, err := s.Recv(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return Piece{}, err
		}
		out := streams.Out
		if p.Channel == schemas.ChannelStderr {
			out = streams.Err
		}
		if out != nil && len(p.Data) > 0 {
			if _, err := out.Write(p.Data); err != nil {
				return Piece{}, fmt.Errorf("write what the session gave: %w", err)
			}
		}
		if p.EOF {
			return p, p.Err
		}
	}
}

// feed sends what in gives, a piece at a time: two on their way at once overtake
// each other, have to be sent again, and took longer when it was tried. That
// nobody takes it is no error, and that the session has ended is said by its
// last piece.
func (s *Session) feed(ctx context.Context, in io.Reader) error {
	buf := make([]byte, schemas.MaxSessionPiece)
	for {
		n, err := in.Read(buf)
		if sendErr := s.Send(ctx, buf[:n]); sendErr != nil {
			if errors.Is(sendErr, io.EOF) || errors.Is(sendErr, ErrSessionLost) || ctx.Err() != nil || s.ctx.Err() != nil {
				return nil
			}
			return sendErr
		}
		if errors.Is(err, io.EOF) {
			_ = s.CloseInput(ctx) // as above
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what is to be sent: %w", err)
		}
	}
}

// onLoss calls fn, perhaps more than once, when the connection breaks. done
// must be called.
func (l *link) onLoss(fn func()) (done func()) {
	changes := l.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	go func() {
		for range changes {
			fn()
		}
	}()
	return func() { l.nc.RemoveStatusListener(changes) }
}
