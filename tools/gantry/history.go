package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

// Annotations by which Deployments and their sets keep their history.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	causeAnnotation    = "kubernetes.io/change-cause"
)

// ownAnnotations speak of one object alone: an undo leaves them.
var ownAnnotations = []string{
	corev1.LastAppliedConfigAnnotation, revisionAnnotation, "deployment.kubernetes.io/revision-history",
	"deployment.kubernetes.io/desired-replicas", "deployment.kubernetes.io/max-replicas",
}

// revisionOf is 0 where an object has none yet.
func revisionOf(o metav1.Object) int64 {
	n, err := strconv.ParseInt(o.GetAnnotations()[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// history are the replica sets of a Deployment, oldest revision first.
func (a *app) history(ctx context.Context, t object) (*appsv1.Deployment, []*appsv1.ReplicaSet, error) {
	o, err := a.get(ctx, t.kind, t.namespace, t.name)
	if err != nil {
		return nil, nil, err
	}
	d, ok := o.(*appsv1.Deployment)
	if !ok {
		return nil, nil, fmt.Errorf("%s has no history", t)
	}
	objects, _, err := a.objects(ctx, kindNamed(schemas.ReplicaSets), t.namespace, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, nil, err
	}
	var sets []*appsv1.ReplicaSet
	for _, o := range objects {
		if rs, ok := o.(*appsv1.ReplicaSet); ok && metav1.IsControlledBy(rs, d) && revisionOf(rs) > 0 {
			sets = append(sets, rs)
		}
	}
	slices.SortFunc(sets, func(x, y *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(x), revisionOf(y)) })
	return d, sets, nil
}

// atRevision finds the set of a revision; 0 is the one before the newest.
func atRevision(t object, sets []*appsv1.ReplicaSet, revision int64) (*appsv1.ReplicaSet, error) {
	if revision == 0 {
		if len(sets) < 2 {
			return nil, fmt.Errorf("no rollout history found for deployment %q: it has no revision before the one that runs", t.name)
		}
		return sets[len(sets)-2], nil
	}
	var there []string
	for _, rs := range sets {
		if revisionOf(rs) == revision {
			return rs, nil
		}
		there = append(there, strconv.FormatInt(revisionOf(rs), 10))
	}
	return nil, fmt.Errorf("unable to find specified revision %d in the history of deployment %q: there are %s", revision, t.name, orText(strings.Join(there, ", "), "none"))
}

func (a *app) rolloutHistoryCommand() *cobra.Command {
	var s selection
	var revision int64
	var output string
	c := &cobra.Command{
		Use:   "history deployment/NAME",
		Short: "Show the revisions of a Deployment, or one of them",
		Example: `  gantry rollout history deployment/web
  gantry rollout history deployment/web --revision=3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if revision < 0 {
				return errors.New("revision must be a positive integer, or 0 for all")
			}
			show, err := a.printerFor(output)
			if err != nil {
				return err
			}
			objects, err := a.rollouts(cmd.Context(), &s, args)
			if err != nil {
				return err
			}
			for _, t := range objects {
				if err := a.showHistory(cmd.Context(), t, revision, show); err != nil {
					a.report(err)
				}
			}
			return nil
		},
	}
	s.files.flags(c)
	c.Flags().StringVarP(&s.selector, "selector", "l", "", "labels that objects must have")
	c.Flags().Int64Var(&revision, "revision", 0, "show the pods of this revision; 0 lists all revisions")
	a.outputFlags(c, &output) // prints the replica sets instead
	return c
}

func (a *app) showHistory(ctx context.Context, t object, revision int64, show *printer) error {
	_, sets, err := a.history(ctx, t)
	if err != nil {
		return err
	}
	if revision > 0 {
		rs, err := atRevision(t, sets, revision)
		if err != nil {
			return err
		}
		if show != nil {
			return a.showSets(show, []*appsv1.ReplicaSet{rs})
		}
		fmt.Fprintf(a.out, "%s with revision #%d\n", t, revision)
		d := &description{}
		d.head(0, "Pod Template")
		d.pairs("Labels", rs.Spec.Template.Labels)
		annotations := maps.Clone(rs.Spec.Template.Annotations)
		if cause := rs.Annotations[causeAnnotation]; cause != "" {
			if annotations == nil {
				annotations = map[string]string{}
			}
			annotations[causeAnnotation] = cause
		}
		d.pairs("Annotations", annotations)
		for _, c := range rs.Spec.Template.Spec.Containers {
			d.container(c)
		}
		return d.flush(a.out)
	}
	if show != nil {
		return a.showSets(show, sets)
	}
	fmt.Fprintln(a.out, t)
	table := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Revision"}, {Name: "Change-Cause"}}}
	for _, rs := range sets {
		table.Rows = append(table.Rows, metav1.TableRow{Cells: []any{revisionOf(rs), orText(rs.Annotations[causeAnnotation], none)}})
	}
	w := printers.GetNewTabWriter(a.out)
	if err := printers.NewTablePrinter(printers.PrintOptions{}).PrintObj(table, w); err != nil {
		return err
	}
	return w.Flush()
}

func (a *app) showSets(show *printer, sets []*appsv1.ReplicaSet) error {
	k := kindNamed(schemas.ReplicaSets)
	var rows []row
	for _, rs := range sets {
		raw, err := marshal(rs)
		if err != nil {
			return err
		}
		rows = append(rows, row{k, raw})
	}
	if len(rows) == 1 {
		return show.object(a.out, k, rows[0].raw)
	}
	return show.list(a.out, rows)
}

func (a *app) rolloutUndoCommand() *cobra.Command {
	var s selection
	var revision int64
	var w writing
	c := &cobra.Command{
		Use:   "undo deployment/NAME",
		Short: "Go back to the pods of an earlier revision",
		Example: `  gantry rollout undo deployment/web
  gantry rollout undo deployment/web --to-revision=3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if revision < 0 {
				return errors.New("--to-revision must be a positive integer, or 0 for the revision before this one")
			}
			if err := a.prepare(&w); err != nil {
				return err
			}
			objects, err := a.rollouts(cmd.Context(), &s, args)
			if err != nil {
				return err
			}
			for _, t := range objects {
				if err := a.undo(cmd.Context(), &w, t, revision); err != nil {
					a.report(err)
				}
			}
			return nil
		},
	}
	s.files.flags(c)
	c.Flags().StringVarP(&s.selector, "selector", "l", "", "labels that objects must have")
	c.Flags().Int64Var(&revision, "to-revision", 0, "the revision to go back to; 0 is the one before")
	a.writeFlags(c, &w)
	return c
}

func (a *app) undo(ctx context.Context, w *writing, t object, revision int64) error {
	d, sets, err := a.history(ctx, t)
	if err != nil {
		return err
	}
	if d.Spec.Paused {
		return fmt.Errorf("you cannot roll back a paused deployment; resume it first with 'gantry rollout resume deployment/%s' and try again", t.name)
	}
	rs, err := atRevision(t, sets, revision)
	if err != nil {
		return err
	}
	template := rs.Spec.Template.DeepCopy()
	delete(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	if equality.Semantic.DeepEqual(template, &d.Spec.Template) {
		return a.said(w, t.kind, t.name, fmt.Sprintf("skipped rollback (current template already matches revision %d)", revisionOf(rs)), nil)
	}
	wanted, err := runtime.DefaultUnstructuredConverter.ToUnstructured(template)
	if err != nil {
		return fmt.Errorf("read the template of revision %d: %w", revisionOf(rs), err)
	}
	wanted = withoutNulls(wanted)
	raw, _, err := a.change(ctx, w, t, "", func(u *unstructured.Unstructured) error {
		// What is told by annotations comes back with the pods, as the cause of the change.
		annotations := map[string]string{}
		for _, key := range ownAnnotations {
			if v, ok := u.GetAnnotations()[key]; ok {
				annotations[key] = v
			}
		}
		for key, v := range rs.Annotations {
			if !slices.Contains(ownAnnotations, key) {
				annotations[key] = v
			}
		}
		u.SetAnnotations(annotations)
		return unstructured.SetNestedMap(u.Object, wanted, "spec", "template")
	})
	if err != nil {
		return err
	}
	return a.said(w, t.kind, t.name, "rolled back", raw)
}
