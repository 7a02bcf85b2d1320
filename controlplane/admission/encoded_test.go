package admission

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"gantry.dev/schemas"
)

func namedPod(name, label string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"l": label}},
	}
}

func TestEncodedFollowsTheObject(t *testing.T) {
	var e encoded
	for _, o := range []schemas.Object{namedPod("a", "<1>"), namedPod("b", "1"), namedPod("a", "2")} {
		want, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, err := e.of(o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("JSON of %s (-want +got):\n%s", schemas.KeyOf(o), diff)
			}
		}
	}
	if len(e.kept) != 2 {
		t.Errorf("%d objects are kept, want the newest of each of two", len(e.kept))
	}
}

func TestEncodedIsBounded(t *testing.T) {
	var e encoded
	large := strings.Repeat("x", maxEncoded/4)
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		if _, err := e.of(namedPod(name, large)); err != nil {
			t.Fatal(err)
		}
		held := 0
		for _, k := range e.kept {
			held += len(k.data)
		}
		if held != e.size || held > maxEncoded {
			t.Errorf("after %s: %d bytes are held and %d counted, at most %d may be", name, held, e.size, maxEncoded)
		}
	}
}

func TestListReplyIsJSON(t *testing.T) {
	for _, items := range [][][]byte{nil, {[]byte(`{"a":1}`)}, {[]byte(`{"a":1}`), []byte(`{"b":2}`)}} {
		data, err := listReply{Kind: "PodList", APIVersion: "v1", Metadata: metav1.ListMeta{ResourceVersion: "7"}, items: items}.encode()
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Kind     string
			Metadata metav1.ListMeta
			Items    []json.RawMessage
		}
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if got.Kind != "PodList" || got.Metadata.ResourceVersion != "7" || got.Items == nil || len(got.Items) != len(items) {
			t.Errorf("%d items became %s", len(items), data)
		}
	}
}

func TestWatchReplyIsTheWireType(t *testing.T) {
	w := watchReply{encoded: &encoded{}, revision: 9}
	var want schemas.WatchReply
	for n, event := range []watch.EventType{"", watch.Added, watch.Modified, watch.Deleted} {
		if event != "" {
			o := namedPod("a", string(event))
			if !w.add(event, o) {
				t.Fatal("it does not fit")
			}
			data, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			want.Items = append(want.Items, metav1.WatchEvent{Type: string(event), Object: runtime.RawExtension{Raw: data}})
		}
		var got schemas.WatchReply
		if err := json.Unmarshal(w.reply().body, &got); err != nil {
			t.Fatal(err)
		}
		want.ResourceVersion = "9"
		if n == 0 {
			want.Items = []metav1.WatchEvent{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d events (-want +got):\n%s", n, diff)
		}
	}
	if w.add(watch.Added, namedPod("large", strings.Repeat("x", maxReply))) {
		t.Error("an answer takes more than the bus does")
	}
}
