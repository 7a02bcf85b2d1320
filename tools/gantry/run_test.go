package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/bus"
	"gantry.dev/controlplane/ringtest"
	"gantry.dev/nodeagent/session"
	"gantry.dev/schemas"
)

// attachable lets the lab's pods be attached to: they say what they hear, in
// capitals, and end with a code when they hear no more.
func (l *lab) attachable(code int32) {
	l.Helper()
	creds, err := bus.ReadNodeCredentials(l.plane.NodeCredentials("n1"))
	if err != nil {
		l.Fatal(err)
	}
	conn, err := bus.ConnectNode(context.Background(), creds, bus.NodeHandlers{}, zerolog.Nop())
	if err != nil {
		l.Fatal(err)
	}
	engine := session.New(session.Options{})
	l.Cleanup(func() { engine.Close(); conn.Close() })
	attach := func(_ context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
		var req schemas.AttachRequest
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, nil, err
		}
		_, err := engine.Open(req.Session, string(req.UID), body, func() (session.Work, error) {
			return l.shout(req.Pod, code), nil
		})
		if err != nil {
			return nil, nil, err
		}
		out, err := json.Marshal(schemas.SessionReply{Session: req.Session, Container: req.Container})
		return out, nil, err
	}
	for method, fn := range map[string]bus.NodeMethod{
		schemas.NodeMethodAttach: attach, schemas.NodeMethodRecv: engine.Recv, schemas.NodeMethodSend: engine.Send,
	} {
		if err := conn.Serve(method, fn); err != nil {
			l.Fatal(err)
		}
	}
}

// shout is what runs in a pod of the lab.
func (l *lab) shout(pod string, code int32) session.Work {
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	go func() {
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			if _, err := io.WriteString(out, strings.ToUpper(lines.Text())+"\n"); err != nil {
				return
			}
		}
		l.end(pod, code)
		_ = out.Close()
	}()
	return session.Work{Stdin: stdin, Stdout: stdout, Stop: func() { _ = in.Close(); _ = stdout.Close() }}
}

// end lets a pod's container end.
func (l *lab) end(pod string, code int32) {
	l.node.Change(pod, func(p *ringtest.Pod) {
		p.Exit, p.Phase = &code, corev1.PodSucceeded
		if code != 0 {
			p.Phase = corev1.PodFailed
		}
	})
}

func TestRunStaysWithItsPod(t *testing.T) {
	l := newLab(t)
	l.attachable(3)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, stderr, code := l.call(ctx, "hello\nyou\n", "run", "talker", "--image=x", "-i", "--rm", "--restart=Never")
	expect(t, "what it said", "HELLO\nYOU\npod \"talker\" deleted\n", out)
	expect(t, "beside that", "pod default/talker terminated (Error)\n", stderr)
	if code != 3 {
		t.Errorf("code %d, want that of the container, 3", code)
	}
	expect(t, "what is left of it", "", l.ok("", "get", "pods", "-o", "name"))

	at := "2026-01-02T03:04:05.678901234Z"
	l.logs.set(true, at+" stdout F all of it\n")
	go func() {
		for ctx.Err() == nil && !l.node.Change("quick", func(*ringtest.Pod) {}) {
			time.Sleep(5 * time.Millisecond)
		}
		l.end("quick", 0)
	}()
	expect(t, "run --attach", "all of it\n", l.ok("", "run", "quick", "--image=x", "--attach", "--restart=Never"))
	expect(t, "it stays without --rm", "Succeeded", l.ok("", "get", "pod/quick", "-o", "jsonpath={.status.phase}"))
	expect(t, "its fields", "", l.ok("", "get", "pod/quick", "-o", "jsonpath={.spec.containers[0].stdin}"))
}
