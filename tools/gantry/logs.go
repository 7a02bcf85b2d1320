package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// defaultContainer is kubectl's annotation for pods with several containers.
const defaultContainer = "kubectl.kubernetes.io/default-container"

type logOptions struct {
	follow, previous, timestamps  bool
	allContainers, allPods        bool
	prefix, ignoreErrors          bool
	container, selector, sinceRaw string
	since, startTimeout           time.Duration
	tail, limitBytes              int64
	atOnce                        int
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
	f.BoolVar(&o.allPods, "all-pods", false, "all pods of a KIND/NAME instead of one of them; sets --prefix")
	f.BoolVar(&o.ignoreErrors, "ignore-errors", false, "go on with the other containers where one cannot be read")
	f.Int64Var(&o.limitBytes, "limit-bytes", 0, "at most this much of each container; 0 for all")
	f.IntVar(&o.atOnce, "max-log-requests", 5, "how many containers --follow may read at once")
	f.DurationVar(&o.startTimeout, "pod-running-timeout", 20*time.Second, "how long --follow waits for a container to start")
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
	if err := o.check(args); err != nil {
		return err
	}
	sources, err := a.logSources(ctx, &o, args)
	if err != nil {
		return err
	}
	if o.follow && len(sources) > o.atOnce {
		return fmt.Errorf("you are attempting to follow %d log streams, but maximum allowed concurrency is %d, use --max-log-requests to increase the limit", len(sources), o.atOnce)
	}
	req, err := o.request(time.Now())
	if err != nil {
		return err
	}
	var mu sync.Mutex // a line is written in one piece
	read := func(s source) error {
		w := &lineWriter{out: a.out, mu: &mu, timestamps: o.timestamps, limit: o.limitBytes}
		if o.prefix {
			w.prefix = fmt.Sprintf("[pod/%s/%s] ", s.pod.Name, s.container)
		}
		err := a.readLog(ctx, s, req, o, w)
		if err != nil && o.ignoreErrors {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintln(a.err, describeError(err))
			return nil
		}
		return err
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

func (o *logOptions) check(args []string) error {
	switch {
	case o.since != 0 && o.sinceRaw != "":
		return errors.New("at most one of --since and --since-time may be used")
	case o.since < 0:
		return errors.New("--since must be greater than 0")
	case o.tail < -1:
		return errors.New("--tail must be greater than or equal to -1")
	case o.limitBytes < 0:
		return errors.New("--limit-bytes must be greater than 0")
	case o.atOnce < 1:
		return errors.New("--max-log-requests must be greater than 0")
	case o.allContainers && o.container != "":
		return fmt.Errorf("--all-containers=true should not be specified with container name %s", o.container)
	case o.container != "" && len(args) == 2:
		return errors.New("only one of -c or an inline [CONTAINER] arg is allowed")
	case o.allPods && o.selector != "":
		return errors.New("--all-pods goes with KIND/NAME; a selector (-l) means all pods anyway")
	}
	o.prefix = o.prefix || o.allPods
	return nil
}

// request is what is asked of every container.
func (o *logOptions) request(now time.Time) (schemas.LogRequest, error) {
	req := schemas.LogRequest{Previous: o.previous}
	if o.tail >= 0 {
		req.TailLines = &o.tail
	}
	switch {
	case o.since > 0:
		t := now.Add(-o.since)
		req.SinceTime = &t
	case o.sinceRaw != "":
		t, err := time.Parse(time.RFC3339, o.sinceRaw)
		if err != nil {
			return req, fmt.Errorf("--since-time %q is no time such as 2026-01-05T10:00:00Z: %w", o.sinceRaw, err)
		}
		req.SinceTime = &t
	}
	if o.follow {
		req.WaitSeconds = 20
	}
	return req, nil
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
		if pods, err = a.podsBehind(ctx, t); err != nil {
			return nil, err
		}
		if !o.allPods {
			pods = []*corev1.Pod{a.onePod(pods)}
		}
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
	pods, err := a.podsBehind(ctx, t)
	if err != nil {
		return nil, err
	}
	return a.onePod(pods), nil
}

// podsBehind are the pods that an object stands for; there is at least one.
func (a *app) podsBehind(ctx context.Context, t target) ([]*corev1.Pod, error) {
	o, err := a.get(ctx, t.kind, a.namespace, t.name)
	if err != nil {
		return nil, err
	}
	if p, ok := o.(*corev1.Pod); ok {
		return []*corev1.Pod{p}, nil
	}
	selector := podSelector(o)
	if selector == nil {
		return nil, fmt.Errorf("cannot get the logs from %s: it selects no pods", label(t.kind, t.name))
	}
	pods, err := a.podsOf(ctx, metav1.FormatLabelSelector(selector))
	if err == nil && len(pods) == 0 {
		err = fmt.Errorf("%s has no pods", label(t.kind, t.name))
	}
	return pods, err
}

// podSelector is how an object finds its pods; nil where it has none.
func podSelector(o schemas.Object) *metav1.LabelSelector {
	plain := func(labels map[string]string) *metav1.LabelSelector {
		if len(labels) == 0 {
			return nil
		}
		return metav1.SetAsLabelSelector(labels)
	}
	switch o := o.(type) {
	case *appsv1.Deployment:
		return o.Spec.Selector
	case *appsv1.ReplicaSet:
		return o.Spec.Selector
	case *appsv1.StatefulSet:
		return o.Spec.Selector
	case *appsv1.DaemonSet:
		return o.Spec.Selector
	case *batchv1.Job:
		return o.Spec.Selector
	case *corev1.ReplicationController:
		return plain(o.Spec.Selector)
	case *corev1.Service:
		return plain(o.Spec.Selector)
	}
	return nil
}

// onePod picks a pod that runs, if there is one.
func (a *app) onePod(pods []*corev1.Pod) *corev1.Pod {
	best := pods[0]
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning && best.Status.Phase != corev1.PodRunning {
			best = p
		}
	}
	if len(pods) > 1 {
		fmt.Fprintf(a.err, "Found %d pods, using pod/%s\n", len(pods), best.Name)
	}
	return best
}
