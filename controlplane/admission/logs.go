package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/schemas"
)

// podLog passes a read of a log on to the pod's node.
func (a *Admission) podLog(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if kind.Resource != schemas.Pods {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("%s have no logs; pods do", kind.Resource))
	}
	var req schemas.LogRequest
	if err := decodeOptions(body, &req, "LogRequest"); err != nil {
		return reply{}, err
	}
	o, err := a.current(kind, call.Namespace, call.Name)
	if err != nil {
		return reply{}, err
	}
	pod := o.(*corev1.Pod)
	if req.UID != "" && req.UID != pod.UID {
		// A follower asked about an earlier pod of this name: that one is gone.
		return reply{}, apierrors.NewNotFound(groupResource(kind), call.Name)
	}
	if req.Container, err = logContainer(pod, req.Container); err != nil {
		return reply{}, err
	}
	if pod.Spec.NodeName == "" {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned%s", pod.Name, unscheduledReason(pod)))
	}
	req.Namespace, req.Pod, req.UID = pod.Namespace, pod.Name, pod.UID
	out, header, err := a.logs(ctx, pod.Spec.NodeName, req)
	var known apierrors.APIStatus
	switch {
	case err == nil:
		return reply{body: out, header: header}, nil
	case errors.As(err, &known):
		return reply{}, whyWaiting(err, pod, req.Container)
	case errors.Is(err, context.DeadlineExceeded):
		return reply{}, apierrors.NewTimeoutError(fmt.Sprintf("node %s, which runs pod %s, did not answer in time: %v", pod.Spec.NodeName, pod.Name, err), 1)
	}
	return reply{}, apierrors.NewServiceUnavailable(fmt.Sprintf("node %s, which runs pod %s, cannot be reached: %v", pod.Spec.NodeName, pod.Name, err))
}

// whyWaiting adds to the node's word that a container has not started the
// reason that its status gives.
func whyWaiting(err error, pod *corev1.Pod, container string) error {
	text := fmt.Sprintf("container %q in pod %q is waiting to start", container, pod.Name)
	if err.Error() != text {
		return err
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name != container || s.State.Waiting == nil {
			continue
		}
		why := s.State.Waiting.Reason
		switch why {
		case "":
			return err
		case "ImagePullBackOff":
			why = "trying and failing to pull image"
		case "ErrImagePull":
			why = "image can't be pulled"
		}
		return apierrors.NewBadRequest(text + ": " + why)
	}
	return err
}

// logContainer is the container that a read is about.
func logContainer(pod *corev1.Pod, asked string) (string, error) {
	var names []string
	for _, c := range pod.Spec.Containers {
		if c.Name == asked {
			return asked, nil
		}
		names = append(names, c.Name)
	}
	switch {
	case asked != "":
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s; it has %s", asked, pod.Name, strings.Join(names, ", ")))
	case len(names) != 1:
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(names, " ")))
	}
	return names[0], nil
}

func unscheduledReason(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Message != "" {
			return ": " + c.Message
		}
	}
	return ""
}
