package serve

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/copy"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/session"
	"gantry.dev/schemas"
)

// onePod is a node with the pod "web".
type onePod struct{}

func (onePod) Find(_, name string, _ types.UID) (pod.View, bool) {
	if name != "web" {
		return pod.View{}, false
	}
	return pod.View{Want: pod.Desired{UID: "u1", Name: "web", Pod: &corev1.Pod{
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}, {Name: "other"}}},
	}}}, true
}

// opening keeps what was opened.
type opening struct{ work *session.Work }

func (o *opening) Open(_, _ string, _ []byte, start func() (session.Work, error)) (bool, error) {
	w, err := start()
	o.work = &w
	return err == nil, err
}

// sandbox is what is seen of the pod: a process of ours as its shim and as its
// container.
func sandbox(pid int) func(types.UID) (runtime.SandboxState, bool, error) {
	return func(types.UID) (runtime.SandboxState, bool, error) {
		return runtime.SandboxState{PID: pid, Containers: []runtime.ContainerState{
			{Name: "app", Attempt: 0, Phase: runtime.PhaseExited}, {Name: "app", Attempt: 1, Phase: runtime.PhaseRunning, PID: pid},
		}}, pid != 0, nil
	}
}

// child is a process that is in no pod.
func child(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestTransfersRefused(t *testing.T) {
	pid := child(t)
	for desc, tt := range map[string]struct {
		method string
		pid    int
		req    any
		code   int32
		says   string
	}{
		"forward to nothing":      {schemas.NodeMethodPortForward, pid, schemas.PortForwardRequest{Pod: "none", Port: 80}, 404, `pods "none" not found`},
		"forward to port 0":       {schemas.NodeMethodPortForward, pid, schemas.PortForwardRequest{Pod: "web"}, 400, "0 is not a port"},
		"forward where none runs": {schemas.NodeMethodPortForward, 0, schemas.PortForwardRequest{Pod: "web", Port: 80}, 400, "pod web is not running"},
		"forward to the deaf":     {schemas.NodeMethodPortForward, pid, schemas.PortForwardRequest{Pod: "web", Port: 1}, 400, "failed to connect to localhost:1 inside the pod"},
		"no JSON":                 {schemas.NodeMethodPortForward, pid, "x", 400, "port forward request"},
		"copy of nothing":         {schemas.NodeMethodCopy, pid, schemas.CopyRequest{Pod: "none", Path: "/"}, 404, `pods "none" not found`},
		"copy without a path":     {schemas.NodeMethodCopy, pid, schemas.CopyRequest{Pod: "web"}, 400, "path: which file"},
		"copy of no container":    {schemas.NodeMethodCopy, pid, schemas.CopyRequest{Pod: "web", Path: "/", Container: "none"}, 400, "container none is not valid for pod web"},
		"copy where none runs":    {schemas.NodeMethodCopy, pid, schemas.CopyRequest{Pod: "web", Path: "/", Container: "other"}, 400, "container other in pod web is not running"},
		// Its number was given to a process that is no container of the pod.
		"copy of another process": {schemas.NodeMethodCopy, pid, schemas.CopyRequest{Pod: "web", Path: "/", Container: "app"}, 400, "ends or starts anew"},
		"copy of one that ended":  {schemas.NodeMethodCopy, 1 << 30, schemas.CopyRequest{Pod: "web", Path: "/", Container: "app"}, 400, "is not running"},
	} {
		transfers := &Transfers{Pods: onePod{}, Sessions: &opening{}, Sandbox: sandbox(tt.pid)}
		answer := transfers.Forward
		if tt.method == schemas.NodeMethodCopy {
			answer = transfers.Copy
		}
		body, err := json.Marshal(tt.req)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = answer(t.Context(), nil, body)
		var known apierrors.APIStatus
		if !errors.As(err, &known) || known.Status().Code != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: want %d %q: %v", desc, tt.code, tt.says, err)
		}
	}
}

func TestForwardOpens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	o := &opening{}
	transfers := &Transfers{Pods: onePod{}, Sessions: o, Sandbox: sandbox(child(t))}
	body, err := json.Marshal(schemas.PortForwardRequest{Session: "s", Pod: "web", Port: uint16(l.Addr().(*net.TCPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	answer, _, err := transfers.Forward(t.Context(), nil, body)
	if err != nil || string(answer) != `{"session":"s"}` {
		t.Errorf("answer %s, %v", answer, err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	o.work.Stop()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("stopped, the pod hears %v", err)
	}
}

// copied opens a session's work on this machine's own root.
func copied(t *testing.T, req schemas.CopyRequest) session.Work {
	t.Helper()
	root, err := copy.OpenRoot(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return copying(root, req)
}

func TestCopyOut(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644), os.Symlink("file", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	w := copied(t, schemas.CopyRequest{Path: dir})
	said := make(chan []byte)
	go func() {
		text, _ := io.ReadAll(w.Stderr)
		said <- text
	}()
	data, err := io.ReadAll(w.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := w.Wait(); err != nil || code != nil {
		t.Errorf("ended with %v, %v", code, err)
	}
	w.Stop()
	if text := <-said; len(text) > 0 {
		t.Errorf("said %q", text)
	}
	names := 0
	for r := tar.NewReader(bytes.NewReader(data)); ; names++ {
		if _, err := r.Next(); err != nil {
			break
		}
	}
	if names != 3 {
		t.Errorf("%d entries", names)
	}

	w = copied(t, schemas.CopyRequest{Path: filepath.Join(dir, "none")})
	go func() { _, _ = io.Copy(io.Discard, w.Stderr) }()
	if data, err := io.ReadAll(w.Stdout); err != nil || len(data) > 0 {
		t.Errorf("of nothing came %q, %v", data, err)
	}
	if _, err := w.Wait(); err == nil || !strings.Contains(err.Error(), "none: no such file or directory in the container") {
		t.Errorf("ended with %v", err)
	}
}

func TestCopyIn(t *testing.T) {
	dir := t.TempDir()
	var packed bytes.Buffer
	p := tar.NewWriter(&packed)
	if err := p.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "file", Size: 4, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	w := copied(t, schemas.CopyRequest{Path: dir, Write: true})
	if _, err := w.Stdin.Write(packed.Bytes()[:1024]); err != nil {
		t.Fatal(err)
	}
	if err := w.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Wait(); err != nil {
		t.Error(err)
	}
	w.Stop()
	if text, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
}

// TestCopyStopped: a client that goes away in the middle leaves neither a
// goroutine that waits for it nor half a file.
func TestCopyStopped(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	w := copied(t, schemas.CopyRequest{Path: dir})
	if _, err := io.ReadFull(w.Stdout, make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	w.Stop()
	if _, err := w.Wait(); err == nil {
		t.Error("stopped, the copy out has succeeded")
	}

	into := t.TempDir()
	var packed bytes.Buffer
	if err := tar.NewWriter(&packed).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "file", Size: 1 << 20, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	w = copied(t, schemas.CopyRequest{Path: into, Write: true})
	if _, err := w.Stdin.Write(append(packed.Bytes(), make([]byte, 5000)...)); err != nil {
		t.Fatal(err)
	}
	w.Stop()
	if _, err := w.Wait(); err == nil {
		t.Error("stopped, the copy in has succeeded")
	}
	left, err := os.ReadDir(into)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
