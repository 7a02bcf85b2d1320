package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// checkAttached refuses flags of run that contradict each other, and says
// whether run stays with the pod.
func (o *runOptions) checkAttached() (attached bool, err error) {
	attached = o.attach || o.stdin
	switch {
	case o.tty && !o.stdin:
		return false, errors.New("-i/--stdin is required for containers with -t/--tty=true")
	case o.remove && !attached:
		return false, errors.New("--rm should only be used for attached containers: add -i or --attach")
	case attached && o.w.rehearsal():
		return false, fmt.Errorf("--dry-run=%s can't be used with attached containers options (--attach, --stdin, or --tty)", o.w.dryRun)
	case attached && o.w.show != nil:
		return false, errors.New("-o cannot be used with attached containers options (--attach, --stdin, or --tty): the output is the container's")
	case o.remove && o.restart != string(corev1.RestartPolicyNever) && !o.stdin:
		return false, errors.New("--rm without -i waits for the container to end for good: add --restart=Never")
	}
	return attached, nil
}

// runAttached creates the pod and stays with it.
func (a *app) runAttached(ctx context.Context, o *runOptions, p *corev1.Pod) error {
	body, err := asManifest(p)
	if err != nil {
		return err
	}
	if err := a.connect(ctx); err != nil {
		return err
	}
	// What is printed belongs to the container: nothing is said of the pod.
	m := manifest{kind: kindNamed(schemas.Pods), namespace: a.namespace, name: p.Name, json: body}
	reply, _, err := a.creator(&o.w)(ctx, m)
	if err != nil {
		return refused{"failed to create pod", err}
	}
	a.warn(reply)
	return a.stay(ctx, o, p.Name)
}

// stay connects the user with the pod until its container ends, and ends with
// its exit code where it is not started again.
func (a *app) stay(ctx context.Context, o *runOptions, name string) (err error) {
	if o.remove {
		defer func() { err = errors.Join(err, a.removeRun(ctx, name)) }()
	}
	running, err := a.awaitStart(ctx, o, name)
	if err != nil {
		return err
	}
	switch {
	case running && o.stdin:
		attach := execOptions{streaming: streaming{stdin: o.stdin, tty: o.tty}, container: name, quiet: o.quiet}
		err = a.runAttach(ctx, attach, name)
		// One that ended in the meantime has left a log.
		if apierrors.IsBadRequest(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			err = a.logOf(ctx, name)
		}
	default:
		// Without an input the log is as good, and begins at the beginning.
		err = a.logOf(ctx, name)
	}
	if err != nil || ctx.Err() != nil || o.restart == string(corev1.RestartPolicyAlways) {
		return err
	}
	return a.awaitEnd(ctx, name)
}

func (a *app) logOf(ctx context.Context, name string) error {
	c := a.logsCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs([]string{"-f", name, "-c", name})
	return c.ExecuteContext(ctx)
}

// awaitStart waits until the container runs, which is true, or has ended.
func (a *app) awaitStart(ctx context.Context, o *runOptions, name string) (running bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.startTimeout)
	defer cancel()
	p := a.progress("waiting for the pod")
	defer p.end()
	var last *corev1.Pod
	err = a.followPod(ctx, name, func(pod *corev1.Pod) (bool, error) {
		last = pod
		p.say("waiting for pod %s, which is %s", name, podStatus(pod))
		for _, s := range pod.Status.ContainerStatuses {
			running = s.State.Running != nil
			if running || s.State.Terminated != nil {
				return true, nil
			}
		}
		return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed, nil
	})
	if errors.Is(err, errTimedOut) && last != nil {
		return false, fmt.Errorf("timed out waiting for pod %s to run: it is %s; see gantry describe pod %s, and --pod-running-timeout", name, podStatus(last), name)
	}
	return running, err
}

// awaitEnd waits until the pod has ended, and takes its container's exit code over.
func (a *app) awaitEnd(ctx context.Context, name string) error {
	return a.followPod(ctx, name, func(pod *corev1.Pod) (bool, error) {
		if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			return false, nil
		}
		for _, s := range pod.Status.ContainerStatuses {
			if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
				fmt.Fprintf(a.err, "pod %s/%s terminated (%s)\n", pod.Namespace, pod.Name, orText(t.Reason, "Error"))
				return true, ended{int(t.ExitCode)}
			}
		}
		if pod.Status.Phase == corev1.PodFailed {
			return true, fmt.Errorf("pod %s/%s failed: %s", pod.Namespace, pod.Name, orText(pod.Status.Message, podStatus(pod)))
		}
		return true, nil
	})
}

// followPod calls fn with a pod as it is and after each change.
func (a *app) followPod(ctx context.Context, name string, fn func(*corev1.Pod) (bool, error)) error {
	get := getOptions{}
	return a.follow(ctx, kindNamed(schemas.Pods), a.namespace, get.listOptions(name), func(present map[types.UID]schemas.Object) (bool, error) {
		for _, obj := range present {
			if pod, ok := obj.(*corev1.Pod); ok {
				return fn(pod)
			}
		}
		return false, fmt.Errorf("pod/%s was deleted", name)
	})
}

// removeRun deletes the pod, interrupted or not.
func (a *app) removeRun(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	o := deleteOptions{wait: true, ignoreNotFound: true, cascade: "background", grace: -1}
	body, err := o.body()
	if err != nil {
		return err
	}
	return a.deleteAll(ctx, o, []victim{{kindNamed(schemas.Pods), a.namespace, name, ""}}, body)
}
