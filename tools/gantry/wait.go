package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

type waitOptions struct {
	condition string
	output    string
	selector  string
	fields    string
	all       bool
	timeout   time.Duration
	files     files
}

func (a *app) waitCommand() *cobra.Command {
	var o waitOptions
	c := &cobra.Command{
		Use:   "wait --for=delete|create|condition=NAME[=VALUE]|jsonpath=PATH[=VALUE] KIND/NAME... | KIND -l SELECTOR",
		Short: "Wait until objects are as they should be",
		Example: `  gantry wait --for=condition=Available deployment/web
  gantry wait --for=jsonpath='{.status.phase}'=Running pod -l app=web
  gantry wait --for=delete pod/web-1 --timeout=60s`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runWait(cmd.Context(), o, args) },
	}
	f := c.Flags()
	f.StringVar(&o.condition, "for", "", "what to wait for (required)")
	f.StringVarP(&o.selector, "selector", "l", "", "labels that objects must have")
	f.StringVar(&o.fields, "field-selector", "", "fields that objects must have, such as spec.nodeName=n1")
	f.BoolVar(&o.all, "all", false, "all objects of the kind in the namespace")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long; 0 looks once, a negative time waits for a week")
	o.files.flags(c)
	a.allNamespacesFlag(c)
	a.outputFlags(c, &o.output)
	return c
}

// check says whether an object is as it should be. It is nil for deletion.
type check func(schemas.Object) (bool, error)

// parseFor reads --for.
func parseFor(s string) (c check, deletion, creation bool, err error) {
	what, rest, hasRest := strings.Cut(s, "=")
	switch {
	case s == "":
		return nil, false, false, errors.New("--for says what to wait for: delete, create, condition=NAME or jsonpath=PATH")
	case s == "delete":
		return nil, true, false, nil
	case s == "create":
		return func(schemas.Object) (bool, error) { return true, nil }, false, true, nil
	case what == "condition" && hasRest:
		name, value, ok := strings.Cut(rest, "=")
		if !ok {
			value = "True"
		}
		return conditionIs(name, value), false, false, nil
	case what == "jsonpath" && hasRest:
		c, err := parsePathCheck(rest)
		return c, false, false, err
	}
	return nil, false, false, fmt.Errorf("unrecognized condition: %q", s)
}

func conditionIs(name, value string) check {
	find, ferr := fieldFinder("{.status.conditions}")
	return func(o schemas.Object) (bool, error) {
		if ferr != nil {
			return false, ferr
		}
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return false, err
		}
		// What a condition said of an older generation does not count.
		if seen, ok := nested(m, "status", "observedGeneration").(int64); ok && seen < o.GetGeneration() {
			return false, nil
		}
		found, err := find(m)
		if err != nil || len(found) == 0 {
			return false, err
		}
		conditions, _ := found[0].([]any)
		for _, item := range conditions {
			c, _ := item.(map[string]any)
			if strings.EqualFold(fmt.Sprint(c["type"]), name) {
				return strings.EqualFold(fmt.Sprint(c["status"]), value), nil
			}
		}
		return false, nil
	}
}

func nested(m map[string]any, path ...string) any {
	var at any = m
	for _, p := range path {
		next, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = next[p]
	}
	return at
}

// parsePathCheck reads {.status.phase}=Running, or a path that must be there.
func parsePathCheck(s string) (check, error) {
	s = strings.Trim(s, "'\"")
	var path, want string
	var hasWant bool
	if end := strings.LastIndex(s, "}"); strings.HasPrefix(s, "{") && end >= 0 {
		path = s[:end+1]
		want, hasWant = strings.CutPrefix(strings.TrimLeft(s[end+1:], "'\""), "=")
	} else {
		path, want, hasWant = strings.Cut(s, "=")
	}
	want = strings.Trim(want, "'\"")
	if hasWant && want == "" {
		return nil, errors.New("jsonpath wait has to have a value after equal sign")
	}
	find, err := fieldFinder(path)
	if err != nil {
		return nil, err
	}
	return func(o schemas.Object) (bool, error) {
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return false, err
		}
		found, err := find(m)
		if err != nil || len(found) == 0 {
			return false, err
		}
		return !hasWant || len(found) == 1 && fmt.Sprint(found[0]) == want, nil
	}, nil
}

