package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

func (a *app) rolloutCommand() *cobra.Command {
	c := &cobra.Command{Use: "rollout", Short: "How a Deployment comes along, and its history"}
	c.AddCommand(a.rolloutStatusCommand(), a.rolloutHistoryCommand(), a.rolloutUndoCommand(),
		a.rolloutPauseCommand(), a.rolloutResumeCommand(), a.rolloutRestartCommand())
	return c
}

// rollouts are the Deployments that are meant.
func (a *app) rollouts(ctx context.Context, s *selection, args []string) ([]object, error) {
	objects, err := a.pick(ctx, s, args)
	if err != nil {
		return nil, err
	}
	return objects, oneKind(objects, "roll out", schemas.Deployments)
}

func (a *app) rolloutStatusCommand() *cobra.Command {
	var s selection
	var timeout time.Duration
	var watching bool
	var revision int64
	c := &cobra.Command{
		Use:     "status deployment/NAME",
		Short:   "Wait until a Deployment is as its template says",
		Example: "  gantry rollout status deployment/web",
		RunE: func(cmd *cobra.Command, args []string) error {
			if revision < 0 {
				return errors.New("revision must be a positive integer, or 0 for the one that runs")
			}
			objects, err := a.rollouts(cmd.Context(), &s, args)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			for _, t := range objects {
				if err := a.rolloutStatus(ctx, t, revision, watching); err != nil {
					return err
				}
			}
			return nil
		},
	}
	s.files.flags(c)
	c.Flags().StringVarP(&s.selector, "selector", "l", "", "labels that objects must have")
	c.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait; 0 waits as long as it takes")
	c.Flags().BoolVarP(&watching, "watch", "w", true, "wait until it is done")
	c.Flags().Int64Var(&revision, "revision", 0, "only of this revision: another one is an error")
	return c
}

// rolloutEdit makes a command that changes Deployments.
func (a *app) rolloutEdit(c *cobra.Command, done string, edit func(*unstructured.Unstructured) error) *cobra.Command {
	var s selection
	var w writing
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.prepare(&w); err != nil {
			return err
		}
		objects, err := a.rollouts(cmd.Context(), &s, args)
		if err != nil {
			return err
		}
		for _, t := range objects {
			raw, _, err := a.change(cmd.Context(), &w, t, "", edit)
			if err == nil {
				err = a.said(&w, t.kind, t.name, done, raw)
			}
			if err != nil {
				a.report(err)
			}
		}
		return nil
	}
	s.files.flags(c)
	c.Flags().StringVarP(&s.selector, "selector", "l", "", "labels that objects must have")
	a.writeFlags(c, &w)
	return c
}

func paused(u *unstructured.Unstructured) bool {
	yes, _, _ := unstructured.NestedBool(u.Object, "spec", "paused")
	return yes
}

func (a *app) rolloutPauseCommand() *cobra.Command {
	return a.rolloutEdit(&cobra.Command{
		Use: "pause deployment/NAME", Short: "Let changes of a Deployment's template wait",
		Example: "  gantry rollout pause deployment/web",
	}, "paused", func(u *unstructured.Unstructured) error {
		if paused(u) {
			return fmt.Errorf("deployments.apps %q is already paused", u.GetName())
		}
		return unstructured.SetNestedField(u.Object, true, "spec", "paused")
	})
}

func (a *app) rolloutResumeCommand() *cobra.Command {
	return a.rolloutEdit(&cobra.Command{
		Use: "resume deployment/NAME", Short: "Carry out what waited",
		Example: "  gantry rollout resume deployment/web",
	}, "resumed", func(u *unstructured.Unstructured) error {
		if !paused(u) {
			return fmt.Errorf("deployments.apps %q is not paused", u.GetName())
		}
		unstructured.RemoveNestedField(u.Object, "spec", "paused")
		return nil
	})
}

// restartedAt is kubectl's annotation: whoever used it before goes on with it.
const restartedAt = "kubectl.kubernetes.io/restartedAt"

func (a *app) rolloutRestartCommand() *cobra.Command {
	return a.rolloutEdit(&cobra.Command{
		Use: "restart deployment/NAME", Short: "Replace all pods of a Deployment, as its strategy says",
		Example: "  gantry rollout restart deployment/web",
	}, "restarted", func(u *unstructured.Unstructured) error {
		if paused(u) {
			return fmt.Errorf("can't restart paused deployment %q: run gantry rollout resume deployment/%s first", u.GetName(), u.GetName())
		}
		at := []string{"spec", "template", "metadata", "annotations", restartedAt}
		now := time.Now().Format(time.RFC3339)
		if last, _, _ := unstructured.NestedString(u.Object, at...); last == now {
			return fmt.Errorf("deployment %q was restarted within this second already: wait until the next", u.GetName())
		}
		return unstructured.SetNestedField(u.Object, now, at...)
	})
}

func (a *app) rolloutStatus(ctx context.Context, t object, revision int64, watching bool) error {
	if _, err := a.get(ctx, t.kind, t.namespace, t.name); err != nil {
		return err
	}
	last := ""
	get := getOptions{}
	return a.follow(ctx, t.kind, t.namespace, get.listOptions(t.name), func(present map[types.UID]schemas.Object) (bool, error) {
		for _, o := range present {
			d, ok := o.(*appsv1.Deployment)
			if !ok {
				continue
			}
			if now := revisionOf(d); revision > 0 && now != revision {
				return false, fmt.Errorf("desired revision (%d) is different from the running revision (%d)", revision, now)
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
		return false, fmt.Errorf("%s was deleted", t)
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
