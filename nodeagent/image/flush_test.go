package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry.dev/nodeagent/image/imagetest"
)

func (s *Store) bootOf(t *testing.T, ref string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "images", recordKey(ref)+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		t.Fatal(err)
	}
	return rec.Boot
}

// TestPowerCut: an image counts after a crash of the agent, and after one of
// the machine only if it had reached the disk.
func TestPowerCut(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app:1", imagetest.Image(t, imagetest.Files(t, "bin/app", "v1")))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	pulled(t, s, ref)
	deadline := time.Now().Add(20 * time.Second)
	for s.bootOf(t, ref) != "" {
		if time.Now().After(deadline) {
			t.Fatal("the image was not brought to the disk")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	reopen := func(boot string) *Store {
		t.Helper()
		path := filepath.Join(s.dir, "images", recordKey(ref)+".json")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var rec record
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Fatal(err)
		}
		rec.Boot = boot
		if data, err = json.Marshal(rec); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return openStore(t, Options{Dir: s.dir, InsecureRegistries: []string{reg.Host}})
	}
	for _, boot := range []string{"", bootID()} {
		again := reopen(boot)
		if _, ok := again.Get(ref); !ok {
			t.Errorf("with boot %q the image is gone", boot)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	again := reopen(strings.Repeat("0", 36))
	if _, ok := again.Get(ref); ok {
		t.Error("an image that had not reached the disk is taken for complete")
	}
	if got := layerDirs(t, again); len(got) != 0 {
		t.Errorf("layers = %v", got)
	}
	pulled(t, again, ref)
}
