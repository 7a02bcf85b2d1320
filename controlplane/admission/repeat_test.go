package admission

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

func request(id string, more ...string) map[string]string {
	h := map[string]string{schemas.HeaderRequest: id}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = more[i+1]
	}
	return h
}

// TestARepeatedWriteHappensOnce asks each write twice under one id, by one
// server, by another, and by one that started in between: the answer is the
// same to the byte and nothing is written.
func TestARepeatedWriteHappensOnce(t *testing.T) {
	tests := []struct {
		desc           string
		verb, resource string
		name, body     string
		header         []string
	}{
		{desc: "create", verb: schemas.VerbCreate, resource: "pods", name: "new", body: pod("new", "")},
		{desc: "create with a generated name", verb: schemas.VerbCreate, resource: "pods", body: strings.Replace(pod("", ""), `"name":""`, `"generateName":"job-"`, 1)},
		{desc: "apply that creates", verb: schemas.VerbApply, resource: "deployments", name: "other", body: strings.Replace(web, "name: web\n  labels", "name: other\n  labels", 1)},
		{desc: "apply that changes", verb: schemas.VerbApply, resource: "deployments", name: "web", body: strings.Replace(web, "replicas: 2", "replicas: 4", 1)},
		{desc: "update", verb: schemas.VerbUpdate, resource: "deployments", name: "web", body: strings.Replace(web, "replicas: 2", "replicas: 4", 1)},
		{desc: "JSON patch that appends", verb: schemas.VerbPatch, resource: "deployments", name: "web",
			body: `[{"op":"add","path":"/spec/template/spec/containers/0/env/-","value":{"name":"MORE"}}]`},
		{desc: "server-side apply", verb: schemas.VerbPatch, resource: "configmaps", name: "c", body: fmt.Sprintf(configMap, `"a":"1"`),
			header: []string{schemas.HeaderContentType, schemas.PatchApply, schemas.HeaderOptions, `{"fieldManager":"m"}`}},
		{desc: "scale", verb: schemas.VerbPatch, resource: "deployments/scale", name: "web", body: `{"spec":{"replicas":9}}`},
		{desc: "status", verb: schemas.VerbPatch, resource: "deployments/status", name: "web", body: `{"status":{"readyReplicas":1}}`},
		{desc: "binding", verb: schemas.VerbCreate, resource: "pods/binding", name: "free", body: `{"target":{"name":"n1"}}`},
		{desc: "eviction", verb: schemas.VerbCreate, resource: "pods/eviction", name: "bound", body: `{}`},
		{desc: "delete that marks", verb: schemas.VerbDelete, resource: "pods", name: "bound", body: `{"gracePeriodSeconds":9}`},
		{desc: "delete that removes", verb: schemas.VerbDelete, resource: "pods", name: "free"},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.result(schemas.Deployments, "web", web)
			w.ok(schemas.VerbCreate, schemas.Pods, "default", "bound", pod("bound", `,"nodeName":"n1"`))
			w.ok(schemas.VerbCreate, schemas.Pods, "default", "free", pod("free", ""))
			if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: named("n1")}); err != nil {
				t.Fatal(err)
			}
			other := w.another()
			h := request("id-1", tt.header...)
			first, firstHeader, st := w.with(h, tt.verb, tt.resource, "default", tt.name, tt.body)
			if st != nil {
				t.Fatal(st.Message)
			}
			// Others write the same objects meanwhile.
			for _, name := range []string{"free", "bound", "new"} {
				if o := w.store.View().Get(schemas.Pods, "default", name); o != nil {
					w.ok(schemas.VerbPatch, schemas.Pods, "default", name, `{"metadata":{"labels":{"by":"another"}}}`)
				}
			}
			w.ok(schemas.VerbPatch, schemas.Deployments, "default", "web", `{"metadata":{"labels":{"by":"another"}}}`)
			before := w.store.View().Revision()
			if err := other.store.Reach(w.ctx, schemas.Pods, before); err != nil {
				t.Fatal(err)
			}
			for what, asked := range map[string]*world{"the same": w, "another": other, "a new": w.another()} {
				again, header, st := asked.with(h, tt.verb, tt.resource, "default", tt.name, tt.body)
				if st != nil {
					t.Errorf("%s server: %s", what, st.Message)
					continue
				}
				if again != first || fmt.Sprint(header[schemas.HeaderResult]) != fmt.Sprint(firstHeader[schemas.HeaderResult]) {
					t.Errorf("%s server answers\n%s %v, not\n%s %v", what, again, header, first, firstHeader)
				}
			}
			if after := w.store.View().Revision(); after != before {
				t.Errorf("something was written: %d -> %d", before, after)
			}
			// Another id is another write.
			if tt.desc == "JSON patch that appends" {
				h[schemas.HeaderRequest] = "id-2"
				if again, _, st := w.with(h, tt.verb, tt.resource, "default", tt.name, tt.body); st == nil && again == first {
					t.Error("another id was taken for the same")
				}
			}
		})
	}
}

// another is a second server on the same bus.
func (w *world) another() *world {
	w.t.Helper()
	st, err := bus.OpenStore(w.ctx, w.conn, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	o := w.options
	o.Store = st
	return &world{t: w.t, ctx: w.ctx, server: w.server, conn: w.conn, store: st, api: New(o), options: o, now: w.now}
}

// TestOneOfManyAttemptsIsDone has two servers try the same writes at once, as
// after a lost answer: each is done once.
func TestOneOfManyAttemptsIsDone(t *testing.T) {
	w := newWorld(t)
	servers := []*world{w, w.another()}
	w.ok(schemas.VerbCreate, "configmaps", "default", "c", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","finalizers":["x/f0"]},"data":{}}`)
	if err := servers[1].store.Reach(w.ctx, "configmaps", w.store.View().Revision()); err != nil {
		t.Fatal(err)
	}
	const writes, attempts = 20, 3
	var running sync.WaitGroup
	for i := range writes {
		for try := range attempts {
			running.Go(func() {
				_, _, st := servers[(i+try)%2].with(request(fmt.Sprint("w", i)), schemas.VerbPatch, "configmaps", "default", "c",
					fmt.Sprintf(`[{"op":"add","path":"/metadata/finalizers/-","value":"x/w%d"}]`, i))
				if st != nil {
					t.Errorf("write %d: %s", i, st.Message)
				}
			})
		}
	}
	running.Wait()
	c := decode[corev1.ConfigMap](t, w.ok(schemas.VerbGet, "configmaps", "default", "c", nil))
	if len(c.Finalizers) != writes+1 {
		t.Errorf("%d finalizers of %d writes: %v", len(c.Finalizers)-1, writes, c.Finalizers)
	}
}
