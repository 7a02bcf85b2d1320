package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// inhabitants are what a fuzzed cluster holds before the first call.
var inhabitants = []string{
	web,
	`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","labels":{"app":"web"},"finalizers":["a.example/b"]},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"env":[{"name":"A","value":"1"}]}]}}`,
	`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"free"},"spec":{"containers":[{"name":"c","image":"i"}]}}`,
	`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"name":"http","port":80},{"name":"dns","port":53,"protocol":"UDP"}]}}`,
	`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web"},"data":{"a":"b"},"binaryData":{"c":"AAE="}}`,
	`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"web"}}`,
	`{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"name":"web"},"spec":{"replicas":1,"selector":{"matchLabels":{"app":"rs"}},"template":{"metadata":{"labels":{"app":"rs"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`,
	`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"web"},"spec":{"holderIdentity":"me","leaseDurationSeconds":15,"renewTime":"2024-01-01T00:00:00.000001Z"}}`,
	`{"apiVersion":"v1","kind":"Event","metadata":{"name":"web"},"involvedObject":{"kind":"Pod","name":"web","namespace":"default"},"reason":"Tested","message":"m","type":"Normal"}`,
	`{"apiVersion":"v1","kind":"PodTemplate","metadata":{"name":"web"},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}`,
	`{"apiVersion":"apps/v1","kind":"ControllerRevision","metadata":{"name":"web"},"revision":1,"data":{"a":"b"}}`,
}

// town is an Admission over inhabitants, made anew for each input.
type town struct {
	api    *Admission
	origin *memory
	calls  []schemas.Call
}

func newTown(f *testing.F) *town {
	api, m := inMemory(f)
	w := &town{api: api, origin: m}
	for _, text := range inhabitants {
		d := schemas.DecodeAll([]byte(text))[0]
		if d.Err != nil {
			f.Fatal(d.Err)
		}
		kind := schemas.KindOf(d.Object)
		call := schemas.Call{Verb: schemas.VerbCreate, Resource: kind.Resource}
		if kind.Namespaced {
			call.Namespace = "default"
		}
		if _, _, st := api.Handle(f.Context(), call, nil, []byte(text)); st != nil {
			f.Logf("a cluster without %s: %s", kind.Resource, st.Message)
		}
	}
	if _, err := m.Create(f.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}); err != nil {
		f.Fatal(err)
	}
	w.calls = everyCall()
	return w
}

// everyCall is each verb on each resource and subresource, of what is there, of
// what is not, and of all.
func everyCall() []schemas.Call {
	var out []schemas.Call
	resources := []string{schemas.Secrets, "widgets"}
	for _, k := range schemas.Kinds {
		if k.Refused == "" {
			resources = append(resources, k.Resource)
		}
	}
	slices.Sort(resources)
	for _, verb := range Verbs {
		for _, r := range resources {
			ns := "default"
			if k, ok := schemas.KindByResource(r); ok && !k.Namespaced {
				ns = ""
			}
			for _, sub := range []string{"", schemas.SubStatus, schemas.SubScale, schemas.SubBinding, schemas.SubEviction, schemas.SubMetrics} {
				for _, name := range []string{"web", "new", ""} {
					if sub == "" || name == "web" {
						out = append(out, schemas.Call{Verb: verb, Resource: r, Subresource: sub, Namespace: ns, Name: name})
					}
				}
			}
		}
	}
	return append(out, schemas.Call{Verb: schemas.VerbList, Resource: schemas.Pods}, schemas.Call{Verb: schemas.VerbCreate, Resource: schemas.Pods, Name: "free", Namespace: "default", Subresource: schemas.SubBinding},
		schemas.Call{Verb: schemas.VerbPatch, Resource: schemas.Nodes, Name: "n1"}, schemas.Call{Verb: "sing", Resource: schemas.Pods, Name: "web", Namespace: "default"})
}

// found is where a call stands in everyCall.
func (w *town) found(verb, resource, sub, name string) uint16 {
	for i, c := range w.calls {
		if c.Verb == verb && c.Resource == resource && c.Subresource == sub && c.Name == name {
			return uint16(i)
		}
	}
	panic(verb + resource + sub + name)
}

