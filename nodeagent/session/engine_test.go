package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"pgregory.net/rapid"

	"gantry.dev/schemas"
)

const id1 = "0123456789abcdef"

// fakeWork is work made of pipes.
type fakeWork struct {
	in       *io.PipeReader
	out, err *io.PipeWriter
	end      chan end
	stopped  chan struct{}
	size     atomic.Value
}

type end struct {
	code *int
	err  error
}

func newFakeWork() (*fakeWork, Work) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	errR, errW := io.Pipe()
	f := &fakeWork{in: inR, out: outW, err: errW, end: make(chan end, 1), stopped: make(chan struct{})}
	return f, Work{
		Stdin: inW, Stdout: outR, Stderr: errR,
		Resize: func(c, r uint16) error { f.size.Store(fmt.Sprintf("%dx%d", c, r)); return nil },
		Wait: func() (*int, error) {
			select {
			case e := <-f.end:
				return e.code, e.err
			case <-f.stopped:
				return nil, nil
			}
		},
		Stop: func() {
			close(f.stopped)
			_ = inR.Close()
			_ = outR.Close()
			_ = errR.Close()
		},
	}
}

// exit ends the work as a command ends: its outputs too.
func (f *fakeWork) exit(code int) {
	_ = f.out.Close()
	_ = f.err.Close()
	f.end <- end{code: &code}
}

func (f *fakeWork) ended() bool {
	select {
	case <-f.stopped:
		return true
	default:
		return false
	}
}

func open(t testing.TB, e *Engine, id string) *fakeWork {
	t.Helper()
	f, w := newFakeWork()
	opened, err := e.Open(id, "pod", nil, func() (Work, error) { return w, nil })
	if err != nil || !opened {
		t.Fatalf("open %s: %v, %v", id, opened, err)
	}
	return f
}

func newEngine(t testing.TB, o Options) *Engine {
	e := New(o)
	t.Cleanup(e.Close)
	return e
}

type answer struct {
	Body    string
	Channel string
	Cursor  int64
	EOF     bool
	Code    string
}

func recv(e *Engine, id string, cursor int64, more ...string) (answer, error) {
	h := map[string][]string{
		schemas.HeaderSession: {id}, schemas.HeaderCursor: {strconv.FormatInt(cursor, 10)}, schemas.HeaderWait: {"20"},
	}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = []string{more[i+1]}
	}
	body, ah, err := e.Recv(context.Background(), h, nil)
	if err != nil {
		return answer{}, err
	}
	next, err := strconv.ParseInt(get(ah, schemas.HeaderCursor), 10, 64)
	return answer{string(body), get(ah, schemas.HeaderChannel), next, get(ah, schemas.HeaderEOF) == "true", get(ah, schemas.HeaderExitCode)}, err
}

func mustRecv(t testing.TB, e *Engine, id string, cursor int64, more ...string) answer {
	t.Helper()
	a, err := recv(e, id, cursor, more...)
	if err != nil {
		t.Fatalf("recv %d: %v", cursor, err)
	}
	return a
}

func send(e *Engine, id string, offset int64, body string, more ...string) (int64, bool, error) {
	h := map[string][]string{schemas.HeaderSession: {id}, schemas.HeaderOffset: {strconv.FormatInt(offset, 10)}}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = []string{more[i+1]}
	}
	_, ah, err := e.Send(context.Background(), h, []byte(body))
	if err != nil {
		return 0, false, err
	}
	if get(ah, schemas.HeaderOffset) == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(get(ah, schemas.HeaderOffset), 10, 64)
	return n, get(ah, schemas.HeaderEOF) == "true", err
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

func code(err error) int32 {
	var s apierrors.APIStatus
	if !errors.As(err, &s) {
		return 0
	}
	return s.Status().Code
}

