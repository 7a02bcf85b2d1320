package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

func (a *app) describeCommand() *cobra.Command {
	var selector string
	c := &cobra.Command{
		Use:     "describe KIND [NAME|PREFIX] | KIND/NAME",
		Short:   "Show all about objects, with their events",
		Example: "  gantry describe pod web-1\n  gantry describe nodes",
		RunE: func(cmd *cobra.Command, args []string) error {
			targets, err := parseTargets(args)
			if err != nil {
				return err
			}
			shown := 0
			for _, t := range targets {
				objects, err := a.describable(cmd.Context(), t, selector)
				if err != nil {
					a.report(err)
					continue
				}
				for _, o := range objects {
					if shown++; shown > 1 {
						fmt.Fprint(a.out, "\n\n")
					}
					if err := a.describe(cmd.Context(), t.kind, o); err != nil {
						return err
					}
				}
			}
			if shown == 0 && !a.failed {
				fmt.Fprintf(a.err, "No resources found in %s namespace.\n", a.namespace)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&selector, "selector", "l", "", "labels that objects must have")
	a.allNamespacesFlag(c)
	return c
}

// describable finds what a name, or the beginning of one, stands for.
func (a *app) describable(ctx context.Context, t target, selector string) ([]schemas.Object, error) {
	namespace := a.scope(t.kind)
	if t.name == "" {
		objects, _, err := a.objects(ctx, t.kind, namespace, metav1.ListOptions{LabelSelector: selector})
		return objects, err
	}
	o, err := a.get(ctx, t.kind, namespace, t.name)
	if err == nil {
		return []schemas.Object{o}, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, err
	}
	all, _, lerr := a.objects(ctx, t.kind, namespace, metav1.ListOptions{})
	if lerr != nil {
		return nil, errors.Join(err, lerr)
	}
	var out []schemas.Object
	for _, o := range all {
		if strings.HasPrefix(o.GetName(), t.name) {
			out = append(out, o)
		}
	}
	if len(out) == 0 {
		return nil, err
	}
	return out, nil
}

func (a *app) describe(ctx context.Context, k schemas.Kind, o schemas.Object) error {
	// All is asked for first: a description is printed whole or not at all.
	var events []*corev1.Event
	if k.Resource != schemas.Events {
		var err error
		if events, err = a.eventsAbout(ctx, k, o); err != nil {
			return err
		}
	}
	var pods []*corev1.Pod
	if k.Resource == schemas.Nodes {
		podKind, err := kindOf(schemas.Pods)
		if err != nil {
			return err
		}
		objects, _, err := a.objects(ctx, podKind, "", metav1.ListOptions{FieldSelector: "spec.nodeName=" + o.GetName()})
		if err != nil {
			return err
		}
		for _, obj := range objects {
			if p, ok := obj.(*corev1.Pod); ok {
				pods = append(pods, p)
			}
		}
	}
	d := &description{now: time.Now()}
	if k.Resource == schemas.Services {
		sliceKind, err := kindOf(schemas.EndpointSlices)
		if err != nil {
			return err
		}
		objects, _, err := a.objects(ctx, sliceKind, o.GetNamespace(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + o.GetName()})
		if err != nil {
			return err
		}
		for _, obj := range objects {
			if s, ok := obj.(*discoveryv1.EndpointSlice); ok {
				d.slices = append(d.slices, s)
			}
		}
	}
	if err := d.object(k, o, pods); err != nil {
		return err
	}
	if k.Resource != schemas.Events {
		d.events(events)
	}
	return d.flush(a.out)
}

// description is indented lines of label and value; labels and values on
// neighbouring lines of one depth are aligned.
type description struct {
	now    time.Time
	buf    bytes.Buffer
	slices []*discoveryv1.EndpointSlice // of the Service that is described
}

func (d *description) line(depth int, label string, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text == "" {
		text = none
	}
	fmt.Fprintf(&d.buf, "%s%s:\t%s\n", strings.Repeat("  ", depth), label, text)
}

func (d *description) head(depth int, label string) {
	fmt.Fprintf(&d.buf, "%s%s:\n", strings.Repeat("  ", depth), label)
}

// rows writes a table without a label.
func (d *description) rows(depth int, header string, rows [][]string) {
	indent := strings.Repeat("  ", depth)
	names := strings.Split(header, ",")
	fmt.Fprintln(&d.buf, indent+strings.Join(names, "\t"))
	dashes := make([]string, len(names))
	for i, n := range names {
		dashes[i] = strings.Repeat("-", len(n))
	}
	fmt.Fprintln(&d.buf, indent+strings.Join(dashes, "\t"))
	for _, r := range rows {
		fmt.Fprintln(&d.buf, indent+strings.Join(r, "\t"))
	}
}

// pairs writes a map, one pair on a line.
func (d *description) pairs(label string, m map[string]string) {
	keys := slices.Sorted(maps.Keys(m))
	if len(keys) == 0 {
		d.line(0, label, none)
		return
	}
	for i, k := range keys {
		name := label + ":"
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(&d.buf, "%s\t%s=%s\n", name, k, m[k])
	}
}

func (d *description) flush(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.StripEscape)
	// What objects say must not drive the terminal.
	if _, err := io.WriteString(tw, printers.EscapeTerminal(d.buf.String())); err != nil {
		return err
	}
	return tw.Flush()
}

func (d *description) meta(k schemas.Kind, o schemas.Object) {
	d.line(0, "Name", "%s", o.GetName())
	if k.Namespaced {
		d.line(0, "Namespace", "%s", o.GetNamespace())
	}
	d.line(0, "Created", "%s", d.when(o.GetCreationTimestamp().Time))
	if t := o.GetDeletionTimestamp(); t != nil {
		d.line(0, "Status", "Terminating (%s)", d.when(t.Time))
		if s := o.GetDeletionGracePeriodSeconds(); s != nil {
			d.line(0, "Termination Grace Period", "%ds", *s)
		}
	}
	d.pairs("Labels", o.GetLabels())
	annotations := maps.Clone(o.GetAnnotations())
	delete(annotations, corev1.LastAppliedConfigAnnotation) // the manifest once more
	d.pairs("Annotations", annotations)
	if f := o.GetFinalizers(); len(f) > 0 {
		d.line(0, "Finalizers", "%s", strings.Join(f, ", "))
	}
	for _, owner := range o.GetOwnerReferences() {
		if owner.Controller != nil && *owner.Controller {
			d.line(0, "Controlled By", "%s/%s", owner.Kind, owner.Name)
		}
	}
}

func (d *description) when(t time.Time) string {
	if t.IsZero() {
		return none
	}
	return fmt.Sprintf("%s (%s ago)", t.Format(time.RFC1123Z), age(t, d.now))
}

func (d *description) events(events []*corev1.Event) {
	if len(events) == 0 {
		d.line(0, "Events", none)
		return
	}
	d.head(0, "Events")
	var rows [][]string
	for _, e := range events {
		row := eventCells(e, d.now)
		rows = append(rows, []string{e.Type, e.Reason, fmt.Sprint(row[0]), fmt.Sprint(row[6]), strings.TrimSpace(e.Message)})
	}
	d.rows(1, "Type,Reason,Age,From,Message", rows)
}
