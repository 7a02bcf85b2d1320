// Package serve answers what the control plane asks of the node: pieces of
// logs, and images that are put into the node's store.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/logs"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/schemas"
)

// Pods finds what the node has.
type Pods interface {
	Find(namespace, name string, uid types.UID) (pod.View, bool)
}

// Logs answers schemas.NodeMethodLogs.
type Logs struct {
	Pods Pods
	// Dir is where the logs of a pod lie.
	Dir func(uid types.UID) string
}

// Answer is one request.
func (l *Logs) Answer(ctx context.Context, _ map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	var req schemas.LogRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("log request: %v", err))
	}
	piece, err := logs.Read(ctx, l.find, req)
	switch {
	case errors.Is(err, logs.ErrInvalid):
		return nil, nil, apierrors.NewBadRequest(err.Error())
	case err != nil:
		return nil, nil, err
	}
	header := map[string][]string{schemas.HeaderCursor: {piece.Cursor}}
	if piece.EOF {
		header[schemas.HeaderEOF] = []string{"true"}
	}
	return piece.Body, header, nil
}

func (l *Logs) find(req schemas.LogRequest, attempt int) (logs.Run, error) {
	view, ok := l.Pods.Find(req.Namespace, req.Pod, req.UID)
	if !ok || view.Want.Pod == nil {
		return logs.Run{}, apierrors.NewNotFound(schema.GroupResource{Resource: schemas.Pods}, req.Pod)
	}
	container, err := containerOf(view, req)
	if err != nil {
		return logs.Run{}, err
	}
	rec, started := view.Record.Containers[container]
	if attempt < 0 {
		if !started {
			return logs.Run{}, apierrors.NewBadRequest(fmt.Sprintf(
				"container %q in pod %q is waiting to start", container, req.Pod))
		}
		attempt = rec.Attempt
		if req.Previous {
			attempt--
		}
		if attempt < 0 {
			return logs.Run{}, apierrors.NewBadRequest(fmt.Sprintf(
				"previous terminated container %q in pod %q not found", container, req.Pod))
		}
	}
	return logs.Run{
		Path: logs.Path(l.Dir(view.Want.UID), container, attempt), Attempt: attempt,
		Ended: ended(view, container, attempt),
	}, nil
}

func containerOf(view pod.View, req schemas.LogRequest) (string, error) {
	var names []string
	for _, c := range view.Want.Pod.Spec.Containers {
		names = append(names, c.Name)
	}
	switch {
	case req.Container == "" && len(names) == 1:
		return names[0], nil
	case req.Container == "":
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]",
			req.Pod, strings.Join(names, " ")))
	case !slices.Contains(names, req.Container):
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s, choose one of: [%s]",
			req.Container, req.Pod, strings.Join(names, " ")))
	}
	return req.Container, nil
}

// ended says that a run writes no more. A run that neither files nor record
// know to have ended may still write.
func ended(view pod.View, container string, attempt int) bool {
	rec, ok := view.Record.Containers[container]
	if ok && (rec.Attempt > attempt || rec.Attempt == attempt && rec.End != nil) {
		return true
	}
	for _, c := range view.Containers {
		if c.Name == container && c.Attempt == attempt {
			return c.Phase == runtime.PhaseExited || c.Phase == runtime.PhaseFailed || c.Phase == runtime.PhaseUnknown
		}
	}
	return false
}
