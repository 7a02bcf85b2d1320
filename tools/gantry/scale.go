package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

type scaleOptions struct {
	selection         selection
	replicas, current int32
	version           string
	timeout           time.Duration
	w                 writing
}

func (a *app) scaleCommand() *cobra.Command {
	var o scaleOptions
	c := &cobra.Command{
		Use:   "scale --replicas=COUNT KIND/NAME... | KIND NAME... | KIND -l SELECTOR | -f FILE",
		Short: "Set how many replicas there should be",
		Example: `  gantry scale --replicas=5 deployment/web deployment/api
  gantry scale --current-replicas=2 --replicas=3 deployment/web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case !cmd.Flags().Changed("replicas"):
				return errors.New("the --replicas=COUNT flag is required")
			case o.replicas < 0:
				return errors.New("the --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0")
			case cmd.Flags().Changed("current-replicas") && o.current < -1:
				return errors.New("--current-replicas must be a number of replicas, or -1 for any")
			}
			return a.runScale(cmd.Context(), &o, args)
		},
	}
	f := c.Flags()
	o.selection.flags(c)
	a.writeFlags(c, &o.w)
	f.Int32Var(&o.replicas, "replicas", 0, "the number that there should be (required)")
	f.Int32Var(&o.current, "current-replicas", -1, "only if this many are asked for now; -1 for any")
	f.StringVar(&o.version, "resource-version", "", "only if the object is still of this version")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait until there are as many; 0 does not wait")
	return c
}

func (a *app) runScale(ctx context.Context, o *scaleOptions, args []string) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	if o.version != "" && len(objects) > 1 {
		return errors.New("cannot use --resource-version with multiple resources")
	}
	for _, t := range objects {
		if err := a.scaleOne(ctx, o, t); err != nil {
			a.report(err)
		}
	}
	return nil
}

func (a *app) scaleOne(ctx context.Context, o *scaleOptions, t object) error {
	if t.kind.Resource != schemas.Deployments && t.kind.Resource != schemas.ReplicaSets {
		return fmt.Errorf("cannot scale %s: deployments and replicasets have a number of replicas", t)
	}
	t.sub = schemas.SubScale
	for try := 0; ; try++ {
		raw, err := a.scaleOnce(ctx, o, t)
		// The number is what was expected, and yet somebody came in between: look again.
		if apierrors.IsConflict(err) && o.version == "" && try < tries {
			continue
		}
		if err != nil {
			return err
		}
		if err := a.said(&o.w, t.kind, t.name, "scaled", raw); err != nil {
			return err
		}
		break
	}
	if o.timeout == 0 || o.w.dryRun != dryNone {
		return nil
	}
	return a.awaitScaled(ctx, o, t)
}

func (a *app) scaleOnce(ctx context.Context, o *scaleOptions, t object) ([]byte, error) {
	patch := map[string]any{"spec": map[string]any{"replicas": o.replicas}}
	if o.version != "" {
		patch["metadata"] = map[string]any{"resourceVersion": o.version}
	}
	if o.current >= 0 || o.w.dryRun == dryClient {
		reply, err := a.request(ctx, schemas.VerbGet, t.resource(), t.namespace, t.name, nil)
		if err != nil {
			return nil, err
		}
		var now autoscalingv1.Scale
		if err := json.Unmarshal(reply.Body, &now); err != nil {
			return nil, fmt.Errorf("read scale from the server: %w", err)
		}
		switch {
		case o.current >= 0 && now.Spec.Replicas != o.current:
			return nil, fmt.Errorf("expected replicas to be %d, was %d", o.current, now.Spec.Replicas)
		case o.version != "" && now.ResourceVersion != o.version:
			return nil, fmt.Errorf("expected resource version to be %s, was %s", o.version, now.ResourceVersion)
		case o.w.dryRun == dryClient:
			now.Spec.Replicas = o.replicas
			return marshal(now)
		}
		// Between the look and the change nobody else may have come.
		patch["metadata"] = map[string]any{"resourceVersion": now.ResourceVersion}
	}
	body, err := marshal(patch)
	if err != nil {
		return nil, err
	}
	header, err := o.w.header(schemas.PatchMerge, false)
	if err != nil {
		return nil, err
	}
	reply, err := a.requestWith(ctx, schemas.VerbPatch, t.resource(), t.namespace, t.name, header, body)
	return reply.Body, err
}

func (a *app) awaitScaled(ctx context.Context, o *scaleOptions, t object) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	p := a.progress("waiting for replicas")
	defer p.end()
	get := getOptions{}
	err := a.follow(ctx, t.kind, t.namespace, get.listOptions(t.name), func(present map[types.UID]schemas.Object) (bool, error) {
		for _, obj := range present {
			generation, observed, replicas := obj.GetGeneration(), int64(0), int32(0)
			switch obj := obj.(type) {
			case *appsv1.Deployment:
				observed, replicas = obj.Status.ObservedGeneration, obj.Status.Replicas
			case *appsv1.ReplicaSet:
				observed, replicas = obj.Status.ObservedGeneration, obj.Status.Replicas
			}
			p.say("waiting for %s: %d of %d replicas", t, replicas, o.replicas)
			return observed >= generation && replicas == o.replicas, nil
		}
		return false, fmt.Errorf("%s was deleted", t)
	})
	if errors.Is(err, errTimedOut) {
		return fmt.Errorf("timed out waiting for %s to have %d replicas", t, o.replicas)
	}
	return err
}
