// Package logs reads containers' logs in pieces. Nothing is kept between two
// requests: a cursor says where to go on, so a reader may be slow, vanish, or
// outlive the agent.
package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gantry.dev/schemas"
)

const (
	// MaxPiece bounds one answer in bytes. It is small so that what shares the
	// node's connection waits for little.
	MaxPiece = schemas.MaxSessionPiece
	maxWait  = 20 * time.Second
	// look is how often a waiting reader looks for more. A stat is cheaper than
	// an inotify watch for each reader, and only waiting readers pay for it.
	look = 100 * time.Millisecond
)

// Errors of a read; matched with errors.Is.
var (
	ErrNotFound = errors.New("not found")
	ErrInvalid  = errors.New("invalid request")
)

// Run is one run of a container whose log is to be read.
type Run struct {
	Path    string
	Attempt int
	// Ended says that nothing will be written any more.
	Ended bool
}

// Finder finds the run that a request means. attempt is -1 for the one that
// the request's Previous asks for. It is asked again while a reader waits.
type Finder func(req schemas.LogRequest, attempt int) (Run, error)

// Piece is one answer.
type Piece struct {
	Body   []byte
	Cursor string
	// EOF says that the log has no more to give, ever.
	EOF bool
}

// Read answers one request.
func Read(ctx context.Context, find Finder, req schemas.LogRequest) (Piece, error) {
	attempt, offset, err := parseCursor(req.Cursor)
	if err != nil {
		return Piece{}, err
	}
	run, err := find(req, attempt)
	if err != nil {
		return Piece{}, err
	}
	if attempt < 0 {
		if offset, err = begin(run.Path, req); err != nil {
			return Piece{}, err
		}
	}
	attempt = run.Attempt
	wait := min(time.Duration(req.WaitSeconds)*time.Second, maxWait)
	deadline := time.Now().Add(wait)
	for {
		// Ended is asked for before the file is read: what ends in between has
		// its last lines read by the next request.
		body, err := piece(run.Path, offset, run.Ended)
		if err != nil {
			return Piece{}, err
		}
		if len(body) > 0 || run.Ended || !time.Now().Before(deadline) {
			return Piece{
				Body: body, Cursor: cursor(attempt, offset+int64(len(body))),
				EOF: run.Ended && len(body) == 0,
			}, nil
		}
		timer := time.NewTimer(look)
		select {
		case <-ctx.Done():
			timer.Stop()
			return Piece{Cursor: cursor(attempt, offset)}, nil
		case <-timer.C:
		}
		if run, err = find(req, attempt); err != nil {
			return Piece{}, err
		}
	}
}

// Path is where the log of a run is.
func Path(dir, container string, attempt int) string {
	return filepath.Join(dir, container, strconv.Itoa(attempt)+".log")
}

func cursor(attempt int, offset int64) string { return fmt.Sprintf("%d:%d", attempt, offset) }

func parseCursor(s string) (attempt int, offset int64, err error) {
	if s == "" {
		return -1, 0, nil
	}
	a, o, ok := strings.Cut(s, ":")
	attempt, err1 := strconv.Atoi(a)
	offset, err2 := strconv.ParseInt(o, 10, 64)
	if !ok || err1 != nil || err2 != nil || attempt < 0 || offset < 0 {
		return 0, 0, fmt.Errorf("cursor %q: %w", s, ErrInvalid)
	}
	return attempt, offset, nil
}

// piece reads whole lines from an offset. The last line of an ended run may
// lack its end, and a line longer than a piece is given in parts.
func piece(path string, offset int64, ended bool) ([]byte, error) {
	f, err := open(path)
	if f == nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	// A waiting reader comes here again and again: no buffer for nothing.
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	buf := make([]byte, min(max(info.Size()-offset, 0), MaxPiece))
	n, err := f.ReadAt(buf, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read log: %w", err)
	}
	buf = buf[:n]
	if end := bytes.LastIndexByte(buf, '\n'); end >= 0 {
		return buf[:end+1], nil
	}
	if n == MaxPiece || ended {
		return buf, nil
	}
	return nil, nil
}

// open returns nil for a log that does not exist yet.
func open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// begin is where the first piece starts: after the lines that TailLines and
// SinceTime leave out.
func begin(path string, req schemas.LogRequest) (int64, error) {
	if req.TailLines == nil && req.SinceTime == nil {
		return 0, nil
	}
	f, err := open(path)
	if f == nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	size, offset := info.Size(), int64(0)
	if req.TailLines != nil {
		if offset, err = tail(f, size, *req.TailLines); err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
	}
	if req.SinceTime != nil {
		at, err := since(f, size, *req.SinceTime)
		if err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
		offset = max(offset, at)
	}
	return offset, nil
}

// tail is where the last n lines start. Parts of one line count as one.
func tail(f io.ReaderAt, size, n int64) (int64, error) {
	if n <= 0 {
		return size, nil
	}
	lines, end := int64(0), size
	for end > 0 {
		start, line, err := lineBefore(f, end)
		if err != nil {
			return 0, err
		}
		if !partial(line) {
			if lines == n {
				return end, nil
			}
			lines++
		}
		end = start
	}
	return 0, nil
}

// lineHead is how much of a line is needed to know its time, stream and tag.
const lineHead = 64

// lineBefore finds the line that ends at end, and returns where it starts and
// how it begins.
func lineBefore(f io.ReaderAt, end int64) (start int64, head []byte, err error) {
	const block = 16 << 10
	to := end - 1 // without its own line feed
	for to > 0 {
		from := max(to-block, 0)
		buf := make([]byte, to-from)
		if _, err := f.ReadAt(buf, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, nil, err
		}
		if i := bytes.LastIndexByte(buf, '\n'); i >= 0 {
			start = from + int64(i) + 1
			break
		}
		to = from
	}
	head = make([]byte, min(lineHead, end-start))
	if _, err := f.ReadAt(head, start); err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, err
	}
	return start, head, nil
}

// partial says that a line goes on in the next one.
func partial(head []byte) bool {
	fields := bytes.SplitN(head, []byte(" "), 4)
	return len(fields) >= 3 && string(fields[2]) == "P"
}

// since is where the first line at or after a time starts. Lines are written
// in the order of their times, so it can be found by halving.
func since(f io.ReaderAt, size int64, t time.Time) (int64, error) {
	low, high := int64(0), size // the answer is a line's start in [low, high]
	for low < high {
		start, head, err := lineAt(f, (low+high)/2, low)
		if err != nil {
			return 0, err
		}
		end, err := lineEnd(f, start, size)
		if err != nil {
			return 0, err
		}
		stamp, _, _ := bytes.Cut(head, []byte(" "))
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err == nil && !at.Before(t) {
			high = start
		} else {
			low = end
		}
	}
	return low, nil
}

// lineAt finds the line that holds the byte at pos; it starts at low or later.
func lineAt(f io.ReaderAt, pos, low int64) (int64, []byte, error) {
	start, _, err := lineBefore(f, pos+1)
	if err != nil {
		return 0, nil, err
	}
	start = max(start, low)
	head := make([]byte, lineHead)
	n, err := f.ReadAt(head, start)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, err
	}
	return start, head[:n], nil
}

// lineEnd is where the line after the one at start begins.
func lineEnd(f io.ReaderAt, start, size int64) (int64, error) {
	buf := make([]byte, 16<<10)
	for at := start; at < size; {
		n, err := f.ReadAt(buf, at)
		if i := bytes.IndexByte(buf[:n], '\n'); i >= 0 {
			return at + int64(i) + 1, nil
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || n == 0 {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	return size, nil
}
