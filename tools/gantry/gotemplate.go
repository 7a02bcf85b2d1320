package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"

	"github.com/DataDog/datadog-agent/pkg/template/text"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// goTemplate prints objects with a Go template. cli-runtime's printer does the
// same with text/template, which costs 13 MB: it calls methods by name, so the
// linker has to keep them all. Objects are maps here and have none to call.
type goTemplate struct{ t *template.Template }

func newGoTemplate(text string, missingKeys bool) (*goTemplate, error) {
	t, err := template.New("output").Funcs(template.FuncMap{"exists": exists, "base64decode": base64decode}).Parse(text)
	if err != nil {
		return nil, err
	}
	if !missingKeys {
		t.Option("missingkey=error")
	}
	return &goTemplate{t}, nil
}

// PrintObj writes all that the template makes of an object, or nothing.
func (p *goTemplate) PrintObj(o runtime.Object, w io.Writer) error {
	u, ok := o.(runtime.Unstructured)
	if !ok {
		return fmt.Errorf("print %T by a template: it is not decoded loosely", o)
	}
	data := u.UnstructuredContent()
	if list, ok := o.(*unstructured.UnstructuredList); ok && len(list.Items) == 0 {
		data["items"] = []any{} // where there are none it is left out
	}
	var buf bytes.Buffer
	if err := p.t.Execute(&buf, data); err != nil {
		return fmt.Errorf("error executing template: %w", err)
	}
	_, err := w.Write(buf.Bytes())
	return err
}

// exists says whether all of these keys lead to something, one below another.
func exists(item any, keys ...any) bool {
	for _, key := range keys {
		switch at := item.(type) {
		case map[string]any:
			name, ok := key.(string)
			if item, ok = at[name], ok && at[name] != nil; !ok {
				return false
			}
		case []any:
			i, ok := key.(int)
			if !ok || i < 0 || i >= len(at) {
				return false
			}
			item = at[i]
		default:
			return false
		}
	}
	return item != nil
}

func base64decode(v string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(v)
	if err != nil {
		return "", fmt.Errorf("base64 decode failed: %w", err)
	}
	return string(data), nil
}
