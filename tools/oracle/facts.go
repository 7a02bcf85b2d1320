package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A definition is what the API's own description says of a type that the Go
// type does not: schemas/facts.json keeps it by the definition's name.
type definition struct {
	Required []string             `json:"required,omitempty"`
	Fields   map[string]fieldFact `json:"fields,omitempty"`
	// Enum is every value of a string type that is an enumeration.
	Enum []string `json:"enum,omitempty"`
}

type fieldFact struct {
	Default     any      `json:"default,omitempty"`
	ListType    string   `json:"listType,omitempty"`
	ListMapKeys []string `json:"listMapKeys,omitempty"`
	MapType     string   `json:"mapType,omitempty"`
}

// apiParts are the groups whose descriptions hold the kinds that Gantry has.
var apiParts = []string{"api__v1", "apis__apps__v1", "apis__autoscaling__v2", "apis__batch__v1", "apis__coordination.k8s.io__v1",
	"apis__discovery.k8s.io__v1", "apis__networking.k8s.io__v1", "apis__policy__v1", "apis__rbac.authorization.k8s.io__v1",
	"apis__scheduling.k8s.io__v1", "apis__storage.k8s.io__v1"}

// writeFacts gathers the definitions that the kinds lead to.
func writeFacts(file string) error {
	pkg, err := build.Import("k8s.io/kubernetes/pkg/api/legacyscheme", ".", build.FindOnly)
	if err != nil {
		return err
	}
	spec := filepath.Join(pkg.Dir, "../../../api/openapi-spec/v3")
	all := map[string]openAPI{}
	for _, part := range apiParts {
		data, err := os.ReadFile(filepath.Join(spec, part+"_openapi.json"))
		if err != nil {
			return err
		}
		var doc struct {
			Components struct {
				Schemas map[string]openAPI `json:"schemas"`
			} `json:"components"`
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
		for name, s := range doc.Components.Schemas {
			all[name] = s
		}
	}
	out := map[string]definition{}
	for _, kind := range kinds {
		if _, ok := all[kind]; !ok {
			return fmt.Errorf("the API describes no %s", kind)
		}
		reach(kind, all, out)
	}
	for _, part := range apiPackages {
		if err := enums(part, out); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

// apiPackages are those of k8s.io/api that the kinds are made of.
var apiPackages = []string{"core/v1", "apps/v1", "autoscaling/v2", "batch/v1", "coordination/v1", "discovery/v1",
	"networking/v1", "policy/v1", "rbac/v1", "scheduling/v1", "storage/v1"}

// enums adds the constants of each type that its comment marks +enum: the
// published description leaves them out.
func enums(path string, out map[string]definition) error {
	pkg, err := build.Import("k8s.io/api/"+path, ".", 0)
	if err != nil {
		return err
	}
	values := map[string][]string{}
	marked := map[string]bool{}
	for _, name := range pkg.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(pkg.Dir, name), nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if g, ok := decl.(*ast.GenDecl); ok {
				markedTypes(g, marked)
				constants(g, values)
			}
		}
	}
	for name := range marked {
		slices.Sort(values[name])
		out["io.k8s.api."+strings.ReplaceAll(path, "/", ".")+"."+name] = definition{Enum: slices.Compact(values[name])}
	}
	return nil
}

func markedTypes(g *ast.GenDecl, marked map[string]bool) {
	for _, spec := range g.Specs {
		t, ok := spec.(*ast.TypeSpec)
		if !ok {
			continue
		}
		for _, doc := range []*ast.CommentGroup{g.Doc, t.Doc} {
			if doc == nil {
				continue
			}
			for _, c := range doc.List {
				if strings.TrimSpace(strings.TrimPrefix(c.Text, "//")) == "+enum" {
					marked[t.Name.Name] = true
				}
			}
		}
	}
}

func constants(g *ast.GenDecl, values map[string][]string) {
	for _, spec := range g.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok || g.Tok != token.CONST {
			continue
		}
		name, ok := v.Type.(*ast.Ident)
		if !ok {
			continue
		}
		for _, value := range v.Values {
			if lit, ok := value.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil {
					values[name.Name] = append(values[name.Name], s)
				}
			}
		}
	}
}

type openAPI struct {
	Ref         string             `json:"$ref"`
	AllOf       []openAPI          `json:"allOf"`
	Items       *openAPI           `json:"items"`
	Additional  *openAPI           `json:"additionalProperties"`
	Properties  map[string]openAPI `json:"properties"`
	Required    []string           `json:"required"`
	Default     any                `json:"default"`
	ListType    string             `json:"x-kubernetes-list-type"`
	ListMapKeys []string           `json:"x-kubernetes-list-map-keys"`
	MapType     string             `json:"x-kubernetes-map-type"`
}

// refs are the definitions that a schema leads to.
func (s openAPI) refs() []string {
	var out []string
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		out = append(out, name)
	}
	for _, a := range s.AllOf {
		out = append(out, a.refs()...)
	}
	for _, below := range []*openAPI{s.Items, s.Additional} {
		if below != nil {
			out = append(out, below.refs()...)
		}
	}
	return out
}

func reach(name string, all map[string]openAPI, out map[string]definition) {
	if _, done := out[name]; done {
		return
	}
	s := all[name]
	d := definition{Required: s.Required, Fields: map[string]fieldFact{}}
	slices.Sort(d.Required)
	out[name] = d
	for field, p := range s.Properties {
		f := fieldFact{Default: p.Default, ListType: p.ListType, ListMapKeys: p.ListMapKeys, MapType: p.MapType}
		if m, ok := f.Default.(map[string]any); ok && len(m) == 0 || f.Default == "" || f.Default == float64(0) {
			f.Default = nil // what the generator writes of a field that must not be null
		}
		if f.Default != nil || f.ListType != "" || f.MapType != "" {
			d.Fields[field] = f
		}
		for _, ref := range p.refs() {
			reach(ref, all, out)
		}
	}
}
