package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/schemas"
)

// store takes in whatever it is given.
type store struct{ loaded [][]byte }

func (s *store) Load(_ context.Context, path string) ([]image.Image, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(text, []byte("bad")) {
		return nil, fmt.Errorf("load: %w", image.ErrCorrupt)
	}
	s.loaded = append(s.loaded, text)
	return []image.Image{{Ref: "loaded"}}, nil
}

func (s *store) List() []image.Image { return nil }

func header(name string, offset int, last bool) map[string][]string {
	return map[string][]string{
		schemas.HeaderUpload: {name}, schemas.HeaderOffset: {strconv.Itoa(offset)}, schemas.HeaderLast: {strconv.FormatBool(last)},
	}
}

func TestUpload(t *testing.T) {
	s := &store{}
	dir := filepath.Join(t.TempDir(), "uploads")
	images, err := NewImages(s, dir)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	images.Loaded = func() { told++ }
	put := func(name string, offset int, last bool, body string) ([]byte, error) {
		answer, _, err := images.Put(t.Context(), header(name, offset, last), []byte(body))
		return answer, err
	}
	for _, p := range []struct {
		offset int
		body   string
	}{{0, "one "}, {4, "two "}, {4, "two "}, {8, "three"}} { // one piece comes twice
		if answer, err := put("u1", p.offset, false, p.body); err != nil || answer != nil {
			t.Fatalf("piece at %d: %q, %v", p.offset, answer, err)
		}
	}
	answer, err := put("u1", 13, true, "")
	if err != nil {
		t.Fatal(err)
	}
	var loaded []image.Image
	if err := json.Unmarshal(answer, &loaded); err != nil || len(loaded) != 1 || loaded[0].Ref != "loaded" {
		t.Errorf("answer %s: %v", answer, err)
	}
	if len(s.loaded) != 1 || string(s.loaded[0]) != "one two three" || told != 1 {
		t.Errorf("loaded %q, told %d times", s.loaded, told)
	}
	for desc, tt := range map[string]struct {
		header map[string][]string
		body   string
		ok     func(error) bool
	}{
		"a gap":           {header("u2", 5, false), "x", apierrors.IsBadRequest},
		"a path":          {header("../u2", 0, false), "x", apierrors.IsBadRequest},
		"no name":         {map[string][]string{}, "x", apierrors.IsBadRequest},
		"negative offset": {header("u2", -1, false), "x", apierrors.IsBadRequest},
		"too large":       {header("u2", maxUpload, false), "x", apierrors.IsRequestEntityTooLargeError},
		"rubbish":         {header("u3", 0, true), "bad archive", apierrors.IsBadRequest},
	} {
		if _, _, err := images.Put(t.Context(), tt.header, []byte(tt.body)); !tt.ok(err) {
			t.Errorf("%s: %v", desc, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 1 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
	for i := range maxUploads {
		_, err = put(fmt.Sprint("many", i), 0, false, "x")
	}
	if _, more := put("one-more", 0, false, "x"); err != nil && !apierrors.IsTooManyRequests(err) || !apierrors.IsTooManyRequests(more) {
		t.Errorf("uploads beyond the bound: %v, %v", err, more)
	}
	list, _, err := images.List(t.Context(), nil, nil)
	if string(list) != "[]" || err != nil {
		t.Errorf("list: %s, %v", list, err)
	}
}

// one is a node with one pod.
type one struct{ view pod.View }

func (o one) Find(namespace, name string, uid types.UID) (pod.View, bool) {
	return o.view, namespace == "default" && name == "web" && (uid == "" || uid == "u")
}

func TestLogRequests(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	for attempt, text := range []string{"before\n", "now\n"} {
		if err := os.WriteFile(filepath.Join(dir, "a", strconv.Itoa(attempt)+".log"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}, {Name: "b"}}}}
	l := &Logs{Pods: one{pod.View{Want: pod.Desired{UID: "u", Pod: p}, Record: pod.Record{
		Containers: map[string]pod.ContainerRecord{"a": {Attempt: 1, End: &pod.RunEnd{Attempt: 1}}},
	}}}, Dir: func(types.UID) string { return dir }}
	for _, tt := range []struct {
		desc string
		req  string
		body string
		err  string
	}{
		{"now", `{"namespace":"default","pod":"web","container":"a"}`, "now\n", ""},
		{"previous", `{"namespace":"default","pod":"web","container":"a","previous":true}`, "before\n", ""},
		{"which container", `{"namespace":"default","pod":"web"}`, "", "choose one of: [a b]"},
		{"no such container", `{"namespace":"default","pod":"web","container":"x"}`, "", "container x is not valid"},
		{"not started", `{"namespace":"default","pod":"web","container":"b"}`, "", "waiting to start"},
		{"no such pod", `{"namespace":"default","pod":"other"}`, "", `"other" not found`},
		{"another pod of the name", `{"namespace":"default","pod":"web","uid":"v"}`, "", "not found"},
		{"rubbish", `{`, "", "log request"},
	} {
		body, header, err := l.Answer(t.Context(), nil, []byte(tt.req))
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v, want %q", tt.desc, err, tt.err)
		}
		if string(body) != tt.body || err == nil && len(header[schemas.HeaderCursor]) != 1 {
			t.Errorf("%s: %q with %v, want %q", tt.desc, body, header, tt.body)
		}
	}
}
