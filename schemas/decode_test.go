package schemas

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

const podYAML = `apiVersion: v1
kind: Pod
metadata:
  name: a
spec:
  containers:
  - name: c
    image: i:1
`

func TestDecodeProblems(t *testing.T) {
	in := func(old, new string) string { return strings.Replace(podYAML, old, new, 1) }
	tests := []struct {
		desc, in string
		want     []Problem
	}{
		{"unknown field", in("image:", "imgae:"), []Problem{{"spec.containers[0].imgae", `unknown field; did you mean "image"?`, 8}}},
		{"unknown field far from any", in("image:", "zzz:"), []Problem{{"spec.containers[0].zzz", "unknown field", 8}}},
		{"case matters", in("image:", "Image:"), []Problem{{"spec.containers[0].Image", `unknown field; did you mean "image"?`, 8}}},
		{"list for object", in("  name: a", "  - name: a"), []Problem{{"metadata", "want an object, got a list", 3}}},
		{"object for list", in("  - name: c\n    image: i:1\n", "    name: c\n"), []Problem{{"spec.containers", "want a list, got an object", 6}}},
		{"number for string", in("image: i:1", "image: 1"), []Problem{{"spec.containers[0].image", "want a string, got the number 1; put it in quotes", 8}}},
		{"YAML 1.1 boolean for string", in("image: i:1", "image: yes"), []Problem{{"spec.containers[0].image", "want a string, got true; put it in quotes", 8}}},
		{"string for boolean", in("spec:\n", "spec:\n  hostNetwork: \"true\"\n"), []Problem{{"spec.hostNetwork", `want true or false, got the string "true"`, 6}}},
		{"fraction for integer", in("spec:\n", "spec:\n  terminationGracePeriodSeconds: 1.5\n"), []Problem{{"spec.terminationGracePeriodSeconds", "want a whole number (int64), got the number 1.5", 6}}},
		{"number too large", in("image: i:1", "ports: [{containerPort: 3000000000}]"), []Problem{{"spec.containers[0].ports[0].containerPort", "want a whole number (int32), got the number 3000000000", 8}}},
		{"bad quantity", in("image: i:1", "resources: {limits: {cpu: lots}}"), []Problem{{"spec.containers[0].resources.limits[cpu]", "invalid value \"lots\": want a quantity such as 2, 500m or 64Mi", 8}}},
		{"all at once", in("image: i:1", "imagee: i\n    command: x"), []Problem{
			{"spec.containers[0].command", `want a list, got the string "x"`, 9}, {"spec.containers[0].imagee", `unknown field; did you mean "image"?`, 8}}},
		{"doubled in YAML", in("  name: a\n", "  name: a\n  name: b\n"), []Problem{{"", `not valid YAML: key "name" already set in map`, 5}}},
		{"doubled in JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","name":"b"}}`, []Problem{{"metadata.name", "given twice", 0}}},
		{"no kind", "apiVersion: v1\n", []Problem{{"kind", "required: a string such as Deployment", 1}}},
		{"no apiVersion", "kind: Pod\n", []Problem{{"apiVersion", "required: a string such as apps/v1", 1}}},
		{"old version", "kind: Deployment\napiVersion: extensions/v1beta1\n", []Problem{{"apiVersion", `"extensions/v1beta1" has no kind Deployment; write apiVersion: apps/v1`, 2}}},
		{"scalar", "hello\n", []Problem{{"", "want an object with apiVersion, kind and metadata", 1}}},
		{"tab", "apiVersion: v1\n\tkind: Pod\n", []Problem{{"", "not valid YAML: found a tab character that violates indentation", 2}}},
		{"not UTF-8", "apiVersion: v1\nkind: \xff\n", []Problem{{"", "not valid UTF-8", 2}}},
		{"deep", strings.Repeat("[", 200), []Problem{{"", "nested deeper than 100 levels", 1}}},
		{"deep YAML", "a: " + strings.Repeat("[", 150) + strings.Repeat("]", 150), []Problem{{"", "nested deeper than 100 levels", 1}}},
		{"JSON cut off", "{\"apiVersion\":\n\"v1\",\n", []Problem{{"", "not valid JSON: unexpected EOF", 3}}},
		{"empty", "# nothing\n---\n", []Problem{{"", "want one object, got 0", 0}}},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			o, err := Decode([]byte(tt.in))
			var d *DecodeError
			if !errors.As(err, &d) {
				t.Fatalf("got %v, %v", o, err)
			}
			if diff := cmp.Diff(tt.want, d.Problems); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeAllAnswersEach(t *testing.T) {
	in := "# first\n" + podYAML + "---\n" + strings.Replace(podYAML, "image:", "imagee:", 1) +
		"--- # a list\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: i}}\n- {apiVersion: v1, kind: Secret, metadata: {name: s}}\n" +
		"---\n{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"j\"}}\n{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"k\"}}\n...\n" +
		"---\n[{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"l\"}}]\n---\nbroken: [\n"
	var got []string
	for _, d := range DecodeAll([]byte(in)) {
		s := fmt.Sprintf("%d line %d: ", d.Index, d.Line)
		if d.Err != nil {
			s += d.Err.Error()
		} else {
			s += KeyOf(d.Object)
		}
		got = append(got, s)
	}
	want := []string{
		"1 line 2: pods._.a",
		`2 line 11: Pod "a": line 18: spec.containers[0].imagee: unknown field; did you mean "image"?`,
		"3 line 23: namespaces._.i",
		`4 line 24: Secret "s": line 24: kind: Secret is not supported by Gantry yet: nothing keeps Secrets encrypted yet, and no pod can use one; see docs/supported-fields.md`,
		"5 line 26: namespaces._.j",
		"6 line 27: namespaces._.k",
		"7 line 30: namespaces._.l",
		"8 line 31: line 33: not valid YAML: did not find expected node content",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeKeepsWhatWasWritten(t *testing.T) {
	d := DecodeAll([]byte(podYAML))[0]
	want := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"image":"i:1","name":"c"}]}}`
	if diff := cmp.Diff(want, string(d.JSON)); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeSizes(t *testing.T) {
	big := strings.Replace(podYAML, "i:1", strings.Repeat("x", MaxObjectBytes), 1)
	var d *DecodeError
	if _, err := Decode([]byte(big)); !errors.As(err, &d) || !d.TooLarge || d.Name != "a" {
		t.Errorf("object: %v", d)
	}
	// An alias bomb is refused by its expansion, not expanded first.
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	if _, err := Decode([]byte(bomb)); err == nil {
		t.Error("alias bomb accepted")
	}
}

// FuzzDecode holds that nothing makes the decoder panic, that each error says
// something, and that what is accepted survives being written and read again.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{podYAML, "---\n" + podYAML + "---\n", `[{}]`, `{"apiVersion":"v1","kind":"List","items":[{}]}`,
		"a: &a [*a]", "<<: {a: b}", "? [a]\n: b", "\xef\xbb\xbfkind: Pod", "%YAML 1.2\n---\nkind: Pod", `{"apiVersion":"v1","kind":"Pod","spec":null}`,
		"- kind: Pod\n  apiVersion: v1", `{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":1e9}}`, "!!binary x", "kind: |\n  x\n---"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range DecodeAll(data) {
			if (d.Object == nil) == (d.Err == nil) || d.Index == 0 {
				t.Fatalf("object %v and error %v at %d", d.Object, d.Err, d.Index)
			}
			if d.Err != nil {
				if d.Err.Error() == "" {
					t.Fatal("empty error")
				}
				continue
			}
			written, err := json.Marshal(d.Object)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode(written)
			if err != nil {
				t.Fatalf("read again: %v\n%s", err, written)
			}
			rewritten, err := json.Marshal(again)
			if err != nil || string(rewritten) != string(written) {
				t.Fatalf("%s\nbecame\n%s, %v", written, rewritten, err)
			}
			Default(again)
			Validate(again)
			Unsupported(again)
		}
	})
}

func TestKindsDecodeAsThemselves(t *testing.T) {
	for _, k := range Kinds {
		if k.Refused != "" {
			continue
		}
		o, err := Decode([]byte(fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":"x"}}`, k.GVK.GroupVersion(), k.GVK.Kind)))
		if err != nil {
			t.Errorf("%s: %v", k.Resource, err)
			continue
		}
		if got := KindOf(o).Resource; got != k.Resource {
			t.Errorf("%s became %s", k.Resource, got)
		}
	}
	if _, ok := any(kindByResource[Pods].New()).(*corev1.Pod); !ok {
		t.Error("pods make no Pod")
	}
}
