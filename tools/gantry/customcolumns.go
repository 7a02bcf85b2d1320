package main

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/util/jsonpath"
)

// columnsPrinter lays out the fields that the user names. It is written here
// because kubectl's lies in a package that brings the whole of kubectl along.
type columnsPrinter struct {
	columns   []column
	noHeaders bool
	tab       flusher // aligns what goes to out
	out       io.Writer
}

type flusher interface {
	io.Writer
	Flush() error
}

type column struct {
	header string
	find   *jsonpath.JSONPath
}

// columnsFromSpec reads HEADER:PATH,HEADER:PATH.
func columnsFromSpec(spec string, noHeaders bool) (*columnsPrinter, error) {
	p := &columnsPrinter{noHeaders: noHeaders}
	for _, part := range splitOutside(spec) {
		header, path, ok := strings.Cut(part, ":")
		if !ok {
			return nil, fmt.Errorf("unexpected custom-columns spec: %s, expected <header>:<json-path-expr>", part)
		}
		if err := p.add(header, path); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// splitOutside cuts at commas that are in no brackets: a filter may hold some.
func splitOutside(spec string) []string {
	var out []string
	depth, from := 0, 0
	for i, c := range spec {
		switch {
		case c == '[' || c == '(' || c == '{':
			depth++
		case c == ']' || c == ')' || c == '}':
			depth--
		case c == ',' && depth <= 0:
			out = append(out, spec[from:i])
			from = i + 1
		}
	}
	return append(out, spec[from:])
}

// columnsFromFile reads a line of headers and a line of paths.
func columnsFromFile(text string, noHeaders bool) (*columnsPrinter, error) {
	lines := strings.SplitN(strings.TrimRight(text, "\n"), "\n", 3)
	if len(lines) < 2 {
		return nil, errors.New("a file of columns has two lines: the headers, and under each the path of its field")
	}
	headers, paths := strings.Fields(lines[0]), strings.Fields(lines[1])
	if len(headers) != len(paths) || len(headers) == 0 {
		return nil, fmt.Errorf("number of headers (%d) and field specifications (%d) don't match", len(headers), len(paths))
	}
	p := &columnsPrinter{noHeaders: noHeaders}
	for i, h := range headers {
		if err := p.add(h, paths[i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *columnsPrinter) add(header, path string) error {
	if path == "" {
		return fmt.Errorf("custom column %s has no path: write %s:.metadata.name", header, header)
	}
	find := jsonpath.New(header).AllowMissingKeys(true)
	if err := find.Parse(relaxed(path)); err != nil {
		return fmt.Errorf("custom column %s: error parsing jsonpath %s: %w", header, path, err)
	}
	p.columns = append(p.columns, column{header, find})
	return nil
}

// PrintObj writes an object, or each of a list. The headers come first, once,
// and later lines keep to the width of earlier ones.
func (p *columnsPrinter) PrintObj(o runtime.Object, w io.Writer) error {
	if p.out != w {
		p.tab, p.out = printers.GetNewTabWriter(w), w
		if !p.noHeaders {
			var headers []string
			for _, c := range p.columns {
				headers = append(headers, c.header)
			}
			fmt.Fprintln(p.tab, strings.Join(headers, "\t"))
		}
	}
	switch o := o.(type) {
	case *unstructured.UnstructuredList:
		for i := range o.Items {
			if err := p.line(o.Items[i].Object); err != nil {
				return err
			}
		}
	case *unstructured.Unstructured:
		if err := p.line(o.Object); err != nil {
			return err
		}
	}
	return p.tab.Flush()
}

func (p *columnsPrinter) line(o map[string]any) error {
	cells := make([]string, len(p.columns))
	for i, c := range p.columns {
		found, err := c.find.FindResults(o)
		if err != nil {
			return fmt.Errorf("custom column %s: %w", c.header, err)
		}
		cells[i] = orText(strings.Join(texts(found), ","), none)
	}
	_, err := fmt.Fprintln(p.tab, strings.Join(cells, "\t"))
	return err
}

func texts(found [][]reflect.Value) []string {
	var out []string
	for _, values := range found {
		for _, v := range values {
			if v.IsValid() && v.CanInterface() {
				// What an object says must not drive the terminal.
				out = append(out, printers.EscapeTerminal(fmt.Sprint(v.Interface())))
			}
		}
	}
	return out
}
