package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// writingCommands are the commands that change the cluster.
func (a *app) writingCommands() []*cobra.Command {
	return append([]*cobra.Command{
		a.applyCommand(), a.diffCommand(), a.createCommand(), a.deleteCommand(), a.replaceCommand(), a.patchCommand(), a.editCommand(),
		a.labelCommand(), a.annotateCommand(), a.setCommand(), a.scaleCommand(), a.rolloutCommand(),
		a.runCommand(), a.exposeCommand(), a.drainCommand(),
	}, append(a.cordonCommands(), missingCommands()...)...)
}

// missingCommands are those of kubectl that are not here; each says why, and
// what to do instead.
func missingCommands() []*cobra.Command {
	var out []*cobra.Command
	for word, why := range map[string]string{
		"autoscale":   "HorizontalPodAutoscaler is not supported by Gantry yet; set the number with gantry scale",
		"taint":       "taints are not built; keep new pods away with gantry cordon, and choose nodes with spec.nodeSelector",
		"debug":       "ephemeral containers are not built; look around with gantry exec, or run a pod of your own with gantry run -it",
		"proxy":       "there is no HTTP API to stand in for: the API is the bus; see docs/bus.md",
		"kustomize":   "gantry builds no kustomizations; build them first, and pipe them into gantry apply -f -",
		"certificate": "there are no certificate requests: credentials are keys; see docs/bus.md",
	} {
		out = append(out, refusedCommand(word, func() error { return fmt.Errorf("gantry has no %s: %s", word, why) }))
	}
	return out
}

// fieldManager is who wrote a field, unless --field-manager says otherwise.
const fieldManager = "gantry"

// Values of --dry-run.
const (
	dryNone   = "none"
	dryClient = "client"
	dryServer = "server"
)

// writing are the flags that all writes share.
type writing struct {
	dryRun   string
	manager  string
	output   string
	validate string // empty where a command has no such flag

	show *printer // nil for the line that says what was done
}

// writeFlags adds the flags of a write that prints objects.
func (a *app) writeFlags(c *cobra.Command, w *writing) {
	a.outputFlags(c, &w.output)
	w.dryRunFlag(c)
	c.Flags().StringVar(&w.manager, "field-manager", fieldManager, "name under which the server remembers who wrote the fields")
}

func (w *writing) dryRunFlag(c *cobra.Command) {
	c.Flags().StringVar(&w.dryRun, "dry-run", dryNone, "client: send nothing; server: have everything checked, and store nothing")
	c.Flags().Lookup("dry-run").NoOptDefVal = "unset"
}

// validateFlag takes what kubectl users say of validation, where it is what happens.
func (w *writing) validateFlag(c *cobra.Command) {
	c.Flags().StringVar(&w.validate, "validate", "strict", "strict is what the server does always: unknown and doubled fields are refused by name")
	c.Flags().Lookup("validate").NoOptDefVal = "strict"
}

// prepare reads the flags. It is to be called before anything is sent.
func (a *app) prepare(w *writing) error {
	switch w.dryRun {
	case dryNone, dryClient, dryServer:
	case "unset":
		return errors.New(`--dry-run needs a value: --dry-run=none, --dry-run=client or --dry-run=server`)
	default:
		return fmt.Errorf(`invalid dry-run value (%s): must be "none", "server" or "client"`, w.dryRun)
	}
	switch w.validate {
	case "", "strict", "true":
	default:
		return fmt.Errorf("--validate=%s: the server validates strictly always, and stores no field that it does not know; take the field out of the manifest", w.validate)
	}
	if w.output == "wide" {
		return errors.New(`a write has no output "wide": use yaml, json, name or jsonpath`)
	}
	var err error
	w.show, err = a.printerFor(w.output)
	return err
}

// header says how a write is to be taken. contentType is empty but for
// patches; force takes fields over from other managers.
func (w *writing) header(contentType string, force bool) (map[string][]string, error) {
	opts := metav1.PatchOptions{FieldManager: w.manager}
	if w.dryRun == dryServer {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	if force {
		opts.Force = &force
	}
	data, err := json.Marshal(opts)
	if err != nil {
		return nil, fmt.Errorf("encode options: %w", err)
	}
	h := map[string][]string{schemas.HeaderOptions: {string(data)}}
	if contentType != "" {
		h[schemas.HeaderContentType] = []string{contentType}
	}
	return h, nil
}

// rehearsal says that nothing is to be stored.
func (w *writing) rehearsal() bool { return w.dryRun == dryClient || w.dryRun == dryServer }

// suffix tells a rehearsal from a deed.
func (w *writing) suffix() string {
	switch w.dryRun {
	case dryClient:
		return " (dry run)"
	case dryServer:
		return " (server dry run)"
	}
	return ""
}

// said prints what a write did: one line, or the object where -o asks for it.
func (a *app) said(w *writing, k schemas.Kind, name, how string, raw []byte) error {
	if w.show != nil {
		return w.show.object(a.out, k, raw)
	}
	fmt.Fprintf(a.out, "%s %s%s\n", label(k, name), how, w.suffix())
	return nil
}

// asManifest is an object that this program made as a person would write it:
// without the fields that only a server fills in.
func asManifest(o schemas.Object) ([]byte, error) {
	k := schemas.KindOf(o)
	o.GetObjectKind().SetGroupVersionKind(k.GVK)
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", label(k, o.GetName()), err)
	}
	m, err := tree(data)
	if err != nil {
		return nil, err
	}
	delete(m, "status")
	return json.Marshal(withoutNulls(m))
}

// withoutNulls takes out what JSON calls null, which means not set.
func withoutNulls(m map[string]any) map[string]any {
	for key, value := range m {
		switch v := value.(type) {
		case nil:
			delete(m, key)
		case map[string]any:
			withoutNulls(v)
		case []any:
			for _, item := range v {
				if inner, ok := item.(map[string]any); ok {
					withoutNulls(inner)
				}
			}
		}
	}
	return m
}

// pairs reads KEY=VALUE words in their order; what names the flag or argument
// in errors. Values may be empty and may hold "=".
func pairs(what string, words []string) ([][2]string, error) {
	var out [][2]string
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%s %q is not KEY=VALUE", what, word)
		}
		out = append(out, [2]string{key, value})
	}
	return out, nil
}
