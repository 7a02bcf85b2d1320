package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
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
	noHeaders      bool
	ignoreNotFound bool
	watch          bool
	watchOnly      bool
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
	f.StringVarP(&o.output, "output", "o", "", "wide, yaml, json, name or jsonpath=TEMPLATE")
	f.StringVarP(&o.selector, "selector", "l", "", "labels that objects must have, such as app=web")
	f.StringVar(&o.fieldSelector, "field-selector", "", "fields that objects must have, such as status.phase=Running")
	f.StringSliceVarP(&o.labelColumns, "label-columns", "L", nil, "labels that get a column of their own")
	f.StringVar(&o.sortBy, "sort-by", "", "order by a field, such as .metadata.creationTimestamp")
	f.BoolVar(&o.showLabels, "show-labels", false, "all labels as the last column")
	f.BoolVar(&o.noHeaders, "no-headers", false, "no line with the columns' names")
	f.BoolVar(&o.ignoreNotFound, "ignore-not-found", false, "no error where an object does not exist")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on with what changes")
	f.BoolVar(&o.watchOnly, "watch-only", false, "only what changes")
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
	if o.watch || o.watchOnly {
		return a.runWatch(ctx, o, show, targets, spaces)
	}
	var groups []group
	for i, t := range targets {
		rows, err := a.fetch(ctx, o, t, spaces[i])
		if apierrors.IsNotFound(err) {
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
		reply, err := a.request(ctx, schemas.VerbGet, t.kind.Resource, namespace, t.name, nil)
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
	opts := metav1.ListOptions{LabelSelector: o.selector, FieldSelector: o.fieldSelector}
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
	several := len(groups) > 1
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
		if err := a.printTable(a.tablePrinter(o, g.kind, several), g, now); err != nil {
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
		NoHeaders: o.noHeaders, WithNamespace: a.allNamespaces && k.Namespaced, WithKind: withKind,
		Wide: o.output == "wide", ShowLabels: o.showLabels, Kind: k.GVK.GroupKind(), ColumnLabels: o.labelColumns,
	})
}

func (a *app) printTable(p printers.ResourcePrinter, g group, now time.Time) error {
	objects := make([]schemas.Object, len(g.rows))
	for i, r := range g.rows {
		o, err := decode(g.kind, r.raw)
		if err != nil {
			return err
		}
		objects[i] = o
	}
	if g.kind.Resource == schemas.Events {
		sortEvents(objects)
	}
	w := printers.GetNewTabWriter(a.out)
	if err := p.PrintObj(table(g.kind, objects, now), w); err != nil {
		return err
	}
	return w.Flush()
}

// sortRows orders by a JSONPath of one value. Numbers count as numbers.
func sortRows(rows []row, path string) error {
	if path == "" {
		return nil
	}
	find, err := fieldFinder(path)
	if err != nil {
		return err
	}
	keys := map[*byte]any{}
	for _, r := range rows {
		o, err := loose(r.raw)
		if err != nil {
			return err
		}
		values, err := find(o.Object)
		if err != nil {
			return err
		}
		if len(values) > 0 {
			keys[&r.raw[0]] = values[0]
		}
	}
	slices.SortStableFunc(rows, func(x, y row) int { return compareValues(keys[&x.raw[0]], keys[&y.raw[0]]) })
	return nil
}

func compareValues(x, y any) int {
	a, aok := x.(float64)
	b, bok := y.(float64)
	switch {
	case aok && bok && a < b:
		return -1
	case aok && bok && a > b:
		return 1
	case aok && bok:
		return 0
	}
	return strings.Compare(fmt.Sprint(x), fmt.Sprint(y))
}

// runWatch shows what is there and then what changes, until interrupted.
func (a *app) runWatch(ctx context.Context, o getOptions, show *printer, targets []target, spaces []string) error {
	if len(targets) != 1 {
		return errors.New("you may only watch one kind or one object at a time")
	}
	t, namespace := targets[0], spaces[0]
	if err := a.connect(ctx); err != nil {
		return err
	}
	opts := o.listOptions(t.name)
	p := a.tablePrinter(o, t.kind, false)
	emit := func(rows []row) error {
		if show == nil {
			return a.printTable(p, group{t.kind, rows}, time.Now())
		}
		for _, r := range rows {
			if err := show.object(a.out, r.kind, r.raw); err != nil {
				return err
			}
		}
		return nil
	}
	known := map[string]bool{}
	for first := true; ; first = false {
		list, err := a.list(ctx, t.kind, namespace, opts)
		if err != nil {
			return err
		}
		if t.name != "" && first && len(list.Items) == 0 {
			return apierrors.NewNotFound(groupResource(t.kind), t.name)
		}
		var rows []row
		for _, raw := range list.Items {
			// After a gap only what was not shown yet.
			if version := versionOf(raw); !known[version] {
				known[version] = true
				rows = append(rows, row{t.kind, raw})
			}
		}
		if (!first || !o.watchOnly) && len(rows) > 0 {
			if err := emit(rows); err != nil {
				return err
			}
		}
		opts.ResourceVersion = list.ResourceVersion
		err = a.conn.Watch(ctx, t.kind.Resource, namespace, opts, func(e metav1.WatchEvent) error {
			if e.Type == string(watch.Bookmark) || e.Type == string(watch.Error) {
				return nil
			}
			known[versionOf(e.Object.Raw)] = true
			return emit([]row{{t.kind, e.Object.Raw}})
		})
		if !apierrors.IsResourceExpired(err) {
			if ctx.Err() != nil || errors.Is(err, io.ErrClosedPipe) {
				return nil
			}
			return err
		}
		opts.ResourceVersion = ""
	}
}

func versionOf(raw []byte) string {
	var o struct {
		Metadata struct {
			UID             string `json:"uid"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return ""
	}
	return o.Metadata.UID + "/" + o.Metadata.ResourceVersion
}
