package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

const (
	rawOne = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one","namespace":"default","generation":3000000,` +
		`"labels":{"app":"web"},"managedFields":[{"manager":"m"}]},"data":{"a":"1","b":"x\u001b[31my"}}`
	rawTwo = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"second","namespace":"default"},"data":{"a":"2"}}`
)

func configMapRows(t *testing.T) []row {
	t.Helper()
	k, err := kindOf("cm")
	if err != nil {
		t.Fatal(err)
	}
	return []row{{k, []byte(rawOne)}, {k, []byte(rawTwo)}}
}

func TestOutputsAreThoseOfKubectl(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		output, template string
		show             outputOptions
		one, both        string
	}{
		{output: "name", one: "configmap/one\n", both: "configmap/one\nconfigmap/second\n"},
		{output: "jsonpath={.metadata.name}", one: "one", both: ""},
		{output: "jsonpath=.metadata.generation", one: "3000000"},
		{output: "jsonpath={.items[*].data.a}", both: "1 2"},
		{output: "jsonpath", show: outputOptions{template: "{.data.a}"}, one: "1"},
		{output: "jsonpath-file=" + file("p", "{.data.a}\n"), one: "1\n"},
		{output: "jsonpath-as-json={.data.a}", one: "[\n    \"1\"\n]\n"},
		{output: "go-template={{.metadata.name}}:{{len .data}}", one: "one:2"},
		{output: "go-template={{range .items}}{{.metadata.name}}\n{{end}}", both: "one\nsecond\n"},
		{output: "go-template={{if exists .metadata.labels `app`}}yes{{end}}{{if exists . `data` `none`}}no{{end}}{{base64decode `aGk=`}}", one: "yeshi"},
		{output: "go-template={{range $k, $v := .data}}{{$k}}={{printf `%.1q` $v}} {{end}}{{index .data `a`}} {{eq .metadata.generation 3000000}}", one: "a=\"1\" b=\"x\" 1 true"},
		{output: "go-template={{.metadata.none}}", one: "<no value>"},
		{output: "go-template", show: outputOptions{template: "{{.metadata.generation}}"}, one: "3000000"},
		{output: "go-template-file=" + file("t", "{{.kind}}\n"), one: "ConfigMap\n"},
		{output: "custom-columns=NAME:.metadata.name,GEN:{.metadata.generation},B:data.b",
			one:  "NAME   GEN       B\none    3000000   x^[[31my\n",
			both: "NAME     GEN       B\none      3000000   x^[[31my\nsecond   <none>    <none>\n"},
		{output: "custom-columns=N:.metadata.name", show: outputOptions{noHeaders: true}, both: "one\nsecond\n"},
		{output: "custom-columns-file=" + file("c", "NAME APP\n.metadata.name .metadata.labels.app\n"),
			both: "NAME     APP\none      web\nsecond   <none>\n"},
		{output: "yaml", one: "apiVersion: v1\ndata:\n  a: \"1\"\n  b: \"x\\e[31my\"\nkind: ConfigMap\nmetadata:\n  generation: 3000000\n  labels:\n    app: web\n  name: one\n  namespace: default\n"},
	} {
		for _, side := range []struct {
			what, want string
			print      func(*printer, *bytes.Buffer) error
		}{
			{"one", tc.one, func(p *printer, b *bytes.Buffer) error {
				r := configMapRows(t)[0]
				return p.object(b, r.kind, r.raw)
			}},
			{"both", tc.both, func(p *printer, b *bytes.Buffer) error { return p.list(b, configMapRows(t)) }},
		} {
			if side.want == "" {
				continue
			}
			a := &app{show: tc.show}
			a.show.missingKeys = true
			p, err := a.printerFor(tc.output)
			if err != nil {
				t.Errorf("%s: %v", tc.output, err)
				continue
			}
			var out bytes.Buffer
			if err := side.print(p, &out); err != nil {
				t.Errorf("%s: %v", tc.output, err)
			}
			if diff := cmp.Diff(side.want, out.String()); diff != "" {
				t.Errorf("%s of %s (-want +got):\n%s", tc.output, side.what, diff)
			}
		}
	}
}

func TestManagedFieldsAreShownOnRequest(t *testing.T) {
	for _, output := range []string{"json", "yaml"} {
		for _, show := range []bool{false, true} {
			a := &app{show: outputOptions{managedFields: show}}
			p, err := a.printerFor(output)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := p.list(&out, configMapRows(t)); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(out.String(), "managedFields"); got != show {
				t.Errorf("%s: managedFields shown = %t, want %t", output, got, show)
			}
		}
	}
}

// TestColumnsKeepTheirPlace: what is printed later lines up with what was
// printed before, and the headers come once.
func TestColumnsKeepTheirPlace(t *testing.T) {
	a := &app{}
	p, err := a.printerFor("custom-columns=NAME:.metadata.name,A:.data.a")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	rows := configMapRows(t)
	for _, r := range []row{rows[1], rows[0]} {
		if err := p.object(&out, r.kind, r.raw); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "columns", "NAME     A\nsecond   2\none      1\n", out.String())
}

func TestBadOutputsSayTheWayOut(t *testing.T) {
	dir := t.TempDir()
	lone := filepath.Join(dir, "lone")
	if err := os.WriteFile(lone, []byte("NAME APP\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for output, want := range map[string]string{
		"xml": `unable to match a printer suitable for the output format "xml", allowed formats are: ` +
			"wide,json,yaml,name,jsonpath,jsonpath-file,jsonpath-as-json,go-template,go-template-file,custom-columns,custom-columns-file",
		"jsonpath":                       "template format specified but no template given: use -o jsonpath=TEMPLATE",
		"jsonpath={.a[":                  "error parsing jsonpath {.a[: ",
		"go-template={{.a":               "error parsing template {{.a: ",
		"go-template-file":               "-o go-template-file names no file: use -o go-template-file=FILE",
		"go-template-file=" + dir + "/x": "no such file or directory",
		"custom-columns":                 "template format specified but no template given: use -o custom-columns=TEMPLATE",
		"custom-columns=NAME":            "unexpected custom-columns spec: NAME, expected <header>:<json-path-expr>",
		"custom-columns=NAME:":           "custom column NAME has no path: write NAME:.metadata.name",
		"custom-columns=NAME:{.a[":       "custom column NAME: error parsing jsonpath {.a[: ",
		"custom-columns-file=" + lone:    lone + ": a file of columns has two lines",
	} {
		_, err := (&app{}).printerFor(output)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("-o %s: %v, want %q", output, err, want)
		}
	}
}

// TestATemplateThatFailsShowsNoObject: kubectl's libraries print the whole
// object next to the error.
func TestATemplateThatFailsShowsNoObject(t *testing.T) {
	k, err := kindOf("cm")
	if err != nil {
		t.Fatal(err)
	}
	for _, output := range []string{"go-template={{.a}}{{call .data}}", "jsonpath={.data.none}"} {
		a := &app{} // missing keys are errors
		p, err := a.printerFor(output)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = p.object(&out, k, []byte(`{"metadata":{"name":"x"},"data":{"key":"hush"}}`))
		if err == nil || out.Len() > 0 || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: printed %q, %v", output, out.String(), err)
		}
	}
}

func TestSortByQuantitiesAndWhatLacksThem(t *testing.T) {
	raw := []string{`{"n":"b","q":"1Gi"}`, `{"n":"a","q":"900Mi"}`, `{"n":"c"}`, `{"n":"d","q":"2"}`}
	var rows []row
	for _, r := range raw {
		rows = append(rows, row{raw: []byte(r)})
	}
	if err := sortRows(rows, ".q"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, string(r.raw))
	}
	if diff := cmp.Diff([]string{raw[2], raw[3], raw[1], raw[0]}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := sortRows(rows, ".none"); err == nil || !strings.Contains(err.Error(), `couldn't find any field with path "{.none}"`) {
		t.Errorf("err = %v", err)
	}
}

