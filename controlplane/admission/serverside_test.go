package admission

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// applies is a server-side apply by a manager.
func (w *world) applies(manager string, force bool, resource, name, body string) (string, map[string][]string, *metav1.Status) {
	w.t.Helper()
	options := fmt.Sprintf(`{"fieldManager":%q`, manager)
	if force {
		options += `,"force":true`
	}
	return w.with(map[string]string{schemas.HeaderContentType: schemas.PatchApply, schemas.HeaderOptions: options + "}"},
		schemas.VerbPatch, resource, "default", name, body)
}

// managersOf is "<manager> <operation> [<subresource>]: <fields>" of each entry.
func managersOf(o metav1.Object) []string {
	var out []string
	for _, m := range o.GetManagedFields() {
		s := m.Manager + " " + string(m.Operation)
		if m.Subresource != "" {
			s += " " + m.Subresource
		}
		out = append(out, s+": "+m.FieldsV1.GetRawString())
	}
	slices.Sort(out) // they stand by the second of their writing
	return out
}

const configMap = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{%s}}`

func TestServerSideApply(t *testing.T) {
	w := newWorld(t)
	get := func() *corev1.ConfigMap {
		return decode[corev1.ConfigMap](t, w.ok(schemas.VerbGet, schemas.ConfigMaps, "default", "c", nil))
	}
	out, h, st := w.applies("one", false, "configmaps", "c", fmt.Sprintf(configMap, `"a":"1","b":"1"`))
	if st != nil || h[schemas.HeaderResult][0] != created {
		t.Fatalf("create: %s %v %+v", out, h, st)
	}
	if diff := cmp.Diff([]string{`one Apply: {"f:data":{"f:a":{},"f:b":{}}}`}, managersOf(get())); diff != "" {
		t.Error(diff)
	}
	first := get()
	if first.ManagedFields[0].Time == nil || first.ManagedFields[0].APIVersion != "v1" || first.ManagedFields[0].FieldsType != "FieldsV1" {
		t.Errorf("entry %+v", first.ManagedFields[0])
	}
	if _, h, st = w.applies("one", false, "configmaps", "c", fmt.Sprintf(configMap, `"a":"1","b":"1"`)); st != nil || h[schemas.HeaderResult][0] != unchanged {
		t.Errorf("same again: %v %+v", h, st)
	}
	if got := get().ResourceVersion; got != first.ResourceVersion {
		t.Errorf("an apply that changes nothing wrote revision %s", got)
	}

	// Another manager: what is the same is shared, what differs is a conflict.
	if _, _, st = w.applies("two", false, "configmaps", "c", fmt.Sprintf(configMap, `"a":"1","c":"2"`)); st != nil {
		t.Fatal(st.Message)
	}
	_, _, st = w.applies("two", false, "configmaps", "c", fmt.Sprintf(configMap, `"a":"9","b":"9","c":"2"`))
	if st == nil || st.Code != 409 || st.Reason != metav1.StatusReasonConflict {
		t.Fatalf("conflict: %+v", st)
	}
	var causes []string
	for _, c := range st.Details.Causes {
		causes = append(causes, fmt.Sprintf("%s %s %s", c.Type, c.Field, c.Message))
	}
	if diff := cmp.Diff([]string{`FieldManagerConflict .data.a conflict with "one"`, `FieldManagerConflict .data.b conflict with "one"`}, causes); diff != "" {
		t.Error(diff)
	}
	if st.Details.Name != "c" || st.Details.Kind != "configmaps" {
		t.Errorf("details %+v", st.Details)
	}
	if _, _, st = w.applies("two", true, "configmaps", "c", fmt.Sprintf(configMap, `"a":"9","c":"2"`)); st != nil {
		t.Fatal(st.Message)
	}
	if diff := cmp.Diff([]string{`one Apply: {"f:data":{"f:b":{}}}`, `two Apply: {"f:data":{"f:a":{},"f:c":{}}}`}, managersOf(get())); diff != "" {
		t.Error(diff)
	}

	// What a manager no longer says goes, where nobody else manages it.
	if _, _, st = w.applies("one", false, "configmaps", "c", fmt.Sprintf(configMap, ``)); st != nil {
		t.Fatal(st.Message)
	}
	if diff := cmp.Diff(map[string]string{"a": "9", "c": "2"}, get().Data); diff != "" {
		t.Error(diff)
	}

	// Other writes are tracked by now, with their manager or without.
	_, _, st = w.with(map[string]string{schemas.HeaderOptions: `{"fieldManager":"editor"}`}, schemas.VerbPatch, "configmaps", "default", "c", `{"data":{"c":"3"}}`)
	if st != nil {
		t.Fatal(st.Message)
	}
	if diff := cmp.Diff([]string{`editor Update: {"f:data":{"f:c":{}}}`, `one Apply: {"f:data":{}}`, `two Apply: {"f:data":{"f:a":{}}}`}, managersOf(get())); diff != "" {
		t.Error(diff)
	}
	_, _, st = w.applies("two", false, "configmaps", "c", fmt.Sprintf(configMap, `"a":"9","c":"2"`))
	if st == nil || !strings.Contains(st.Details.Causes[0].Message, `conflict with "editor" using v1`) {
		t.Errorf("conflict with an update: %+v", st)
	}

	// An empty list of managers begins anew.
	w.ok(schemas.VerbPatch, "configmaps", "default", "c", `{"metadata":{"managedFields":[{}]}}`)
	if got := managersOf(get()); len(got) != 0 {
		t.Errorf("after the reset: %v", got)
	}
}

func TestApplyTakesOverWhatIsThere(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Deployments, "default", "web", web)
	if got := managersOf(w.deployment("web")); got != nil {
		t.Errorf("nobody applied it: %v", got)
	}
	const said = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - name: web
        image: example.test/web:2
        ports:
        - {containerPort: 53, protocol: UDP, name: dns}
`
	_, _, st := w.applies("me", false, "deployments", "web", said)
	if st == nil || st.Code != 409 || !strings.Contains(st.Message, `before-first-apply`) || st.Details.Causes[0].Field != `.spec.template.spec.containers[name="web"].image` {
		t.Fatalf("the image is another's: %+v", st)
	}
	if _, _, st := w.applies("me", true, "deployments", "web", said); st != nil {
		t.Fatal(st.Message)
	}
	d := w.deployment("web")
	c := d.Spec.Template.Spec.Containers[0]
	want := []corev1.ContainerPort{{ContainerPort: 53, Protocol: "TCP"}, {ContainerPort: 53, Protocol: "UDP", Name: "dns"}}
	if diff := cmp.Diff(want, c.Ports); diff != "" || c.Image != "example.test/web:2" || len(c.Env) != 2 || *d.Spec.Replicas != 2 {
		t.Errorf("merged: %+v\n%s", c, diff)
	}
	got := managersOf(d)
	mine := `me Apply: {"f:spec":{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{"k:{\"containerPort\":53,\"protocol\":\"UDP\"}":{".":{},"f:containerPort":{},"f:name":{},"f:protocol":{}}}}}}}}}`
	if len(got) != 2 || got[1] != mine || !strings.HasPrefix(got[0], "before-first-apply Update: ") {
		t.Errorf("managers %s", strings.Join(got, "\n"))
	}

	// The number of replicas through its subresource has an entry of its own.
	if _, _, st := w.with(map[string]string{schemas.HeaderOptions: `{"fieldManager":"scaler"}`}, schemas.VerbPatch, "deployments/scale", "default", "web", `{"spec":{"replicas":5}}`); st != nil {
		t.Fatal(st.Message)
	}
	out, _, st := w.applies("applier", false, "deployments/scale", "web", `{"apiVersion":"autoscaling/v1","kind":"Scale","spec":{"replicas":6}}`)
	if st == nil || st.Code != 409 || !strings.Contains(st.Message, `"scaler" with subresource "scale"`) {
		t.Errorf("scale by two: %s %+v", out, st)
	}
	if out, _, st = w.applies("applier", true, "deployments/scale", "web", `{"spec":{"replicas":6}}`); st != nil || !strings.Contains(out, `"kind":"Scale"`) {
		t.Errorf("forced: %s %+v", out, st)
	}
	// So has the status; nothing else is written through it.
	_, _, st = w.applies("watcher", false, "deployments/status", "web", `{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":9},"status":{"readyReplicas":4}}`)
	if st != nil {
		t.Fatal(st.Message)
	}
	d = w.deployment("web")
	if *d.Spec.Replicas != 6 || d.Status.ReadyReplicas != 4 {
		t.Errorf("replicas %d, ready %d", *d.Spec.Replicas, d.Status.ReadyReplicas)
	}
	all := strings.Join(managersOf(d), "\n")
	for _, want := range []string{`applier Apply scale: {"f:spec":{"f:replicas":{}}}`, `watcher Apply status: {"f:status":{"f:readyReplicas":{}}}`} {
		if !strings.Contains(all, want) {
			t.Errorf("no %s in\n%s", want, all)
		}
	}
}

