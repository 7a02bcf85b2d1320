package admission

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

func TestStatusIsAllThatItsSubresourceWrites(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	d := w.deployment("web")
	d.Spec.Replicas = new(int32)
	d.Labels = map[string]string{"tier": "back"}
	d.Status.ReadyReplicas = 2
	w.ok(schemas.VerbUpdate, "deployments/status", "default", "web", d)
	w.ok(schemas.VerbPatch, "deployments/status", "default", "web", `{"metadata":{"labels":null},"spec":{"replicas":7},"status":{"replicas":3}}`)
	got := w.deployment("web")
	if *got.Spec.Replicas != 2 || got.Labels["tier"] != "front" || got.Status.ReadyReplicas != 2 || got.Status.Replicas != 3 || got.Generation != 1 {
		t.Errorf("got %+v, status %+v", got.ObjectMeta, got.Status)
	}
	_, _, st := w.call(schemas.VerbUpdate, "deployments/status", "default", "web", d)
	if st == nil || st.Code != 409 || st.Details.Causes[0].Message != got.ResourceVersion {
		t.Errorf("an old revision: %+v", st)
	}
	if out := w.ok(schemas.VerbGet, "deployments/status", "default", "web", nil); !strings.Contains(out, `"kind":"Deployment"`) {
		t.Errorf("get: %s", out)
	}
	for _, tt := range []struct {
		verb, resource, name string
		code                 int32
		says                 string
	}{
		{schemas.VerbDelete, "deployments/status", "web", 405, "has no verb delete"},
		{schemas.VerbList, "deployments/status", "", 405, "has no verb list"},
		{schemas.VerbGet, "configmaps/status", "c", 404, `no subresource "status"`},
		{schemas.VerbPatch, "deployments/status", "none", 404, "not found"},
		{schemas.VerbPatch, "deployments/status", "", 400, "names no object"},
		{schemas.VerbPatch, "deployments/color", "web", 404, `no subresource "color"`},
		{schemas.VerbPatch, "events/status", "e", 404, "no subresource"},
		{schemas.VerbPatch, "pods/scale", "p", 404, "no subresource"},
		{schemas.VerbCreate, "deployments/binding", "web", 404, "no subresource"},
		{schemas.VerbCreate, "deployments/eviction", "web", 404, "no subresource"},
		{schemas.VerbGet, "pods/binding", "p", 405, "it has create"},
		{schemas.VerbGet, "jobs/status", "j", 404, "jobs are not supported by Gantry yet"},
	} {
		_, _, st := w.call(tt.verb, tt.resource, "default", tt.name, `{}`)
		if st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
			t.Errorf("%s %s: %+v", tt.verb, tt.resource, st)
		}
	}
	if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: named("n1")}); err != nil {
		t.Fatal(err)
	}
	_, _, st = w.call(schemas.VerbPatch, "nodes/status", "", "n1", `{"status":{"phase":"Running"}}`)
	if st == nil || st.Code != 403 {
		t.Errorf("a node's status is Gantry's: %+v", st)
	}
}

func TestScaleByEveryPatchAndByUpdate(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	for i, tt := range []struct{ verb, kind, body string }{
		{schemas.VerbUpdate, "", `{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"web"},"spec":{"replicas":%d}}`},
		{schemas.VerbPatch, schemas.PatchMerge, `{"spec":{"replicas":%d}}`},
		{schemas.VerbPatch, schemas.PatchStrategic, `{"spec":{"replicas":%d}}`},
		{schemas.VerbPatch, schemas.PatchJSON, `[{"op":"replace","path":"/spec/replicas","value":%d}]`},
	} {
		out, _, st := w.with(patchType(tt.kind), tt.verb, "deployments/scale", "default", "web", fmt.Sprintf(tt.body, 10+i))
		if st != nil || !strings.Contains(out, fmt.Sprintf(`"spec":{"replicas":%d}`, 10+i)) || *w.deployment("web").Spec.Replicas != int32(10+i) {
			t.Errorf("%s %s: %s %+v", tt.verb, tt.kind, out, st)
		}
	}
	for body, code := range map[string]int32{
		`{"metadata":{"resourceVersion":"1"},"spec":{"replicas":1}}`: 409,
		`{"metadata":{"uid":"other"},"spec":{"replicas":1}}`:         409,
		`{"metadata":{"name":"other"},"spec":{"replicas":1}}`:        400,
		`{"kind":"Deployment","spec":{"replicas":1}}`:                400,
		`{}`: 422, `{"spec":{"replicas":-1}}`: 422, `{"spec":{"replicas":99999999999}}`: 400, `[]`: 400, `{"spec":{"replicas":1,"replicas":2}}`: 400,
	} {
		if _, _, st := w.call(schemas.VerbUpdate, "deployments/scale", "default", "web", body); st == nil || st.Code != code {
			t.Errorf("%s: %+v", body, st)
		}
	}
	if n := *w.deployment("web").Spec.Replicas; n != 13 {
		t.Errorf("replicas %d", n)
	}
	// Zero as Kubernetes' clients write it, and back by an operation.
	w.ok(schemas.VerbUpdate, "deployments/scale", "default", "web", `{"spec":{}}`)
	w.ok(schemas.VerbPatch, "deployments/scale", "default", "web", `[{"op":"test","path":"/spec/replicas","value":0},{"op":"replace","path":"/spec/replicas","value":2}]`)
}

