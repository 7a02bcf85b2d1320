package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

// verbsOf are the verbs that a kind takes, as kubectl names them.
func verbsOf(k schemas.Kind) []string {
	switch {
	case k.Refused != "":
		return nil
	case k.SystemOnly: // Gantry makes them; people may label them, and delete them
		return []string{"delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	}
	return []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}

func categoriesOf(k schemas.Kind) []string {
	var out []string
	for word, resources := range categories {
		if slices.Contains(resources, k.Resource) {
			out = append(out, word)
		}
	}
	slices.Sort(out)
	return out
}

type resourceOptions struct {
	output, group, sortBy string
	verbs, categories     []string
	namespaced, refused   bool
}

func (a *app) kindsCommand() *cobra.Command {
	var o resourceOptions
	c := &cobra.Command{
		Use:     "api-resources",
		Aliases: []string{"kinds"},
		Short:   "Show the kinds of objects that there are",
		Example: "  gantry api-resources --namespaced=true -o wide\n  gantry api-resources --refused",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kinds, err := o.kinds(cmd)
			if err != nil {
				return err
			}
			if o.output == "name" {
				for _, k := range kinds {
					name := k.Resource
					if k.GVK.Group != "" {
						name += "." + k.GVK.Group
					}
					fmt.Fprintln(a.out, name)
				}
				return nil
			}
			return a.writeTable(printers.NewTablePrinter(printers.PrintOptions{NoHeaders: a.show.noHeaders, Wide: o.output == "wide"}), o.table(kinds))
		},
	}
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "", "one of: wide, name")
	f.StringVar(&o.group, "api-group", "", "only of this group, such as apps")
	f.StringVar(&o.sortBy, "sort-by", "", "name or kind")
	f.StringSliceVar(&o.verbs, "verbs", nil, "only what takes all of these verbs")
	f.StringSliceVar(&o.categories, "categories", nil, "only what is in all of these categories, such as all")
	f.BoolVar(&o.namespaced, "namespaced", true, "only what lives in namespaces (true) or does not (false)")
	f.BoolVar(&o.refused, "refused", false, "the kinds that are known and not served, with the reason")
	f.BoolVar(&a.show.noHeaders, "no-headers", false, "no line with the columns' names")
	return c
}

func (o resourceOptions) kinds(c *cobra.Command) ([]schemas.Kind, error) {
	if o.output != "" && o.output != "wide" && o.output != "name" {
		return nil, fmt.Errorf("--output %s is not available: use wide or name", o.output)
	}
	var out []schemas.Kind
	for _, k := range schemas.Kinds {
		has := func(have []string) func(string) bool {
			return func(want string) bool { return !slices.Contains(have, want) }
		}
		switch {
		case (k.Refused != "") != o.refused,
			c.Flags().Changed("namespaced") && k.Namespaced != o.namespaced,
			c.Flags().Changed("api-group") && k.GVK.Group != o.group,
			slices.ContainsFunc(o.verbs, has(verbsOf(k))),
			slices.ContainsFunc(o.categories, has(categoriesOf(k))):
			continue
		}
		out = append(out, k)
	}
	order := func(x, y schemas.Kind) int {
		return cmp.Or(cmp.Compare(x.GVK.Group, y.GVK.Group), cmp.Compare(x.Resource, y.Resource))
	}
	switch o.sortBy {
	case "":
	case "name":
		order = func(x, y schemas.Kind) int { return cmp.Compare(x.Resource, y.Resource) }
	case "kind":
		order = func(x, y schemas.Kind) int { return cmp.Compare(x.GVK.Kind, y.GVK.Kind) }
	default:
		return nil, fmt.Errorf("--sort-by accepts only name or kind, not %q", o.sortBy)
	}
	slices.SortStableFunc(out, order)
	return out, nil
}

func (o resourceOptions) table(kinds []schemas.Kind) *metav1.Table {
	columns := "Name,Shortnames,APIVersion,Namespaced,Kind|Verbs,Categories"
	if o.refused {
		columns = "Name,Shortnames,APIVersion,Namespaced,Kind,Reason"
	}
	t := &metav1.Table{ColumnDefinitions: definitions(columns)}
	for _, k := range kinds {
		cells := []any{k.Resource, strings.Join(k.Short, ","), k.GVK.GroupVersion().String(), k.Namespaced, k.GVK.Kind}
		if o.refused {
			cells = append(cells, k.Refused)
		} else {
			cells = append(cells, strings.Join(verbsOf(k), ","), strings.Join(categoriesOf(k), ","))
		}
		t.Rows = append(t.Rows, metav1.TableRow{Cells: cells})
	}
	return t
}

func (a *app) apiVersionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "api-versions",
		Short: "Show the versions of the API that objects may be of",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var out []string
			for _, k := range schemas.Kinds {
				if k.Refused == "" {
					out = append(out, k.GVK.GroupVersion().String())
				}
			}
			slices.Sort(out)
			for _, v := range slices.Compact(out) {
				fmt.Fprintln(a.out, v)
			}
			return nil
		},
	}
}
