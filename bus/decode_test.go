package bus

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/schemas"
)

// everyPodField is the pod in which every field has a value, of k8s.io/api.
func everyPodField(t testing.TB) []byte {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatalf("find module k8s.io/api: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "testdata", "HEAD", "core.v1.Pod.json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPodsDecodeAsPlainly(t *testing.T) {
	pods, _ := schemas.KindByResource(schemas.Pods)
	for _, data := range []string{
		string(everyPodField(t)),
		`{}`,
		`{"metadata":null,"spec":null,"status":null}`,
		`{"metadata":{"labels":null,"ownerReferences":[]},"spec":{"containers":null,"volumes":[],"nodeSelector":{},"affinity":{},"securityContext":null}}`,
		`{"metadata":{"name":"a","labels":{"a":"b"}},"spec":{"nodeName":"n","containers":[{"name":"c","resources":{"limits":{"cpu":"1"}}}]}}`,
	} {
		var want corev1.Pod
		if err := json.Unmarshal([]byte(data), &want); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second takes its parts from the first
			got, err := decodeObject(pods, []byte(data))
			if err != nil {
				t.Fatalf("%.80s: %v", data, err)
			}
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("%.80s: %s", data, diff)
			}
		}
	}
}

func TestPodsShareWhatIsAlike(t *testing.T) {
	pods, _ := schemas.KindByResource(schemas.Pods)
	read := func(name string) *corev1.Pod {
		o, err := decodeObject(pods, []byte(`{"metadata":{"name":"`+name+`"},"spec":{"containers":[{"name":"share","image":"i"}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		return o.(*corev1.Pod)
	}
	a, b := read("a"), read("b")
	if &a.Spec.Containers[0] != &b.Spec.Containers[0] {
		t.Error("two pods of one template hold their containers twice")
	}
	if a.Name == b.Name {
		t.Error("the pods are one")
	}
}

// FuzzDecodePod: whatever pod is stored is read as a plain decoder reads it.
// What is stored was encoded, so no field is there twice.
func FuzzDecodePod(f *testing.F) {
	f.Add(everyPodField(f))
	f.Add([]byte(`{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c"}]}}`))
	f.Add([]byte(`{"spec":{"containers":{}}}`))
	pods, _ := schemas.KindByResource(schemas.Pods)
	f.Fuzz(func(t *testing.T, data []byte) {
		pod := &corev1.Pod{}
		if json.Unmarshal(data, pod) != nil {
			t.Skip("no pod")
		}
		stored, err := json.Marshal(pod)
		if err != nil {
			t.Skip("cannot be stored")
		}
		want := &corev1.Pod{}
		if err := json.Unmarshal(stored, want); err != nil {
			t.Fatal(err)
		}
		got, err := decodeObject(pods, stored)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}
