package admission

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

	"gantry.dev/schemas"
)

// AskFunc asks a node for one of its methods. An error that is an
// apierrors.APIStatus is what the node refuses with; any other means that it
// could not be asked, or gave no answer before ctx ended.
type AskFunc func(ctx context.Context, node, method string, header map[string][]string, body []byte) (answer []byte, answerHeader map[string][]string, err error)

// defaultContainer is kubectl's annotation for pods with several containers.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// Headers that pass between the client of a session and the node, each way.
// Everything else stays out, what the client says of the pod above all.
var (
	toNode = []string{
		schemas.HeaderSession, schemas.HeaderCursor, schemas.HeaderWait, schemas.HeaderMax,
		schemas.HeaderOffset, schemas.HeaderLast, schemas.HeaderResize, schemas.HeaderClose,
	}
	fromNode = []string{
		schemas.HeaderSession, schemas.HeaderCursor, schemas.HeaderOffset, schemas.HeaderChannel,
		schemas.HeaderEOF, schemas.HeaderExitCode, schemas.HeaderWarning,
	}
)

// sessionVerb says that a verb opens a session or carries one on.
func sessionVerb(verb string) bool {
	switch verb {
	case schemas.VerbExec, schemas.VerbAttach, schemas.VerbPortForward, schemas.VerbCopy, schemas.VerbSend, schemas.VerbRecv:
		return true
	}
	return false
}

// session passes one request of a session on to the pod's node. Nothing of a
// session is kept here: any replica carries on what another one opened. The
// verbs of the API and the methods of a node have the same names.
func (a *Admission) session(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if kind.Resource != schemas.Pods || call.Subresource != "" {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("%s have no sessions; pods do", kind.Resource))
	}
	o, err := a.current(kind, call.Namespace, call.Name)
	if err != nil {
		return reply{}, err
	}
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return reply{}, fmt.Errorf("%s %q is a %T", kind.Resource, call.Name, o)
	}
	switch call.Verb {
	case schemas.VerbSend, schemas.VerbRecv:
		// Nothing is said of what runs: a pod that has ended may have left bytes
		// that are still to be fetched.
		if pod.Spec.NodeName == "" {
			return reply{}, unscheduled(pod)
		}
	default:
		if body, err = openRequest(pod, call.Verb, body); err != nil {
			return reply{}, err
		}
	}
	toNodeHeader := only(header, toNode)
	toNodeHeader[schemas.HeaderPod] = []string{string(pod.UID)}
	out, outHeader, err := a.ask(ctx, pod.Spec.NodeName, call.Verb, toNodeHeader, body)
	if err != nil {
		return reply{}, nodeError(err, pod.Spec.NodeName, pod.Name)
	}
	return reply{body: out, header: only(outHeader, fromNode)}, nil
}

// opening is what the requests that open a session have in common: which pod
// is meant is said by the subject and by nobody else.
type opening struct {
	namespace, pod, container *string
	uid                       *types.UID
}

