package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

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
