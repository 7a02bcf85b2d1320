package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// selection are the flags that say which objects are meant, besides arguments.
type selection struct {
	files         files
	selector      string
	fieldSelector string
	all           bool
}

func (s *selection) flags(c *cobra.Command) {
	s.files.flags(c)
	s.selectorFlags(c)
}

func (s *selection) selectorFlags(c *cobra.Command) {
	c.Flags().StringVarP(&s.selector, "selector", "l", "", "labels that objects must have, such as app=web")
	c.Flags().StringVar(&s.fieldSelector, "field-selector", "", "fields that objects must have, such as status.phase=Running")
	c.Flags().BoolVar(&s.all, "all", false, "all objects of the kind in the namespace")
}

func (s *selection) selects() bool { return s.selector != "" || s.fieldSelector != "" || s.all }

// pick finds what is meant: objects of files, named ones, or those selected,
// of which there may be none.
func (a *app) pick(ctx context.Context, s *selection, args []string) ([]object, error) {
	var out []object
	if s.files.given() {
		if len(args) > 0 {
			return nil, errors.New("when files are given with -f, no object may be named as an argument")
		}
		ms, err := a.manifests(&s.files)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			out = append(out, object{kind: m.kind, namespace: m.namespace, name: m.name})
		}
		return out, nil
	}
	targets, err := parseTargets(args)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		switch {
		case t.name != "" && a.allNamespaces:
			return nil, errors.New("a resource cannot be retrieved by name across all namespaces")
		case t.name != "" && s.selects():
			return nil, errors.New("name cannot be provided when a selector or --all is specified")
		case t.name != "":
			out = append(out, object{kind: t.kind, namespace: a.scope(t.kind), name: t.name})
		case !s.selects():
			return nil, fmt.Errorf("resource(s) were provided, but no name was specified: name one of the %s, or give a selector (-l) or --all", t.kind.Resource)
		default:
			objects, _, err := a.objects(ctx, t.kind, a.scope(t.kind), metav1.ListOptions{LabelSelector: s.selector, FieldSelector: s.fieldSelector})
			if err != nil {
				return nil, err
			}
			for _, o := range objects {
				out = append(out, object{kind: t.kind, namespace: o.GetNamespace(), name: o.GetName()})
			}
		}
	}
	if len(out) == 0 && !a.failed {
		fmt.Fprintln(a.err, "No resources found")
	}
	return out, nil
}

// oneKind insists that all objects are of kinds that a command is for.
func oneKind(objects []object, doing string, kinds ...string) error {
	for _, o := range objects {
		ok := false
		for _, k := range kinds {
			ok = ok || o.kind.Resource == k
		}
		if !ok {
			return fmt.Errorf("%s cannot %s: %s can", o, doing, enumerate(kinds))
		}
	}
	return nil
}

// enumerate words several things: a, b and c.
func enumerate(words []string) string {
	out := ""
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			out += " and "
		default:
			out += ", "
		}
		out += w
	}
	return out
}

// kindNamed is the kind of one of the constants of schemas.
func kindNamed(resource string) schemas.Kind {
	k, ok := schemas.KindByResource(resource)
	if !ok {
		panic("no kind of resource " + resource)
	}
	return k
}