// openRequest checks a request that opens a session against the pod, and
// fills in which one it is.
func openRequest(pod *corev1.Pod, verb string, body []byte) ([]byte, error) {
	var req any
	var o opening
	var what string // for messages, as kubectl words them
	switch verb {
	case schemas.VerbExec:
		r := &schemas.ExecRequest{}
		req, o, what = r, opening{&r.Namespace, &r.Pod, &r.Container, &r.UID}, "exec into a container"
	case schemas.VerbAttach:
		r := &schemas.AttachRequest{}
		req, o, what = r, opening{&r.Namespace, &r.Pod, &r.Container, &r.UID}, "attach a container"
	case schemas.VerbCopy:
		r := &schemas.CopyRequest{}
		req, o, what = r, opening{&r.Namespace, &r.Pod, &r.Container, &r.UID}, "copy from or to a container"
	case schemas.VerbPortForward:
		r := &schemas.PortForwardRequest{}
		req, o, what = r, opening{&r.Namespace, &r.Pod, nil, &r.UID}, "forward a port"
	default:
		return nil, fmt.Errorf("verb %q opens no session", verb)
	}
	if err := decodeOptions(body, req, strings.TrimPrefix(fmt.Sprintf("%T", req), "*schemas.")); err != nil {
		return nil, err
	}
	if *o.uid != "" && *o.uid != pod.UID {
		// A client that names a UID means that pod, not its successor.
		return nil, apierrors.NewNotFound(corev1.Resource(schemas.Pods), pod.Name)
	}
	if err := checkRequest(req); err != nil {
		return nil, err
	}
	if pod.Spec.NodeName == "" {
		return nil, unscheduled(pod)
	}
	if phase := pod.Status.Phase; phase == corev1.PodSucceeded || phase == corev1.PodFailed {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("cannot %s in a completed pod; current phase is %s", what, phase))
	}
	if o.container != nil {
		name, err := sessionContainer(pod, *o.container)
		if err != nil {
			return nil, err
		}
		*o.container = name
	} else if pod.Status.Phase != corev1.PodRunning {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unable to forward port because pod is not running. Current status=%v", pod.Status.Phase))
	}
	*o.namespace, *o.pod, *o.uid = pod.Namespace, pod.Name, pod.UID
	return json.Marshal(req)
}

// checkRequest refuses what no node could do.
func checkRequest(req any) error {
	switch r := req.(type) {
	case *schemas.ExecRequest:
		if len(r.Command) == 0 || r.Command[0] == "" {
			return apierrors.NewBadRequest("you must specify at least one command for the container: command is empty")
		}
	case *schemas.PortForwardRequest:
		if r.Port == 0 {
			return apierrors.NewBadRequest("port: 0 is not a port: want 1 to 65535")
		}
	case *schemas.CopyRequest:
		if r.Path == "" {
			return apierrors.NewBadRequest("path: which file or directory is meant has to be said")
		}
	}
	return nil
}

// sessionContainer is the container of a session: the one that was asked for,
// else the one that the pod's annotation names, else its first. It has to run.
func sessionContainer(pod *corev1.Pod, asked string) (string, error) {
	var names []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	name := asked
	if name == "" && slices.Contains(names, pod.Annotations[defaultContainer]) {
		name = pod.Annotations[defaultContainer]
	}
	if name == "" && len(names) > 0 {
		name = names[0]
	}
	if !slices.Contains(names, name) {
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s; it has %s", name, pod.Name, strings.Join(names, ", ")))
	}
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.Name != name:
		case s.State.Waiting != nil:
			return "", apierrors.NewBadRequest(fmt.Sprintf("container %s in pod %s is not running: it waits: %s", name, pod.Name, reason(s.State.Waiting.Reason, s.State.Waiting.Message)))
		case s.State.Terminated != nil:
			return "", apierrors.NewBadRequest(fmt.Sprintf("container %s in pod %s is not running: it ended with exit code %d: %s", name, pod.Name,
				s.State.Terminated.ExitCode, reason(s.State.Terminated.Reason, s.State.Terminated.Message)))
		}
	}
	// Without a status the node knows best: the record may lag behind it.
	return name, nil
}

func reason(word, message string) string {
	switch {
	case message == "":
		return word
	case word == "":
		return message
	}
	return word + ": " + message
}

func unscheduled(pod *corev1.Pod) error {
	return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned%s", pod.Name, unscheduledReason(pod)))
}

// nodeError says in the API's words why a node did not do what it was asked.
func nodeError(err error, node, pod string) error {
	var known apierrors.APIStatus
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled):
		return err // this server stops; another one can be asked at once
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError(fmt.Sprintf("node %s, which runs pod %s, did not answer in time: %v", node, pod, err), 1)
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s, which runs pod %s, cannot be reached: %v", node, pod, err))
}

// only picks headers by name; what remains may be shared with its source.
func only(header map[string][]string, names []string) map[string][]string {
	out := map[string][]string{}
	for _, name := range names {
		if v := header[name]; len(v) > 0 {
			out[name] = v
		}
	}
	return out
}