func TestBindingHappensOnce(t *testing.T) {
	w := newWorld(t)
	if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: named("n1"), Spec: corev1.NodeSpec{Unschedulable: true}}); err != nil {
		t.Fatal(err)
	}
	w.ok(schemas.VerbCreate, "pods", "default", "p", pod("p", ""))
	w.ok(schemas.VerbCreate, "pods", "default", "going", strings.Replace(pod("going", ""), `"name":"going"`, `"name":"going","finalizers":["x/y"]`, 1))
	w.ok(schemas.VerbDelete, "pods", "default", "going", nil)
	bind := func(name, body string) *metav1.Status {
		_, _, st := w.call(schemas.VerbCreate, "pods/binding", "default", name, body)
		return st
	}
	for _, tt := range []struct {
		name, body string
		code       int32
		says       string
	}{
		{"p", `{"target":{"name":"n9"}}`, 404, `nodes "n9" not found`},
		{"p", `{"target":{"kind":"Pod","name":"n1"}}`, 422, "target.kind"},
		{"p", `{}`, 422, "target.name: Required"},
		{"p", `{"metadata":{"name":"q"},"target":{"name":"n1"}}`, 400, "the subject names"},
		{"p", `{"metadata":{"uid":"other"},"target":{"name":"n1"}}`, 409, "UID"},
		{"p", `{"target":{"node":"n1"}}`, 400, "target.node"},
		{"none", `{"target":{"name":"n1"}}`, 404, "not found"},
		{"going", `{"target":{"name":"n1"}}`, 409, "is being deleted"},
	} {
		if st := bind(tt.name, tt.body); st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
			t.Errorf("%s %s: %+v", tt.name, tt.body, st)
		}
	}
	if st := bind("p", `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"p","annotations":{"by":"me"}},"target":{"kind":"Node","name":"n1"}}`); st != nil {
		t.Fatal(st.Message)
	}
	p := decode[corev1.Pod](t, w.ok(schemas.VerbGet, "pods", "default", "p", nil))
	if p.Spec.NodeName != "n1" || p.Annotations["by"] != "me" || len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Status != "True" {
		t.Errorf("bound %+v %+v", p.Spec.NodeName, p.Status)
	}
	if st := bind("p", `{"target":{"name":"n1"}}`); st == nil || st.Code != 409 || !strings.Contains(st.Message, "already assigned") {
		t.Errorf("twice: %+v", st)
	}
}

func TestEvictionIsADelete(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, "pods", "default", "p", pod("p", `,"nodeName":"n1"`))
	for body, code := range map[string]int32{
		`{"deleteOptions":{"preconditions":{"uid":"other"}}}`: 409, `{"deleteOptions":{"grace":1}}`: 400,
		`{"metadata":{"name":"q"}}`: 400, `{"color":"red"}`: 400,
	} {
		if _, _, st := w.call(schemas.VerbCreate, "pods/eviction", "default", "p", body); st == nil || st.Code != code {
			t.Errorf("%s: %+v", body, st)
		}
	}
	w.ok(schemas.VerbCreate, "pods/eviction", "default", "p", `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"p","namespace":"default"},"deleteOptions":{"gracePeriodSeconds":7}}`)
	p := decode[corev1.Pod](t, w.ok(schemas.VerbGet, "pods", "default", "p", nil))
	if p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 7 {
		t.Errorf("evicted %+v", p.ObjectMeta)
	}
}

