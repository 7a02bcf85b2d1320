package admission

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

func parse(t testing.TB, s string) map[string]any {
	t.Helper()
	if s == "" {
		return nil
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMergeApply(t *testing.T) {
	podType, deployType := reflect.TypeFor[*corev1.Pod](), reflect.TypeFor[*appsv1.Deployment]()
	tests := []struct {
		desc                              string
		t                                 reflect.Type
		original, modified, current, want string
	}{
		{"others' fields stay", podType, ``, `{"metadata":{"labels":{"a":"1"}}}`, `{"metadata":{"labels":{"b":"2"},"uid":"u"}}`, `{"metadata":{"labels":{"a":"1","b":"2"},"uid":"u"}}`},
		{"said before and not now", podType, `{"metadata":{"labels":{"a":"1","c":"3"}}}`, `{"metadata":{"labels":{"a":"1"}}}`, `{"metadata":{"labels":{"a":"1","b":"2","c":"3"}}}`, `{"metadata":{"labels":{"a":"1","b":"2"}}}`},
		{"a whole object taken out", podType, `{"metadata":{"labels":{"a":"1"}}}`, `{"metadata":{}}`, `{"metadata":{"labels":{"a":"1"},"uid":"u"}}`, `{"metadata":{"uid":"u"}}`},
		{"null takes out", podType, ``, `{"metadata":{"labels":null}}`, `{"metadata":{"labels":{"a":"1"}}}`, `{"metadata":{}}`},
		{"containers by name", podType, `{"spec":{"containers":[{"name":"a"},{"name":"gone"}]}}`,
			`{"spec":{"containers":[{"name":"b","image":"2"},{"name":"a","image":"1"}]}}`,
			`{"spec":{"containers":[{"name":"a","image":"0","terminationMessagePath":"/x"},{"name":"gone"},{"name":"injected"}]}}`,
			`{"spec":{"containers":[{"name":"b","image":"2"},{"name":"a","image":"1","terminationMessagePath":"/x"},{"name":"injected"}]}}`},
		{"ports by number and protocol", podType, ``,
			`{"spec":{"containers":[{"name":"a","ports":[{"containerPort":53},{"containerPort":53,"protocol":"UDP","name":"u"}]}]}}`,
			`{"spec":{"containers":[{"name":"a","ports":[{"containerPort":53,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]}]}}`,
			`{"spec":{"containers":[{"name":"a","ports":[{"containerPort":53,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP","name":"u"}]}]}}`},
		{"arguments as a whole", podType, ``, `{"spec":{"containers":[{"name":"a","args":["x"]}]}}`, `{"spec":{"containers":[{"name":"a","args":["y","z"]}]}}`, `{"spec":{"containers":[{"name":"a","args":["x"]}]}}`},
		{"finalizers as a set", podType, `{"metadata":{"finalizers":["a","b"]}}`, `{"metadata":{"finalizers":["a"]}}`, `{"metadata":{"finalizers":["a","b","theirs"]}}`, `{"metadata":{"finalizers":["a","theirs"]}}`},
		{"strategy keeps what is said only", deployType, ``, `{"spec":{"strategy":{"type":"Recreate"}}}`, `{"spec":{"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1}}}}`, `{"spec":{"strategy":{"type":"Recreate"}}}`},
		{"strategy still said", deployType, ``, `{"spec":{"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":2}}}}`, `{"spec":{"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}`,
			`{"spec":{"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":2,"maxUnavailable":0}}}}`},
		{"the last apply of a first version", podType, ``, `{"spec":{"nodeSelector":{"a":"b"}}}`, ``, `{"spec":{"nodeSelector":{"a":"b"}}}`},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			original, modified, current := parse(t, tt.original), parse(t, tt.modified), parse(t, tt.current)
			got := mergeApply(original, modified, current, tt.t)
			if diff := cmp.Diff(parse(t, tt.want), got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(parse(t, tt.current), current); diff != "" {
				t.Error("changed what is stored: " + diff)
			}
			if diff := cmp.Diff(got, mergeApply(modified, modified, got, tt.t)); diff != "" {
				t.Error("applying it again changes something: " + diff)
			}
		})
	}
}

// TestMergePatch replays the examples of RFC 7386's appendix that concern objects.
func TestMergePatch(t *testing.T) {
	for _, tt := range []struct{ current, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		if diff := cmp.Diff(any(parse(t, tt.want)), mergePatch(parse(t, tt.current), parse(t, tt.patch))); diff != "" {
			t.Errorf("%s with %s: %s", tt.current, tt.patch, diff)
		}
	}
}

// TestApplyProperties: whatever was stored, what a manifest says holds
// afterwards, what it says no more is gone, and the rest is untouched.
func TestApplyProperties(t *testing.T) {
	labels := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.SampledFrom([]string{"1", "2"}))
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (map[string]any, map[string]any) {
			m := map[string]any{}
			for k, v := range labels.Draw(t, name) {
				m[k] = v
			}
			return map[string]any{"metadata": map[string]any{"labels": m}}, m
		}
		original, before := draw("original")
		modified, said := draw("modified")
		current, was := draw("current")
		out := mergeApply(original, modified, current, reflect.TypeFor[*corev1.Pod]())
		got := out["metadata"].(map[string]any)["labels"].(map[string]any)
		for _, k := range []string{"a", "b", "c", "d"} {
			want, ok := said[k]
			if _, mine := before[k]; !ok && !mine {
				want, ok = was[k]
			}
			have, there := got[k]
			if there != ok || have != want {
				t.Fatalf("%s is %v, want %v", k, have, want)
			}
		}
	})
}
