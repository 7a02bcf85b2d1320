package schemas

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compiledSchema is a resource's schema as a library reads it that knows nothing of
// Gantry; it fails where the schema is none.
func compiledSchema(t *testing.T, resource string) *jsonschema.Schema {
	t.Helper()
	text, err := JSONSchema(resource)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", resource, err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.AssertContent()
	if err := c.AddResource(resource, doc); err != nil {
		t.Fatalf("%s: %v", resource, err)
	}
	s, err := c.Compile(resource)
	if err != nil {
		t.Fatalf("%s: %v", resource, err)
	}
	return s
}

// TestJSONSchemaAgrees holds the schemas against what admission says of the
// same manifests: those of the examples, of every case that Kubernetes was
// asked about, and of k8s.io/api. What admission takes, the schema takes; what
// the table of fields refuses, it refuses.
func TestJSONSchemaAgrees(t *testing.T) {
	manifests := map[string][]kubernetesCase{}
	files, err := filepath.Glob("testdata/kubernetes/*/*.golden.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, f := range files {
		base := strings.TrimSuffix(f, ".golden.json")
		resource := filepath.Base(filepath.Dir(f))
		_, cases := readCases(t, base)
		for _, c := range cases {
			c.name = filepath.Base(base) + "/" + c.name
			manifests[resource] = append(manifests[resource], c)
		}
	}
	dir, err := apiTestdata()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Kinds {
		manifests[k.Resource] = append(manifests[k.Resource], kubernetesCase{"k8s.io/api", mustRead(t, filepath.Join(dir, apiFile(k)))})
	}
	examples, err := filepath.Glob("../examples/*.*")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, f := range examples {
		if info, err := os.Stat(f); err != nil || info.IsDir() {
			continue
		}
		for _, d := range DecodeAll(mustRead(t, f)) {
			if d.Err != nil {
				t.Fatalf("%s: %v", f, d.Err)
			}
			k := KindOf(d.Object)
			manifests[k.Resource] = append(manifests[k.Resource], kubernetesCase{filepath.Base(f), d.JSON})
		}
	}
	taken, refused := 0, 0
	for _, k := range Kinds {
		schema := compiledSchema(t, k.Resource)
		for _, c := range manifests[k.Resource] {
			var value any
			if value, err = jsonschema.UnmarshalJSON(bytes.NewReader(c.manifest)); err != nil {
				t.Fatal(err)
			}
			schemaErr := schema.Validate(value)
			refuses, accepts := admissionSays(k, c.manifest)
			switch {
			case refuses != "" && schemaErr == nil:
				t.Errorf("%s %s: the schema takes what admission refuses: %s", k.Resource, c.name, refuses)
			case accepts && schemaErr != nil:
				t.Errorf("%s %s: the schema refuses what admission takes: %v", k.Resource, c.name, schemaErr)
			}
			if refuses != "" {
				refused++
			}
			if accepts {
				taken++
			}
		}
	}
	if taken < 100 || refused < 20 {
		t.Errorf("only %d manifests were taken and %d refused", taken, refused)
	}
}

// admissionSays is what the decoder or the table of fields refuses, and whether
// nothing refuses the manifest. Both may be false: what Validate alone refuses,
// the schema may take.
func admissionSays(k Kind, manifest []byte) (refuses string, accepts bool) {
	o, err := decodeAs(k, manifest)
	if err != nil {
		return err.Error(), false
	}
	w := fieldWalk{rules: rulesOf(k.Resource)}
	w.walk(reflect.ValueOf(o).Elem(), nil, "")
	if len(w.refused) > 0 {
		return w.refused.ToAggregate().Error(), false
	}
	o.SetUID(kubernetesUID)
	Default(o)
	Derive(o)
	again, _ := Unsupported(o)
	return "", len(again) == 0 && len(Validate(o)) == 0
}

func TestJSONSchemaSays(t *testing.T) {
	if _, err := JSONSchema("breads"); err == nil {
		t.Error("a schema of breads")
	}
	at := func(resource string, path ...string) map[string]any {
		t.Helper()
		text, err := JSONSchema(resource)
		if err != nil {
			t.Fatal(err)
		}
		var root map[string]any
		if err := json.Unmarshal(text, &root); err != nil {
			t.Fatal(err)
		}
		here := root
		for _, step := range path {
			for {
				if ref, ok := here["$ref"].(string); ok {
					here = root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
				} else if items, ok := here["items"].(map[string]any); ok {
					here = items
				} else {
					break
				}
			}
			next, ok := here["properties"].(map[string]any)[step].(map[string]any)
			if !ok {
				t.Fatalf("%s: no %s in %v", resource, step, path)
			}
			here = next
		}
		return here
	}
	for _, tt := range []struct {
		resource, path, key string
		want                any
	}{
		{Pods, "kind", "const", "Pod"},
		{Deployments, "apiVersion", "const", "apps/v1"},
		{Pods, "spec.containers.ports", "x-kubernetes-list-map-keys", []any{"containerPort", "protocol"}},
		{Pods, "spec.containers.ports", "x-kubernetes-patch-merge-key", "containerPort"},
		{Pods, "spec.containers.volumeMounts", "x-gantry-support", "refused"},
		{Pods, "spec.containers.volumeMounts", "x-gantry-reason", "volumes are not built yet"},
		{Pods, "spec.containers.livenessProbe", "not", map[string]any{}},
		{Pods, "spec.tolerations", "x-gantry-support", "no effect"},
		{Pods, "status", "x-gantry-support", "system"},
		{Pods, "status", "readOnly", true},
		{Secrets, "data", "x-gantry-support", nil},
		{Leases, "spec.renewTime", "format", "date-time"},
		{ReplicaSets, "spec.replicas", "format", "int32"},
	} {
		if got := at(tt.resource, strings.Split(tt.path, ".")...)[tt.key]; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s %s: %s is %v, want %v", tt.resource, tt.path, tt.key, got, tt.want)
		}
	}
	secrets := compiledSchema(t, Secrets)
	if err := secrets.Validate(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{}}); err == nil {
		t.Error("a Pod is a Secret")
	}
}
