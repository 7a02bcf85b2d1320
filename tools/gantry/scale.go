package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	autoscalingv1 "k8s.io/api/autoscaling/v1"

	"gantry.dev/schemas"
)

func (a *app) scaleCommand() *cobra.Command {
	var replicas, current int32
	var f files
	c := &cobra.Command{
		Use:     "scale --replicas=COUNT KIND/NAME... | KIND NAME... | -f FILE",
		Short:   "Set how many replicas there should be",
		Example: "  gantry scale --replicas=5 deployment/web",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case !cmd.Flags().Changed("replicas"):
				return errors.New("the --replicas=COUNT flag is required")
			case replicas < 0:
				return errors.New("the --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0")
			}
			get := getOptions{files: f}
			targets, spaces, err := a.getTargets(&get, args)
			if err != nil {
				return err
			}
			if err := named(targets); err != nil {
				return err
			}
			for i, t := range targets {
				if err := a.scaleOne(cmd.Context(), t, spaces[i], replicas, current); err != nil {
					a.report(err)
				}
			}
			return nil
		},
	}
	c.Flags().Int32Var(&replicas, "replicas", 0, "the number that there should be (required)")
	c.Flags().Int32Var(&current, "current-replicas", -1, "only if this many are asked for now")
	f.flags(c)
	return c
}

func (a *app) scaleOne(ctx context.Context, t target, namespace string, replicas, current int32) error {
	resource := t.kind.Resource + "/scale"
	patch := map[string]any{"spec": map[string]any{"replicas": replicas}}
	if current >= 0 {
		reply, err := a.request(ctx, schemas.VerbGet, resource, namespace, t.name, nil)
		if err != nil {
			return err
		}
		var now autoscalingv1.Scale
		if err := json.Unmarshal(reply.Body, &now); err != nil {
			return fmt.Errorf("read scale from the server: %w", err)
		}
		if now.Spec.Replicas != current {
			return fmt.Errorf("expected replicas to be %d, was %d", current, now.Spec.Replicas)
		}
		// Between the look and the change nobody else may have come.
		patch["metadata"] = map[string]any{"resourceVersion": now.ResourceVersion}
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	if _, err := a.request(ctx, schemas.VerbPatch, resource, namespace, t.name, body); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s scaled\n", label(t.kind, t.name))
	return nil
}
