package admission

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/schemas"
)

func patchType(name string) map[string]string {
	return map[string]string{schemas.HeaderContentType: name}
}

func TestPatchTypes(t *testing.T) {
	const container = `/spec/template/spec/containers/0`
	type state struct {
		Images, Env []string
		Labels      map[string]string
	}
	tests := []struct {
		desc, kind, body string
		want             state
	}{
		{"JSON patch", schemas.PatchJSON,
			`[{"op":"test","path":"/metadata/labels/tier","value":"front"},{"op":"replace","path":"` + container + `/image","value":"i:2"},{"op":"remove","path":"` + container + `/env/0"},{"op":"add","path":"/metadata/labels/a~1b","value":"x"}]`,
			state{[]string{"i:2"}, []string{"B=2"}, map[string]string{"tier": "front", "a/b": "x"}}},
		{"a list without a type is a JSON patch", "", `[{"op":"remove","path":"/metadata/labels"}]`,
			state{[]string{"example.test/web:1"}, []string{"A=1", "B=2"}, nil}},
		{"merge patch replaces lists", schemas.PatchMerge, `{"metadata":{"labels":{"tier":null,"x":"1"}},"spec":{"template":{"spec":{"containers":[{"name":"web","image":"i:3"}]}}}}`,
			state{[]string{"i:3"}, nil, map[string]string{"x": "1"}}},
		{"an object without a type is a merge patch", "application/json; charset=utf-8", `{"metadata":{"labels":{"tier":"back"}}}`,
			state{[]string{"example.test/web:1"}, []string{"A=1", "B=2"}, map[string]string{"tier": "back"}}},
		{"strategic merge by key", schemas.PatchStrategic, `{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"B","value":"9"},{"name":"C","value":"3"}]},{"name":"side","image":"s:1"}]}}}}`,
			state{[]string{"example.test/web:1", "s:1"}, []string{"A=1", "B=9", "C=3"}, map[string]string{"tier": "front"}}},
		{"strategic merge with directives", schemas.PatchStrategic, `{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","$patch":"delete"}]}]}}}}`,
			state{[]string{"example.test/web:1"}, []string{"B=2"}, map[string]string{"tier": "front"}}},
	}
	w := newWorld(t)
	for i, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			name := fmt.Sprint("web", i)
			w.result(schemas.Deployments, name, strings.Replace(web, "name: web\n  labels", "name: "+name+"\n  labels", 1))
			_, _, st := w.with(patchType(tt.kind), schemas.VerbPatch, schemas.Deployments, "default", name, tt.body)
			if st != nil {
				t.Fatal(st.Message)
			}
			d := w.deployment(name)
			got := state{Labels: d.Labels}
			for _, c := range d.Spec.Template.Spec.Containers {
				got.Images = append(got.Images, c.Image)
			}
			for _, e := range d.Spec.Template.Spec.Containers[0].Env {
				got.Env = append(got.Env, e.Name+"="+e.Value)
			}
			// A strategic merge puts what is new first, as kubectl's users know it.
			slicesSort(got.Images, got.Env)
			slicesSort(tt.want.Images, tt.want.Env)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestPatchesThatDoNotFit holds that a patch that is wrong, or fights itself,
// is refused quickly, by name, and changes nothing.
func TestPatchesThatDoNotFit(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	w.ok(schemas.VerbPatch, schemas.Deployments, "default", "web", `{"metadata":{"annotations":{"big":"`+strings.Repeat("x", 200<<10)+`"}}}`)
	ops := func(n int, op string) string { return "[" + strings.TrimSuffix(strings.Repeat(op+",", n), ",") + "]" }
	deep := strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)
	tests := []struct {
		desc, kind, body string
		code             int32
		says             string
	}{
		{"a type of nobody", "application/xml", `{}`, 415, "application/strategic-merge-patch+json"},
		{"no JSON", schemas.PatchMerge, `{`, 400, "not a JSON object"},
		{"null", schemas.PatchMerge, `null`, 400, "it is null"},
		{"a list as merge patch", schemas.PatchMerge, `[]`, 400, "not a JSON object"},
		{"an object as JSON patch", schemas.PatchJSON, `{}`, 400, "not a list of operations"},
		{"invalid UTF-8", schemas.PatchMerge, "{\"metadata\":{\"labels\":{\"a\":\"\xff\"}}}", 400, "UTF-8"},
		{"deep nesting", schemas.PatchMerge, deep, 400, "nested deeper than 100"},
		{"deep nesting in a strategic patch", schemas.PatchStrategic, deep, 400, "nested deeper than 100"},
		{"deep nesting in an operation", schemas.PatchJSON, `[{"op":"add","path":"/metadata/labels","value":` + deep + `}]`, 400, "nested deeper than 100"},
		{"a key twice", schemas.PatchMerge, `{"metadata":{"labels":{"a":"1","a":"2"}}}`, 400, `duplicate field "metadata.labels.a"`},
		{"too large", schemas.PatchMerge, `{"metadata":{"labels":{"a":"` + strings.Repeat("x", schemas.MaxObjectBytes) + `"}}}`, 413, fmt.Sprint(schemas.MaxObjectBytes)},
		{"too many operations", schemas.PatchJSON, ops(10_001, `{"op":"test","path":"/kind","value":"Deployment"}`), 413, "10000"},
		{"a failed test", schemas.PatchJSON, `[{"op":"test","path":"/spec/replicas","value":99}]`, 422, "/spec/replicas"},
		{"test, remove and add of one path", schemas.PatchJSON, `[{"op":"remove","path":"/metadata/labels"},{"op":"test","path":"/metadata/labels/tier","value":"front"},{"op":"add","path":"/metadata/labels","value":{}}]`, 422, "/metadata/labels/tier"},
		{"a path of nobody", schemas.PatchJSON, `[{"op":"remove","path":"/spec/color"}]`, 422, "color"},
		{"an operation of nobody", schemas.PatchJSON, `[{"op":"sing","path":"/spec"}]`, 422, "sing"},
		{"an operation that is null", schemas.PatchJSON, `[null]`, 422, ""},
		{"an index far out", schemas.PatchJSON, `[{"op":"add","path":"/spec/template/spec/containers/1000000000","value":{}}]`, 422, ""},
		{"copies that double", schemas.PatchJSON, ops(40, `{"op":"copy","from":"/metadata","path":"/metadata/copy"}`), 413, "copies too much"},
		{"what no object has", schemas.PatchJSON, `[{"op":"add","path":"/spec/color","value":"red"}]`, 400, "spec.color"},
		{"a strategic patch of what no type has", schemas.PatchStrategic, `{"spec":{"color":"red"}}`, 400, "color"},
		{"a strategic patch of the wrong form", schemas.PatchStrategic, `{"spec":{"template":{"spec":{"containers":"none"}}}}`, 400, "containers"},
		{"a strategic patch without its key", schemas.PatchStrategic, `{"spec":{"template":{"spec":{"containers":[{"image":"x"}]}}}}`, 400, "name"},
		{"a strategic patch of lists without end", schemas.PatchStrategic, `{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[` + times(20_000, `{"name":"E%d","value":"x"}`) + `]}]}}}}`, 413, "use " + schemas.PatchJSON},
		{"a number out of range", schemas.PatchMerge, `{"spec":{"replicas":99999999999}}`, 400, "spec.replicas"},
		{"what is invalid", schemas.PatchMerge, `{"spec":{"replicas":-1}}`, 422, "spec.replicas"},
		{"another kind", schemas.PatchMerge, `{"kind":"ReplicaSet"}`, 400, "ReplicaSet"},
		{"another name", schemas.PatchMerge, `{"metadata":{"name":"other"}}`, 422, "metadata.name"},
		{"another object's uid", schemas.PatchMerge, `{"metadata":{"uid":"other"}}`, 409, "UID"},
		{"an old revision", schemas.PatchJSON, `[{"op":"replace","path":"/metadata/resourceVersion","value":"1"}]`, 409, "now at resourceVersion"},
		{"a million labels", schemas.PatchMerge, `{"metadata":{"labels":{` + manyLabels(45_000) + `}}}`, 422, "metadata.labels"},
	}
	before := w.deployment("web").ResourceVersion
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			_, _, st := w.with(patchType(tt.kind), schemas.VerbPatch, schemas.Deployments, "default", "web", tt.body)
			if st == nil {
				t.Fatal("accepted")
			}
			if st.Code != tt.code || !strings.Contains(st.Message, tt.says) || st.Reason == "" {
				t.Errorf("got %d %s: %.300s", st.Code, st.Reason, st.Message)
			}
			if len(st.Message) > 8<<10 {
				t.Errorf("message of %d bytes", len(st.Message))
			}
		})
	}
	if after := w.deployment("web").ResourceVersion; after != before {
		t.Errorf("something was written: %s -> %s", before, after)
	}
}

