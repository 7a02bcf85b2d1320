package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/nodeagent/session"
	"gantry.dev/schemas"
)

// world is a bus with a node, a user, and control planes that pass on what the
// user asks, as stateless as the real one.
type world struct {
	testing.TB
	ctx    context.Context
	dir    string
	listen string
	server *bus.Server
	user   *bus.UserConn
	engine *session.Engine
	start  func(verb string) (session.Work, error)
	opened atomic.Int64

	mu      sync.Mutex
	served  []int // requests of sessions by control plane
	stopped []context.CancelFunc
	lose    func(verb string) bool // loses the answer of a request
}

func newWorld(t testing.TB, replicas int, o session.Options) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, ctx: ctx, dir: t.TempDir(), listen: l.Addr().String(), engine: session.New(o)}
	if err := l.Close(); err != nil { // the server takes the port over, and again after a restart
		t.Fatal(err)
	}
	w.up(replicas)
	t.Cleanup(w.down)
	creds, err := w.server.AdminCredentials()
	if err != nil {
		t.Fatal(err)
	}
	if w.user, err = bus.ConnectUser(ctx, creds); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.user.Close)
	w.node()
	return w
}

// up starts the server and control planes.
func (w *world) up(replicas int) {
	w.Helper()
	var err error
	w.server, err = bus.StartServer(w.ctx, bus.ServerOptions{StateDir: w.dir, Listen: w.listen, Nodes: []string{"n1"}, Log: zerolog.Nop()})
	if err != nil {
		w.Fatal(err)
	}
	for i := range replicas {
		c, err := bus.Open(w.ctx, bus.OpenOptions{Server: w.server, PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: zerolog.Nop()})
		if err != nil {
			w.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		w.mu.Lock()
		if i >= len(w.served) {
			w.served = append(w.served, 0)
		}
		w.stopped = append(w.stopped, func() { cancel(); c.Close() })
		w.mu.Unlock()
		if err := c.ServeAPI(ctx, []string{schemas.VerbExec, schemas.VerbCopy, schemas.VerbSend, schemas.VerbRecv}, w.pass(i, c)); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) down() {
	w.Helper()
	for _, stop := range w.stopped {
		stop()
	}
	w.stopped = nil
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.server.Shutdown(ctx); err != nil {
		w.Error(err)
	}
}

// pass is a control plane.
func (w *world) pass(i int, c *bus.Conn) bus.APIHandler {
	return func(ctx context.Context, call schemas.Call, header map[string][]string, body []byte) ([]byte, map[string][]string, *metav1.Status) {
		w.mu.Lock()
		w.served[i]++
		lose := w.lose
		w.mu.Unlock()
		out, answer, err := c.NodeRequest(ctx, "n1", call.Verb, header, body)
		if lose != nil && lose(call.Verb) {
			err = apierrors.NewTimeoutError("the answer was lost", 0)
		}
		var known apierrors.APIStatus
		if errors.As(err, &known) {
			s := known.Status()
			return nil, nil, &s
		}
		if err != nil {
			s := apierrors.NewServiceUnavailable(err.Error()).Status()
			return nil, nil, &s
		}
		return out, answer, nil
	}
}

func (w *world) node() {
	w.Helper()
	creds, err := w.server.NodeCredentials("n1")
	if err != nil {
		w.Fatal(err)
	}
	n, err := bus.ConnectNode(w.ctx, creds, bus.NodeHandlers{}, zerolog.Nop())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(n.Close)
	w.Cleanup(w.engine.Close)
	open := func(verb string) bus.NodeMethod {
		return func(_ context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
			var req schemas.ExecRequest
			if err := json.Unmarshal(body, &req); err != nil {
				return nil, nil, apierrors.NewBadRequest(err.Error())
			}
			_, err := w.engine.Open(req.Session, "pod", nil, func() (session.Work, error) {
				w.opened.Add(1)
				return w.start(verb)
			})
			if err != nil {
				return nil, nil, err
			}
			out, err := json.Marshal(schemas.SessionReply{Session: req.Session, Container: "c"})
			return out, nil, err
		}
	}
	for method, fn := range map[string]bus.NodeMethod{
		schemas.NodeMethodExec: open(schemas.VerbExec), schemas.NodeMethodCopy: open(schemas.VerbCopy),
		schemas.NodeMethodSend: w.engine.Send, schemas.NodeMethodRecv: w.engine.Recv,
	} {
		if err := n.Serve(method, fn); err != nil {
			w.Fatal(err)
		}
	}
	for !n.Connected() {
		select {
		case <-w.ctx.Done():
			w.Fatal("the node does not connect")
		case <-time.After(time.Millisecond):
		}
	}
}

// exec opens a session as a client does.
func (w *world) exec() *bus.Session {
	w.Helper()
	var s *bus.Session
	for {
		var err error
		// The node's subscription may be on its way to the server.
		if s, err = w.user.Exec(w.ctx, "default", "web", schemas.ExecRequest{Command: []string{"x"}, Stdin: true}); err == nil {
			break
		}
		if !apierrors.IsServiceUnavailable(err) || w.ctx.Err() != nil {
			w.Fatal(err)
		}
	}
	w.Cleanup(func() { _ = s.Close() })
	return s
}

// echo is a command that says what it hears and then ends with code 3.
func echo(string) (session.Work, error) {
	r, in := io.Pipe()
	out, w := io.Pipe()
	code := 3
	return session.Work{
		Stdin: in, Stdout: out,
		Wait: func() (*int, error) {
			_, err := io.Copy(w, r)
			_ = w.CloseWithError(err)
			return &code, nil
		},
		Stop: func() { _, _ = r.CloseWithError(io.ErrClosedPipe), out.CloseWithError(io.ErrClosedPipe) },
	}, nil
}

func TestClientPumps(t *testing.T) {
	w := newWorld(t, 1, session.Options{})
	w.start = echo
	said := make([]byte, 3<<20+17)
	for i := range said {
		said[i] = byte(rand.Uint32())
	}
	var heard bytes.Buffer
	s := w.exec()
	last, err := s.Pump(w.ctx, bus.Streams{In: bytes.NewReader(said), Out: &heard})
	if err != nil || last.ExitCode == nil || *last.ExitCode != 3 || s.Container != "c" {
		t.Errorf("ended with %+v, %v", last, err)
	}
	if !bytes.Equal(said, heard.Bytes()) {
		t.Errorf("%d bytes came back of %d, or others", heard.Len(), len(said))
	}
	if again, err := s.Recv(w.ctx); err != nil || !again.EOF {
		t.Errorf("the last piece again: %+v, %v", again, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestClientAsksAgain loses a third of all answers: each byte still comes once,
// and what runs was started once.
func TestClientAsksAgain(t *testing.T) {
	w := newWorld(t, 2, session.Options{})
	w.start = echo
	n := 0
	w.lose = func(string) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n++
		return n%3 == 0
	}
	said := strings.Repeat("0123456789", 60_000)
	var heard strings.Builder
	last, err := w.exec().Pump(w.ctx, bus.Streams{In: strings.NewReader(said), Out: &heard})
	if err != nil || last.ExitCode == nil || *last.ExitCode != 3 {
		t.Errorf("ended with %+v, %v", last, err)
	}
	if heard.String() != said {
		t.Errorf("%d bytes came back of %d, or others", heard.Len(), len(said))
	}
	if w.opened.Load() != 1 {
		t.Errorf("started %d times", w.opened.Load())
	}
}

// TestClientOutlivesControlPlanes: one of two goes, then the server itself
// with all that it serves, and comes back.
func TestClientOutlivesControlPlanes(t *testing.T) {
	w := newWorld(t, 2, session.Options{})
	w.start = echo
	s := w.exec()
	var heard bytes.Buffer
	say := func(text string) {
		t.Helper()
		if err := s.Send(w.ctx, []byte(text)); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(text); {
			p, err := s.Recv(w.ctx)
			if err != nil {
				t.Fatal(err)
			}
			heard.Write(p.Data)
			got += len(p.Data)
		}
	}
	for i := range 50 {
		say(fmt.Sprintf("both %d\n", i))
	}
	w.mu.Lock()
	if w.served[0] == 0 || w.served[1] == 0 {
		t.Errorf("not both control planes served: %v", w.served)
	}
	w.mu.Unlock()
	w.stopped[0]()
	say("one is gone\n")
	w.down()
	w.up(2)
	say("all were gone\n")
	if err := s.CloseInput(w.ctx); err != nil {
		t.Fatal(err)
	}
	p, err := s.Recv(w.ctx)
	if err != nil || !p.EOF || p.ExitCode == nil || *p.ExitCode != 3 {
		t.Errorf("ended with %+v, %v", p, err)
	}
	if !strings.HasSuffix(heard.String(), "both 49\none is gone\nall were gone\n") || w.opened.Load() != 1 {
		t.Errorf("heard %q, opened %d times", heard.String(), w.opened.Load())
	}
}

// TestClientErrors: how each end looks to the client.
func TestClientErrors(t *testing.T) {
	w := newWorld(t, 1, session.Options{})
	w.start = echo
	_ = w.exec().Close()
	w.start = func(string) (session.Work, error) { return session.Work{}, apierrors.NewBadRequest("no such command") }
	if _, err := w.user.Exec(w.ctx, "default", "web", schemas.ExecRequest{}); !apierrors.IsBadRequest(err) {
		t.Errorf("refused: %v", err)
	}

	w.start = func(string) (session.Work, error) {
		return session.Work{Stdout: strings.NewReader("some"), Wait: func() (*int, error) { return nil, errors.New("it broke") }}, nil
	}
	var out bytes.Buffer
	if last, err := w.exec().Pump(w.ctx, bus.Streams{Out: &out}); err == nil || err.Error() != "it broke" || !last.EOF || out.String() != "some" {
		t.Errorf("broken work: %+v, %v, %q", last, err, out.String())
	}

	w.start = echo
	s := w.exec()
	w.engine.EndPod("pod")
	if p, err := s.Recv(w.ctx); err != nil || !p.EOF {
		t.Errorf("the pod was removed: %+v, %v", p, err)
	}
	if err := s.Send(w.ctx, []byte("x")); !errors.Is(err, io.EOF) {
		t.Errorf("send afterwards: %v", err)
	}

	s = w.exec()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Recv(w.ctx); err == nil {
		t.Error("a closed session gives something")
	}

	s = w.exec()
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := s.Pump(ctx, bus.Streams{}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}

	s = w.exec()
	if _, err := s.Pump(w.ctx, bus.Streams{In: io.MultiReader(strings.NewReader("x"), broken{}), Out: io.Discard}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("what is sent cannot be read: %v", err)
	}
	s = w.exec()
	if _, err := s.Pump(w.ctx, bus.Streams{In: strings.NewReader("x"), Out: broken{}}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("what comes cannot be written: %v", err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error)  { return 0, os.ErrPermission }
func (broken) Write([]byte) (int, error) { return 0, os.ErrPermission }

// endless is a command that never stops talking, and counts.
func endless(n *atomic.Int64) func(string) (session.Work, error) {
	return func(string) (session.Work, error) {
		r, w := io.Pipe()
		go func() {
			block := make([]byte, 32<<10)
			for {
				k, err := w.Write(block)
				n.Add(int64(k))
				if err != nil {
					return
				}
			}
		}()
		return session.Work{Stdout: r, Stop: func() { _ = r.Close() }}, nil
	}
}

// TestSlowReaderCostsLittle: who does not read is not read ahead for beyond a
// bound, on neither side.
func TestSlowReaderCostsLittle(t *testing.T) {
	w := newWorld(t, 1, session.Options{})
	var said atomic.Int64
	w.start = endless(&said)
	s := w.exec()
	if _, err := s.Recv(w.ctx); err != nil {
		t.Fatal(err)
	}
	// It settles: more is never said, however long one waits.
	for last, same := int64(-1), 0; same < 20; time.Sleep(5 * time.Millisecond) {
		if now := said.Load(); now == last {
			same++
		} else {
			last, same = now, 0
		}
		if w.ctx.Err() != nil {
			t.Fatal("it goes on and on")
		}
	}
	if n := said.Load(); n > 2<<20 {
		t.Errorf("%d bytes were said to one who does not listen", n)
	}
}

// BenchmarkSession carries bytes from a node, and to it, through one control
// plane and one server.
func BenchmarkSession(b *testing.B) {
	b.Run("recv", func(b *testing.B) {
		w := newWorld(b, 1, session.Options{})
		var said atomic.Int64
		w.start = endless(&said)
		s := w.exec()
		b.SetBytes(1 << 20)
		left := 0
		for b.Loop() {
			for left += 1 << 20; left > 0; {
				p, err := s.Recv(w.ctx)
				if err != nil {
					b.Fatal(err)
				}
				left -= len(p.Data)
			}
		}
	})
	b.Run("send", func(b *testing.B) {
		w := newWorld(b, 1, session.Options{})
		w.start = func(string) (session.Work, error) {
			r, in := io.Pipe()
			return session.Work{Stdin: in, Wait: func() (*int, error) {
				_, err := io.Copy(io.Discard, r)
				return nil, err
			}, Stop: func() { _ = r.Close() }}, nil
		}
		in, out := io.Pipe()
		s := w.exec()
		go func() { _, _ = s.Pump(w.ctx, bus.Streams{In: in}) }()
		b.SetBytes(1 << 20)
		block := make([]byte, 1<<20)
		for b.Loop() {
			if _, err := out.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		_ = out.Close()
	})
}
