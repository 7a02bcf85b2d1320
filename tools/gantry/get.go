package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

type getOptions struct {
	output         string
	selector       string
	fieldSelector  string
	labelColumns   []string
	sortBy         string
	showLabels     bool
	ignoreNotFound bool
	watch          bool
	watchOnly      bool
	watchEvents    bool
	showKind       bool
	subresource    string
	chunk          int64
	files          files
}

func (a *app) getCommand() *cobra.Command {
	var o getOptions
	c := &cobra.Command{
		Use:   "get KIND[,KIND...] [NAME...] | KIND/NAME...",
		Short: "Show objects",
		Example: `  gantry get pods -o wide
  gantry get deployment/web -o yaml
  gantry get pods -l app=web --watch`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runGet(cmd.Context(), o, args) },
	}
	f := c.Flags()
	a.outputFlags(c, &o.output)
	f.StringVarP(&o.selector, "selector", "l", "", "labels that objects must have, such as app=web")
	f.StringVar(&o.fieldSelector, "field-selector", "", "fields that objects must have, such as status.phase=Running")
	f.StringSliceVarP(&o.labelColumns, "label-columns", "L", nil, "labels that get a column of their own")
	f.StringVar(&o.sortBy, "sort-by", "", "order by a field, such as .metadata.creationTimestamp")
	f.BoolVar(&o.showLabels, "show-labels", false, "all labels as the last column")
	f.BoolVar(&a.show.noHeaders, "no-headers", false, "no line with the columns' names")
	f.BoolVar(&o.ignoreNotFound, "ignore-not-found", false, "no error where an object does not exist")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on with what changes")
	f.BoolVar(&o.watchOnly, "watch-only", false, "only what changes")
	f.BoolVar(&o.watchEvents, "output-watch-events", false, "with --watch: say of each change whether it is ADDED, MODIFIED or DELETED")
	f.BoolVar(&o.showKind, "show-kind", false, "begin names with the kind")
	f.StringVar(&o.subresource, "subresource", "", "status or scale: that part of the object")
	f.Int64Var(&o.chunk, "chunk-size", 0, "objects in one answer of the server; 0 for as many as fit")
	a.allNamespacesFlag(c)
	o.files.flags(c)
	return c
}

func (a *app) runGet(ctx context.Context, o getOptions, args []string) error {
	show, err := a.printerFor(o.output)
	if err != nil {
		return err
	}
	targets, spaces, err := a.getTargets(&o, args)
	if err != nil {
		return err
	}
	if err := o.check(targets); err != nil {
		return err
	}
	if o.watch || o.watchOnly {
		return a.runWatch(ctx, o, show, targets, spaces)
	}
	var groups []group
	for i, t := range targets {
		rows, err := a.fetch(ctx, o, t, spaces[i])
		if apierrors.IsNotFound(err) && t.name != "" {
			if !o.ignoreNotFound {
				a.report(err)
			}
			continue
		}
		if err != nil {
			return err
		}
		// Named objects of one kind share a table.
		if last := len(groups) - 1; last >= 0 && groups[last].kind.Resource == t.kind.Resource {
			groups[last].rows = append(groups[last].rows, rows...)
			continue
		}
		groups = append(groups, group{t.kind, rows})
	}
	if show != nil {
		return a.showData(show, targets, groups, o.sortBy)
	}
	return a.showTables(o, groups)
}

// check refuses flags that contradict each other or what is asked for.
func (o getOptions) check(targets []target) error {
	switch {
	case o.chunk < 0:
		return fmt.Errorf("--chunk-size %d: must be 0 or more", o.chunk)
	case o.watchEvents && !o.watch && !o.watchOnly:
		return errors.New("--output-watch-events option can only be used with --watch or --watch-only")
	case (o.watch || o.watchOnly) && o.sortBy != "":
		return errors.New("--sort-by cannot be used with --watch: what changes is shown when it changes")
	case o.subresource == "":
		return nil
	case o.subresource != schemas.SubStatus && o.subresource != schemas.SubScale:
		return fmt.Errorf("invalid subresource value: %q. Must be one of [%s %s]", o.subresource, schemas.SubStatus, schemas.SubScale)
	case o.watch || o.watchOnly:
		return errors.New("--subresource cannot be used with --watch: leave one of them out")
	}
	for _, t := range targets {
		if t.name == "" {
			return fmt.Errorf("--subresource takes named objects: give the names of the %s", t.kind.Resource)
		}
	}
	return nil
}

// group is the rows of one kind.
type group struct {
	kind schemas.Kind
	rows []row
}