func TestASession(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	n, _, err := send(e, id1, 0, "hello")
	if n != 5 || err != nil {
		t.Fatalf("send: %d, %v", n, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(f.in, got); err != nil || string(got) != "hello" {
		t.Fatalf("the work got %q, %v", got, err)
	}
	if _, err := f.out.Write([]byte("one")); err != nil {
		t.Fatal(err)
	}
	want := answer{Body: "one", Channel: schemas.ChannelStdout, Cursor: 3}
	for range 2 { // the second time as if the answer had been lost
		if d := cmp.Diff(want, mustRecv(t, e, id1, 0)); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
	}
	if _, err := f.err.Write([]byte("two")); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(answer{Body: "two", Channel: schemas.ChannelStderr, Cursor: 6}, mustRecv(t, e, id1, 3)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if _, err := recv(e, id1, 0); code(err) != http.StatusGone {
		t.Errorf("recv of what was acknowledged: %v", err)
	}
	if _, err := recv(e, id1, 99); code(err) != http.StatusBadRequest {
		t.Errorf("recv beyond the end: %v", err)
	}
	if _, _, err := send(e, id1, 5, "", schemas.HeaderResize, "80x24"); err != nil || f.size.Load() != "80x24" {
		t.Errorf("resize: %v, %v", f.size.Load(), err)
	}
	if n, _, err := send(e, id1, 5, "!", schemas.HeaderLast, "true"); n != 6 || err != nil {
		t.Errorf("send the last: %d, %v", n, err)
	}
	if rest, err := io.ReadAll(f.in); string(rest) != "!" || err != nil {
		t.Errorf("the work got %q, %v", rest, err)
	}
	f.exit(7)
	for range 2 {
		if d := cmp.Diff(answer{Cursor: 6, EOF: true, Code: "7"}, mustRecv(t, e, id1, 6)); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
	}
	if n, eof, err := send(e, id1, 6, "late"); n != 10 || !eof || err != nil {
		t.Errorf("send after the end: %d, %v, %v", n, eof, err)
	}
	if _, _, err := send(e, id1, 0, "", schemas.HeaderClose, "true"); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := recv(e, id1, 6); code(err) != http.StatusGone {
		t.Errorf("recv after close: %v", err)
	}
	if _, err := e.Open(id1, "pod", nil, func() (Work, error) { t.Error("started again"); return Work{}, nil }); code(err) != http.StatusGone {
		t.Errorf("open what is over: %v", err)
	}
	if !f.ended() {
		t.Error("the work was not stopped")
	}
}

func TestOpenTwiceStartsOnce(t *testing.T) {
	e := newEngine(t, Options{})
	var starts, opened atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ok, err := e.Open(id1, "pod", nil, func() (Work, error) {
				starts.Add(1)
				_, w := newFakeWork()
				return w, nil
			})
			if err != nil {
				t.Error(err)
			}
			if ok {
				opened.Add(1)
			}
		})
	}
	all.Wait()
	if starts.Load() != 1 || opened.Load() != 1 {
		t.Errorf("started %d times, opened %d", starts.Load(), opened.Load())
	}
	if _, err := e.Open(id1, "other", nil, nil); code(err) != http.StatusConflict {
		t.Errorf("open the session of another pod: %v", err)
	}
	if _, err := recv(e, id1, 0, schemas.HeaderPod, "other"); code(err) != http.StatusNotFound {
		t.Errorf("recv of the session of another pod: %v", err)
	}
}

// TestAnIDIsOfOneOrder: who draws an id twice must not believe that the second
// command runs.
func TestAnIDIsOfOneOrder(t *testing.T) {
	e := newEngine(t, Options{})
	try := func(order string) (bool, error) {
		return e.Open(id1, "pod", []byte(order), func() (Work, error) {
			_, w := newFakeWork()
			return w, nil
		})
	}
	if opened, err := try("ls"); !opened || err != nil {
		t.Fatal(opened, err)
	}
	if opened, err := try("ls"); opened || err != nil {
		t.Errorf("asked again: %v, %v", opened, err)
	}
	if opened, err := try("rm"); opened || code(err) != http.StatusConflict || !strings.Contains(err.Error(), "draw another id") {
		t.Errorf("another order: %v, %v", opened, err)
	}
}

func TestAStartThatFailedMayBeTriedAgain(t *testing.T) {
	e := newEngine(t, Options{PerNode: 1})
	fails := errors.New("no")
	if _, err := e.Open(id1, "pod", nil, func() (Work, error) { return Work{}, fails }); !errors.Is(err, fails) {
		t.Errorf("open: %v", err)
	}
	if _, err := recv(e, id1, 0); code(err) != http.StatusNotFound {
		t.Errorf("recv: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was lost")
			}
		}()
		_, _ = e.Open(id1, "pod", nil, func() (Work, error) { panic("start") })
	}()
	open(t, e, id1)
}