func TestTablesOfServedKinds(t *testing.T) {
	now := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	const meta = `"metadata":{"name":"x","creationTimestamp":"2026-01-05T09:00:00Z","ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment","name":"web","controller":true,"uid":"u"}]}`
	for _, tc := range []struct {
		alias, raw string
		want       []any
	}{
		{"cm", `{` + meta + `,"data":{"a":"1"},"binaryData":{"b":"AA=="}}`, []any{"x", 2, "60m"}},
		{"secret", `{` + meta + `,"type":"Opaque","data":{"a":"aHVzaA=="}}`, []any{"x", "Opaque", 1, "60m"}},
		{"podtemplate", `{` + meta + `,"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"a","image":"i:1"},{"name":"b","image":"i:2"}]}}}`,
			[]any{"x", "a,b", "i:1,i:2", "app=web"}},
		{"controllerrevision", `{` + meta + `,"revision":7,"data":{}}`, []any{"x", "deployment.apps/web", int64(7), "60m"}},
		{"lease", `{` + meta + `,"spec":{"holderIdentity":"me"}}`, []any{"x", "me", "60m"}},
		{"lease", `{` + meta + `}`, []any{"x", "", "60m"}},
		{"limits", `{` + meta + `}`, []any{"x", "60m"}},
	} {
		k, err := kindOf(tc.alias)
		if err != nil {
			t.Fatal(err)
		}
		o, err := decode(k, []byte(tc.raw))
		if err != nil {
			t.Fatal(err)
		}
		tbl := table(k, []schemas.Object{o}, now)
		if len(tbl.ColumnDefinitions) != len(tc.want) {
			t.Errorf("%s: %d columns for %d cells", tc.alias, len(tbl.ColumnDefinitions), len(tc.want))
		}
		if diff := cmp.Diff(tc.want, tbl.Rows[0].Cells); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.alias, diff)
		}
	}
}

// TestEventsAsObjects: an event has no kind of its own, which the printers of
// objects want of everything else.
func TestEventsAsObjects(t *testing.T) {
	k, _ := schemas.KindByResource(schemas.ConfigMaps)
	for _, tt := range []struct {
		p    *printer
		want string
	}{
		{&printer{inner: &printers.JSONPrinter{}}, `{"type":"ADDED","object":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}}` + "\n"},
		{&printer{inner: &printers.YAMLPrinter{}}, "object:\n  apiVersion: v1\n  kind: ConfigMap\n  metadata:\n    name: c\ntype: ADDED\n"},
	} {
		var out bytes.Buffer
		if err := tt.p.event(&out, "ADDED", k, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}`)); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%T (-want +got)\n%s", tt.p.inner, diff)
		}
	}
}
