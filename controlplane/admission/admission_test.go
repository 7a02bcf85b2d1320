package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// world is an Admission on a real bus of its own.
type world struct {
	t      testing.TB
	ctx    context.Context
	server *bus.Server
	conn   *bus.Conn
	store  bus.History
	api    *Admission
	logs   LogsFunc
	now    time.Time
	// options are what api was made of.
	options Options
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	s, err := bus.StartServer(ctx, bus.ServerOptions{StateDir: t.TempDir(), Listen: "127.0.0.1:0", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Shutdown(stop); err != nil {
			t.Error(err)
		}
	})
	c, err := bus.Open(ctx, bus.OpenOptions{Server: s, PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/29", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	st, err := bus.OpenStore(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ctx: ctx, server: s, conn: c, store: st, now: time.Now()}
	w.options = Options{
		Store: st, Reservations: c, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/29"), Log: zerolog.Nop(),
		Now: func() time.Time { return w.now },
		Logs: func(ctx context.Context, node string, req schemas.LogRequest) ([]byte, map[string][]string, error) {
			return w.logs(ctx, node, req)
		},
	}
	w.api = New(w.options)
	if err := w.api.Bootstrap(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// call makes one call as it comes from the bus: by its subject.
func (w *world) call(verb, resource, namespace, name string, body any) (string, map[string][]string, *metav1.Status) {
	w.t.Helper()
	return w.with(nil, verb, resource, namespace, name, body)
}

// with makes a call that has headers.
func (w *world) with(header map[string]string, verb, resource, namespace, name string, body any) (string, map[string][]string, *metav1.Status) {
	w.t.Helper()
	var names schemas.Names
	c, err := names.ParseAPI(names.API(verb, resource, namespace, name))
	if err != nil {
		w.t.Fatal(err)
	}
	data, ok := body.(string)
	if !ok && body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			w.t.Fatal(err)
		}
		data = string(encoded)
	}
	h := map[string][]string{}
	for k, v := range header {
		h[k] = []string{v}
	}
	out, outHeader, st := w.api.Handle(w.ctx, c, h, []byte(data))
	return string(out), outHeader, st
}

// ok makes a call that must succeed.
func (w *world) ok(verb, resource, namespace, name string, body any) string {
	w.t.Helper()
	out, _, st := w.call(verb, resource, namespace, name, body)
	if st != nil {
		w.t.Fatalf("%s %s %s/%s: %s", verb, resource, namespace, name, st.Message)
	}
	return out
}

// result makes an apply that must succeed and returns what it did.
func (w *world) result(resource, name, body string) string {
	w.t.Helper()
	_, h, st := w.call(schemas.VerbApply, resource, "default", name, body)
	if st != nil {
		w.t.Fatalf("apply %s %s: %s", resource, name, st.Message)
	}
	return h[schemas.HeaderResult][0]
}

func decode[T any](t testing.TB, data string) *T {
	t.Helper()
	o := new(T)
	if err := json.Unmarshal([]byte(data), o); err != nil {
		t.Fatal(err)
	}
	return o
}

func (w *world) deployment(name string) *appsv1.Deployment {
	w.t.Helper()
	return decode[appsv1.Deployment](w.t, w.ok(schemas.VerbGet, schemas.Deployments, "default", name, nil))
}

const web = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {tier: front}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example.test/web:1
        env:
        - {name: A, value: "1"}
        - {name: B, value: "2"}
        ports:
        - {containerPort: 53, protocol: TCP}
        - {containerPort: 53, protocol: UDP}
`

const service = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"%s"},"spec":{"selector":{"app":"web"},"ports":[{"port":80}]%s}}`

func pod(name, more string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{"containers":[{"name":"c","image":"i"}]%s}}`, name, more)
}

func TestApplyIsAThreeWayMerge(t *testing.T) {
	w := newWorld(t)
	if got := w.result(schemas.Deployments, "web", web); got != created {
		t.Fatalf("first apply: %s", got)
	}
	d := w.deployment("web")
	if d.Generation != 1 || d.UID == "" || *d.Spec.RevisionHistoryLimit != 10 || len(d.Spec.Template.Spec.Containers[0].Ports) != 2 {
		t.Fatalf("created %+v", d)
	}
	if got := w.result(schemas.Deployments, "web", web); got != unchanged {
		t.Errorf("same again: %s", got)
	}
	if again := w.deployment("web"); again.ResourceVersion != d.ResourceVersion {
		t.Errorf("an apply that changes nothing wrote revision %s", again.ResourceVersion)
	}

	// Another writer adds what the manifest never mentions.
	w.ok(schemas.VerbPatch, schemas.Deployments, "default", "web", `{"metadata":{"annotations":{"other":"kept"}}}`)
	w.ok(schemas.VerbPatch, "deployments/scale", "default", "web", `{"spec":{"replicas":7}}`)

	// B and the label go, A changes; replicas are no longer the manifest's.
	next := strings.NewReplacer("  labels: {tier: front}\n", "", "  replicas: 2\n", "", `{name: A, value: "1"}`, `{name: A, value: "9"}`,
		"        - {name: B, value: \"2\"}\n", "").Replace(web)
	if got := w.result(schemas.Deployments, "web", next); got != configured {
		t.Errorf("changed: %s", got)
	}
	d = w.deployment("web")
	type state struct {
		Labels   map[string]string
		Other    string
		Replicas int32
		Env      []corev1.EnvVar
	}
	got := state{d.Labels, d.Annotations["other"], *d.Spec.Replicas, d.Spec.Template.Spec.Containers[0].Env}
	// Replicas were said before and are not now: back to the default, as kubectl does.
	want := state{nil, "kept", 1, []corev1.EnvVar{{Name: "A", Value: "9"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	// A strategy without rollingUpdate replaces the defaulted one.
	recreate := strings.Replace(next, "spec:\n  selector", "spec:\n  strategy: {type: Recreate}\n  selector", 1)
	if got := w.result(schemas.Deployments, "web", recreate); got != configured {
		t.Errorf("recreate: %s", got)
	}
	if s := w.deployment("web").Spec.Strategy; s.RollingUpdate != nil || s.Type != appsv1.RecreateDeploymentStrategyType {
		t.Errorf("strategy %+v", s)
	}
}

func TestApplyOfWhatGetPrinted(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	printed := w.ok(schemas.VerbGet, schemas.Deployments, "default", "web", nil)
	if got := w.result(schemas.Deployments, "web", printed); got != configured {
		t.Errorf("first apply of it records all that it says: %s", got)
	}
	_, _, st := w.call(schemas.VerbApply, schemas.Deployments, "default", "web", printed)
	if st == nil || st.Code != 409 {
		t.Errorf("its resourceVersion is old now: %+v", st)
	}
	printed = w.ok(schemas.VerbGet, schemas.Deployments, "default", "web", nil)
	if got := w.result(schemas.Deployments, "web", printed); got != unchanged {
		t.Errorf("again: %s", got)
	}
}

func TestBadInput(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	deploy := func(old, new string) string { return strings.Replace(web, old, new, 1) }
	tests := []struct {
		desc, resource, name, body string
		code                       int32
		reason                     metav1.StatusReason
		field                      string // of a cause
		says                       string
	}{
		{"broken YAML", "pods", "p", "apiVersion: v1\nkind: Pod\nmetadata: {name: p\nspec:\n", 400, metav1.StatusReasonBadRequest, "", "line 3"},
		{"broken JSON", "pods", "p", `{"apiVersion":"v1",`, 400, metav1.StatusReasonBadRequest, "", "not valid JSON"},
		{"wrong type", "deployments", "", deploy("replicas: 2", "replicas: two"), 400, metav1.StatusReasonBadRequest, "spec.replicas", `line 8: spec.replicas: want a whole number (int32), got the string "two"`},
		{"unknown field", "deployments", "", deploy("image:", "imagee:"), 400, metav1.StatusReasonBadRequest, "spec.template.spec.containers[0].imagee", `did you mean "image"`},
		{"field given twice", "deployments", "", deploy("  replicas: 2\n", "  replicas: 2\n  replicas: 3\n"), 400, metav1.StatusReasonBadRequest, "", `"replicas"`},
		{"field not supported", "pods", "p", pod("p", `,"volumes":[{"name":"v","emptyDir":{}}]`), 422, metav1.StatusReasonInvalid, "spec.volumes", "spec.volumes: Forbidden: not supported by Gantry: volumes are not built yet; see docs/supported-fields.md"},
		{"name is no DNS name", "pods", "", pod("No_Good", ""), 422, metav1.StatusReasonInvalid, "metadata.name", "No_Good"},
		{"service name is no DNS label", "services", "", fmt.Sprintf(service, "a.b", ""), 422, metav1.StatusReasonInvalid, "metadata.name", "a.b"},
		{"negative replicas", "deployments", "", deploy("replicas: 2", "replicas: -1"), 422, metav1.StatusReasonInvalid, "spec.replicas", "must be greater than or equal to 0"},
		{"selector does not match", "deployments", "", deploy("labels: {app: web}", "labels: {app: other}"), 422, metav1.StatusReasonInvalid, "spec.template.metadata.labels", "`selector` does not match template `labels`"},
		{"duplicate ports", "deployments", "", deploy("protocol: UDP", "protocol: TCP"), 422, metav1.StatusReasonInvalid, "spec.template.spec.containers[0].ports[1]", "53/TCP"},
		{"selector changed", "deployments", "web", strings.ReplaceAll(web, "app: web", "app: other"), 422, metav1.StatusReasonInvalid, "spec.selector", "field is immutable"},
		{"unknown kind", "pods", "p", `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"p"}}`, 400, metav1.StatusReasonBadRequest, "kind", "Job is not supported by Gantry yet"},
		{"kind of another subject", "pods", "", web, 400, metav1.StatusReasonBadRequest, "", "the manifest is a Deployment, but the subject names pods"},
		{"name of another subject", "deployments", "other", web, 400, metav1.StatusReasonBadRequest, "", `metadata.name is "web", but the subject names "other"`},
		{"several objects", "deployments", "web", web + "---" + web, 400, metav1.StatusReasonBadRequest, "", "send each in a call of its own"},
		{"node port", "services", "s", fmt.Sprintf(service, "s", `,"type":"NodePort"`), 422, metav1.StatusReasonInvalid, "spec.type", "NodePort"},
		{"headless", "services", "s", fmt.Sprintf(service, "s", `,"clusterIP":"None"`), 422, metav1.StatusReasonInvalid, "spec.clusterIP", "headless"},
		{"address out of range", "services", "s", fmt.Sprintf(service, "s", `,"clusterIP":"10.97.0.1"`), 422, metav1.StatusReasonInvalid, "spec.clusterIP", "not in the valid range"},
		{"node", "nodes", "n", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}`, 403, metav1.StatusReasonForbidden, "", "a node is made by its agent"},
		{"refused resource", "jobs", "j", "{}", 404, metav1.StatusReasonNotFound, "", "jobs are not supported by Gantry yet"},
		{"resource of nobody", "widgets", "w", "{}", 404, metav1.StatusReasonNotFound, "", `no resource "widgets"`},
		{"larger than the bus takes", "pods", "p", pod("p", `,"nodeSelector":{"a":"`+strings.Repeat("x", 1<<20)+`"}`), 413, metav1.StatusReasonRequestEntityTooLarge, "", fmt.Sprint(schemas.MaxObjectBytes)},
		{"too large for its annotation", "pods", "p", strings.Replace(pod("p", ""), `"image":"i"`, `"image":"i","args":["`+strings.Repeat("x", 500<<10)+`"]`, 1), 413, metav1.StatusReasonRequestEntityTooLarge, "", "use create or update"},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			namespace := "default"
			if k, ok := schemas.KindByResource(tt.resource); ok && !k.Namespaced {
				namespace = ""
			}
			before := w.store.View().Revision()
			_, _, st := w.call(schemas.VerbApply, tt.resource, namespace, tt.name, tt.body)
			if st == nil {
				t.Fatal("accepted")
			}
			if st.Code != tt.code || st.Reason != tt.reason || !strings.Contains(st.Message, tt.says) || st.Kind != "Status" {
				t.Errorf("got %d %s: %s", st.Code, st.Reason, st.Message)
			}
			if len(st.Message) > 4096 {
				t.Errorf("message of %d bytes", len(st.Message))
			}
			found := tt.field == ""
			if st.Details != nil {
				for _, c := range st.Details.Causes {
					found = found || c.Field == tt.field
				}
			}
			if !found {
				t.Errorf("no cause names %s: %+v", tt.field, st.Details)
			}
			if after := w.store.View().Revision(); after != before {
				t.Errorf("something was written: %d -> %d", before, after)
			}
		})
	}
}

