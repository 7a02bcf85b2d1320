package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// defaultContainer is kubectl's annotation for pods with several containers.
const defaultContainer = "kubectl.kubernetes.io/default-container"

type logOptions struct {
	follow, previous, timestamps  bool
	allContainers, prefix         bool
	container, selector, sinceRaw string
	since                         time.Duration
	tail                          int64
}

func (a *app) logsCommand() *cobra.Command {
	var o logOptions
	c := &cobra.Command{
		Use:     "logs POD | KIND/NAME | -l SELECTOR",
		Aliases: []string{"log"},
		Short:   "Print what containers wrote",
		Example: `  gantry logs web-1 -f
  gantry logs deployment/web --tail 20
  gantry logs web-1 -c sidecar --previous`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runLogs(cmd.Context(), o, args) },
	}
	f := c.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the container ends")
	f.BoolVarP(&o.previous, "previous", "p", false, "of the run before the present one")
	f.BoolVar(&o.timestamps, "timestamps", false, "begin each line with its time")
	f.StringVarP(&o.container, "container", "c", "", "which container; needed where a pod has several")
	f.BoolVar(&o.allContainers, "all-containers", false, "all containers of a pod")
	f.BoolVar(&o.prefix, "prefix", false, "begin each line with its pod and container")
	f.StringVarP(&o.selector, "selector", "l", "", "all pods with these labels")
	f.DurationVar(&o.since, "since", 0, "not older than this, such as 5s, 2m or 3h")
	f.StringVar(&o.sinceRaw, "since-time", "", "not older than this time (RFC 3339)")
	f.Int64Var(&o.tail, "tail", -1, "lines of the end; -1 for all (with a selector 10)")
	return c
}

// source is one container whose log is read.
type source struct {
	pod       *corev1.Pod
	container string
}

func (a *app) runLogs(ctx context.Context, o logOptions, args []string) error {
	if o.since != 0 && o.sinceRaw != "" {
		return errors.New("at most one of --since and --since-time may be used")
	}
	sources, err := a.logSources(ctx, &o, args)
	if err != nil {
		return err
	}
	req := schemas.LogRequest{Previous: o.previous}
	if o.tail >= 0 {
		req.TailLines = &o.tail
	}
	switch {
	case o.since > 0:
		t := time.Now().Add(-o.since)
		req.SinceTime = &t
	case o.sinceRaw != "":
		t, err := time.Parse(time.RFC3339, o.sinceRaw)
		if err != nil {
			return fmt.Errorf("--since-time %q: %w", o.sinceRaw, err)
		}
		req.SinceTime = &t
	}
	var mu sync.Mutex // a line is written in one piece
	read := func(s source) error {
		w := &lineWriter{out: a.out, mu: &mu, timestamps: o.timestamps}
		if o.prefix {
			w.prefix = fmt.Sprintf("[pod/%s/%s] ", s.pod.Name, s.container)
		}
		return a.readLog(ctx, s, req, o.follow, w)
	}
	if !o.follow || len(sources) == 1 {
		for _, s := range sources {
			if err := read(s); err != nil {
				return err
			}
		}
		return nil
	}
	failures := make(chan error, len(sources))
	for _, s := range sources {
		go func() { failures <- read(s) }()
	}
	for range sources {
		if err := <-failures; err != nil {
			a.report(err)
		}
	}
	return nil
}

// logSources finds the containers that are meant.
func (a *app) logSources(ctx context.Context, o *logOptions, args []string) ([]source, error) {
	podKind, err := kindOf(schemas.Pods)
	if err != nil {
		return nil, err
	}
	var pods []*corev1.Pod
	switch {
	case o.selector != "" && len(args) > 0:
		return nil, errors.New("only a selector (-l) or a POD name is allowed")
	case o.selector != "":
		if pods, err = a.podsOf(ctx, o.selector); err != nil {
			return nil, err
		}
		if len(pods) == 0 {
			fmt.Fprintf(a.err, "No resources found in %s namespace.\n", a.namespace)
		}
		if o.tail < 0 {
			o.tail = 10
		}
	case len(args) == 0:
		return nil, errors.New("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]': POD or TYPE/NAME is a required argument for the logs command")
	default:
		t := target{podKind, args[0]}
		if strings.Contains(args[0], "/") {
			pairs, err := parsePairs(args[:1])
			if err != nil {
				return nil, err
			}
			t = pairs[0]
		}
		if len(args) == 2 { // kubectl's old form: logs POD CONTAINER
			o.container = args[1]
		}
		pod, err := a.podBehind(ctx, t)
		if err != nil {
			return nil, err
		}
		pods = append(pods, pod)
	}
	var out []source
	for _, pod := range pods {
		out = append(out, containersOf(pod, o)...)
	}
	return out, nil
}

