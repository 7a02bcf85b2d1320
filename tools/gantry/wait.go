package main

import (
	"context"
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
	selector  string
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
	f.BoolVar(&o.all, "all", false, "all objects of the kind in the namespace")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long; 0 looks once, a negative time waits for a week")
	o.files.flags(c)
	a.allNamespacesFlag(c)
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
	get := getOptions{selector: o.selector, files: o.files}
	targets, spaces, err := a.getTargets(&get, args)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.name == "" && o.selector == "" && !o.all {
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
		var err error
		if deletion {
			err = a.waitGone(ctx, t, spaces[i], o.selector)
		} else {
			err = a.waitFor(ctx, t, spaces[i], o.selector, is, creation)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) waitGone(ctx context.Context, t target, namespace, selector string) error {
	get := getOptions{selector: selector}
	objects, _, err := a.objects(ctx, t.kind, namespace, get.listOptions(t.name))
	if err != nil {
		return err
	}
	waiting := map[types.UID]victim{}
	for _, o := range objects {
		waiting[o.GetUID()] = victim{kind: t.kind, namespace: namespace, name: o.GetName()}
	}
	if err := a.awaitGone(ctx, waiting); err != nil {
		return err
	}
	for _, o := range objects {
		fmt.Fprintf(a.out, "%s condition met\n", label(t.kind, o.GetName()))
	}
	return nil
}

// waitFor waits for all objects that match when it begins; with a selector
// there must be one, a named one must exist.
func (a *app) waitFor(ctx context.Context, t target, namespace, selector string, is check, creation bool) error {
	get := getOptions{selector: selector}
	p := a.progress("waiting")
	defer p.end()
	var order []types.UID
	names, met := map[types.UID]string{}, map[types.UID]bool{}
	err := a.follow(ctx, t.kind, namespace, get.listOptions(t.name), func(present map[types.UID]schemas.Object) (bool, error) {
		if len(present) == 0 && len(order) == 0 {
			if creation {
				return false, nil
			}
			if t.name != "" {
				return false, apierrors.NewNotFound(groupResource(t.kind), t.name)
			}
			return false, errors.New("no matching resources found")
		}
		if len(order) == 0 {
			order = slices.Collect(maps.Keys(present))
			slices.SortFunc(order, func(x, y types.UID) int { return strings.Compare(present[x].GetName(), present[y].GetName()) })
			for _, uid := range order {
				names[uid] = present[uid].GetName()
			}
		}
		for _, uid := range order {
			o, there := present[uid]
			if met[uid] {
				continue
			}
			if !there {
				return false, apierrors.NewNotFound(groupResource(t.kind), names[uid])
			}
			ok, err := is(o)
			if err != nil {
				return false, err
			}
			if ok {
				met[uid] = true
				fmt.Fprintf(a.out, "%s condition met\n", label(t.kind, names[uid]))
			}
		}
		p.say("waiting for %d of %d %s", len(order)-len(met), len(order), t.kind.Resource)
		return len(met) == len(order), nil
	})
	if !errors.Is(err, errTimedOut) {
		return err
	}
	p.end()
	if len(order) == 0 {
		return fmt.Errorf("timed out waiting for the condition on %s/%s", t.kind.Resource, t.name)
	}
	for _, uid := range order {
		if !met[uid] {
			a.report(fmt.Errorf("timed out waiting for the condition on %s/%s", t.kind.Resource, names[uid]))
		}
	}
	return errReported
}