func TestLimits(t *testing.T) {
	e := newEngine(t, Options{PerNode: 3, PerPod: 2})
	try := func(n int, pod string) error {
		_, err := e.Open(fmt.Sprintf("session-%08d", n), pod, nil, func() (Work, error) {
			_, w := newFakeWork()
			return w, nil
		})
		return err
	}
	if err := errors.Join(try(1, "a"), try(2, "a")); err != nil {
		t.Fatal(err)
	}
	if err := try(3, "a"); code(err) != http.StatusTooManyRequests || !strings.Contains(err.Error(), "the pod has 2 sessions") {
		t.Errorf("third of a pod: %v", err)
	}
	if err := try(4, "b"); err != nil {
		t.Fatal(err)
	}
	if err := try(5, "c"); code(err) != http.StatusTooManyRequests || !strings.Contains(err.Error(), "the node has 3 sessions") {
		t.Errorf("fourth of the node: %v", err)
	}
	e.EndPod("a")
	want := answer{Body: "the pod was removed", Channel: schemas.ChannelError, EOF: true}
	for n := 1; n <= 2; n++ {
		if d := cmp.Diff(want, mustRecv(t, e, fmt.Sprintf("session-%08d", n), 0)); d != "" {
			t.Errorf("recv of a session whose pod went (-want +got):\n%s", d)
		}
	}
	if err := errors.Join(try(6, "c"), try(7, "c")); err != nil {
		t.Errorf("after others ended: %v", err)
	}
	for _, bad := range []string{"", "short", strings.Repeat("x", 65), "0123456789abcde/"} {
		if _, err := e.Open(bad, "p", nil, nil); code(err) != http.StatusBadRequest {
			t.Errorf("open %q: %v", bad, err)
		}
	}
}

func TestAnEndedSessionIsNotCounted(t *testing.T) {
	e := newEngine(t, Options{PerNode: 1})
	f := open(t, e, id1)
	if _, err := f.out.Write([]byte("rest")); err != nil {
		t.Fatal(err)
	}
	f.exit(0)
	eventually(t, "the work to be stopped", f.ended)
	const id2 = "fedcba9876543210"
	if _, err := e.Open(id2, "pod", nil, nil); code(err) != http.StatusTooManyRequests {
		t.Errorf("open beside one whose output was not fetched: %v", err)
	}
	mustRecv(t, e, id1, 0)
	if a := mustRecv(t, e, id1, 4); !a.EOF {
		t.Errorf("got %+v", a)
	}
	open(t, e, id2)
}

func TestAnIdleSessionIsEnded(t *testing.T) {
	e := newEngine(t, Options{Idle: 20 * time.Millisecond})
	f := open(t, e, id1)
	eventually(t, "the work to be stopped", f.ended)
	eventually(t, "the session to be over", func() bool {
		_, err := recv(e, id1, 0, schemas.HeaderWait, "0")
		return code(err) == http.StatusGone
	})
}

func TestAWaitingRequestKeepsASession(t *testing.T) {
	e := newEngine(t, Options{Idle: 10 * time.Millisecond})
	f := open(t, e, id1)
	got := make(chan answer)
	go func() {
		a, err := recv(e, id1, 0)
		if err != nil {
			t.Error(err)
		}
		got <- a
	}()
	// Several times as long as it may be idle; what is waited for is the answer.
	time.AfterFunc(100*time.Millisecond, func() { _, _ = f.out.Write([]byte("x")) })
	if a := <-got; a.Body != "x" {
		t.Errorf("got %+v", a)
	}
}

func TestErrorOfTheWork(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	_, _ = f.out.Close(), f.err.Close()
	c := 127
	f.end <- end{&c, errors.New("no such command")}
	want := answer{Body: "no such command", Channel: schemas.ChannelError, EOF: true, Code: "127"}
	for range 2 {
		if d := cmp.Diff(want, mustRecv(t, e, id1, 0)); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
	}
}

// What a command left in the background holds its output open.
func TestSilentOutputDoesNotKeepASession(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	zero := 0
	f.end <- end{code: &zero}
	if a := mustRecv(t, e, id1, 0); !a.EOF || a.Code != "0" {
		t.Errorf("got %+v", a)
	}
}

