package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

type replaceOptions struct {
	files       files
	force       bool
	subresource string
	w           writing
}

func (a *app) replaceCommand() *cobra.Command {
	var o replaceOptions
	c := &cobra.Command{
		Use:   "replace -f FILE|DIRECTORY|-",
		Short: "Put whole objects in the place of those that exist",
		Example: `  gantry replace -f web.yaml
  gantry get deployment web -o yaml | sed 's/v1/v2/' | gantry replace -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runReplace(cmd.Context(), &o) },
	}
	o.files.flags(c)
	a.writeFlags(c, &o.w)
	o.w.validateFlag(c)
	c.Flags().BoolVar(&o.force, "force", false, "delete the objects, wait until they are gone, and create them")
	c.Flags().StringVar(&o.subresource, "subresource", "", "status: replace only this")
	return c
}

func (a *app) runReplace(ctx context.Context, o *replaceOptions) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	switch {
	case o.subresource != "" && o.subresource != schemas.SubStatus:
		return fmt.Errorf("invalid subresource value: %q; only status can be replaced, and patch --subresource=scale or the command scale set the scale", o.subresource)
	case !o.files.given():
		return errors.New("must specify one of -f and -")
	case o.force && o.w.dryRun != dryNone:
		return errors.New("--dry-run can not be used when --force is set: what is created depends on the deletion before it")
	case o.force && o.subresource != "":
		return errors.New("--force and --subresource cannot be specified together: a subresource cannot be deleted")
	}
	ms, err := a.manifests(&o.files)
	if err != nil {
		return err
	}
	verb, how := schemas.VerbUpdate, "replaced"
	if o.force {
		verb = schemas.VerbCreate
		if ms, err = a.clear(ctx, ms); err != nil {
			return err
		}
	}
	header, err := o.w.header("", false)
	if err != nil {
		return err
	}
	return a.writeAll(ctx, &o.w, "replacing", ms, func(ctx context.Context, m manifest) (bus.Reply, string, error) {
		target := object{kind: m.kind, namespace: m.namespace, name: m.name, sub: o.subresource}
		if o.w.dryRun == dryClient {
			_, err := a.ask(ctx, schemas.VerbGet, target.resource(), m.namespace, m.name, nil, nil)
			return bus.Reply{Body: m.json}, how, err
		}
		reply, err := a.ask(ctx, verb, target.resource(), m.namespace, m.name, header, m.json)
		return reply, how, err
	})
}

// clear deletes what the manifests name, and gives them back fit for creating.
func (a *app) clear(ctx context.Context, ms []manifest) ([]manifest, error) {
	del := deleteOptions{wait: true, ignoreNotFound: true, cascade: "background", grace: -1}
	body, err := del.body()
	if err != nil {
		return nil, err
	}
	if err := a.connect(ctx); err != nil {
		return nil, err
	}
	var victims []victim
	for i, m := range ms {
		victims = append(victims, victim{m.kind, m.namespace, m.name, m.what("deleting")})
		o, err := tree(m.json)
		if err != nil {
			return nil, err
		}
		if meta, ok := o["metadata"].(map[string]any); ok {
			delete(meta, "resourceVersion")
			delete(meta, "uid")
		}
		if ms[i].json, err = marshal(o); err != nil {
			return nil, err
		}
	}
	return ms, a.deleteAll(ctx, del, victims, body)
}

// checkSubresource takes what gantry can write of an object.
func checkSubresource(name string) error {
	switch name {
	case "", schemas.SubStatus, schemas.SubScale:
		return nil
	}
	return fmt.Errorf("invalid subresource value: %q; there are status and scale", name)
}