// anew empties the town of what the last input left.
func (w *town) anew(t *testing.T) *memory {
	m := newMemory(t)
	m.at, m.bodies, m.objects = w.origin.at, maps.Clone(w.origin.bodies), maps.Clone(w.origin.objects)
	w.api.store, w.api.encoded.kept, w.api.encoded.size = m, nil, 0
	w.api.addresses.reservations, w.api.addresses.view = given{}, m.View
	return m
}

// patience is for an input of at most fuzzed bytes on a machine that is busy:
// what takes longer never ends.
const (
	patienceOfFuzz = 30 * time.Second
	fuzzed         = 64 << 10
)

// call makes a call and holds what is true of every answer.
func (w *town) call(t *testing.T, c schemas.Call, header map[string][]string, body []byte) (out []byte, st *metav1.Status) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfFuzz)
	defer cancel()
	out, outHeader, st := w.api.Handle(ctx, c, header, body)
	if ctx.Err() != nil {
		t.Fatalf("%+v took longer than %v", c, patienceOfFuzz)
	}
	for name, values := range outHeader {
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n") {
				t.Errorf("header %s has more than one line: %q", name, v)
			}
		}
	}
	switch {
	case st == nil && !json.Valid(out):
		t.Errorf("%+v: the answer is no JSON: %.200q", c, out)
	case st == nil:
	case out != nil || outHeader != nil:
		t.Errorf("%+v: a refusal and an answer", c)
	case isAway(st) && (sessionVerb(c.Verb) || c.Verb == schemas.VerbLog || c.Subresource == schemas.SubMetrics):
	case st.Code < 400 || st.Code >= 500 && st.Code != http.StatusGatewayTimeout || st.Kind != "Status" || st.APIVersion != "v1" ||
		st.Status != metav1.StatusFailure || st.Reason == "" || st.Message == "":
		t.Errorf("%+v: not a refusal of the API: %+v", c, st)
	default:
		text, err := json.Marshal(st)
		if err != nil || !utf8.Valid(text) || len(text) > 1<<20 {
			t.Errorf("%+v: a refusal of %d bytes: %v", c, len(text), err)
		}
	}
	return out, st
}

// lives holds of an object that is stored that every later call takes it: it is
// read, defaulted and validated as it is, and written again it is the same.
func (w *town) lives(t *testing.T, m *memory, key string) {
	t.Helper()
	body := m.bodies[key]
	o, err := schemas.Decode(body)
	if err != nil {
		t.Fatalf("%s is stored and cannot be read: %v\n%s", key, err, body)
	}
	again, err := json.Marshal(o)
	if err != nil || !bytes.Equal(again, body) {
		t.Fatalf("%s is stored as\n%s\nand read as\n%s, %v", key, body, again, err)
	}
	if errs := schemas.ValidateUpdate(o, o); len(errs) > 0 {
		t.Fatalf("%s is stored and invalid: %v\n%s", key, errs, body)
	}
	kind := schemas.KindOf(o)
	c := schemas.Call{Verb: schemas.VerbGet, Resource: kind.Resource, Namespace: o.GetNamespace(), Name: o.GetName()}
	shown, st := w.call(t, c, nil, nil)
	if st != nil {
		t.Fatalf("%s is stored and not got: %s", key, st.Message)
	}
	if kind.SystemOnly && kind.Resource != schemas.Nodes || o.GetDeletionTimestamp() != nil {
		return
	}
	c.Verb = schemas.VerbUpdate
	if _, st := w.call(t, c, nil, shown); st != nil {
		t.Fatalf("%s is stored and may not be written as it is: %s\n%s", key, st.Message, shown)
	}
	header := map[string][]string{schemas.HeaderContentType: {schemas.PatchMerge}}
	c.Verb = schemas.VerbPatch
	if _, st := w.call(t, c, header, []byte(`{"metadata":{"annotations":{"a.example/later":"1"}}}`)); st != nil && st.Code != http.StatusRequestEntityTooLarge &&
		!strings.Contains(st.Message, "annotations: Too long") {
		t.Fatalf("%s is stored and takes no annotation: %s\n%s", key, st.Message, shown)
	}
}

