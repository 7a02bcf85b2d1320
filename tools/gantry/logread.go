package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// outage is how long a log that does not follow waits for a control plane or
// an agent that restarts. One that follows waits for as long as it takes.
const outage = 30 * time.Second

// readLog reads piece by piece; the node keeps nothing between two.
func (a *app) readLog(ctx context.Context, s source, req schemas.LogRequest, o logOptions, w *lineWriter) error {
	req.Container, req.UID = s.container, s.pod.UID
	reply, err := a.beginLog(ctx, s, req, o)
	patience := outage
	if o.follow {
		patience = math.MaxInt64
	}
	for {
		switch {
		case err != nil && ctx.Err() != nil:
			return nil // interrupted
		case apierrors.IsNotFound(err) && req.Cursor != "":
			return w.end() // the pod was deleted meanwhile
		case err != nil:
			return err
		}
		if err := w.piece(reply.Body); err != nil {
			return err
		}
		req.Cursor = first(header(reply, schemas.HeaderCursor), req.Cursor)
		ended := first(header(reply, schemas.HeaderEOF), "") == "true"
		if ended || w.full() || (!o.follow && len(reply.Body) == 0) {
			return w.end()
		}
		reply, err = a.conn.Log(ctx, s.pod.Namespace, s.pod.Name, req, patience)
	}
}

// beginLog reads the first piece. One that follows waits for a container to
// start, and says why it has to.
func (a *app) beginLog(ctx context.Context, s source, req schemas.LogRequest, o logOptions) (bus.Reply, error) {
	deadline := time.Now().Add(o.startTimeout)
	said := ""
	for {
		reply, err := a.conn.Log(ctx, s.pod.Namespace, s.pod.Name, req, 0)
		if err == nil || !o.follow || o.previous || !apierrors.IsBadRequest(err) || !waitsToStart(err) || time.Now().After(deadline) {
			return reply, err
		}
		if text := describeError(err); text != said {
			fmt.Fprintln(a.err, text)
			said = text
		}
		select {
		case <-time.After(startLook):
		case <-ctx.Done():
			return reply, err
		}
	}
}

// startLook is how often a container that has not started is looked at.
const startLook = 500 * time.Millisecond

// waitsToStart says of a refusal that it will be over when the pod runs.
func waitsToStart(err error) bool {
	return strings.Contains(err.Error(), "is waiting to start") || strings.Contains(err.Error(), "does not have a host assigned")
}

func header(r bus.Reply, name string) []string { return r.Header[name] }

// lineWriter turns stored lines ("<time> stdout F text") back into what the
// container wrote.
type lineWriter struct {
	out        io.Writer
	mu         *sync.Mutex
	timestamps bool
	prefix     string
	rest       []byte // a line whose end has not come yet
	midLine    bool   // the last one was only a part
	limit      int64  // bytes that may be written; 0 for any number
	written    int64
}

// full says that no more may be written.
func (w *lineWriter) full() bool { return w.limit > 0 && w.written >= w.limit }

func (w *lineWriter) piece(data []byte) error {
	data = append(w.rest, data...)
	end := bytes.LastIndexByte(data, '\n') + 1
	w.rest = bytes.Clone(data[end:])
	var out bytes.Buffer
	for line := range bytes.Lines(data[:end]) {
		w.line(&out, bytes.TrimSuffix(line, []byte("\n")))
	}
	return w.write(out.Bytes())
}

// end writes a last line that was cut off.
func (w *lineWriter) end() error {
	var out bytes.Buffer
	if len(w.rest) > 0 {
		w.line(&out, w.rest)
		w.rest = nil
	}
	return w.write(out.Bytes())
}

func (w *lineWriter) line(out *bytes.Buffer, line []byte) {
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	_, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tag, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || (!ok3 && len(tag) != 1) {
		stamp, tag, text = nil, []byte("F"), line // not ours: show it as it is
	}
	if !w.midLine {
		out.WriteString(w.prefix)
		if w.timestamps && len(stamp) > 0 {
			out.Write(stamp)
			out.WriteByte(' ')
		}
	}
	out.Write(text)
	w.midLine = string(tag) == "P"
	if !w.midLine {
		out.WriteByte('\n')
	}
}

func (w *lineWriter) write(data []byte) error {
	if w.limit > 0 {
		data = data[:min(int64(len(data)), w.limit-w.written)]
	}
	if len(data) == 0 {
		return nil
	}
	w.written += int64(len(data))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.out.Write(data)
	return err
}
