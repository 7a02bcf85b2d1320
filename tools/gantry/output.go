package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// outputs are the forms that -o takes; those that end in = want an argument.
var outputs = []string{
	"wide", "json", "yaml", "name", "jsonpath=", "jsonpath-file=", "jsonpath-as-json=",
	"go-template=", "go-template-file=", "custom-columns=", "custom-columns-file=",
}

// outputOptions are the flags that go with -o.
type outputOptions struct {
	template      string // instead of what follows the = of -o
	missingKeys   bool   // a template may name fields that are not there
	managedFields bool
	noHeaders     bool
}

// outputFlags adds -o and the flags that go with it to a command that prints objects.
func (a *app) outputFlags(c *cobra.Command, output *string) {
	f := c.Flags()
	f.StringVarP(output, "output", "o", "", "one of: "+strings.Join(outputs, ", "))
	f.StringVar(&a.show.template, "template", "", "template, or the file of one, for -o go-template, jsonpath and their like")
	f.BoolVar(&a.show.missingKeys, "allow-missing-template-keys", true, "fields that are not there are no error in a template")
	f.BoolVar(&a.show.managedFields, "show-managed-fields", false, "keep metadata.managedFields in JSON and YAML")
}

// printer writes objects as data rather than as a table.
type printer struct {
	names bool
	// bare leaves out who manages which field: many lines that few want.
	bare  bool
	inner printers.ResourcePrinter
}

// printerFor returns nil for the outputs that are tables.
func (a *app) printerFor(output string) (*printer, error) {
	format, argument, _ := strings.Cut(output, "=")
	argument = orText(argument, a.show.template)
	bare := !a.show.managedFields
	switch format {
	case "", "wide":
		return nil, nil
	case "name":
		return &printer{names: true}, nil
	case "json":
		return &printer{bare: bare, inner: &printers.JSONPrinter{}}, nil
	case "yaml":
		return &printer{bare: bare, inner: &printers.YAMLPrinter{}}, nil
	case "jsonpath", "jsonpath-as-json", "go-template", "template", "custom-columns":
		return a.templatePrinter(format, argument)
	case "jsonpath-file", "go-template-file", "templatefile", "custom-columns-file":
		if argument == "" {
			return nil, fmt.Errorf("-o %s names no file: use -o %s=FILE", format, format)
		}
		data, err := os.ReadFile(argument)
		if err != nil {
			return nil, fmt.Errorf("error reading --template %s: %w", argument, err)
		}
		if format == "custom-columns-file" {
			p, err := columnsFromFile(string(data), a.show.noHeaders)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", argument, err)
			}
			return &printer{inner: p}, nil
		}
		return a.templatePrinter(strings.TrimSuffix(strings.TrimSuffix(format, "-file"), "file"), string(data))
	}
	return nil, fmt.Errorf("unable to match a printer suitable for the output format %q, allowed formats are: %s",
		output, strings.ReplaceAll(strings.Join(outputs, ","), "=", ""))
}

// templatePrinter makes a printer whose form the user writes.
func (a *app) templatePrinter(format, text string) (*printer, error) {
	if text == "" {
		return nil, fmt.Errorf("template format specified but no template given: use -o %s=TEMPLATE", format)
	}
	switch format {
	case "jsonpath", "jsonpath-as-json":
		p, err := printers.NewJSONPathPrinter(relaxed(text))
		if err != nil {
			return nil, fmt.Errorf("error parsing jsonpath %s: %w", text, err)
		}
		p.AllowMissingKeys(a.show.missingKeys)
		p.EnableJSONOutput(format == "jsonpath-as-json")
		return &printer{inner: quiet{p}}, nil
	case "custom-columns":
		p, err := columnsFromSpec(text, a.show.noHeaders)
		if err != nil {
			return nil, err
		}
		return &printer{inner: p}, nil
	}
	p, err := newGoTemplate(text, a.show.missingKeys)
	if err != nil {
		return nil, fmt.Errorf("error parsing template %s: %w", text, err)
	}
	return &printer{inner: p}, nil
}

// quiet holds back what a printer wrote before it failed: the library's
// printer adds the whole object, which helps nobody who reads the output with
// a program, and may be a secret.
type quiet struct{ inner printers.ResourcePrinter }

func (q quiet) PrintObj(o runtime.Object, w io.Writer) error {
	var buf bytes.Buffer
	if err := q.inner.PrintObj(o, &buf); err != nil {
		// The error repeats the object after its first line.
		head, _, _ := strings.Cut(err.Error(), "\n")
		return errors.New(head)
	}
	_, err := w.Write(buf.Bytes())
	return err
}

// relaxed lets the braces be left out, as kubectl does.
func relaxed(path string) string {
	path = strings.Trim(path, "'")
	if strings.Contains(path, "{") || path == "" {
		return path
	}
	return "{." + strings.TrimPrefix(path, ".") + "}"
}

func (p *printer) object(w io.Writer, k schemas.Kind, raw []byte) error {
	o, err := p.read(raw)
	if err != nil {
		return err
	}
	if p.names {
		_, err := fmt.Fprintln(w, label(k, o.GetName()))
		return err
	}
	return p.inner.PrintObj(o, w)
}

// list writes several objects as one v1 List, as kubectl does for kinds of
// all sorts.
func (p *printer) list(w io.Writer, rows []row) error {
	if p.names {
		for _, r := range rows {
			if err := p.object(w, r.kind, r.raw); err != nil {
				return err
			}
		}
		return nil
	}
	all := &unstructured.UnstructuredList{Object: map[string]any{
		"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""},
	}}
	for _, r := range rows {
		o, err := p.read(r.raw)
		if err != nil {
			return err
		}
		all.Items = append(all.Items, *o)
	}
	return p.inner.PrintObj(all, w)
}

// event writes what happened to an object, as it goes over the wire.
func (p *printer) event(w io.Writer, what string, k schemas.Kind, raw []byte) error {
	if p.names {
		_, err := fmt.Fprint(w, what, " ")
		if err != nil {
			return err
		}
		return p.object(w, k, raw)
	}
	o, err := p.read(raw)
	if err != nil {
		return err
	}
	switch p.inner.(type) {
	case *printers.JSONPrinter, *printers.YAMLPrinter: // these know events, and want a kind of all else
		return p.inner.PrintObj(&metav1.WatchEvent{Type: what, Object: runtime.RawExtension{Object: o}}, w)
	}
	return p.inner.PrintObj(&unstructured.Unstructured{Object: map[string]any{"type": what, "object": o.Object}}, w)
}

// showValue writes something that is no object of the API, but has an
// apiVersion and a kind as printers want it.
func (a *app) showValue(p *printer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	o, err := loose(data)
	if err != nil {
		return err
	}
	return p.inner.PrintObj(o, a.out)
}

func (p *printer) read(raw []byte) (*unstructured.Unstructured, error) {
	o, err := loose(raw)
	if err == nil && p.bare {
		o.SetManagedFields(nil)
	}
	return o, err
}

// loose keeps every field of an object, known to this program or not. Whole
// numbers stay whole: a million is not 1e+06.
func loose(raw []byte) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &o.Object); err != nil {
		return nil, fmt.Errorf("read object from the server: %w", err)
	}
	return o, nil
}

// row is one object as the server wrote it.
type row struct {
	kind schemas.Kind
	raw  json.RawMessage
}