// FuzzAdmission makes two calls, with whatever headers and bodies, on a cluster
// that has something of each kind. Whatever they are, each is answered in time
// as the API answers, and what is stored by then is good for every later call.
func FuzzAdmission(f *testing.F) {
	w := newTown(f)
	types := []string{"", schemas.PatchJSON, schemas.PatchMerge, schemas.PatchStrategic, schemas.PatchApply, "text/plain"}
	get, list := w.found(schemas.VerbGet, schemas.Pods, "", "web"), w.found(schemas.VerbList, schemas.Pods, "", "")
	patch, create := w.found(schemas.VerbPatch, schemas.Deployments, "", "web"), w.found(schemas.VerbCreate, schemas.Pods, "", "new")
	for _, text := range inhabitants {
		d := schemas.DecodeAll([]byte(text))[0]
		r := schemas.KindOf(d.Object).Resource
		update := w.found(schemas.VerbUpdate, r, "", "web")
		f.Add(update, uint8(0), `{"dryRun":["All"]}`, []byte(text), w.found(schemas.VerbDelete, r, "", "web"), uint8(0), "", []byte(`{"propagationPolicy":"Foreground"}`))
		f.Add(w.found(schemas.VerbPatch, r, "", "web"), uint8(4), `{"fieldManager":"m","force":true}`, []byte(text), update, uint8(0), `{"fieldManager":"n"}`, []byte(text))
		f.Add(w.found(schemas.VerbApply, r, "", "web"), uint8(0), "", []byte(text), w.found(schemas.VerbPatch, r, "", "web"), uint8(3), "", []byte(`{"metadata":{"labels":{"x":"y"}}}`))
		f.Add(w.found(schemas.VerbUpdate, r, schemas.SubStatus, "web"), uint8(0), "", []byte(text), get, uint8(0), "", []byte(`{"resourceVersion":"1"}`))
		f.Add(w.found(schemas.VerbDeleteCollection, r, "", ""), uint8(0), `{"labelSelector":"app in (web)","limit":1}`, []byte(`{"gracePeriodSeconds":0}`), w.found(schemas.VerbWatch, r, "", ""), uint8(0), "", []byte(`{"resourceVersion":"1","allowWatchBookmarks":true}`))
	}
	for _, s := range []struct {
		call    uint16
		kind    uint8
		options string
		body    string
	}{
		{patch, 1, "", `[{"op":"add","path":"/metadata/labels","value":{"a":"b"}},{"op":"copy","from":"/metadata/labels","path":"/spec/template/metadata/labels"}]`},
		{patch, 2, "", `{"spec":{"replicas":null,"strategy":{"type":"Recreate"}}}`},
		{patch, 3, "", `{"spec":{"template":{"spec":{"containers":[{"name":"web","$patch":"delete"},{"name":"b","image":"c"}]}}}}`},
		{w.found(schemas.VerbPatch, schemas.ConfigMaps, "", "web"), 1, "", `[{"op":"move","from":"/data/a","path":"/data/b"},{"op":"remove","path":"/binaryData"}]`},
		{w.found(schemas.VerbPatch, schemas.Pods, "", "web"), 3, "", `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a.example/b"]},"spec":{"containers":[{"name":"c","image":"j"}]}}`},
		{w.found(schemas.VerbPatch, schemas.Deployments, schemas.SubScale, "web"), 2, "", `{"spec":{"replicas":3}}`},
		{w.found(schemas.VerbPatch, schemas.Pods, schemas.SubStatus, "web"), 3, "", `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"podIPs":[{"ip":"10.0.0.1"}]}}`},
		{list, 0, "", `{"labelSelector":"a in (b,c),!d","fieldSelector":"spec.nodeName=n1","limit":1}`},
		{list, 0, "", `{"continue":"eyJydiI6MTAsIm5hbWUiOiJ3ZWIifQ"}`},
		{w.found(schemas.VerbList, schemas.Pods, schemas.SubMetrics, "web"), 0, "", `{"limit":1}`},
		{uint16(len(w.calls) - 3), 0, "", `{"apiVersion":"v1","kind":"Binding","metadata":{"labels":{"x":"y"}},"target":{"name":"n1"}}`},
		{w.found(schemas.VerbCreate, schemas.Pods, schemas.SubEviction, "web"), 0, "", `{"apiVersion":"policy/v1","kind":"Eviction","deleteOptions":{"gracePeriodSeconds":1}}`},
		{uint16(len(w.calls) - 2), 2, "", `{"metadata":{"labels":{"disk":"ssd"}},"spec":{"unschedulable":true}}`},
		{w.found(schemas.VerbExec, schemas.Pods, "", "web"), 0, "", `{"session":"0123456789abcdef","command":["sh"]}`},
		{w.found(schemas.VerbLog, schemas.Pods, "", "web"), 0, "", `{"tailLines":-1,"cursor":"0:0"}`},
		{w.found(schemas.VerbSchema, schemas.Pods, "", ""), 0, "", `{}`},
		{w.found(schemas.VerbApply, schemas.Deployments, "", "new"), 0, "", strings.Replace(web, "name: web", "name: new", 1)},
		{w.found(schemas.VerbPatch, schemas.Deployments, "", "new"), 4, `{"fieldManager":"m"}`, strings.Replace(web, "name: web", "name: new", 1)},
		{w.found(schemas.VerbPatch, schemas.Deployments, schemas.SubScale, "web"), 4, `{"fieldManager":"m"}`, `{"apiVersion":"autoscaling/v1","kind":"Scale","spec":{"replicas":3}}`},
		{w.found(schemas.VerbCreate, schemas.Pods, "", ""), 0, "", strings.Replace(pod("x", ""), `"name":"x"`, `"generateName":"x-"`, 1)},
		{w.found(schemas.VerbCreate, schemas.Services, "", ""), 0, "", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"b"},"spec":{"clusterIP":"10.96.0.5","ports":[{"port":80}]}}`},
		{w.found(schemas.VerbUpdate, schemas.Pods, "", "web"), 0, "", strings.Replace(pod("web", ""), `"name":"web"`, `"name":"web","resourceVersion":"1"`, 1)},
		{w.found(schemas.VerbGet, schemas.Secrets, "", "web"), 0, "", ""},
		{w.found(schemas.VerbGet, "widgets", "", "web"), 0, "", ""},
		{uint16(len(w.calls) - 1), 5, "", ""},
	} {
		f.Add(s.call, s.kind, s.options, []byte(s.body), create, uint8(0), "", []byte(pod("new", "")))
	}
	f.Fuzz(func(t *testing.T, first uint16, firstType uint8, firstOptions string, firstBody []byte, second uint16, secondType uint8, secondOptions string, secondBody []byte) {
		if len(firstBody)+len(secondBody)+len(firstOptions)+len(secondOptions) > fuzzed {
			t.Skip("more of the same; the limits of size have tests of their own")
		}
		m := w.anew(t)
		for _, c := range []struct {
			which   uint16
			kind    uint8
			options string
			body    []byte
		}{{first, firstType, firstOptions, firstBody}, {second, secondType, secondOptions, secondBody}} {
			header := map[string][]string{schemas.HeaderContentType: {types[int(c.kind)%len(types)]}, schemas.HeaderOptions: {c.options}, schemas.HeaderRequest: {"1"}}
			call := w.calls[int(c.which)%len(w.calls)]
			body := slices.Clone(c.body)
			w.call(t, call, header, c.body)
			if !bytes.Equal(body, c.body) {
				t.Errorf("%+v wrote into its request", call)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(m.bodies)) {
			if !bytes.Equal(m.bodies[key], w.origin.bodies[key]) {
				w.lives(t, m, key)
			}
		}
		for _, kind := range schemas.Kinds {
			if kind.Refused == "" {
				w.call(t, schemas.Call{Verb: schemas.VerbList, Resource: kind.Resource}, nil, nil)
			}
		}
	})
}
