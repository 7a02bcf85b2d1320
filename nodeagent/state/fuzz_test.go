package state

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

// FuzzOpen opens whatever is left of a state: damaged, cut off, or of records
// that are not ours. What is written afterwards is there after the next start,
// and what was read before it, still.
func FuzzOpen(f *testing.F) {
	var lines []byte
	for _, e := range []entry{
		{Key: "meta", Value: []byte(`{"node":"n1","clusterID":"c1","revision":7}`)}, {Key: "pod/a", Value: []byte(`{"uid":"a","name":"a","pod":null}`)},
		{Key: "record/a", Value: []byte(`{"ip":"10.0.0.1"}`)}, {Key: "route/default/web", Value: []byte(`{"name":"web"}`)},
		{Key: "route/default/web", Delete: true}, {Key: "pod/b", Value: []byte(`[]`)}, {Key: "", Value: []byte(`1`)},
	} {
		line, err := encode(e)
		if err != nil {
			f.Fatal(err)
		}
		lines = append(lines, line...)
		f.Add(line)
	}
	f.Add(lines)
	f.Add(lines[:len(lines)-3])
	f.Add([]byte("\n\n00000000 \n00000000 null\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, logName), content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, before, err := Open(dir, "c1", "n1", zerolog.Nop())
		if err != nil {
			return // of another node or cluster
		}
		if err := s.PutPod(schemas.PodRecord{UID: "new", Name: "new"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, after, err := Open(dir, "c1", "n1", zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { must(t, s.Close()) }()
		if after.Pods["new"].Name != "new" {
			t.Error("what was written is not read")
		}
		before.Pods["new"] = after.Pods["new"]
		if diff := cmp.Diff(before, after); diff != "" {
			t.Error(diff)
		}
	})
}
