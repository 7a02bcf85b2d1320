package admission

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/schemas"
)

// TestAnIDIsOfOneCall: who draws an id twice by mistake must not be told that a
// write took place that did not.
func TestAnIDIsOfOneCall(t *testing.T) {
	w := newWorld(t)
	const c = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"k":"1"}}`
	h := func(more ...string) map[string]string { return request("same", more...) }
	value := func() string {
		return decode[corev1.ConfigMap](t, w.ok(schemas.VerbGet, "configmaps", "default", "c", nil)).Data["k"]
	}
	for _, step := range []struct {
		desc, verb, body, want string
		header                 map[string]string
	}{
		{"create", schemas.VerbCreate, c, "1", h()},
		{"another verb", schemas.VerbPatch, `{"data":{"k":"2"}}`, "2", h()},
		{"another body", schemas.VerbPatch, `{"data":{"k":"3"}}`, "3", h()},
		{"a rehearsal of one that was made", schemas.VerbPatch, `{"data":{"k":"2"}}`, "3", h(schemas.HeaderOptions, `{"dryRun":["All"]}`)},
		{"another kind of patch", schemas.VerbPatch, `{"data":{"k":"3"}}`, "3", h(schemas.HeaderContentType, schemas.PatchStrategic)},
		{"the first, asked again late", schemas.VerbPatch, `{"data":{"k":"2"}}`, "3", h()},
	} {
		if _, _, st := w.with(step.header, step.verb, "configmaps", "default", "c", step.body); st != nil {
			t.Fatalf("%s: %s", step.desc, st.Message)
		}
		if got := value(); got != step.want {
			t.Errorf("%s: the value is %q, want %q", step.desc, got, step.want)
		}
	}
	w.with(h(), schemas.VerbDelete, "configmaps", "default", "c", "")
	if w.store.View().Get("configmaps", "default", "c") != nil {
		t.Error("a delete under the id of another write was answered and not made")
	}
}

// TestOptionsWhereNoneAreRead: what a caller asks for in the wrong place is not
// left out silently.
func TestOptionsWhereNoneAreRead(t *testing.T) {
	w := newWorld(t)
	for _, verb := range []string{schemas.VerbGet, schemas.VerbList, schemas.VerbWatch, schemas.VerbLog, schemas.VerbExec, schemas.VerbDelete} {
		name := "default"
		if verb == schemas.VerbList || verb == schemas.VerbWatch {
			name = ""
		}
		_, _, st := w.with(map[string]string{schemas.HeaderOptions: `{"labelSelector":"a=b"}`}, verb, "pods", "default", name, "")
		if st == nil || st.Code != 400 || !strings.Contains(st.Message, schemas.HeaderOptions) {
			t.Errorf("%s: %v", verb, st)
		}
	}
}

// TestNoFinalizerForWhatIsBeingDeleted: it would keep what is to go for ever.
func TestNoFinalizerForWhatIsBeingDeleted(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, "configmaps", "default", "c", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","finalizers":["x.io/a"]}}`)
	w.ok(schemas.VerbDelete, "configmaps", "default", "c", "")
	for desc, call := range map[string]struct{ sub, header, body string }{
		"merge": {"", "", `{"metadata":{"finalizers":["x.io/a","x.io/b"]}}`},
		"apply": {"", schemas.PatchApply, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","finalizers":["x.io/b"]}}`},
	} {
		h := map[string]string{}
		if call.header != "" {
			h = map[string]string{schemas.HeaderContentType: call.header, schemas.HeaderOptions: `{"fieldManager":"m"}`}
		}
		_, _, st := w.with(h, schemas.VerbPatch, "configmaps", "default", "c", call.body)
		if st == nil || st.Code != 422 || !strings.Contains(st.Message, "finalizers") {
			t.Errorf("%s: %v", desc, st)
		}
	}
	// A namespace that is told it is not being deleted stays so.
	w.ok(schemas.VerbCreate, "namespaces", "", "n", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}`)
	w.ok(schemas.VerbDelete, "namespaces", "", "n", "")
	w.with(nil, schemas.VerbPatch, "namespaces", "", "n", `{"metadata":{"deletionTimestamp":null},"spec":{"finalizers":[]}}`)
	ns := w.store.View().Get("namespaces", "", "n").(*corev1.Namespace)
	if ns.DeletionTimestamp == nil || len(ns.Spec.Finalizers) != 1 {
		t.Errorf("a user took the marks of deletion away: %+v", ns)
	}
}

// TestOnlyAgentsMakeNodes: server-side apply is a patch, which Nodes take, and a
// create where there is none, which they do not.
func TestOnlyAgentsMakeNodes(t *testing.T) {
	w := newWorld(t)
	const node = `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","labels":{"zone":"a"}}}`
	h := map[string]string{schemas.HeaderContentType: schemas.PatchApply, schemas.HeaderOptions: `{"fieldManager":"m"}`}
	for _, call := range []struct {
		verb   string
		header map[string]string
	}{{schemas.VerbPatch, h}, {schemas.VerbApply, nil}, {schemas.VerbCreate, nil}} {
		if _, _, st := w.with(call.header, call.verb, schemas.Nodes, "", "n1", node); st == nil || st.Code != 403 || !strings.Contains(st.Message, "made by its agent") {
			t.Errorf("%s: %v", call.verb, st)
		}
	}
	if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: named("n1")}); err != nil {
		t.Fatal(err)
	}
	if _, _, st := w.with(h, schemas.VerbPatch, schemas.Nodes, "", "n1", node); st != nil {
		t.Errorf("labels of one that is there: %s", st.Message)
	}
}

