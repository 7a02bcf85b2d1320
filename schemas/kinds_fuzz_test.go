package schemas

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	kjson "sigs.k8s.io/json"
)

// manifestsOf are the manifests of the oracle of one resource, and an empty one.
func manifestsOf(t testing.TB, k Kind) [][]byte {
	files, err := filepath.Glob(filepath.Join("testdata", "kubernetes", k.Resource, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	out := [][]byte{[]byte(`{"metadata":{"name":"a","namespace":"b"},"spec":{}}`)}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range splitDocuments(text) {
			if node, err := parseYAML(c.text); err == nil {
				var v map[string]any
				if node.Decode(&v) != nil || v["kind"] == nil {
					continue // a change to the first
				}
				if data, err := json.Marshal(v); err == nil {
					out = append(out, data)
				}
			}
		}
	}
	return out
}

// FuzzKinds holds for every kind, also for those that are refused, that no
// object makes defaults or validation panic, that defaults settle, that what
// is valid may be updated with itself, and that it is described.
func FuzzKinds(f *testing.F) {
	for i, k := range Kinds {
		all := manifestsOf(f, k)
		for _, data := range all[:min(len(all), 24)] {
			f.Add(uint8(i), data, []byte(`{}`))
		}
		f.Add(uint8(i), all[len(all)-1], all[0])
	}
	f.Fuzz(func(t *testing.T, kind uint8, data, change []byte) {
		if len(data)+len(change) > 64<<10 {
			t.Skip("more of the same")
		}
		k := Kinds[int(kind)%len(Kinds)]
		o := k.New()
		if jsonDepth(data) != nil || jsonDepth(change) != nil || kjson.UnmarshalCaseSensitivePreserveInts(data, o) != nil {
			t.Skip("no object")
		}
		settled := func(what string, o Object, do func(Object)) []byte {
			do(o)
			once, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			do(o)
			twice, err := json.Marshal(o)
			if err != nil || string(twice) != string(once) {
				t.Fatalf("%s twice: %s\nbecame %s, %v", what, once, twice, err)
			}
			return once
		}
		// Once derived, defaults may say more, as in Kubernetes: a Job takes the
		// labels of its template.
		complete := func(o Object) []byte {
			settled("Default", o, Default)
			return settled("Derive", o, Derive)
		}
		stored := complete(o)
		invalid := Validate(o)
		Unsupported(o)
		again := k.New()
		if err := json.Unmarshal(stored, again); err != nil {
			t.Fatalf("what was completed cannot be read: %v\n%s", err, stored)
		}
		o.SetResourceVersion("1")
		again.SetResourceVersion("1")
		if errs := ValidateUpdate(again, o); len(invalid) == 0 && len(errs) > 0 {
			t.Errorf("valid, but not as an update of itself: %v\n%s", errs, stored)
		}
		next := o.DeepCopyObject().(Object)
		if kjson.UnmarshalCaseSensitivePreserveInts(change, next) != nil {
			return
		}
		complete(next)
		DeriveUpdate(next, o)
		for _, e := range slices.Concat(ValidateUpdate(next, o), invalid) {
			if e.Error() == "" {
				t.Error("empty error")
			}
		}
		FirstDifference(next, o)
	})
}
