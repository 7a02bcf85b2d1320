package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/copy"
	"gantry.dev/nodeagent/forward"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/session"
	"gantry.dev/schemas"
)

// Sessions opens what clients then carry on.
type Sessions interface {
	Open(id, pod string, order []byte, start func() (session.Work, error)) (opened bool, err error)
}

// Transfers answers schemas.NodeMethodPortForward and schemas.NodeMethodCopy.
type Transfers struct {
	Pods     Pods
	Sessions Sessions
	// Sandbox says what is seen of a pod's sandbox; false where there is none.
	Sandbox func(uid types.UID) (runtime.SandboxState, bool, error)
}

// Forward opens a session that is a connection to a port of a pod.
func (t *Transfers) Forward(ctx context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	var req schemas.PortForwardRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("port forward request: %v", err))
	}
	if req.Port == 0 {
		return nil, nil, apierrors.NewBadRequest("port: 0 is not a port")
	}
	view, err := t.find(req.Namespace, req.Pod, req.UID)
	if err != nil {
		return nil, nil, err
	}
	uid := view.Want.UID
	_, err = t.Sessions.Open(req.Session, string(uid), body, func() (session.Work, error) {
		ns, err := t.network(uid, req.Pod)
		if err != nil {
			return session.Work{}, err
		}
		defer func() { _ = ns.Close() }()
		conn, err := forward.Dial(ctx, ns, req.Port)
		if err != nil {
			return session.Work{}, apierrors.NewBadRequest(err.Error())
		}
		return forward.Work(conn), nil
	})
	return opened(req.Session, "", err)
}

// network opens a pod's network namespace, which its shim holds.
func (t *Transfers) network(uid types.UID, name string) (*os.File, error) {
	sandbox, ok, err := t.Sandbox(uid)
	if err != nil {
		return nil, err
	}
	if !ok || sandbox.PID == 0 {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s is not running", name))
	}
	ns, err := forward.Namespace(sandbox.PID)
	if err != nil {
		return nil, err
	}
	// Looked at again: by now the number may be another process's.
	if again, ok, err := t.Sandbox(uid); err != nil || !ok || again.PID != sandbox.PID {
		_ = ns.Close()
		return nil, errors.Join(err, apierrors.NewBadRequest(fmt.Sprintf("pod %s is starting anew; try again", name)))
	}
	return ns, nil
}

func (t *Transfers) find(namespace, name string, uid types.UID) (pod.View, error) {
	view, ok := t.Pods.Find(namespace, name, uid)
	if !ok || view.Want.Pod == nil {
		return pod.View{}, apierrors.NewNotFound(schema.GroupResource{Resource: schemas.Pods}, name)
	}
	return view, nil
}

// opened is the answer to a request that opens a session.
func opened(id, container string, err error) ([]byte, map[string][]string, error) {
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(schemas.SessionReply{Session: id, Container: container})
	return body, nil, err
}

// Copy opens a session that carries files out of a container or into it.
func (t *Transfers) Copy(_ context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	var req schemas.CopyRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("copy request: %v", err))
	}
	if req.Path == "" {
		return nil, nil, apierrors.NewBadRequest("path: which file or directory is meant has to be said")
	}
	view, err := t.find(req.Namespace, req.Pod, req.UID)
	if err != nil {
		return nil, nil, err
	}
	if req.Container, err = containerOf(view, schemas.LogRequest{Pod: req.Pod, Container: req.Container}); err != nil {
		return nil, nil, err
	}
	uid := view.Want.UID
	_, err = t.Sessions.Open(req.Session, string(uid), body, func() (session.Work, error) {
		root, err := t.root(uid, req.Pod, req.Container)
		if err != nil {
			return session.Work{}, err
		}
		return copying(root, req), nil
	})
	return opened(req.Session, req.Container, err)
}

// root opens the root directory of a container that runs.
func (t *Transfers) root(uid types.UID, name, container string) (*copy.Root, error) {
	pid := func() (int, error) {
		sandbox, ok, err := t.Sandbox(uid)
		if err != nil || !ok {
			return 0, err
		}
		for _, c := range slices.Backward(sandbox.Containers) { // the newest run first
			if c.Name == container && c.Phase == runtime.PhaseRunning {
				return c.PID, nil
			}
		}
		return 0, nil
	}
	first, err := pid()
	if err != nil {
		return nil, err
	}
	if first == 0 {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("container %s in pod %s is not running", container, name))
	}
	root, err := copy.OpenRoot(first)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("container %s in pod %s is not running: %v", container, name, err))
	}
	// The process may have ended before its root was opened, and its number
	// been given to another one. That one need not be a container's at all.
	if again, err := pid(); err != nil || again != first || !inPod(first, uid) || root.Ended() {
		_ = root.Close()
		return nil, errors.Join(err, apierrors.NewBadRequest(fmt.Sprintf("container %s in pod %s ends or starts anew; try again", container, name)))
	}
	return root, nil
}

// inPod says that a process is in the cgroup of a pod.
func inPod(pid int, uid types.UID) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(text), "/pod"+string(uid)+"/")
}

// copying makes a session of a copy. What is left out, or not as it was, is
// said on the error output, one line for each.
func copying(root *copy.Root, req schemas.CopyRequest) session.Work {
	ctx, cancel := context.WithCancel(context.Background())
	said, says := io.Pipe()
	o := copy.Options{Warn: func(text string) { _, _ = fmt.Fprintln(says, text) }}
	data, end := io.Pipe()
	result := make(chan error, 1)
	w := session.Work{
		Stderr: said,
		Wait:   sync.OnceValues(func() (*int, error) { return nil, <-result }),
		Stop: func() {
			cancel()
			gone := errors.New("the copy was given up")
			_ = data.CloseWithError(gone)
			_ = end.CloseWithError(gone)
			_ = said.CloseWithError(gone)
		},
	}
	run := func() (err error) {
		if req.Write {
			_, err = root.Write(ctx, req.Path, data, o)
		} else {
			_, err = root.Read(ctx, req.Path, end, o)
		}
		return err
	}
	if req.Write {
		w.Stdin = end
	} else {
		w.Stdout = data
	}
	go func() {
		err := run()
		if req.Write {
			// Whoever still sends learns that nobody takes it.
			_ = data.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		} else {
			_ = end.Close()
		}
		_ = says.Close()
		_ = root.Close()
		result <- err
	}()
	return w
}
