package admission

import (
	"encoding/json"
	"testing"

	"gantry.dev/schemas"
)

// TestSchemaDescribesEveryResource, and each answer fits into a message.
func TestSchemaDescribesEveryResource(t *testing.T) {
	w := newWorld(t)
	all := decode[schemas.APIResourceList](t, w.ok(schemas.VerbSchema, schemas.AllNamespaces, "", "", nil))
	listed := map[string]bool{}
	for _, r := range all.Resources {
		listed[r.Name] = true
	}
	for _, k := range schemas.Kinds {
		if !listed[k.Resource] {
			t.Errorf("%s is not listed", k.Resource)
		}
		out := w.ok(schemas.VerbSchema, k.Resource, "", "", nil)
		if !json.Valid([]byte(out)) || len(out) > maxReply {
			t.Errorf("the schema of %s has %d bytes", k.Resource, len(out))
		}
	}
	for _, c := range []struct {
		resource, namespace, name, body string
		code                            int32
	}{
		{"widgets", "", "", "", 404}, {"pods", "default", "", "", 400}, {"pods", "", "p", "", 400}, {"pods/status", "", "", "", 400}, {"pods", "", "", "{}", 400},
	} {
		if _, _, st := w.call(schemas.VerbSchema, c.resource, c.namespace, c.name, c.body); st == nil || st.Code != c.code {
			t.Errorf("%+v: %+v", c, st)
		}
	}
	// A kind that is not served is described all the same, and nothing else.
	for _, k := range schemas.Kinds {
		if k.Refused == "" {
			continue
		}
		ns := ""
		if k.Namespaced {
			ns = "default"
		}
		for _, verb := range Verbs {
			if verb == schemas.VerbSchema {
				continue
			}
			if _, _, st := w.call(verb, k.Resource, ns, "x", nil); st == nil || st.Code != 404 {
				t.Errorf("%s of a refused kind: %+v", verb, st)
			}
		}
	}
}
