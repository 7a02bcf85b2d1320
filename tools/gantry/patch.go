package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"gantry.dev/schemas"
)

// patchTypes are the values of --type.
var patchTypes = map[string]string{"json": schemas.PatchJSON, "merge": schemas.PatchMerge, "strategic": schemas.PatchStrategic}

type patchOptions struct {
	selection   selection
	kind        string
	patch       string
	file        string
	subresource string
	w           writing
}

func (a *app) patchCommand() *cobra.Command {
	var o patchOptions
	c := &cobra.Command{
		Use:   "patch KIND/NAME | KIND NAME | -f FILE {-p PATCH | --patch-file FILE}",
		Short: "Change parts of objects",
		Example: `  gantry patch deployment/web -p '{"spec": {"replicas": 3}}'
  gantry patch deployment/web --type json -p '[{"op": "replace", "path": "/spec/replicas", "value": 3}]'
  gantry patch pod/web --subresource status --type merge --patch-file status.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runPatch(cmd.Context(), &o, args) },
	}
	f := c.Flags()
	o.selection.files.flags(c)
	a.writeFlags(c, &o.w)
	f.StringVar(&o.kind, "type", "strategic", "json, merge or strategic: how the patch is to be read")
	f.StringVarP(&o.patch, "patch", "p", "", "the patch, as JSON or YAML")
	f.StringVar(&o.file, "patch-file", "", "file with the patch, or - for standard input")
	f.StringVar(&o.subresource, "subresource", "", "status or scale: patch only this")
	return c
}

func (a *app) runPatch(ctx context.Context, o *patchOptions, args []string) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	contentType, ok := patchTypes[o.kind]
	if !ok {
		return fmt.Errorf(`--type must be one of json, merge and strategic, not %q`, o.kind)
	}
	if err := checkSubresource(o.subresource); err != nil {
		return err
	}
	body, err := a.readPatch(o)
	if err != nil {
		return err
	}
	if o.w.dryRun == dryClient && contentType != schemas.PatchMerge {
		return fmt.Errorf("--dry-run=client can work out merge patches alone, not --type %s: use --dry-run=server", o.kind)
	}
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	header, err := o.w.header(contentType, false)
	if err != nil {
		return err
	}
	for _, t := range objects {
		t.sub = o.subresource
		if err := a.patchOne(ctx, o, t, header, body); err != nil {
			a.report(err)
		}
	}
	return nil
}

// readPatch returns the patch as JSON, having looked only at whether it is an
// object or a list: the rest is the server's to judge.
func (a *app) readPatch(o *patchOptions) ([]byte, error) {
	text, from := []byte(o.patch), "--patch"
	switch {
	case o.patch != "" && o.file != "":
		return nil, errors.New("cannot specify --patch and --patch-file together")
	case o.file == "-":
		var err error
		if text, err = io.ReadAll(a.in); err != nil {
			return nil, fmt.Errorf("read the patch from standard input: %w", err)
		}
		from = "standard input"
	case o.file != "":
		var err error
		if text, err = os.ReadFile(o.file); err != nil {
			return nil, fmt.Errorf("unable to read patch file: %w", err)
		}
		from = o.file
	case o.patch == "":
		return nil, errors.New("must specify --patch or --patch-file containing the contents of the patch")
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, fmt.Errorf("unable to parse the patch of %s: %w", from, err)
	}
	asJSON = bytes.TrimSpace(asJSON)
	switch isList := asJSON[0] == '['; {
	case o.kind == "json" && !isList:
		return nil, fmt.Errorf(`the patch of %s is no list of operations: with --type json it looks like [{"op": "replace", "path": "/spec/replicas", "value": 3}]`, from)
	case o.kind != "json" && asJSON[0] != '{':
		return nil, fmt.Errorf(`the patch of %s is no object: with --type %s it looks like {"spec": {"replicas": 3}}`, from, o.kind)
	}
	return asJSON, nil
}

func (a *app) patchOne(ctx context.Context, o *patchOptions, t object, header map[string][]string, body []byte) error {
	if o.w.dryRun == dryClient {
		reply, err := a.request(ctx, schemas.VerbGet, t.resource(), t.namespace, t.name, nil)
		if err != nil {
			return err
		}
		before, err := tree(reply.Body)
		if err != nil {
			return err
		}
		patch, err := tree(body)
		if err != nil {
			return err
		}
		after, err := marshal(mergePatch(before, patch))
		if err != nil {
			return err
		}
		return a.said(&o.w, t.kind, t.name, "patched", after)
	}
	reply, err := a.requestWith(ctx, schemas.VerbPatch, t.resource(), t.namespace, t.name, header, body)
	if err != nil {
		return err
	}
	how := "patched"
	if first(reply.Header[schemas.HeaderResult], "") == "unchanged" {
		how = "patched (no change)"
	}
	return a.said(&o.w, t.kind, t.name, how, reply.Body)
}

func marshal(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	return data, nil
}
