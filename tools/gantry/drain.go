package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

type drainOptions struct {
	selector         string
	podSelector      string
	force            bool
	ignoreDaemonSets bool
	deleteEmptyDir   bool
	disableEviction  bool
	grace            int64
	timeout          time.Duration
	w                writing
}

// nodes are the nodes that are meant.
func (a *app) nodes(ctx context.Context, selector string, args []string) ([]object, error) {
	s := selection{selector: selector}
	if len(args) == 0 && selector == "" {
		return nil, errors.New("USAGE: name a NODE, or select some with -l")
	}
	if len(args) > 0 && strings.Contains(args[0], "/") {
		objects, err := a.pick(ctx, &s, args)
		if err != nil {
			return nil, err
		}
		return objects, oneKind(objects, "be cordoned or drained", schemas.Nodes)
	}
	return a.pick(ctx, &s, append([]string{schemas.Nodes}, args...))
}

func (a *app) cordonCommands() []*cobra.Command {
	build := func(c *cobra.Command, off bool, done string) *cobra.Command {
		var selector string
		var w writing
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := a.prepare(&w); err != nil {
				return err
			}
			objects, err := a.nodes(cmd.Context(), selector, args)
			if err != nil {
				return err
			}
			for _, t := range objects {
				if err := a.cordon(cmd.Context(), &w, t, off, done); err != nil {
					a.report(err)
				}
			}
			return nil
		}
		w.dryRunFlag(c)
		w.manager = fieldManager
		c.Flags().StringVarP(&selector, "selector", "l", "", "labels that nodes must have")
		return c
	}
	return []*cobra.Command{
		build(&cobra.Command{Use: "cordon NODE...", Short: "Let no new pods come to nodes"}, true, "cordoned"),
		build(&cobra.Command{Use: "uncordon NODE...", Short: "Let new pods come to nodes again"}, false, "uncordoned"),
	}
}

func (a *app) cordon(ctx context.Context, w *writing, t object, off bool, done string) error {
	raw, changed, err := a.change(ctx, w, t, "", func(u *unstructured.Unstructured) error {
		if off {
			return unstructured.SetNestedField(u.Object, true, "spec", "unschedulable")
		}
		unstructured.RemoveNestedField(u.Object, "spec", "unschedulable")
		return nil
	})
	if err != nil {
		return err
	}
	if !changed {
		done = "already " + done
	}
	return a.said(w, t.kind, t.name, done, raw)
}

func (a *app) drainCommand() *cobra.Command {
	var o drainOptions
	c := &cobra.Command{
		Use:     "drain NODE...",
		Short:   "Let no new pods come to nodes, and move those that are there",
		Example: "  gantry drain n1\n  gantry drain n1 --force --grace-period=30",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runDrain(cmd.Context(), &o, args) },
	}
	f := c.Flags()
	o.w.dryRunFlag(c)
	o.w.manager = fieldManager
	f.StringVarP(&o.selector, "selector", "l", "", "labels that nodes must have")
	f.StringVar(&o.podSelector, "pod-selector", "", "labels that pods must have to be moved")
	f.BoolVar(&o.force, "force", false, "delete pods for good that nothing would make again elsewhere")
	f.BoolVar(&o.ignoreDaemonSets, "ignore-daemonsets", false, "leave the pods of daemon sets where they are")
	f.BoolVar(&o.deleteEmptyDir, "delete-emptydir-data", false, "move pods although what is in their emptyDir volumes is lost")
	f.BoolVar(&o.disableEviction, "disable-eviction", false, "delete pods rather than evict them: disruption budgets do not count")
	f.Int64Var(&o.grace, "grace-period", -1, "seconds that pods get to end; -1 is what each says itself")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to take at most; 0 takes as long as it takes")
	return c
}

