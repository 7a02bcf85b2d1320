package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// marks are labels or annotations: what the two commands differ in.
type marks struct {
	noun       string // label
	done, gone string // what the result is called
	get        func(*unstructured.Unstructured) map[string]string
	set        func(*unstructured.Unstructured, map[string]string)
}

var labelMarks = marks{"label", "labeled", "unlabeled",
	(*unstructured.Unstructured).GetLabels, (*unstructured.Unstructured).SetLabels}

var annotationMarks = marks{"annotation", "annotated", "annotated",
	(*unstructured.Unstructured).GetAnnotations, (*unstructured.Unstructured).SetAnnotations}

type markOptions struct {
	selection selection
	overwrite bool
	list      bool
	version   string
	w         writing
}

func (a *app) labelCommand() *cobra.Command {
	return a.markCommand(labelMarks, &cobra.Command{
		Use:   "label KIND/NAME | KIND NAME | KIND -l SELECTOR | -f FILE KEY=VALUE... KEY-...",
		Short: "Set and take off labels",
		Example: `  gantry label pod/web tier=front
  gantry label --overwrite deployment web tier=back old-
  gantry label nodes --all disk=ssd`,
	})
}

func (a *app) annotateCommand() *cobra.Command {
	return a.markCommand(annotationMarks, &cobra.Command{
		Use:   "annotate KIND/NAME | KIND NAME | KIND -l SELECTOR | -f FILE KEY=VALUE... KEY-...",
		Short: "Set and take off annotations",
		Example: `  gantry annotate deployment/web team=shop
  gantry annotate --overwrite deployment web kubernetes.io/change-cause='new image' old-`,
	})
}

func (a *app) markCommand(m marks, c *cobra.Command) *cobra.Command {
	var o markOptions
	c.RunE = func(cmd *cobra.Command, args []string) error { return a.runMark(cmd.Context(), m, &o, args) }
	f := c.Flags()
	o.selection.flags(c)
	a.writeFlags(c, &o.w)
	a.allNamespacesFlag(c)
	f.BoolVar(&o.overwrite, "overwrite", false, "change values that are there already")
	f.BoolVar(&o.list, "list", false, "show what the objects have")
	f.StringVar(&o.version, "resource-version", "", "only if the object is still of this version")
	return c
}

// wishes are what is to become of marks.
type wishes struct {
	set    map[string]string
	remove []string
}

func (a *app) runMark(ctx context.Context, m marks, o *markOptions, args []string) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	args, want, err := m.parse(args)
	if err != nil {
		return err
	}
	switch {
	case o.list && o.w.output != "":
		return errors.New("--list and --output may not be specified together")
	case !o.list && len(want.set)+len(want.remove) == 0:
		return fmt.Errorf("at least one %s update is required: KEY=VALUE sets one, KEY- takes one off", m.noun)
	}
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	if o.version != "" && len(objects) > 1 {
		return errors.New("--resource-version may only be used with a single object")
	}
	for _, t := range objects {
		if err := a.markOne(ctx, m, o, want, t, len(objects) > 1); err != nil {
			a.report(err)
		}
	}
	return nil
}

// parse tells objects from wishes: those come last.
func (m marks) parse(args []string) ([]string, wishes, error) {
	w := wishes{set: map[string]string{}}
	isWish := func(s string) bool { return strings.Contains(s, "=") || strings.HasSuffix(s, "-") }
	from := slices.IndexFunc(args, isWish)
	if from < 0 {
		return args, w, nil
	}
	for _, arg := range args[from:] {
		key, value, sets := strings.Cut(arg, "=")
		switch {
		case sets && key == "":
			return nil, w, fmt.Errorf("invalid %s %q: it has no key; write KEY=VALUE", m.noun, arg)
		case sets:
			w.set[key] = value
		case isWish(arg):
			w.remove = append(w.remove, strings.TrimSuffix(arg, "-"))
		default:
			return nil, w, fmt.Errorf("all resources must be specified before %s changes: %s", m.noun, arg)
		}
	}
	for _, key := range w.remove {
		if _, both := w.set[key]; both {
			return nil, w, fmt.Errorf("can not both modify and remove the %s %q in the same command", m.noun, key)
		}
	}
	return args[:from], w, nil
}

func (a *app) markOne(ctx context.Context, m marks, o *markOptions, want wishes, t object, several bool) error {
	if o.list {
		return a.listMarks(ctx, m, t, several)
	}
	raw, changed, err := a.change(ctx, &o.w, t, o.version, func(u *unstructured.Unstructured) error {
		return m.apply(u, want, o.overwrite)
	})
	if err != nil {
		return err
	}
	how := m.done
	switch {
	case !changed:
		how = "not " + m.done
	case len(want.set) == 0:
		how = m.gone
	}
	return a.said(&o.w, t.kind, t.name, how, raw)
}

func (m marks) apply(u *unstructured.Unstructured, want wishes, overwrite bool) error {
	have := maps.Clone(m.get(u))
	if have == nil {
		have = map[string]string{}
	}
	var problems []string
	for _, key := range slices.Sorted(maps.Keys(want.set)) {
		if old, there := have[key]; there && old != want.set[key] && !overwrite {
			problems = append(problems, fmt.Sprintf("'%s' already has a value (%s)", key, old))
		}
		have[key] = want.set[key]
	}
	if len(problems) > 0 {
		return fmt.Errorf("%s of %s: %s, and --overwrite is false", m.noun, u.GetName(), strings.Join(problems, "; "))
	}
	for _, key := range want.remove {
		delete(have, key)
	}
	if len(have) == 0 && m.get(u) == nil {
		return nil
	}
	m.set(u, have)
	return nil
}

func (a *app) listMarks(ctx context.Context, m marks, t object, several bool) error {
	o, err := a.get(ctx, t.kind, t.namespace, t.name)
	if err != nil {
		return err
	}
	have := o.GetLabels()
	if m.noun == annotationMarks.noun {
		have = o.GetAnnotations()
	}
	if several {
		fmt.Fprintf(a.out, "Listing %ss for %s.%s/%s:\n", m.noun, t.kind.GVK.Kind, t.kind.GVK.Group, t.name)
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		fmt.Fprintf(a.out, "%s=%s\n", key, have[key])
	}
	return nil
}
