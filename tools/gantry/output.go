package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

// printer writes objects as data rather than as a table.
type printer struct {
	names bool
	inner printers.ResourcePrinter
}

// printerFor returns nil for the outputs that are tables.
func (a *app) printerFor(output string) (*printer, error) {
	format, argument, _ := strings.Cut(output, "=")
	switch format {
	case "", "wide":
		return nil, nil
	case "name":
		return &printer{names: true}, nil
	case "json":
		return &printer{inner: &printers.JSONPrinter{}}, nil
	case "yaml":
		return &printer{inner: &printers.YAMLPrinter{}}, nil
	case "jsonpath":
		p, err := printers.NewJSONPathPrinter(relaxed(argument))
		if err != nil {
			return nil, fmt.Errorf("error parsing jsonpath %s: %w", argument, err)
		}
		p.AllowMissingKeys(true)
		return &printer{inner: p}, nil
	}
	return nil, fmt.Errorf("unable to match a printer suitable for the output format %q, allowed formats are: json,yaml,name,wide,jsonpath", output)
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
	o, err := loose(raw)
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
		o, err := loose(r.raw)
		if err != nil {
			return err
		}
		all.Items = append(all.Items, *o)
	}
	return p.inner.PrintObj(all, w)
}

// loose keeps every field of an object, known to this program or not.
func loose(raw []byte) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{}
	if err := json.Unmarshal(raw, &o.Object); err != nil {
		return nil, fmt.Errorf("read object from the server: %w", err)
	}
	return o, nil
}

// row is one object as the server wrote it.
type row struct {
	kind schemas.Kind
	raw  json.RawMessage
}