func (a *app) runDrain(ctx context.Context, o *drainOptions, args []string) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	objects, err := a.nodes(ctx, o.selector, args)
	if err != nil {
		return err
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	for _, t := range objects {
		if err := a.cordon(ctx, &o.w, t, true, "cordoned"); err != nil {
			return err
		}
	}
	for _, t := range objects {
		if err := a.drain(ctx, o, t); err != nil {
			return fmt.Errorf("unable to drain node %q: %w", t.name, timedOut(ctx, err))
		}
		if err := a.said(&o.w, t.kind, t.name, "drained", nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) drain(ctx context.Context, o *drainOptions, node object) error {
	k := kindNamed(schemas.Pods)
	objects, _, err := a.objects(ctx, k, "", metav1.ListOptions{LabelSelector: o.podSelector, FieldSelector: "spec.nodeName=" + node.name})
	if err != nil {
		return err
	}
	var pods []*corev1.Pod
	var problems []string
	for _, obj := range objects {
		p, ok := obj.(*corev1.Pod)
		if !ok {
			continue
		}
		move, problem, warning := o.judge(p)
		if warning != "" {
			fmt.Fprintf(a.err, "Warning: %s: %s/%s\n", warning, p.Namespace, p.Name)
		}
		if problem != "" {
			problems = append(problems, fmt.Sprintf("%s: %s/%s", problem, p.Namespace, p.Name))
		}
		if move {
			pods = append(pods, p)
		}
	}
	if len(problems) > 0 {
		slices.Sort(problems)
		return errors.New("cannot delete " + strings.Join(problems, "; cannot delete "))
	}
	waiting := map[types.UID]victim{}
	for _, p := range pods {
		fmt.Fprintf(a.out, "evicting pod %s/%s%s\n", p.Namespace, p.Name, o.w.suffix())
		if o.w.dryRun == dryClient {
			continue
		}
		if err := a.evict(ctx, o, p); err != nil {
			return fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		waiting[p.UID] = victim{kind: k, namespace: p.Namespace, name: p.Name}
	}
	if o.w.rehearsal() {
		return nil
	}
	if err := a.awaitGone(ctx, waiting); err != nil {
		return err
	}
	for _, p := range pods {
		fmt.Fprintf(a.out, "pod/%s evicted\n", p.Name)
	}
	return nil
}

// judge says whether a pod is to go, and what speaks against it.
func (o *drainOptions) judge(p *corev1.Pod) (move bool, problem, warning string) {
	controller := metav1.GetControllerOfNoCopy(p)
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	switch {
	case controller != nil && controller.Kind == "DaemonSet" && !ended:
		if !o.ignoreDaemonSets {
			return false, "Pods of daemon sets, which come back at once (use --ignore-daemonsets to leave them)", ""
		}
		return false, "", "ignoring a pod of a daemon set"
	case controller == nil && !ended && !o.force:
		return false, "Pods that nothing would make again (use --force to delete them for good)", ""
	case controller == nil && !ended:
		warning = "deleting a pod that nothing will make again"
	}
	for _, v := range p.Spec.Volumes {
		if v.EmptyDir != nil && !ended && !o.deleteEmptyDir {
			return false, "Pods with local storage (use --delete-emptydir-data to lose it)", ""
		}
	}
	return true, "", warning
}

// evict asks until the pod may go: a disruption budget may hold it for now.
func (a *app) evict(ctx context.Context, o *drainOptions, p *corev1.Pod) error {
	uid := p.UID
	del := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	if o.grace >= 0 {
		del.GracePeriodSeconds = &o.grace
	}
	if o.w.dryRun == dryServer {
		del.DryRun = []string{metav1.DryRunAll}
	}
	verb, resource, said := schemas.VerbCreate, schemas.Pods+"/"+schemas.SubEviction, any(&policyv1.Eviction{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "Eviction"},
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace}, DeleteOptions: &del,
	})
	if o.disableEviction {
		verb, resource, said = schemas.VerbDelete, schemas.Pods, del
	}
	body, err := marshal(said)
	if err != nil {
		return err
	}
	for {
		_, err := a.request(ctx, verb, resource, p.Namespace, p.Name, body)
		switch {
		case err == nil, apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsTooManyRequests(err):
			return err
		}
		fmt.Fprintf(a.err, "%s\nit is asked again in 5 s\n", describeError(err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Second):
		}
	}
}