func manyLabels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"l%d":"x"`, i)
	}
	return b.String()[1:]
}

func TestOptionsOfWrites(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	tests := []struct {
		desc, verb, options string
		code                int32
		says                string
	}{
		{"unknown option", schemas.VerbPatch, `{"dryrun":["All"]}`, 400, `unknown field "dryrun"`},
		{"no JSON", schemas.VerbPatch, `dryRun`, 400, "Gantry-Options"},
		{"dry run of some", schemas.VerbPatch, `{"dryRun":["Some"]}`, 422, "dryRun"},
		{"lenient reading", schemas.VerbPatch, `{"fieldValidation":"Ignore"}`, 422, "fieldValidation"},
		{"force without apply", schemas.VerbPatch, `{"force":true}`, 422, "force"},
		{"force of an update", schemas.VerbUpdate, `{"force":true}`, 422, "force"},
		{"force of a create", schemas.VerbCreate, `{"force":true}`, 422, "force"},
		{"a manager of control characters", schemas.VerbPatch, `{"fieldManager":"a\u0001"}`, 422, "fieldManager"},
		{"a long manager", schemas.VerbApply, `{"fieldManager":"` + strings.Repeat("x", 129) + `"}`, 422, "fieldManager"},
		{"options of a delete", schemas.VerbDelete, `{"dryRun":["All"]}`, 400, "are its body"},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			_, _, st := w.with(map[string]string{schemas.HeaderOptions: tt.options}, tt.verb, schemas.Deployments, "default", "web", `{}`)
			if st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
				t.Errorf("got %+v", st)
			}
		})
	}
	_, _, st := w.with(map[string]string{schemas.HeaderRequest: "two words"}, schemas.VerbPatch, schemas.Deployments, "default", "web", `{}`)
	if st == nil || st.Code != 400 || !strings.Contains(st.Message, schemas.HeaderRequest) {
		t.Errorf("a bad id: %+v", st)
	}
}

func TestDryRunStoresNothing(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "bound", pod("bound", `,"nodeName":"n1"`))
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "free", pod("free", ""))
	if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: named("n1")}); err != nil {
		t.Fatal(err)
	}
	before := w.store.View().Revision()
	const dry = `{"dryRun":["All"]}`
	tests := []struct {
		verb, resource, name, options, kind, body string
		has                                       string
	}{
		{schemas.VerbCreate, "pods", "new", dry, "", pod("new", ""), `"phase":"Pending"`},
		{schemas.VerbCreate, "services", "s", dry, "", fmt.Sprintf(service, "s", ""), `"name":"s"`},
		{schemas.VerbApply, "deployments", "web", dry, "", strings.Replace(web, "replicas: 2", "replicas: 5", 1), `"replicas":5`},
		{schemas.VerbApply, "deployments", "new", dry, "", strings.Replace(web, "name: web\n  labels", "name: new\n  labels", 1), `"generation":1`},
		{schemas.VerbPatch, "deployments", "web", dry, schemas.PatchJSON, `[{"op":"replace","path":"/spec/replicas","value":6}]`, `"replicas":6`},
		{schemas.VerbPatch, "deployments/scale", "web", dry, "", `{"spec":{"replicas":7}}`, `"replicas":7`},
		{schemas.VerbPatch, "deployments", "web", `{"dryRun":["All"],"fieldManager":"m","force":true}`, schemas.PatchApply, `{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":8}}`, `"replicas":8`},
		{schemas.VerbPatch, "deployments/status", "web", dry, "", `{"status":{"readyReplicas":3}}`, `"readyReplicas":3`},
		{schemas.VerbCreate, "pods/binding", "free", dry, "", `{"target":{"name":"n1"}}`, `"Success"`},
		{schemas.VerbCreate, "pods/eviction", "bound", "", "", `{"deleteOptions":{"dryRun":["All"]}}`, `"Success"`},
		{schemas.VerbDelete, "pods", "bound", "", "", dry, `"deletionTimestamp"`},
		{schemas.VerbDelete, "pods", "free", "", "", dry, `"Success"`},
		{schemas.VerbDeleteCollection, "pods", "", "", "", dry, `"name":"bound"`},
	}
	for _, tt := range tests {
		t.Run(tt.verb+" "+tt.resource+" "+tt.name, func(t *testing.T) {
			h := map[string]string{schemas.HeaderOptions: tt.options, schemas.HeaderContentType: tt.kind}
			out, _, st := w.with(h, tt.verb, tt.resource, "default", tt.name, tt.body)
			if st != nil || !strings.Contains(out, tt.has) {
				t.Errorf("got %s, %+v", out, st)
			}
		})
	}
	if after := w.store.View().Revision(); after != before {
		t.Errorf("something was written: %d -> %d", before, after)
	}
	held, err := w.conn.Reserved(w.ctx, clusterIPs)
	if err != nil || len(held) != 0 {
		t.Errorf("reserved %v, %v", held, err)
	}
	_, _, st := w.with(map[string]string{schemas.HeaderOptions: dry}, schemas.VerbCreate, "pods", "default", "", pod("Bad_Name", ""))
	if st == nil || st.Code != 422 {
		t.Errorf("a dry run checks: %+v", st)
	}
}
