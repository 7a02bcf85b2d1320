package admission

import (
	"encoding/json"
	"strings"
	"testing"

	"gantry.dev/bus/examples"
	"gantry.dev/schemas"
)

// TestDocs tells the story in docs/bus.md to an API without nodes. What needs
// them, the end-to-end tests replay.
func TestDocs(t *testing.T) {
	all, err := examples.Read("../../docs/bus.md")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	revision := ""
	told := map[string]bool{}
	for i, e := range all {
		if e.Verb != "api" {
			continue
		}
		if i+1 == len(all) || all[i+1].Verb != "answer" {
			t.Errorf("docs/bus.md:%d: no answer follows", e.Line)
			continue
		}
		call, err := schemas.Names{}.ParseAPI(e.Args[0])
		if err != nil {
			t.Fatalf("docs/bus.md:%d: %v", e.Line, err)
		}
		if sessionVerb(call.Verb) || call.Subresource == schemas.SubMetrics {
			continue
		}
		told[call.Verb] = true
		out, _, st := w.api.Handle(w.ctx, call, e.Headers(), []byte(strings.ReplaceAll(e.Body, "REVISION", revision)))
		if st != nil {
			if out, err = json.Marshal(st); err != nil {
				t.Fatal(err)
			}
		}
		var want, got any
		if err := json.Unmarshal([]byte(all[i+1].Body), &want); err != nil {
			t.Fatalf("docs/bus.md:%d: %v", all[i+1].Line, err)
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Errorf("docs/bus.md:%d: %s answers %q: %v", e.Line, e.Args[0], out, err)
			continue
		}
		if diff := examples.Missing(want, got); diff != "" {
			t.Errorf("docs/bus.md:%d: %s answers %s\nwhich %s", e.Line, e.Args[0], out, diff)
		}
		if m, ok := got.(map[string]any); ok {
			if r, ok := m["resourceVersion"].(string); ok {
				revision = r
			}
		}
	}
	for _, verb := range Verbs {
		if !told[verb] && !sessionVerb(verb) {
			t.Errorf("docs/bus.md has no example of %s", verb)
		}
	}
}