func TestTheReaderSetsThePace(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	var written atomic.Int64
	go func() {
		b := bytes.Repeat([]byte("x"), 4096)
		for {
			n, err := f.out.Write(b)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	eventually(t, "the buffer to be full", func() bool { return written.Load() >= bufferBytes-4096 })
	a := mustRecv(t, e, id1, 0)
	if len(a.Body) != schemas.MaxSessionPiece {
		t.Errorf("a piece of %d bytes", len(a.Body))
	}
	mustRecv(t, e, id1, a.Cursor)
	// Acknowledged was one piece: that much more was read, and a chunk in hand.
	if got, most := written.Load(), int64(bufferBytes+schemas.MaxSessionPiece+2*chunkBytes); got > most {
		t.Errorf("%d bytes were read of the work, at most %d", got, most)
	}
	if a := mustRecv(t, e, id1, a.Cursor, schemas.HeaderMax, "10"); len(a.Body) != 10 {
		t.Errorf("a piece of %d bytes", len(a.Body))
	}
}

func TestSendWaitsForRoom(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	piece := strings.Repeat("x", schemas.MaxSessionPiece)
	var sent int64
	for {
		n, _, err := send(e, id1, sent, piece, schemas.HeaderWait, "0")
		if err != nil {
			t.Fatal(err)
		}
		if n == sent {
			break
		}
		sent = n
	}
	if most := int64(bufferBytes + chunkBytes); sent > most {
		t.Errorf("%d bytes taken, at most %d", sent, most)
	}
	go func() { _, _ = io.CopyN(io.Discard, f.in, chunkBytes) }()
	n, _, err := send(e, id1, sent, piece, schemas.HeaderWait, "20")
	if err != nil || n <= sent {
		t.Errorf("taken %d after %d: %v", n, sent, err)
	}
	if _, _, err := send(e, id1, n, piece+"x"); code(err) != http.StatusRequestEntityTooLarge {
		t.Errorf("too large a piece: %v", err)
	}
	if got, _, err := send(e, id1, n+10, "gap"); got != n || err != nil {
		t.Errorf("send beyond what is there: %d, %v, want %d", got, err, n)
	}
}

func TestInputThatNobodyTakes(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	if _, _, err := send(e, id1, 0, "x"); err != nil {
		t.Fatal(err)
	}
	_ = f.in.Close()
	eventually(t, "the node to say that it takes no more", func() bool {
		_, eof, err := send(e, id1, 1, strings.Repeat("y", schemas.MaxSessionPiece))
		return err == nil && eof
	})
	_, err := e.Open("without-any-input", "pod", nil, func() (Work, error) {
		r, _ := io.Pipe()
		return Work{Stdout: r, Stop: func() { _ = r.Close() }}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := send(e, "without-any-input", 0, "x"); code(err) != http.StatusBadRequest {
		t.Errorf("send without input: %v", err)
	}
	if _, _, err := send(e, "without-any-input", 0, "", schemas.HeaderResize, "1x1"); code(err) != http.StatusBadRequest {
		t.Errorf("resize without terminal: %v", err)
	}
}

func TestTooManyWait(t *testing.T) {
	e := newEngine(t, Options{})
	f := open(t, e, id1)
	var waiting sync.WaitGroup
	s, err := e.find(id1, "")
	if err != nil {
		t.Fatal(err)
	}
	for range requestsAtOnce {
		waiting.Go(func() {
			if a, err := recv(e, id1, 0); err != nil || a.Body != "x" {
				t.Errorf("recv: %+v, %v", a, err)
			}
		})
	}
	eventually(t, "all to wait", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.requests[schemas.VerbRecv] == requestsAtOnce
	})
	if _, err := recv(e, id1, 0); code(err) != http.StatusTooManyRequests {
		t.Errorf("one more: %v", err)
	}
	if _, err := f.out.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}

func TestCloseStopsAll(t *testing.T) {
	e := New(Options{})
	var works []*fakeWork
	for i := range 5 {
		works = append(works, open(t, e, fmt.Sprintf("session-%08d", i)))
	}
	e.Close()
	for i, f := range works {
		if !f.ended() {
			t.Errorf("work %d goes on", i)
		}
	}
	if _, err := e.Open(id1, "pod", nil, nil); code(err) != http.StatusServiceUnavailable {
		t.Errorf("open: %v", err)
	}
}

func TestEndedWhileItStarts(t *testing.T) {
	e := newEngine(t, Options{})
	f, w := newFakeWork()
	waited := false
	wait := w.Wait
	w.Wait = func() (*int, error) { waited = true; return wait() }
	_, err := e.Open(id1, "pod", nil, func() (Work, error) {
		e.EndPod("pod")
		return w, nil
	})
	if code(err) != http.StatusGone || !f.ended() {
		t.Errorf("open: %v, work ended: %v", err, f.ended())
	}
	if !waited {
		t.Error("nobody waited for the work: a command would stay a zombie")
	}
}

// Whatever is lost, repeated or cut short, exactly the bytes arrive.
func TestBytesArriveExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := New(Options{})
		defer e.Close()
		f, w := newFakeWork()
		if _, err := e.Open(id1, "pod", nil, func() (Work, error) { return w, nil }); err != nil {
			t.Fatal(err)
		}
		echo := func() { // the work: says on stdout what it hears, and on stderr every 7th byte
			buf := make([]byte, 1000)
			for at := 0; ; {
				n, err := f.in.Read(buf)
				for _, b := range buf[:n] {
					out := f.out
					if at++; at%7 == 0 {
						out = f.err
					}
					if _, err := out.Write([]byte{b}); err != nil {
						return
					}
				}
				if err != nil {
					f.exit(0)
					return
				}
			}
		}
		go echo()
		input := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "input")
		var want, got [2][]byte
		for i, b := range input {
			k := 0
			if (i+1)%7 == 0 {
				k = 1
			}
			want[k] = append(want[k], b)
		}
		channels := map[string]int{schemas.ChannelStdout: 0, schemas.ChannelStderr: 1}
		var sent, cursor int64 // what the client knows
		closed, over := false, false
		for !over {
			if rapid.Bool().Draw(t, "sends") && !closed {
				from := max(sent-int64(rapid.IntRange(0, 50).Draw(t, "repeats")), 0)
				to := min(sent+int64(rapid.IntRange(0, 2000).Draw(t, "sends more")), int64(len(input)))
				last := to == int64(len(input))
				n, _, err := send(e, id1, from, string(input[from:to]), schemas.HeaderLast, strconv.FormatBool(last))
				if err != nil {
					t.Fatalf("send: %v", err)
				}
				if rapid.Bool().Draw(t, "hears the answer") {
					sent, closed = n, last && n == int64(len(input))
				}
				continue
			}
			wait := "0"
			if closed {
				wait = "20"
			}
			a, err := recv(e, id1, cursor, schemas.HeaderWait, wait, schemas.HeaderMax, strconv.Itoa(rapid.IntRange(1, 600).Draw(t, "limit")))
			if err != nil {
				t.Fatalf("recv: %v", err)
			}
			if !rapid.Bool().Draw(t, "hears the answer") {
				continue
			}
			if a.EOF {
				over = true
				continue
			}
			cursor = a.Cursor
			if a.Body != "" {
				k := channels[a.Channel]
				got[k] = append(got[k], a.Body...)
			}
		}
		if !bytes.Equal(want[0], got[0]) || !bytes.Equal(want[1], got[1]) {
			t.Fatalf("got %d and %d bytes of %d and %d, or others", len(got[0]), len(got[1]), len(want[0]), len(want[1]))
		}
	})
}