func (a *app) runWait(ctx context.Context, o waitOptions, args []string) error {
	is, deletion, creation, err := parseFor(o.condition)
	if err != nil {
		return err
	}
	show, err := a.printerFor(o.output)
	if err != nil {
		return err
	}
	get := getOptions{selector: o.selector, fieldSelector: o.fields, files: o.files}
	targets, spaces, err := a.getTargets(&get, args)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.name == "" && o.selector == "" && o.fields == "" && !o.all {
			return fmt.Errorf("resource(s) were provided, but no name was specified: give a name, a selector (-l) or --all to wait for %s", t.kind.Resource)
		}
	}
	switch {
	case o.timeout < 0:
		o.timeout = 7 * 24 * time.Hour
	case o.timeout == 0:
		o.timeout = time.Second
	}
	if err := a.connect(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	for i, t := range targets {
		w := &waiting{app: a, target: t, is: is, deletion: deletion, creation: creation, show: show, met: map[types.UID]bool{}, progress: a.progress("waiting")}
		err := a.follow(ctx, t.kind, spaces[i], get.listOptions(t.name), w.look)
		w.progress.end()
		if errors.Is(err, errTimedOut) {
			err = w.late()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// waiting is for the objects that match when it begins; with a selector there
// must be one, a named one must exist, unless they are to be gone or to come.
type waiting struct {
	app                *app
	target             target
	is                 check
	deletion, creation bool
	show               *printer
	progress           *progress

	began bool
	order []schemas.Object // as they were when it began
	met   map[types.UID]bool
}

// begin takes in what is there. It returns false where nothing is yet.
func (w *waiting) begin(present map[types.UID]schemas.Object) (bool, error) {
	switch {
	case w.began:
		return true, nil
	case len(present) > 0 || w.deletion:
	case w.creation:
		return false, nil
	case w.target.name != "":
		return false, apierrors.NewNotFound(groupResource(w.target.kind), w.target.name)
	default:
		return false, errors.New("no matching resources found")
	}
	w.began = true
	w.order = slices.SortedFunc(maps.Values(present), func(x, y schemas.Object) int {
		return cmp.Or(strings.Compare(x.GetNamespace(), y.GetNamespace()), strings.Compare(x.GetName(), y.GetName()))
	})
	return true, nil
}

func (w *waiting) look(present map[types.UID]schemas.Object) (bool, error) {
	if began, err := w.begin(present); err != nil || !began {
		return false, err
	}
	for _, was := range w.order {
		uid := was.GetUID()
		if w.met[uid] {
			continue
		}
		o, there := present[uid]
		met := !there
		switch {
		case w.deletion:
			o = was
		case !there:
			return false, apierrors.NewNotFound(groupResource(w.target.kind), was.GetName())
		default:
			var err error
			if met, err = w.is(o); err != nil {
				return false, err
			}
		}
		if !met {
			continue
		}
		w.met[uid] = true
		if err := w.say(o); err != nil {
			return false, err
		}
	}
	w.progress.say("waiting for %d of %d %s", len(w.order)-len(w.met), len(w.order), w.target.kind.Resource)
	return len(w.met) == len(w.order), nil
}

func (w *waiting) say(o schemas.Object) error {
	k := w.target.kind
	if w.show == nil {
		fmt.Fprintf(w.app.out, "%s condition met\n", label(k, o.GetName()))
		return nil
	}
	o.GetObjectKind().SetGroupVersionKind(k.GVK)
	raw, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("print %s: %w", label(k, o.GetName()), err)
	}
	return w.show.object(w.app.out, k, raw)
}

// late reports each object that was not in time.
func (w *waiting) late() error {
	resource := w.target.kind.Resource
	if !w.began {
		return fmt.Errorf("timed out waiting for the condition on %s/%s", resource, w.target.name)
	}
	for _, o := range w.order {
		if !w.met[o.GetUID()] {
			w.app.report(fmt.Errorf("timed out waiting for the condition on %s/%s", resource, o.GetName()))
		}
	}
	return errReported
}
