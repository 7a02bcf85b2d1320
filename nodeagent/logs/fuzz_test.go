package logs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry.dev/schemas"
)

// FuzzRead reads whatever lies in a log, from wherever a request says: it ends,
// the pieces are the file from some line on, and a follower misses nothing.
func FuzzRead(f *testing.F) {
	f.Add([]byte(text(20)), "", int64(3), int64(0), true)
	f.Add([]byte(text(3)+"2026-01-01T00:00:09Z stdout P par"), "0:5", int64(-1), int64(2), false)
	f.Add([]byte("\n\n\nno time at all\n\x00\n"), "0:99", int64(1), int64(1), true)
	f.Add([]byte(strings.Repeat("x", 300)), "1:0", int64(0), int64(-9), true)
	f.Add([]byte("2026-01-01T00:00:01Z stdout P a\n2026-01-01T00:00:01Z stdout P b\n2026-01-01T00:00:01Z stdout F c\n"), "x:1", int64(1), int64(1), true)
	f.Fuzz(func(t *testing.T, content []byte, cursor string, tail, since int64, ended bool) {
		s := &source{dir: t.TempDir(), ended: ended}
		path := Path(s.dir, "c", 0)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		req := schemas.LogRequest{Cursor: cursor}
		if tail >= 0 {
			req.TailLines = &tail
		}
		if at := epoch.Add(time.Duration(since%1_000) * time.Second); since != 0 {
			req.SinceTime = &at
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing is waited for
		var out bytes.Buffer
		for eof := false; !eof; {
			p, err := Read(ctx, s.find, req)
			if errors.Is(err, ErrInvalid) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if attempt, offset, err := parseCursor(p.Cursor); err != nil || attempt < 0 || offset < 0 {
				t.Fatalf("the next cursor is %q", p.Cursor)
			}
			if len(p.Body) == 0 && !p.EOF {
				break
			}
			out.Write(p.Body)
			req.Cursor, eof = p.Cursor, p.EOF
			if out.Len() > len(content) {
				t.Fatalf("%d bytes of %d", out.Len(), len(content))
			}
		}
		rest := content
		if !ended && cursor == "" {
			rest = content[:bytes.LastIndexByte(content, '\n')+1]
		}
		if cursor == "" && !bytes.HasSuffix(rest, out.Bytes()) {
			t.Errorf("read %q of %q", out.Bytes(), rest)
		}
		if at := len(rest) - out.Len(); cursor == "" && out.Len() > 0 && at > 0 && rest[at-1] != '\n' {
			t.Errorf("it begins within a line: %q of %q", out.Bytes(), rest)
		}
	})
}
