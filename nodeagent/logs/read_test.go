package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gantry.dev/schemas"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// text is n lines, one for each second after the epoch.
func text(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s stdout F line %d\n", epoch.Add(time.Duration(i)*time.Second).Format(time.RFC3339Nano), i)
	}
	return b.String()
}

// source is a container with runs.
type source struct {
	mu     sync.Mutex
	dir    string
	newest int
	ended  bool
}

func (s *source) find(req schemas.LogRequest, attempt int) (Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if attempt < 0 {
		attempt = s.newest
		if req.Previous {
			attempt--
		}
	}
	return Run{Path: Path(s.dir, "c", attempt), Attempt: attempt, Ended: attempt < s.newest || s.ended}, nil
}

func (s *source) write(t *testing.T, attempt int, text string) {
	t.Helper()
	path := Path(s.dir, "c", attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// all reads until the end, or until there is nothing more.
func all(t *testing.T, s *source, req schemas.LogRequest) (string, bool) {
	t.Helper()
	var out bytes.Buffer
	for {
		p, err := Read(t.Context(), s.find, req)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(p.Body)
		req.Cursor = p.Cursor
		if p.EOF || len(p.Body) == 0 {
			return out.String(), p.EOF
		}
	}
}

func lines(n int64) *int64 { return &n }

func TestTailAndSince(t *testing.T) {
	at := func(seconds float64) *time.Time {
		v := epoch.Add(time.Duration(seconds * float64(time.Second)))
		return &v
	}
	s := &source{dir: t.TempDir()}
	whole := text(1000)
	s.write(t, 0, whole)
	from := func(n int) string {
		return whole[strings.Index(whole, " stdout F line "+fmt.Sprint(n)+"\n")-len("2026-01-01T00:00:00Z"):]
	}
	for _, tt := range []struct {
		desc string
		req  schemas.LogRequest
		want string
	}{
		{"all", schemas.LogRequest{}, whole},
		{"tail 1", schemas.LogRequest{TailLines: lines(1)}, from(999)},
		{"tail 300", schemas.LogRequest{TailLines: lines(300)}, from(700)},
		{"tail more than there is", schemas.LogRequest{TailLines: lines(5000)}, whole},
		{"tail 0", schemas.LogRequest{TailLines: lines(0)}, ""},
		{"since a line", schemas.LogRequest{SinceTime: at(500)}, from(500)},
		{"since between lines", schemas.LogRequest{SinceTime: at(500.5)}, from(501)},
		{"since before all", schemas.LogRequest{SinceTime: at(-1)}, whole},
		{"since after all", schemas.LogRequest{SinceTime: at(5000)}, ""},
		{"since, and fewer lines", schemas.LogRequest{SinceTime: at(500), TailLines: lines(2)}, from(998)},
		{"more lines, and since", schemas.LogRequest{SinceTime: at(990), TailLines: lines(200)}, from(990)},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			if got, eof := all(t, s, tt.req); got != tt.want || eof {
				t.Errorf("%d bytes (end %v), want %d", len(got), eof, len(tt.want))
			}
		})
	}
}

func TestPartsOfOneLineAreOneLine(t *testing.T) {
	s := &source{dir: t.TempDir()}
	s.write(t, 0, "2026-01-01T00:00:00Z stdout F first\n2026-01-01T00:00:01Z stdout P long\n2026-01-01T00:00:02Z stdout F er\n2026-01-01T00:00:03Z stdout F last\n")
	got, _ := all(t, s, schemas.LogRequest{TailLines: lines(2)})
	if want := "2026-01-01T00:00:01Z stdout P long\n2026-01-01T00:00:02Z stdout F er\n2026-01-01T00:00:03Z stdout F last\n"; got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestPiecesEndAtLines(t *testing.T) {
	s := &source{dir: t.TempDir(), ended: true}
	whole := text(20000)
	s.write(t, 0, whole)
	p, err := Read(t.Context(), s.find, schemas.LogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Body) > MaxPiece || !bytes.HasSuffix(p.Body, []byte("\n")) || p.EOF {
		t.Errorf("piece of %d bytes, end %v", len(p.Body), p.EOF)
	}
	if got, eof := all(t, s, schemas.LogRequest{}); got != whole || !eof {
		t.Errorf("%d bytes, want %d; end %v", len(got), len(whole), eof)
	}
	long := &source{dir: t.TempDir(), ended: true}
	line := "2026-01-01T00:00:00Z stdout F " + strings.Repeat("x", 3*MaxPiece) + "\nunfinished"
	long.write(t, 0, line)
	if got, eof := all(t, long, schemas.LogRequest{}); got != line || !eof {
		t.Errorf("a long line: %d bytes, want %d", len(got), len(line))
	}
}

func TestFollowGoesOnUntilTheRunEnds(t *testing.T) {
	s := &source{dir: t.TempDir()}
	s.write(t, 0, "2026-01-01T00:00:00Z stdout F one\n")
	got := make(chan string)
	go func() {
		defer close(got)
		var out bytes.Buffer
		req := schemas.LogRequest{WaitSeconds: 20}
		for {
			// A reader of its own each time: nothing is kept between requests.
			p, err := Read(t.Context(), s.find, req)
			if err != nil {
				got <- err.Error()
				return
			}
			out.Write(p.Body)
			req.Cursor = p.Cursor
			if len(p.Body) > 0 {
				got <- out.String()
			}
			if p.EOF {
				return
			}
		}
	}()
	want := "2026-01-01T00:00:00Z stdout F one\n"
	if text := <-got; text != want {
		t.Fatalf("first piece %q", text)
	}
	s.write(t, 0, "2026-01-01T00:00:01Z stdout F half")
	s.write(t, 0, " a line\n")
	want += "2026-01-01T00:00:01Z stdout F half a line\n"
	if text := <-got; text != want {
		t.Fatalf("second piece %q", text)
	}
	s.write(t, 1, "2026-01-01T00:00:02Z stdout F of the next run\n")
	s.mu.Lock()
	s.newest = 1
	s.mu.Unlock()
	if text, more := <-got; more {
		t.Fatalf("after the end of the run: %q", text)
	}
}

func TestPreviousAndMissing(t *testing.T) {
	s := &source{dir: t.TempDir(), newest: 1}
	s.write(t, 0, "old\n")
	if got, eof := all(t, s, schemas.LogRequest{Previous: true}); got != "old\n" || !eof {
		t.Errorf("previous: %q, end %v", got, eof)
	}
	if got, eof := all(t, s, schemas.LogRequest{}); got != "" || eof {
		t.Errorf("a run that has not written yet: %q, end %v", got, eof)
	}
	for _, cursor := range []string{"x", "1", "1:x", "-1:0", "0:-4"} {
		if _, err := Read(t.Context(), s.find, schemas.LogRequest{Cursor: cursor}); !errors.Is(err, ErrInvalid) {
			t.Errorf("cursor %q: %v", cursor, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := Read(ctx, s.find, schemas.LogRequest{WaitSeconds: 20}); err != nil || p.Cursor != "1:0" {
		t.Errorf("a reader that left: %+v, %v", p, err)
	}
}