func TestCreateAndNamespaces(t *testing.T) {
	w := newWorld(t)
	_, _, st := w.call(schemas.VerbCreate, schemas.Pods, "nowhere", "", pod("a", ""))
	if st == nil || st.Code != 404 || !strings.Contains(st.Message, `namespaces "nowhere" not found`) {
		t.Errorf("no namespace: %+v", st)
	}
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "", pod("a", ""))
	_, _, st = w.call(schemas.VerbCreate, schemas.Pods, "default", "a", pod("a", ""))
	if st == nil || st.Reason != metav1.StatusReasonAlreadyExists {
		t.Errorf("twice: %+v", st)
	}
	got := decode[corev1.Pod](t, w.ok(schemas.VerbCreate, schemas.Pods, "default", "",
		`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"job-"},"spec":{"containers":[{"name":"c","image":"i"}]},"status":{"phase":"Running"}}`))
	if !strings.HasPrefix(got.Name, "job-") || len(got.Name) != 9 || got.Status.Phase != corev1.PodPending || got.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("generated %q, status %+v", got.Name, got.Status)
	}

	w.ok(schemas.VerbCreate, schemas.Namespaces, "", "team", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"team"}}`)
	ns := decode[corev1.Namespace](t, w.ok(schemas.VerbDelete, schemas.Namespaces, "", "team", nil))
	if ns.DeletionTimestamp == nil || ns.Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("namespace %+v", ns)
	}
	_, _, st = w.call(schemas.VerbCreate, schemas.Pods, "team", "a", pod("a", ""))
	if st == nil || st.Code != 403 || !strings.Contains(st.Message, "being terminated") {
		t.Errorf("terminating: %+v", st)
	}
	_, _, st = w.call(schemas.VerbDelete, schemas.Namespaces, "", "default", nil)
	if st == nil || st.Code != 403 {
		t.Errorf("default namespace: %+v", st)
	}
}

func TestUpdateNamesTheCurrentRevision(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	d := w.deployment("web")
	stale := d.DeepCopy()
	d.Spec.Paused = true
	w.ok(schemas.VerbUpdate, schemas.Deployments, "default", "web", d)
	now := w.deployment("web")
	if now.Generation != 2 || !now.Spec.Paused {
		t.Fatalf("updated: generation %d", now.Generation)
	}
	_, _, st := w.call(schemas.VerbUpdate, schemas.Deployments, "default", "web", stale)
	if st == nil || st.Reason != metav1.StatusReasonConflict || !strings.Contains(st.Message, "resourceVersion "+now.ResourceVersion) {
		t.Errorf("stale: %+v", st)
	}
	stale.ResourceVersion = ""
	w.ok(schemas.VerbUpdate, schemas.Deployments, "default", "web", stale)
	stale.UID = "other"
	_, _, st = w.call(schemas.VerbUpdate, schemas.Deployments, "default", "web", stale)
	if st == nil || st.Code != 409 {
		t.Errorf("another object's UID: %+v", st)
	}
	// Status is not the user's.
	stale.UID = ""
	stale.Status.ReadyReplicas = 9
	w.ok(schemas.VerbUpdate, schemas.Deployments, "default", "web", stale)
	if n := w.deployment("web").Status.ReadyReplicas; n != 0 {
		t.Errorf("a user wrote status.readyReplicas: %d", n)
	}
}

func TestScale(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	got := decode[struct {
		Kind   string
		Spec   struct{ Replicas int }
		Status struct{ Selector string }
	}](t, w.ok(schemas.VerbPatch, "deployments/scale", "default", "web", `{"spec":{"replicas":0}}`))
	if got.Kind != "Scale" || got.Spec.Replicas != 0 || got.Status.Selector != "app=web" {
		t.Errorf("got %+v", got)
	}
	if n := *w.deployment("web").Spec.Replicas; n != 0 {
		t.Errorf("replicas %d", n)
	}
	for body, says := range map[string]string{
		`{"spec":{"replicas":-1}}`:   "spec.replicas",
		`{"spec":{"replicas":"x"}}`:  "replicas",
		`{"spec":{"replicaz":3}}`:    "replicaz",
		`{"spec":{"replicas":null}}`: "spec.replicas",
	} {
		_, _, st := w.call(schemas.VerbPatch, "deployments/scale", "default", "web", body)
		if st == nil || !strings.Contains(st.Message, says) {
			t.Errorf("%s: %+v", body, st)
		}
	}
}

func TestClusterIPs(t *testing.T) {
	w := newWorld(t)
	// 10.96.0.0/29 has .2 to .6 to give.
	seen := map[string]bool{}
	for i := range 5 {
		s := decode[corev1.Service](t, w.ok(schemas.VerbCreate, schemas.Services, "default", "", fmt.Sprintf(service, fmt.Sprint("s", i), "")))
		if seen[s.Spec.ClusterIP] || len(s.Spec.ClusterIPs) != 1 {
			t.Fatalf("address %q again, or %v", s.Spec.ClusterIP, s.Spec.ClusterIPs)
		}
		seen[s.Spec.ClusterIP] = true
	}
	_, _, st := w.call(schemas.VerbCreate, schemas.Services, "default", "", fmt.Sprintf(service, "full", ""))
	if st == nil || !strings.Contains(st.Message, "the range 10.96.0.0/29 is full") {
		t.Fatalf("full: %+v", st)
	}
	_, _, st = w.call(schemas.VerbApply, schemas.Services, "default", "", fmt.Sprintf(service, "fixed", `,"clusterIP":"10.96.0.3"`))
	if st == nil || st.Code != 422 || !strings.Contains(st.Message, "already allocated to services.default.s") {
		t.Fatalf("taken: %+v", st)
	}
	s0 := decode[corev1.Service](t, w.ok(schemas.VerbGet, schemas.Services, "default", "s0", nil))
	// A repeated apply keeps the address; to change it is refused.
	if got := w.result(schemas.Services, "s0", fmt.Sprintf(service, "s0", "")); got != configured {
		t.Errorf("apply over create: %s", got)
	}
	if got := w.result(schemas.Services, "s0", fmt.Sprintf(service, "s0", "")); got != unchanged {
		t.Errorf("apply again: %s", got)
	}
	_, _, st = w.call(schemas.VerbPatch, schemas.Services, "default", "s0", `{"spec":{"clusterIP":"10.96.0.9"}}`)
	if st == nil || st.Code != 422 {
		t.Errorf("changed: %+v", st)
	}
	w.ok(schemas.VerbDelete, schemas.Services, "default", "s0", nil)
	again := decode[corev1.Service](t, w.ok(schemas.VerbCreate, schemas.Services, "default", "", fmt.Sprintf(service, "s0", `,"clusterIP":"`+s0.Spec.ClusterIP+`"`)))

	// A Service that went without admission leaks its address only for a while.
	if err := w.store.Delete(w.ctx, again); err != nil {
		t.Fatal(err)
	}
	_, _, st = w.call(schemas.VerbCreate, schemas.Services, "default", "", fmt.Sprintf(service, "later", ""))
	if st == nil {
		t.Fatal("a reservation of a moment ago may belong to a create under way")
	}
	w.now = w.now.Add(2 * reservationSettles)
	w.ok(schemas.VerbCreate, schemas.Services, "default", "", fmt.Sprintf(service, "later", ""))
	if err := w.api.Bootstrap(w.ctx); err != nil {
		t.Fatal(err)
	}
	held, err := w.conn.Reserved(w.ctx, clusterIPs)
	if err != nil || len(held) != 5 {
		t.Errorf("held %v, %v", held, err)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "free", pod("free", ""))
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "bound", pod("bound", `,"nodeName":"n1"`))
	if out := w.ok(schemas.VerbDelete, schemas.Pods, "default", "free", nil); decode[metav1.Status](t, out).Status != metav1.StatusSuccess {
		t.Errorf("unbound pod: %s", out)
	}
	p := decode[corev1.Pod](t, w.ok(schemas.VerbDelete, schemas.Pods, "default", "bound", `{"gracePeriodSeconds":10}`))
	if p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 10 {
		t.Errorf("bound pod: %+v", p.ObjectMeta)
	}
	again := decode[corev1.Pod](t, w.ok(schemas.VerbDelete, schemas.Pods, "default", "bound", nil))
	if again.ResourceVersion != p.ResourceVersion {
		t.Error("a repeated delete wrote")
	}
	_, _, st := w.call(schemas.VerbDelete, schemas.Pods, "default", "bound", `{"preconditions":{"uid":"other"}}`)
	if st == nil || st.Code != 409 {
		t.Errorf("precondition: %+v", st)
	}
	for _, bad := range []string{`{"dryRun":["Some"]}`, `{"orphanDependents":true}`, `{"propagationPolicy":"Sideways"}`, `{`, `{"gracePeriodSeconds":"x"}`} {
		if _, _, st = w.call(schemas.VerbDelete, schemas.Pods, "default", "bound", bad); st == nil || st.Code/100 != 4 {
			t.Errorf("%s: %+v", bad, st)
		}
	}
	w.ok(schemas.VerbDelete, schemas.Pods, "default", "bound", `{"gracePeriodSeconds":0}`)
	if _, _, st = w.call(schemas.VerbGet, schemas.Pods, "default", "bound", nil); st == nil || st.Code != 404 {
		t.Errorf("forced: %+v", st)
	}

	w.result(schemas.Deployments, "web", web)
	d := decode[appsv1.Deployment](t, w.ok(schemas.VerbDelete, schemas.Deployments, "default", "web", `{"propagationPolicy":"Foreground"}`))
	if diff := cmp.Diff([]string{metav1.FinalizerDeleteDependents}, d.Finalizers); diff != "" || d.DeletionTimestamp == nil {
		t.Error(diff)
	}
	// Who takes the last finalizer off ends it.
	w.ok(schemas.VerbPatch, schemas.Deployments, "default", "web", `{"metadata":{"finalizers":null}}`)
	if _, _, st = w.call(schemas.VerbGet, schemas.Deployments, "default", "web", nil); st == nil || st.Code != 404 {
		t.Errorf("after its finalizer: %+v", st)
	}
}

func TestNodesTakeCordonAndLabelsOnly(t *testing.T) {
	w := newWorld(t)
	if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	n := decode[corev1.Node](t, w.ok(schemas.VerbPatch, schemas.Nodes, "", "n1", `{"metadata":{"labels":{"disk":"ssd"}},"spec":{"unschedulable":true}}`))
	if !n.Spec.Unschedulable || n.Labels["disk"] != "ssd" {
		t.Errorf("node %+v", n)
	}
	_, _, st := w.call(schemas.VerbPatch, schemas.Nodes, "", "n1", `{"spec":{"podCIDR":"10.0.0.0/24"}}`)
	if st == nil || st.Code != 403 || !strings.Contains(st.Message, "spec.podCIDR") {
		t.Errorf("podCIDR: %+v", st)
	}
	w.ok(schemas.VerbDelete, schemas.Nodes, "", "n1", nil)
}

func TestListPagesAndSelects(t *testing.T) {
	w := newWorld(t)
	for i := range 7 {
		w.ok(schemas.VerbCreate, schemas.Pods, "default", "", pod(fmt.Sprint("p", i), fmt.Sprintf(`,"nodeName":"n%d"`, i%2)))
	}
	var names []string
	opts := metav1.ListOptions{Limit: 3}
	for {
		l := decode[corev1.PodList](t, w.ok(schemas.VerbList, schemas.Pods, "", "", opts))
		for _, p := range l.Items {
			names = append(names, p.Name)
		}
		if opts.Continue = l.Continue; opts.Continue == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"p0", "p1", "p2", "p3", "p4", "p5", "p6"}, names); diff != "" {
		t.Error(diff)
	}
	l := decode[corev1.PodList](t, w.ok(schemas.VerbList, schemas.Pods, "default", "", metav1.ListOptions{FieldSelector: "spec.nodeName=n1,metadata.name!=p1"}))
	if len(l.Items) != 2 || l.Kind != "PodList" {
		t.Errorf("selected %d of kind %s", len(l.Items), l.Kind)
	}
	_, _, st := w.call(schemas.VerbList, schemas.Pods, "default", "", metav1.ListOptions{FieldSelector: "spec.color=red"})
	if st == nil || st.Code != 400 || !strings.Contains(st.Message, "spec.nodeName") {
		t.Errorf("unknown field: %+v", st)
	}
	// Three objects of 400 KiB do not fit into one answer.
	for i := range 3 {
		big := strings.Replace(pod(fmt.Sprint("big", i), ""), `"image":"i"`, `"image":"i","args":["`+strings.Repeat("x", 400<<10)+`"]`, 1)
		w.ok(schemas.VerbCreate, schemas.Pods, "default", "", big)
	}
	l = decode[corev1.PodList](t, w.ok(schemas.VerbList, schemas.Pods, "default", "", nil))
	if len(l.Items) != 2 || l.Continue == "" || *l.RemainingItemCount != 8 {
		t.Errorf("%d items, continue %q", len(l.Items), l.Continue)
	}
}

func TestWatchSeesTheSelectionOnly(t *testing.T) {
	w := newWorld(t)
	rv := decode[schemas.WatchReply](t, w.ok(schemas.VerbWatch, schemas.Pods, "default", "", nil)).ResourceVersion
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "", pod("a", ""))
	w.ok(schemas.VerbPatch, schemas.Pods, "default", "a", `{"metadata":{"labels":{"app":"x"}}}`)
	w.ok(schemas.VerbPatch, schemas.Pods, "default", "a", `{"metadata":{"annotations":{"n":"1"}}}`)
	w.ok(schemas.VerbPatch, schemas.Pods, "default", "a", `{"metadata":{"labels":{"app":"y"}}}`)
	w.ok(schemas.VerbPatch, schemas.Pods, "default", "a", `{"metadata":{"labels":{"app":"x"}}}`)
	w.ok(schemas.VerbDelete, schemas.Pods, "default", "a", nil)

	var got []string
	wait := int64(5)
	for len(got) < 5 {
		out := decode[schemas.WatchReply](t, w.ok(schemas.VerbWatch, schemas.Pods, "default", "", metav1.ListOptions{
			ResourceVersion: rv, LabelSelector: "app=x", TimeoutSeconds: &wait}))
		for _, e := range out.Items {
			got = append(got, e.Type)
			// What is no longer selected is told as it was when it still was.
			if !strings.Contains(string(e.Object.Raw), `"app":"x"`) {
				t.Errorf("%s of what is not selected: %s", e.Type, e.Object.Raw)
			}
		}
		if len(out.Items) == 0 {
			t.Fatalf("no more after %v", got)
		}
		rv = out.ResourceVersion
	}
	if diff := cmp.Diff([]string{"ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"}, got); diff != "" {
		t.Error(diff)
	}
	zero := int64(0)
	out := decode[schemas.WatchReply](t, w.ok(schemas.VerbWatch, schemas.Pods, "default", "", metav1.ListOptions{ResourceVersion: rv, TimeoutSeconds: &zero}))
	if len(out.Items) != 0 || out.ResourceVersion != rv {
		t.Errorf("afterwards: %+v", out)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "free", pod("free", ""))
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "bound", pod("bound", `,"nodeName":"n1"`))
	var asked schemas.LogRequest
	answer := error(nil)
	w.logs = func(_ context.Context, node string, req schemas.LogRequest) ([]byte, map[string][]string, error) {
		asked = req
		return []byte("line " + node), map[string][]string{schemas.HeaderEOF: {"true"}}, answer
	}
	out, h, st := w.call(schemas.VerbLog, schemas.Pods, "default", "bound", schemas.LogRequest{})
	if st != nil || out != "line n1" || h[schemas.HeaderEOF][0] != "true" || asked.Container != "c" || asked.UID == "" {
		t.Errorf("got %q, %v, %+v, asked %+v", out, h, st, asked)
	}
	for name, req := range map[string]schemas.LogRequest{"free": {}, "bound": {Container: "x"}, "none": {}} {
		if _, _, st := w.call(schemas.VerbLog, schemas.Pods, "default", name, req); st == nil || st.Code/100 != 4 {
			t.Errorf("%s: %+v", name, st)
		}
	}
	answer = errors.New("no responders")
	if _, _, st := w.call(schemas.VerbLog, schemas.Pods, "default", "bound", nil); st == nil || st.Code != 503 {
		t.Errorf("unreachable: %+v", st)
	}
}

// TestConcurrentWritersLoseNothing has many appliers of different fields: each
// finds its own there at the end, though all collide.
func TestConcurrentWritersLoseNothing(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	const writers = 6
	errs := make(chan *metav1.Status, writers)
	for i := range writers {
		go func() {
			_, _, st := w.call(schemas.VerbPatch, schemas.Deployments, "default", "web", fmt.Sprintf(`{"metadata":{"annotations":{"w%d":"1"}}}`, i))
			errs <- st
		}()
	}
	for range writers {
		if st := <-errs; st != nil {
			t.Error(st.Message)
		}
	}
	d := w.deployment("web")
	for i := range writers {
		if d.Annotations[fmt.Sprint("w", i)] == "" {
			t.Errorf("writer %d was lost", i)
		}
	}
}