func TestDeleteCollection(t *testing.T) {
	w := newWorld(t)
	for i := range 6 {
		w.ok(schemas.VerbCreate, "pods", "default", "", strings.Replace(pod(fmt.Sprint("p", i), ""), `"metadata":{`, fmt.Sprintf(`"metadata":{"labels":{"n":"%d"},`, i%2), 1))
	}
	w.ok(schemas.VerbCreate, "pods", "default", "", pod("bound", `,"nodeName":"n1"`))
	w.ok(schemas.VerbCreate, "pods", "kube-system", "", pod("elsewhere", ""))
	names := func(options, body string) (got []string, list *corev1.PodList) {
		t.Helper()
		out, _, st := w.with(map[string]string{schemas.HeaderOptions: options}, schemas.VerbDeleteCollection, "pods", "default", "", body)
		if st != nil {
			t.Fatal(st.Message)
		}
		list = decode[corev1.PodList](t, out)
		for _, p := range list.Items {
			got = append(got, p.Name)
		}
		return got, list
	}
	got, list := names(`{"labelSelector":"n=1","limit":2}`, "")
	if diff := cmp.Diff([]string{"p1", "p3"}, got); diff != "" || list.Continue == "" || list.Kind != "PodList" {
		t.Errorf("%s, continue %q", diff, list.Continue)
	}
	got, list = names(fmt.Sprintf(`{"labelSelector":"n=1","limit":2,"continue":%q}`, list.Continue), "")
	if diff := cmp.Diff([]string{"p5"}, got); diff != "" || list.Continue != "" {
		t.Errorf("%s, continue %q", diff, list.Continue)
	}
	got, list = names("", `{"gracePeriodSeconds":3}`)
	if diff := cmp.Diff([]string{"bound", "p0", "p2", "p4"}, got); diff != "" || *list.Items[0].DeletionGracePeriodSeconds != 3 {
		t.Error(diff)
	}
	// Again: what has yet to go is there, the rest is not.
	if got, _ = names("", ""); len(got) != 1 || got[0] != "bound" {
		t.Errorf("again: %v", got)
	}
	if w.store.View().Get("pods", "kube-system", "elsewhere") == nil {
		t.Error("another namespace's pod is gone")
	}
	w.ok(schemas.VerbCreate, schemas.Namespaces, "", "team", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"team"}}`)
	out, h, st := w.call(schemas.VerbDeleteCollection, schemas.Namespaces, "", "", nil)
	if st != nil || !strings.Contains(out, `"name":"team"`) || strings.Contains(out, `"name":"default"`) || len(h[schemas.HeaderWarning]) != 2 {
		t.Errorf("protected: %s %v %+v", out, h, st)
	}
	for _, tt := range []struct {
		resource, name, options, body string
		code                          int32
	}{
		{"pods", "p1", "", "", 400},
		{"pods", "", `{"color":"red"}`, "", 400},
		{"pods", "", `{"watch":true}`, "", 400},
		{"pods", "", "", `{"preconditions":{"uid":"x"}}`, 400},
		{"pods", "", "", `{"propagationPolicy":"Sideways"}`, 422},
		{"endpointslices", "", "", "", 403},
	} {
		_, _, st := w.with(map[string]string{schemas.HeaderOptions: tt.options}, schemas.VerbDeleteCollection, tt.resource, "default", tt.name, tt.body)
		if st == nil || st.Code != tt.code {
			t.Errorf("%+v: %+v", tt, st)
		}
	}
}

// TestACollectionIsDeletedPieceByPiece holds that one call does a bounded part
// of the work and says where to go on.
func TestACollectionIsDeletedPieceByPiece(t *testing.T) {
	w := newWorld(t)
	const all = collectionPiece + 30
	for i := range all {
		if _, err := w.store.Create(w.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("c%04d", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	deleted, calls, options := 0, 0, ""
	for {
		out, h, st := w.with(map[string]string{schemas.HeaderOptions: options}, schemas.VerbDeleteCollection, "configmaps", "default", "", "")
		if st != nil || len(h[schemas.HeaderWarning]) > 0 {
			t.Fatalf("%+v %v", st, h)
		}
		list := decode[corev1.ConfigMapList](t, out)
		deleted += len(list.Items)
		calls++
		if list.Continue == "" {
			break
		}
		options = fmt.Sprintf(`{"continue":%q}`, list.Continue)
	}
	if deleted != all || calls < 2 || len(w.store.View().List("configmaps", "")) != 0 {
		t.Errorf("%d deleted in %d calls", deleted, calls)
	}
}
