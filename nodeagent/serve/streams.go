package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/session"
	"gantry.dev/schemas"
)

// Runtime runs commands in containers, and connects to them.
type Runtime interface {
	Open(uid types.UID, name string, attempt int, c runtime.Command) (runtime.Streams, error)
	Attach(uid types.UID, name string, attempt int, a runtime.Attachment) (runtime.Streams, error)
}

// Streams answers schemas.NodeMethodExec and schemas.NodeMethodAttach.
type Streams struct {
	Pods     Pods
	Sessions Sessions
	Runtime  Runtime
}

// Exec opens a session that runs a command in a container.
func (s *Streams) Exec(_ context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	var req schemas.ExecRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("exec request: %v", err))
	}
	if len(req.Command) == 0 || req.Command[0] == "" {
		return nil, nil, apierrors.NewBadRequest("command: must not be empty")
	}
	if i := slices.IndexFunc(req.Command, func(a string) bool { return strings.ContainsRune(a, 0) }); i >= 0 {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("command[%d]: must not hold a NUL byte", i))
	}
	view, container, err := s.container(req.Namespace, req.Pod, req.UID, req.Container)
	if err != nil {
		return nil, nil, err
	}
	uid := view.Want.UID
	_, err = s.Sessions.Open(req.Session, string(uid), body, func() (session.Work, error) {
		attempt, err := runningAttempt(view, container)
		if err != nil {
			return session.Work{}, err
		}
		streams, err := s.Runtime.Open(uid, container, attempt, runtime.Command{
			Args: req.Command, Stdin: req.Stdin, TTY: req.TTY, Columns: req.Columns, Rows: req.Rows,
		})
		if err != nil {
			return session.Work{}, notRunning(err, req.Pod, container)
		}
		return session.Work(streams), nil
	})
	return opened(req.Session, container, err)
}

// Attach opens a session with a container's own streams.
func (s *Streams) Attach(_ context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	var req schemas.AttachRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("attach request: %v", err))
	}
	view, container, err := s.container(req.Namespace, req.Pod, req.UID, req.Container)
	if err != nil {
		return nil, nil, err
	}
	uid := view.Want.UID
	_, err = s.Sessions.Open(req.Session, string(uid), body, func() (session.Work, error) {
		attempt, err := runningAttempt(view, container)
		if err != nil {
			return session.Work{}, err
		}
		streams, err := s.Runtime.Attach(uid, container, attempt, runtime.Attachment{
			Stdin: req.Stdin, Columns: req.Columns, Rows: req.Rows,
		})
		switch {
		case errors.Is(err, runtime.ErrNoInput):
			return session.Work{}, apierrors.NewBadRequest(fmt.Sprintf(
				"container %s in pod %s has no standard input; it needs stdin: true", container, req.Pod))
		case errors.Is(err, runtime.ErrInputClosed):
			return session.Work{}, apierrors.NewBadRequest(fmt.Sprintf(
				"the standard input of container %s in pod %s is closed; it takes none until it is started anew", container, req.Pod))
		case err != nil:
			return session.Work{}, notRunning(err, req.Pod, container)
		}
		return session.Work(streams), nil
	})
	return opened(req.Session, container, err)
}

// container finds the pod and the container that is meant: where none is named,
// the one that an annotation names, or the first.
func (s *Streams) container(namespace, name string, uid types.UID, container string) (pod.View, string, error) {
	view, err := (&Transfers{Pods: s.Pods}).find(namespace, name, uid)
	if err != nil {
		return view, "", err
	}
	if container == "" {
		container = defaultContainer(view.Want.Pod)
	}
	container, err = containerOf(view, schemas.LogRequest{Pod: name, Container: container})
	return view, container, err
}

// defaultContainerKey is the annotation that kubectl heeds, too.
const defaultContainerKey = "kubectl.kubernetes.io/default-container"

func defaultContainer(p *corev1.Pod) string {
	if name := p.Annotations[defaultContainerKey]; name != "" {
		return name
	}
	return p.Spec.Containers[0].Name
}

// runningAttempt is the run of a container that executes.
func runningAttempt(view pod.View, container string) (int, error) {
	for _, c := range slices.Backward(view.Containers) { // the newest run first
		if c.Name == container && c.Phase == runtime.PhaseRunning {
			return c.Attempt, nil
		}
	}
	return 0, notRunning(runtime.ErrNotRunning, view.Want.Name, container)
}

// notRunning says what users can act upon where a container does not run.
func notRunning(err error, name, container string) error {
	if errors.Is(err, runtime.ErrNotRunning) || errors.Is(err, runtime.ErrNoSandbox) {
		return apierrors.NewBadRequest(fmt.Sprintf("container %s in pod %s is not running", container, name))
	}
	return err
}
