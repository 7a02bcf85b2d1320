package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"gantry.dev/bus"
	"gantry.dev/controlplane/plane"
	"gantry.dev/controlplane/ringtest"
	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/serve"
	"gantry.dev/schemas"
)

const patience = 30 * time.Second

// lab is a control plane and one node that pretends to run pods; its logs and
// images are answered for real.
type lab struct {
	*testing.T
	plane *plane.Plane
	node  *ringtest.Node
	logs  *fakeLogs
	store *image.Store

	options plane.Options // to start it again as it was
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.ErrorLevel)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l := &lab{T: t, logs: &fakeLogs{}, options: plane.Options{
		StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Nodes: []string{"n1"},
		PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: log,
	}}
	p, err := plane.Start(ctx, l.options)
	if err != nil {
		t.Fatal(err)
	}
	l.plane = p
	l.options.Listen = strings.TrimPrefix(p.Server().URLs()[0], "nats://")
	t.Cleanup(func() { l.stopPlane() })
	creds, err := bus.ReadNodeCredentials(p.NodeCredentials("n1"))
	if err != nil {
		t.Fatal(err)
	}
	if l.node, err = ringtest.StartNode(context.Background(), creds, "instance", ringtest.Capacity("4", "8Gi", "110"), log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.node.Stop)
	l.serve(creds, log)
	l.ok("", "wait", "--for=create", "node/n1")
	l.ok("", "wait", "--for=condition=Ready", "node/n1")
	return l
}

func (l *lab) stopPlane() {
	l.Helper()
	if l.plane == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.plane.Stop(ctx); err != nil {
		l.Errorf("stop control plane: %v", err)
	}
	l.plane = nil
}

// startPlane starts a control plane that was stopped, where it was.
func (l *lab) startPlane() {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	if l.plane, err = plane.Start(ctx, l.options); err != nil {
		l.Fatal(err)
	}
}

// serve answers what the pretended node does not.
func (l *lab) serve(creds schemas.NodeCredentials, log zerolog.Logger) {
	l.Helper()
	conn, err := bus.ConnectNode(context.Background(), creds, bus.NodeHandlers{}, log)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(conn.Close)
	if l.store, err = image.Open(image.Options{Dir: filepath.Join(l.TempDir(), "images")}, log); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = l.store.Close() })
	images, err := serve.NewImages(l.store, filepath.Join(l.TempDir(), "uploads"))
	if err != nil {
		l.Fatal(err)
	}
	for method, fn := range map[string]bus.NodeMethod{
		schemas.NodeMethodLogs: l.logs.answer, schemas.NodeMethodImagePut: images.Put, schemas.NodeMethodImages: images.List,
	} {
		if err := conn.Serve(method, fn); err != nil {
			l.Fatal(err)
		}
	}
}

// fakeLogs is one log for all; a cursor is an index of pieces.
type fakeLogs struct {
	mu     sync.Mutex
	pieces []string
	ended  bool
	asked  []schemas.LogRequest
	refuse error // instead of an answer
}

// more adds pieces to what is there.
func (f *fakeLogs) more(pieces ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pieces = append(f.pieces, pieces...)
}

func (f *fakeLogs) refuseWith(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = err
}

func (f *fakeLogs) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

func (f *fakeLogs) set(ended bool, pieces ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pieces, f.ended, f.asked = pieces, ended, nil
}

func (f *fakeLogs) answer(_ context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	var req schemas.LogRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, req)
	if f.refuse != nil {
		return nil, nil, f.refuse
	}
	at := len(req.Cursor)
	header := map[string][]string{schemas.HeaderCursor: {strings.Repeat("x", min(at+1, len(f.pieces)))}}
	if at < len(f.pieces) {
		return []byte(f.pieces[at]), header, nil
	}
	if f.ended {
		header[schemas.HeaderEOF] = []string{"true"}
	}
	return nil, header, nil
}

func (f *fakeLogs) first() schemas.LogRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[0]
}

// call runs the program.
func (l *lab) call(ctx context.Context, stdin string, args ...string) (out, stderr string, code int) {
	var o, e bytes.Buffer
	code = run(ctx, append([]string{"--credentials", l.plane.AdminCredentials()}, args...), strings.NewReader(stdin), &o, &e)
	return o.String(), e.String(), code
}

// ok runs the program, which must succeed, and returns what it printed.
func (l *lab) ok(stdin string, args ...string) string {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, stderr, code := l.call(ctx, stdin, args...)
	if code != 0 {
		l.Fatalf("gantry %s: code %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// fails runs the program, which must end with code 1, and returns its complaint.
func (l *lab) fails(stdin string, args ...string) (out, stderr string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, stderr, code := l.call(ctx, stdin, args...)
	if code != 1 {
		l.Fatalf("gantry %s: code %d, want 1\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out, stderr
}

var (
	ages   = regexp.MustCompile(`\b(\d+d)?(\d+h)?(\d+m)?\d+s\b`)
	hashes = regexp.MustCompile(`web-[a-z0-9]{8,10}(-[a-z0-9]{5})?\b`)
	spaces = regexp.MustCompile(` {2,}`)
)

// plain takes out what differs from run to run, and the width of columns.
func plain(s string) string {
	s = ages.ReplaceAllString(s, "AGE")
	s = hashes.ReplaceAllStringFunc(s, func(h string) string { return "web" + strings.Repeat("-X", strings.Count(h, "-")) })
	s = spaces.ReplaceAllString(s, "|")
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], "| ")
	}
	return strings.Join(lines, "\n")
}
