package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

// version may be set by the linker.
var version = ""

func clientVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value[:min(12, len(s.Value))]
		}
	}
	return orText(v, "unknown")
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the nodes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(a.out, "Client Version: %s (%s %s/%s)\n", clientVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if clientOnly {
				return nil
			}
			k, err := kindOf(schemas.Nodes)
			if err != nil {
				return err
			}
			objects, _, err := a.objects(cmd.Context(), k, "", metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, o := range objects {
				row := cells(o, time.Now())
				fmt.Fprintf(a.out, "Node %s: %v (%v)\n", o.GetName(), orText(fmt.Sprint(row[4]), "unknown"), row[1])
			}
			return nil
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "of this program only; asks no server")
	return c
}

func (a *app) kindsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "api-resources",
		Aliases: []string{"kinds"},
		Short:   "Show the kinds of objects that there are",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			t := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Name"}, {Name: "Shortnames"}, {Name: "APIVersion"}, {Name: "Namespaced"}, {Name: "Kind"}}}
			for _, k := range schemas.Kinds {
				t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{k.Resource, strings.Join(k.Short, ","), k.GVK.GroupVersion().String(), k.Namespaced, k.GVK.Kind}})
			}
			return printers.NewTablePrinter(printers.PrintOptions{}).PrintObj(t, a.out)
		},
	}
}