// TestTheSameManifestIsNoConflict: one that was applied is applied server-side,
// and was in conflict with itself about a fieldRef, which has a default inside.
func TestTheSameManifestIsNoConflict(t *testing.T) {
	w := newWorld(t)
	manifest := strings.Replace(web, `{name: A, value: "1"}`, `{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}`, 1)
	if manifest == web {
		t.Fatalf("nothing was put into %s", web)
	}
	w.ok(schemas.VerbApply, schemas.Deployments, "default", "web", manifest)
	before := w.deployment("web")
	if _, _, st := w.applies("me", false, "deployments", "web", strings.Replace(manifest, "web:1", "web:2", 1)); st == nil || st.Code != 409 {
		t.Fatalf("the image is another's: %+v", st)
	}
	if _, _, st := w.applies("me", false, "deployments", "web", manifest); st != nil {
		t.Fatalf("the same manifest: %s", st.Message)
	}
	after := w.deployment("web")
	if diff := cmp.Diff(before.Spec, after.Spec); diff != "" || after.Generation != before.Generation {
		t.Errorf("it changed:\n%s", diff)
	}
	if all := strings.Join(managersOf(after), "\n"); !strings.Contains(all, "me Apply: ") || !strings.Contains(all, "before-first-apply Update: ") {
		t.Errorf("managers %s", all)
	}
	if _, _, st := w.applies("me", false, "deployments", "web", strings.Replace(manifest, "metadata.name", "metadata.namespace", 1)); st != nil {
		t.Errorf("the field is mine now: %s", st.Message)
	}
	if _, _, st := w.applies("other", false, "deployments", "web", manifest); st == nil || st.Code != 409 || !strings.Contains(st.Message, `"me"`) {
		t.Errorf("and not another's: %+v", st)
	}
}

func TestAppliesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, "configmaps", "default", "c", fmt.Sprintf(configMap, `"a":"1"`))
	deployment := func(spec string) string {
		return `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":` + spec + `}`
	}
	tests := []struct {
		desc, manager, resource, name, body string
		code                                int32
		says                                string
	}{
		{"no manager", "", "configmaps", "c", fmt.Sprintf(configMap, ""), 422, "fieldManager: Required value"},
		{"managed fields", "m", "configmaps", "c", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"managedFields":[]}}`, 400, "metadata.managedFields must be nil"},
		{"no kind", "m", "configmaps", "c", `{"data":{}}`, 400, "kind"},
		{"another kind", "m", "configmaps", "c", pod("c", ""), 400, "the manifest is a Pod"},
		{"unknown field", "m", "configmaps", "c", `{"apiVersion":"v1","kind":"ConfigMap","daata":{}}`, 400, `daata`},
		{"a revision of nothing", "m", "configmaps", "none", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"5"}}`, 404, "not found"},
		{"a uid of nothing", "m", "configmaps", "none", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"5"}}`, 409, "uid mismatch"},
		{"an old revision", "m", "configmaps", "c", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"1"}}`, 409, "now at resourceVersion"},
		{"a key twice in a list", "m", "deployments", "d", deployment(`{"template":{"spec":{"containers":[{"name":"a","image":"i"},{"name":"a","image":"j"}]}}}`), 400, "duplicate entries for key"},
		{"a list without its key", "m", "deployments", "d", deployment(`{"template":{"spec":{"containers":[{"image":"i"}]}}}`), 422, "containers[0].name"},
		{"what cannot be created", "m", "deployments", "d", deployment(`{"replicas":1}`), 422, "spec.selector"},
		{"a system kind", "m", "events", "e", `{"apiVersion":"v1","kind":"Event"}`, 403, "Gantry alone writes them"},
		{"a status of nothing", "m", "deployments/status", "none", deployment(`{}`), 400, "subject names"},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			before := w.store.View().Revision()
			_, _, st := w.applies(tt.manager, false, tt.resource, tt.name, tt.body)
			if st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
				t.Errorf("got %+v", st)
			}
			if w.store.View().Revision() != before {
				t.Error("something was written")
			}
		})
	}
}

// TestEveryKindCanBeApplied holds that the types of fields know all kinds, and
// that an object's own JSON is of them.
func TestEveryKindCanBeApplied(t *testing.T) {
	p, err := parser()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range schemas.Kinds {
		o := k.New()
		o.GetObjectKind().SetGroupVersionKind(k.GVK)
		o.SetName("x")
		if _, err := (fieldConverter{p}).ObjectToTyped(o); err != nil {
			t.Errorf("%s: %v", k.Resource, err)
		}
	}
	if _, err := (fieldConverter{p}).ObjectToTyped(&appsv1.Deployment{TypeMeta: metav1.TypeMeta{Kind: "Widget", APIVersion: "v1"}}); err == nil {
		t.Error("a kind of nobody has types")
	}
}

func TestFieldTypesAreOfTheClientGoThatWeHave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "types.yaml")
	if out, err := exec.CommandContext(t.Context(), "go", "run", "./fieldtypes", "-out", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(made) != fieldTypes {
		t.Error("fieldtypes.yaml is not what go generate makes: run it")
	}
}
