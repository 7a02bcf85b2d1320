package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
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

func (a *app) rolloutCommand() *cobra.Command {
	c := &cobra.Command{Use: "rollout", Short: "How a Deployment comes along"}
	var timeout time.Duration
	var watching bool
	status := &cobra.Command{
		Use:     "status deployment/NAME",
		Short:   "Wait until a Deployment is as its template says",
		Example: "  gantry rollout status deployment/web",
		RunE: func(cmd *cobra.Command, args []string) error {
			targets, err := parseTargets(args)
			if err != nil {
				return err
			}
			if err := named(targets); err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			for _, t := range targets {
				if err := a.rolloutStatus(ctx, t, watching); err != nil {
					return err
				}
			}
			return nil
		},
	}
	status.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait; 0 waits as long as it takes")
	status.Flags().BoolVarP(&watching, "watch", "w", true, "wait until it is done")
	c.AddCommand(status)
	return c
}

func (a *app) rolloutStatus(ctx context.Context, t target, watching bool) error {
	if t.kind.Resource != schemas.Deployments {
		return fmt.Errorf("no status of a rollout for %s: only Deployments have one", t.kind.Resource)
	}
	if _, err := a.get(ctx, t.kind, a.namespace, t.name); err != nil {
		return err
	}
	last := ""
	get := getOptions{}
	return a.follow(ctx, t.kind, a.namespace, get.listOptions(t.name), func(present map[types.UID]schemas.Object) (bool, error) {
		for _, o := range present {
			d, ok := o.(*appsv1.Deployment)
			if !ok {
				continue
			}
			text, done, err := rolloutText(d)
			if err != nil {
				return false, err
			}
			if text != last {
				fmt.Fprintln(a.out, text)
				last = text
			}
			return done || !watching, nil
		}
		return false, fmt.Errorf("%s was deleted", label(t.kind, t.name))
	})
}

// rolloutText words how far a Deployment is, as kubectl does.
func rolloutText(d *appsv1.Deployment) (text string, done bool, err error) {
	if d.Generation > d.Status.ObservedGeneration {
		return "Waiting for deployment spec update to be observed...", false, nil
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded" {
			return "", false, fmt.Errorf("deployment %q exceeded its progress deadline", d.Name)
		}
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	switch {
	case s.UpdatedReplicas < want:
		return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d out of %d new replicas have been updated...", d.Name, s.UpdatedReplicas, want), false, nil
	case s.Replicas > s.UpdatedReplicas:
		return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d old replicas are pending termination...", d.Name, s.Replicas-s.UpdatedReplicas), false, nil
	case s.AvailableReplicas < s.UpdatedReplicas:
		return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d of %d updated replicas are available...", d.Name, s.AvailableReplicas, s.UpdatedReplicas), false, nil
	}
	return fmt.Sprintf("deployment %q successfully rolled out", d.Name), true, nil
}