// getTargets reads what is asked for, from arguments or files, with the
// namespace of each.
func (a *app) getTargets(o *getOptions, args []string) ([]target, []string, error) {
	var spaces []string
	if len(o.files.names) > 0 {
		ms, err := a.manifests(&o.files)
		if err != nil {
			return nil, nil, err
		}
		var targets []target
		for _, m := range ms {
			targets = append(targets, target{m.kind, m.name})
			spaces = append(spaces, m.namespace)
		}
		return targets, spaces, nil
	}
	targets, err := parseTargets(args)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range targets {
		if t.name != "" && (o.selector != "" || o.fieldSelector != "") {
			return nil, nil, errors.New("selectors may not be used together with names")
		}
		if t.name != "" && a.allNamespaces {
			return nil, nil, errors.New("a resource cannot be retrieved by name across all namespaces")
		}
		spaces = append(spaces, a.scope(t.kind))
	}
	return targets, spaces, nil
}

func (a *app) fetch(ctx context.Context, o getOptions, t target, namespace string) ([]row, error) {
	if t.name != "" {
		resource := t.kind.Resource
		if o.subresource != "" {
			resource += "/" + o.subresource
		}
		reply, err := a.request(ctx, schemas.VerbGet, resource, namespace, t.name, nil)
		if err != nil {
			return nil, err
		}
		return []row{{t.kind, reply.Body}}, nil
	}
	list, err := a.list(ctx, t.kind, namespace, o.listOptions(""))
	if err != nil {
		return nil, err
	}
	rows := make([]row, len(list.Items))
	for i, raw := range list.Items {
		rows[i] = row{t.kind, raw}
	}
	return rows, nil
}

func (o getOptions) listOptions(name string) metav1.ListOptions {
	opts := metav1.ListOptions{LabelSelector: o.selector, FieldSelector: o.fieldSelector, Limit: o.chunk}
	if name != "" {
		opts.FieldSelector = "metadata.name=" + name
	}
	return opts
}

func (a *app) showData(show *printer, targets []target, groups []group, sortBy string) error {
	var rows []row
	for _, g := range groups {
		rows = append(rows, g.rows...)
	}
	if err := sortRows(rows, sortBy); err != nil {
		return err
	}
	if len(targets) == 1 && targets[0].name != "" {
		if len(rows) == 0 {
			return nil
		}
		return show.object(a.out, rows[0].kind, rows[0].raw)
	}
	return show.list(a.out, rows)
}

func (a *app) showTables(o getOptions, groups []group) error {
	now := time.Now()
	several := len(groups) > 1 || o.showKind
	shown := 0
	for _, g := range groups {
		if len(g.rows) == 0 {
			continue
		}
		if err := sortRows(g.rows, o.sortBy); err != nil {
			return err
		}
		if shown > 0 {
			fmt.Fprintln(a.out)
		}
		shown++
		if err := a.printRows(o, a.tablePrinter(o, g.kind, several), g, now); err != nil {
			return err
		}
	}
	if shown == 0 && !a.failed && !o.ignoreNotFound {
		if a.allNamespaces || len(groups) > 0 && !groups[0].kind.Namespaced {
			fmt.Fprintln(a.err, "No resources found")
		} else {
			fmt.Fprintf(a.err, "No resources found in %s namespace.\n", a.namespace)
		}
	}
	return nil
}

func (a *app) tablePrinter(o getOptions, k schemas.Kind, withKind bool) printers.ResourcePrinter {
	return printers.NewTablePrinter(printers.PrintOptions{
		NoHeaders: a.show.noHeaders, WithNamespace: a.allNamespaces && k.Namespaced, WithKind: withKind,
		Wide: o.output == "wide", ShowLabels: o.showLabels, Kind: k.GVK.GroupKind(), ColumnLabels: o.labelColumns,
	})
}

// printRows writes rows of one kind, or of a part of its objects.
func (a *app) printRows(o getOptions, p printers.ResourcePrinter, g group, now time.Time) error {
	if o.subresource == schemas.SubScale {
		return a.printScales(p, g, now)
	}
	return a.printTable(p, g, now)
}

// printTable writes a table of its own.
func (a *app) printTable(p printers.ResourcePrinter, g group, now time.Time) error {
	t, err := tableOf(g, now)
	if err != nil {
		return err
	}
	return a.writeTable(p, t)
}

func tableOf(g group, now time.Time) (*metav1.Table, error) {
	objects := make([]schemas.Object, len(g.rows))
	for i, r := range g.rows {
		o, err := decode(g.kind, r.raw)
		if err != nil {
			return nil, err
		}
		objects[i] = o
	}
	if g.kind.Resource == schemas.Events {
		sortEvents(objects)
	}
	return table(g.kind, objects, now), nil
}

func (a *app) writeTable(p printers.ResourcePrinter, t *metav1.Table) error {
	w := printers.GetNewTabWriter(a.out)
	if err := p.PrintObj(t, w); err != nil {
		return err
	}
	return w.Flush()
}
