package schemas

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var update = flag.Bool("update", false, "write docs/supported-fields.md and testdata/api-testdata.txt again")

const supportedDoc = "../docs/supported-fields.md"

// TestSupportedFieldsDoc keeps the page and the table the same.
func TestSupportedFieldsDoc(t *testing.T) {
	want := supportedFieldsPage()
	if *update {
		if err := os.WriteFile(supportedDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(supportedDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the table says: go test ./schemas -run TestSupportedFieldsDoc -update", supportedDoc)
	}
}

func supportedFieldsPage() string {
	var b strings.Builder
	b.WriteString(`# Supported fields

What Gantry makes of every field of every kind. Admission, this page and the
errors that users see come from one table, ` + "`schemas/fields*.go`" + `; a test
writes this page from it:

    go test ./schemas -run TestSupportedFieldsDoc -update

| Mark | Meaning |
|---|---|
| yes | does what Kubernetes documents; with values, only these are accepted |
| no effect | accepted with a warning |
| system | written by Gantry; what a manifest says is dropped |
| no | refused at admission, by name and path |

What is not listed below a field that says yes is supported as well; what is
refused is never silently ignored. A field that is refused may be there with
nothing in it: an empty string or list, false or 0. Kinds that are not here are
refused. Defaults, validation and immutability are Kubernetes' own, held against
its code by ` + "`task oracle`" + `; where Gantry differs, the
` + "`*.differences.yaml`" + ` beside the cases in schemas/testdata/kubernetes say why.
A Service needs a selector, and host ports need hostNetwork, for now.

The same is served as JSON Schema (` + "`api.schema.<resource>._`" + ` on the bus) and
explained by ` + "`gantry explain`" + `.

`)
	b.WriteString("## Kinds\n\n| Kind | Resource | Served |\n|---|---|---|\n")
	for _, k := range Kinds {
		served := "yes"
		if k.Refused != "" {
			served = "no: " + k.Refused
		}
		fmt.Fprintf(&b, "| %s (%s) | `%s` | %s |\n", k.GVK.Kind, k.GVK.GroupVersion(), k.Resource, served)
	}
	b.WriteString("\n")
	b.WriteString("## Metadata of every kind\n\n")
	w := docWalk{b: &b, rules: rulesOf(Pods)}
	w.head()
	w.fields(reflect.TypeFor[metav1.ObjectMeta](), "metadata")
	b.WriteString("\n## Metadata of a template\n\nOf a pod template, and of a CronJob's job template.\n\n")
	w = docWalk{b: &b, rules: rulesOf(PodTemplates), whole: true}
	w.head()
	w.fields(reflect.TypeFor[metav1.ObjectMeta](), "template.metadata")
	b.WriteString("\n")
	for _, k := range Kinds {
		fmt.Fprintf(&b, "## %s (%s)\n\n", k.GVK.Kind, k.GVK.GroupVersion())
		if k.Refused != "" {
			fmt.Fprintf(&b, "**Refused: %s.** What follows is what will be supported once the kind is.\n\n", k.Refused)
		}
		switch k.Resource {
		case Events:
			b.WriteString("Written by Gantry; users read and delete them. Events expire after an hour.\n\n")
			continue
		case EndpointSlices:
			b.WriteString("Written by Gantry; users read them.\n\n")
			continue
		case Nodes:
			b.WriteString("Made by the node's agent. Users read and delete nodes, and patch or update labels, annotations and spec.unschedulable.\n\n")
		}
		w := docWalk{b: &b, rules: rulesOf(k.Resource)}
		w.head()
		for name, f := range sortedFields(reflect.TypeOf(k.New()).Elem()) {
			if name != "apiVersion" && name != "kind" && name != "metadata" {
				w.field(f.Type, name)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

type docWalk struct {
	b     *strings.Builder
	rules map[string]*FieldRule
	// whole writes a template's metadata out instead of pointing at its section.
	whole bool
}

// sortedFields are a struct's JSON fields by name.
func sortedFields(t reflect.Type) func(yield func(string, reflect.StructField) bool) {
	return func(yield func(string, reflect.StructField) bool) {
		m := jsonFields(t)
		for _, name := range slices.Sorted(maps.Keys(m)) {
			if !yield(name, m[name]) {
				return
			}
		}
	}
}

func (w *docWalk) head() { w.b.WriteString("| Field | Supported | Remark |\n|---|---|---|\n") }

func (w *docWalk) fields(t reflect.Type, prefix string) {
	for name, f := range sortedFields(t) {
		w.field(f.Type, childPattern(prefix, name))
	}
}

func (w *docWalk) field(t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	rule, leads := w.rules[path]
	if t.Kind() == reflect.Map && rule != nil && rule.Level == Refused {
		// Some keys are supported, the others are not.
		w.keys(path)
		w.row(path+".*", rule)
		return
	}
	if rule != nil {
		w.row(path, rule)
	} else if !leads {
		w.row(path, &FieldRule{})
		return
	}
	// What stands in many kinds is written once.
	if t == reflect.TypeFor[corev1.PodSpec]() && path != "spec" {
		fmt.Fprintf(w.b, "| `%s.*` | as a Pod's `spec.*` |  |\n", path)
		return
	}
	if t == reflect.TypeFor[metav1.ObjectMeta]() && path != "metadata" && !w.whole {
		fmt.Fprintf(w.b, "| `%s.*` | as the metadata of a template |  |\n", path)
		return
	}
	switch {
	case t.Kind() == reflect.Slice:
		elem := t.Elem()
		if _, listed := w.rules[path+"[]"]; listed {
			if elem.Kind() == reflect.Struct {
				w.fields(elem, path+"[]")
				return
			}
			w.field(elem, path+"[]")
		}
	case t.Kind() == reflect.Map:
		w.keys(path)
	case t.Kind() == reflect.Struct && rule == nil:
		w.fields(t, path)
	}
}

// keys prints the rules for single keys of a map.
func (w *docWalk) keys(path string) {
	for _, p := range slices.Sorted(maps.Keys(w.rules)) {
		if r := w.rules[p]; r != nil && parentPath(p) == path {
			w.row(p, r)
		}
	}
}

func (w *docWalk) row(path string, r *FieldRule) {
	mark, note := "no", r.Note
	switch r.Level {
	case Supported:
		mark = "yes"
		if len(r.Values) > 0 {
			mark = "`" + strings.Join(r.Values, "`, `") + "`"
		}
	case Ignored:
		mark = "no effect"
	case System:
		mark = "system"
	case Refused:
		if r.EmptyOK {
			mark = "only if empty"
		}
	}
	fmt.Fprintf(w.b, "| `%s` | %s | %s |\n", path, mark, note)
}

// TestEveryRuleNamesAField catches a row whose path no type has: a typing
// error there would refuse, or let through, something else than it says.
func TestEveryRuleNamesAField(t *testing.T) {
	for _, k := range Kinds {
		for _, r := range FieldRules(k.Resource) {
			if !pathExists(reflect.TypeOf(k.New()), r.Path) {
				t.Errorf("%s has no field %s", k.Resource, r.Path)
			}
		}
	}
}

func pathExists(t reflect.Type, path string) bool {
	if path == "" {
		return true
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if rest, ok := strings.CutPrefix(path, "[]"); ok {
		return t.Kind() == reflect.Slice && pathExists(t.Elem(), strings.TrimPrefix(rest, "."))
	}
	if t.Kind() == reflect.Map {
		return true
	}
	if t.Kind() != reflect.Struct {
		return false
	}
	end := strings.IndexAny(path, ".[")
	name, rest := path, ""
	if end >= 0 {
		name, rest = path[:end], strings.TrimPrefix(path[end:], ".")
	}
	f, ok := jsonFields(t)[name]
	return ok && pathExists(f.Type, rest)
}

// TestDefaultsAreSupported holds the table against the defaults: what Gantry
// fills in itself must not be refused when the object comes back.
func TestDefaultsAreSupported(t *testing.T) {
	for _, k := range Kinds {
		o := k.New()
		data, err := json.Marshal(map[string]any{"apiVersion": k.GVK.GroupVersion().String(), "kind": k.GVK.Kind,
			"metadata": map[string]any{"name": "x"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, o); err != nil {
			t.Fatal(err)
		}
		Default(o)
		refused, warnings := Unsupported(o)
		for _, e := range refused {
			if k.Resource == Services && e.Field == "spec.selector" {
				continue
			}
			t.Errorf("%s: %v", k.Resource, e)
		}
		if len(warnings) > 0 {
			t.Errorf("%s warns of its own defaults: %v", k.Resource, warnings)
		}
	}
}