// With real pipes, as commands have them, and many at once.
func TestManyAtOnce(t *testing.T) {
	e := newEngine(t, Options{PerPod: 100})
	const size = 1 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	var all sync.WaitGroup
	for i := range 20 {
		id := fmt.Sprintf("session-%08d", i)
		all.Go(func() {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := e.Open(id, "pod", nil, func() (Work, error) {
				return Work{Stdout: r, Stop: func() { _ = r.Close() }}, nil
			}); err != nil {
				t.Error(err)
				return
			}
			go func() { _, _ = w.Write(data); _ = w.Close() }()
			var got []byte
			for {
				a, err := recv(e, id, int64(len(got)))
				if err != nil {
					t.Error(err)
					return
				}
				if a.EOF {
					break
				}
				got = append(got, a.Body...)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("session %d: got %d bytes of %d, or others", i, len(got), len(data))
			}
		})
	}
	all.Wait()
}

func FuzzHeaders(f *testing.F) {
	f.Add(id1, "5", "20", "100", "80x24", "true", 10)
	f.Add("", "-1", "x", "0", "0x0", "false", 0)
	f.Add(id1, "9223372036854775807", "99999999999", "1e3", "80X24", "TRUE", 1<<20)
	f.Fuzz(func(t *testing.T, id, number, wait, limit, size, word string, body int) {
		h := map[string][]string{
			schemas.HeaderSession: {id}, schemas.HeaderCursor: {number}, schemas.HeaderOffset: {number}, schemas.HeaderWait: {wait},
			schemas.HeaderMax: {limit}, schemas.HeaderResize: {size}, schemas.HeaderLast: {word}, schemas.HeaderClose: {word},
		}
		if r, err := decodeRecv(h); err == nil {
			if CheckID(r.session) != nil || r.cursor < 0 || r.wait < 0 || r.wait > maxWait || r.limit < 1 || r.limit > schemas.MaxSessionPiece {
				t.Errorf("recv decoded as %+v", r)
			}
		} else if code(err) != http.StatusBadRequest {
			t.Errorf("recv refused with %v", err)
		}
		if s, err := decodeSend(h, body); err == nil {
			if CheckID(s.session) != nil || s.offset < 0 || s.offset+int64(body) < s.offset && body >= 0 || s.wait > maxWait || s.resize && (s.columns == 0 || s.rows == 0) {
				t.Errorf("send decoded as %+v", s)
			}
		} else if c := code(err); c != http.StatusBadRequest && c != http.StatusRequestEntityTooLarge {
			t.Errorf("send refused with %v", err)
		}
	})
}
