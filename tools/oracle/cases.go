package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// A result is what Kubernetes says of one case.
type result struct {
	Case string `json:"case"`
	// Object is the defaulted object as it would be stored, but for what only
	// the server writes (status and system metadata are as given). Null where
	// there are errors.
	Object any `json:"object"`
	// Prepared is the spec as the server changes it before it validates, where
	// that differs from what Object has.
	Prepared any     `json:"prepared,omitempty"`
	Errors   []fault `json:"errors,omitempty"`
}

// A fault is one error: Type is Kubernetes' field.ErrorType, or "Decode" where
// the manifest could not be read.
type fault struct {
	Type   string `json:"type"`
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

// answerFile writes <case>.golden.json for one <case>.yaml, and says how many
// cases it holds.
func answerFile(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	base := strings.TrimSuffix(file, ".yaml")
	var old []byte
	switch oldData, err := os.ReadFile(base + ".old.yaml"); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	default:
		if old, err = yaml.YAMLToJSON(oldData); err != nil {
			return 0, err
		}
	}
	cases, err := split(data, old)
	if err != nil {
		return 0, err
	}
	resource := filepath.Base(filepath.Dir(file))
	var results []result
	for _, c := range cases {
		r, err := ask(resource, c.manifest, old)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", c.name, err)
		}
		r.Case = c.name
		results = append(results, r)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(results); err != nil {
		return 0, err
	}
	return len(cases), os.WriteFile(base+".golden.json", out.Bytes(), 0o644)
}

type oneCase struct {
	name     string
	manifest []byte // JSON
}

// split reads the documents of a case file. The first comment of a document
// names its case. A document without a kind is a JSON merge patch: onto the old
// object where there is one, else onto the file's first document.
func split(data, old []byte) ([]oneCase, error) {
	var cases []oneCase
	base := old
	for i, doc := range strings.Split("\n"+string(data), "\n---") {
		name := ""
		for line := range strings.Lines(doc) {
			if after, ok := strings.CutPrefix(strings.TrimSpace(line), "#"); ok {
				name = strings.TrimSpace(after)
				break
			}
		}
		if name == "" {
			return nil, fmt.Errorf("document %d has no comment that names its case", i+1)
		}
		manifest, err := yaml.YAMLToJSONStrict([]byte(doc))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		var head struct {
			Kind string `json:"kind"`
		}
		if err := json.Unmarshal(manifest, &head); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		switch {
		case head.Kind == "" && base == nil:
			return nil, fmt.Errorf("%s: a patch needs a first document with a kind", name)
		case head.Kind == "":
			if manifest, err = patch(base, manifest); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		case base == nil:
			base = manifest
		}
		cases = append(cases, oneCase{name, manifest})
	}
	return cases, nil
}

func patch(base, change []byte) ([]byte, error) {
	var b, c any
	if err := json.Unmarshal(base, &b); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(change, &c); err != nil {
		return nil, err
	}
	return json.Marshal(merge(b, c))
}

// merge is RFC 7396.
func merge(base, change any) any {
	c, ok := change.(map[string]any)
	if !ok {
		return change
	}
	b, ok := base.(map[string]any)
	if !ok {
		b = map[string]any{}
	}
	for k, v := range c {
		if v == nil {
			delete(b, k)
			continue
		}
		b[k] = merge(b[k], v)
	}
	return b
}