func containersOf(pod *corev1.Pod, o *logOptions) []source {
	if !o.allContainers {
		name := o.container
		if name == "" {
			name = pod.Annotations[defaultContainer]
		}
		if name == "" && len(pod.Spec.Containers) == 1 {
			name = pod.Spec.Containers[0].Name
		}
		return []source{{pod, name}} // where it is empty the server says what there is
	}
	var out []source
	for _, c := range pod.Spec.Containers {
		out = append(out, source{pod, c.Name})
	}
	return out
}

func (a *app) podsOf(ctx context.Context, selector string) ([]*corev1.Pod, error) {
	k, err := kindOf(schemas.Pods)
	if err != nil {
		return nil, err
	}
	objects, _, err := a.objects(ctx, k, a.namespace, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	var out []*corev1.Pod
	for _, o := range objects {
		if p, ok := o.(*corev1.Pod); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// podBehind is a pod itself, or one of those that an object stands for.
func (a *app) podBehind(ctx context.Context, t target) (*corev1.Pod, error) {
	o, err := a.get(ctx, t.kind, a.namespace, t.name)
	if err != nil {
		return nil, err
	}
	var selector *metav1.LabelSelector
	switch o := o.(type) {
	case *corev1.Pod:
		return o, nil
	case *appsv1.Deployment:
		selector = o.Spec.Selector
	case *appsv1.ReplicaSet:
		selector = o.Spec.Selector
	case *corev1.Service:
		if len(o.Spec.Selector) > 0 {
			selector = metav1.SetAsLabelSelector(o.Spec.Selector)
		}
	}
	if selector == nil {
		return nil, fmt.Errorf("cannot get the logs from %s: it selects no pods", label(t.kind, t.name))
	}
	pods, err := a.podsOf(ctx, metav1.FormatLabelSelector(selector))
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%s has no pods", label(t.kind, t.name))
	}
	best := pods[0]
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning && best.Status.Phase != corev1.PodRunning {
			best = p
		}
	}
	if len(pods) > 1 {
		fmt.Fprintf(a.err, "Found %d pods, using pod/%s\n", len(pods), best.Name)
	}
	return best, nil
}

// readLog reads piece by piece; the node keeps nothing between two.
func (a *app) readLog(ctx context.Context, s source, req schemas.LogRequest, follow bool, w *lineWriter) error {
	req.Container = s.container
	req.UID = s.pod.UID
	if follow {
		req.WaitSeconds = 20
	}
	began := false
	for {
		body, err := json.Marshal(req)
		if err != nil {
			return err
		}
		reply, err := a.request(ctx, schemas.VerbLog, schemas.Pods, s.pod.Namespace, s.pod.Name, body)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil // interrupted
		case err != nil && follow && began && passing(err):
			// The agent or the control plane restarts; the log goes on after it.
			select {
			case <-time.After(time.Second):
				continue
			case <-ctx.Done():
				return nil
			}
		case err != nil && began && apierrors.IsNotFound(err):
			return w.end() // the pod was deleted meanwhile
		case err != nil:
			return err
		}
		began = true
		if err := w.piece(reply.Body); err != nil {
			return err
		}
		req.Cursor = first(header(reply, schemas.HeaderCursor), req.Cursor)
		ended := first(header(reply, schemas.HeaderEOF), "") == "true"
		if ended || (!follow && len(reply.Body) == 0) {
			return w.end()
		}
	}
}

func header(r bus.Reply, name string) []string { return r.Header[name] }

// passing says that an error may be over in a moment.
func passing(err error) bool {
	return errors.Is(err, bus.ErrNoAnswer) || apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || errors.Is(err, context.DeadlineExceeded)
}

// lineWriter turns stored lines ("<time> stdout F text") back into what the
// container wrote.
type lineWriter struct {
	out        io.Writer
	mu         *sync.Mutex
	timestamps bool
	prefix     string
	rest       []byte // a line whose end has not come yet
	midLine    bool   // the last one was only a part
}

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
	if len(data) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.out.Write(data)
	return err
}
