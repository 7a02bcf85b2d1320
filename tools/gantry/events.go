package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/schemas"
)

func (a *app) eventsCommand() *cobra.Command {
	var about, output string
	var types []string
	var watching bool
	c := &cobra.Command{
		Use:   "events [--for KIND/NAME]",
		Short: "Show what happened, the latest last",
		Example: `  gantry events --for pod/web-1
  gantry events -A --types=Warning`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := getOptions{output: output, watch: watching}
			var err error
			if o.fieldSelector, err = eventSelector(about, types); err != nil {
				return err
			}
			return a.runGet(cmd.Context(), o, []string{schemas.Events})
		},
	}
	f := c.Flags()
	f.StringVar(&about, "for", "", "only about one object, such as pod/web-1")
	f.StringSliceVar(&types, "types", nil, "Normal, Warning or both")
	a.outputFlags(c, &output)
	f.BoolVarP(&watching, "watch", "w", false, "go on with what happens")
	f.BoolVar(&a.show.noHeaders, "no-headers", false, "no line with the columns' names")
	a.allNamespacesFlag(c)
	return c
}

func eventSelector(about string, types []string) (string, error) {
	var parts []string
	if about != "" {
		pairs, err := parsePairs([]string{about})
		if err != nil {
			return "", fmt.Errorf("--for must be in resource/name form: %w", err)
		}
		parts = append(parts, "involvedObject.kind="+pairs[0].kind.GVK.Kind, "involvedObject.name="+pairs[0].name)
	}
	wanted := map[string]bool{}
	for _, t := range types {
		known := ""
		for _, k := range []string{corev1.EventTypeNormal, corev1.EventTypeWarning} {
			if strings.EqualFold(t, k) {
				known = k
			}
		}
		if known == "" {
			return "", fmt.Errorf("valid --types are Normal or Warning, not %q", t)
		}
		wanted[known] = true
	}
	// Both of them are all of them.
	if len(wanted) == 1 {
		for t := range wanted {
			parts = append(parts, "type="+t)
		}
	}
	return strings.Join(parts, ","), nil
}

// sortEvents puts the latest last. Times of events are whole seconds; within
// one, what was written later comes later.
func sortEvents(objects []schemas.Object) {
	last := func(o schemas.Object) time.Time {
		e, ok := o.(*corev1.Event)
		if !ok {
			return time.Time{}
		}
		t, _, _ := eventTimes(e)
		return t.Truncate(time.Second)
	}
	slices.SortStableFunc(objects, func(x, y schemas.Object) int {
		return cmp.Or(last(x).Compare(last(y)), cmp.Compare(revision(x), revision(y)))
	})
}

func revision(o schemas.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0 // not of this server
	}
	return n
}

// eventsAbout returns the events of an object, the latest last.
func (a *app) eventsAbout(ctx context.Context, k schemas.Kind, o schemas.Object) ([]*corev1.Event, error) {
	eventKind, err := kindOf(schemas.Events)
	if err != nil {
		return nil, err
	}
	get := getOptions{fieldSelector: fmt.Sprintf("involvedObject.kind=%s,involvedObject.name=%s", k.GVK.Kind, o.GetName())}
	objects, _, err := a.objects(ctx, eventKind, o.GetNamespace(), get.listOptions(""))
	if err != nil {
		return nil, err
	}
	sortEvents(objects)
	var out []*corev1.Event
	for _, obj := range objects {
		// An earlier object of the same name is another one.
		if e, ok := obj.(*corev1.Event); ok && (e.InvolvedObject.UID == "" || e.InvolvedObject.UID == o.GetUID()) {
			out = append(out, e)
		}
	}
	return out, nil
}