// TestNobodySaysWhenAnObjectWasMade: controllers tell old from new by it.
func TestNobodySaysWhenAnObjectWasMade(t *testing.T) {
	w := newWorld(t)
	const c = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","creationTimestamp":"2020-01-01T00:00:00Z"}}`
	h := map[string]string{schemas.HeaderContentType: schemas.PatchApply, schemas.HeaderOptions: `{"fieldManager":"m"}`}
	for _, call := range []struct {
		verb   string
		header map[string]string
	}{{schemas.VerbCreate, nil}, {schemas.VerbCreate, map[string]string{schemas.HeaderOptions: `{"dryRun":["All"]}`}}, {schemas.VerbApply, nil}, {schemas.VerbPatch, h}} {
		out, _, st := w.with(call.header, call.verb, "configmaps", "default", "c", c)
		if st != nil {
			t.Fatalf("%s: %s", call.verb, st.Message)
		}
		if at := decode[corev1.ConfigMap](t, out).CreationTimestamp; time.Since(at.Time) > time.Hour {
			t.Errorf("%s: made at %v", call.verb, at)
		}
		w.with(nil, schemas.VerbDelete, "configmaps", "default", "c", "")
	}
}

func TestADeleteCollectionOfAnotherTimeIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, options := range []string{`{"resourceVersion":"1"}`, `{"timeoutSeconds":1}`} {
		_, _, st := w.with(map[string]string{schemas.HeaderOptions: options}, schemas.VerbDeleteCollection, "configmaps", "default", "", "")
		if st == nil || st.Code != 400 {
			t.Errorf("%s: %v", options, st)
		}
	}
}

// TestAStatusThatControllersGoBy: what they are told is held against what can be.
func TestAStatusThatControllersGoBy(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "p", pod("p", ""))
	w.result(schemas.Deployments, "web", web)
	for _, tt := range []struct{ resource, namespace, name, status, says string }{
		{"pods", "default", "p", `{"podIP":"; drop"}`, "status.podIP"},
		{"pods", "default", "p", `{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"x"}]}`, "status.podIPs[1].ip"},
		{"pods", "default", "p", `{"hostIP":"x","hostIPs":[{"ip":"y"}]}`, "status.hostIPs[0].ip"},
		{"pods", "default", "p", `{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}`, ""},
		{"namespaces", "", "default", `{"phase":"Terminating"}`, "status.phase"},
		{"deployments", "default", "web", `{"readyReplicas":-1}`, "status.readyReplicas"},
		{"deployments", "default", "web", `{"replicas":2,"readyReplicas":1}`, ""},
	} {
		_, _, st := w.with(nil, schemas.VerbPatch, tt.resource+"/status", tt.namespace, tt.name, `{"status":`+tt.status+`}`)
		if tt.says == "" && st != nil || tt.says != "" && (st == nil || st.Code != 422 || !strings.Contains(st.Message, tt.says)) {
			t.Errorf("%s %s: %v", tt.resource, tt.status, st)
		}
	}
}

// TestABodyOfAnotherKindIsRefused: what is meant for one call may well be empty
// in the eyes of another.
func TestABodyOfAnotherKindIsRefused(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "p", pod("p", ""))
	w.result(schemas.Deployments, "web", web)
	for _, tt := range []struct{ verb, resource, name, options, body, kind string }{
		{schemas.VerbCreate, "pods/binding", "p", "", `{"kind":"Pod","target":{"name":"n1"}}`, "Pod"},
		{schemas.VerbCreate, "pods/eviction", "p", "", `{"kind":"Binding"}`, "Binding"},
		{schemas.VerbDelete, "pods", "p", "", `{"kind":"GetOptions","apiVersion":"v1"}`, "GetOptions"},
		{schemas.VerbPatch, "pods", "p", `{"kind":"DeleteOptions"}`, `{}`, "DeleteOptions"},
		{schemas.VerbList, "pods", "", "", `{"kind":"WatchOptions"}`, "WatchOptions"},
		{schemas.VerbUpdate, "deployments/scale", "web", "", `{"kind":"Deployment","spec":{"replicas":1}}`, "Deployment"},
	} {
		_, _, st := w.with(map[string]string{schemas.HeaderOptions: tt.options}, tt.verb, tt.resource, "default", tt.name, tt.body)
		if st == nil || st.Code != 400 || !strings.Contains(st.Message, "it says that it is a "+tt.kind) {
			t.Errorf("%s %s: %v", tt.verb, tt.resource, st)
		}
	}
	for _, tt := range []struct{ verb, options, body string }{
		{schemas.VerbPatch, `{"kind":"PatchOptions","apiVersion":"meta.k8s.io/v1"}`, `{}`},
		{schemas.VerbDelete, "", `{"kind":"DeleteOptions","apiVersion":"apps/v1"}`},
	} {
		if _, _, st := w.with(map[string]string{schemas.HeaderOptions: tt.options}, tt.verb, "pods", "default", "p", tt.body); st != nil {
			t.Errorf("%s: %s", tt.verb, st.Message)
		}
	}
}
