package bus

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry.dev/schemas"
)

// TestReadWhatOtherVersionsStored reads objects as other versions left them in
// the bucket: none of them may keep the control plane from starting, or keep
// its owner from changing it (docs/design/0011-how-kinds-evolve.md).
func TestReadWhatOtherVersionsStored(t *testing.T) {
	files, err := filepath.Glob("testdata/stored/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stored objects: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".json"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			var c struct {
				Why     string          `json:"why"`
				Object  json.RawMessage `json:"object"`
				Dropped []string        `json:"dropped"`
			}
			if err := json.Unmarshal(data, &c); err != nil {
				t.Fatal(err)
			}
			var head struct{ APIVersion, Kind string }
			if err := json.Unmarshal(c.Object, &head); err != nil {
				t.Fatal(err)
			}
			kind, ok := schemas.KindByGVK(head.APIVersion, head.Kind)
			if !ok {
				t.Fatalf("no kind %s", head.Kind)
			}
			o, err := decodeObject(kind, c.Object)
			if err != nil {
				t.Fatalf("%s: cannot be read: %v", c.Why, err)
			}
			again, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			want, got := jsonOf(t, c.Object), jsonOf(t, again)
			for _, path := range c.Dropped {
				if !remove(want, strings.Split(path, ".")) {
					t.Errorf("the stored object has no %s", path)
				}
			}
			if d := cmp.Diff(want, within(got, want)); d != "" {
				t.Errorf("%s: not read as it was stored (-stored +read):\n%s", c.Why, d)
			}
			// Users are held to the fields that there are.
			if _, err := schemas.Decode(c.Object); err == nil && len(c.Dropped) > 0 {
				t.Error("a user may write fields that would be dropped")
			}
			before, _ := decodeObject(kind, c.Object)
			schemas.Default(before)
			schemas.Default(o)
			o.SetLabels(map[string]string{"touched": "yes"})
			schemas.Default(o)
			if errs := schemas.ValidateUpdate(o, before); len(errs) > 0 {
				t.Errorf("%s: a label cannot be added: %v", c.Why, errs)
			}
		})
	}
}

// TestStoreKeepsEveryField holds the store's own decoder, which reads Pods in
// parts, against the objects with every field set that k8s.io/api keeps.
func TestStoreKeepsEveryField(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range schemas.Kinds {
		group := kind.GVK.Group
		if group == "" {
			group = "core"
		}
		stored, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "testdata", "HEAD",
			fmt.Sprintf("%s.%s.%s.json", group, kind.GVK.Version, kind.GVK.Kind)))
		if err != nil {
			t.Fatal(err)
		}
		read, err := decodeObject(kind, stored)
		if err != nil {
			t.Errorf("%s: %v", kind.Resource, err)
			continue
		}
		again, err := json.Marshal(read)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(jsonOf(t, stored), jsonOf(t, again)); d != "" {
			t.Errorf("%s: the store loses something (-stored +read):\n%s", kind.Resource, d)
		}
	}
}

func jsonOf(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// remove takes a path out of a JSON value and says whether it was there.
func remove(v any, path []string) bool {
	switch v := v.(type) {
	case map[string]any:
		next, ok := v[path[0]]
		if ok && len(path) == 1 {
			delete(v, path[0])
			return true
		}
		return ok && remove(next, path[1:])
	case []any:
		i, err := strconv.Atoi(path[0])
		return err == nil && i < len(v) && len(path) > 1 && remove(v[i], path[1:])
	}
	return false
}

// within is the part of a JSON value that another one has, too: types write
// empty fields that were not stored.
func within(v, other any) any {
	switch o := other.(type) {
	case map[string]any:
		m, ok := v.(map[string]any)
		if !ok {
			return v
		}
		out := map[string]any{}
		for k := range o {
			if x, ok := m[k]; ok {
				out[k] = within(x, o[k])
			}
		}
		return out
	case []any:
		l, ok := v.([]any)
		if !ok || len(l) != len(o) {
			return v
		}
		out := make([]any, len(l))
		for i := range l {
			out[i] = within(l[i], o[i])
		}
		return out
	}
	return v
}
