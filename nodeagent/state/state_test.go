package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/schemas"
)

func open(t *testing.T, dir string) (*Store, Loaded) {
	t.Helper()
	s, loaded, err := Open(dir, "c1", "n1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, loaded
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, s *Store) {
	t.Helper()
	must(t, s.PutPod(schemas.PodRecord{UID: "a", Namespace: "default", Name: "a", Revision: 7}))
	must(t, s.PutPod(schemas.PodRecord{UID: "b", Namespace: "default", Name: "b", Revision: 8}))
	must(t, s.Save("a", pod.Record{IP: "10.0.0.1", NetPID: 4}))
	must(t, s.Save("ghost", pod.Record{NetPID: 5}))
	must(t, s.PutRoute(schemas.RouteRecord{Namespace: "default", Name: "web"}))
	must(t, s.PutRoute(schemas.RouteRecord{Namespace: "default", Name: "old"}))
	must(t, s.DeleteRoute("default", "old"))
	must(t, s.PutNetwork(schemas.NetworkRecord{PodCIDR: "10.1.0.0/24"}))
	must(t, s.Advance(12))
	must(t, s.Advance(11))
}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	fill(t, s)
	instance := s.Instance
	must(t, s.Forget("b"))
	must(t, s.Close())
	s, loaded := open(t, dir)
	if s.Instance != instance || len(instance) != 32 {
		t.Errorf("instance %q, before %q", s.Instance, instance)
	}
	if len(loaded.Pods) != 1 || loaded.Pods["a"].Revision != 7 || loaded.Records["a"].IP != "10.0.0.1" {
		t.Errorf("pods %+v, records %+v", loaded.Pods, loaded.Records)
	}
	if len(loaded.Routes) != 1 || loaded.Network == nil || loaded.Network.PodCIDR != "10.1.0.0/24" {
		t.Errorf("routes %v, network %v", loaded.Routes, loaded.Network)
	}
	if diff := cmp.Diff(Meta{ClusterID: "c1", Node: "n1", Revision: 12}, s.Meta()); diff != "" {
		t.Errorf("meta (-want +got):\n%s", diff)
	}
	if orphans := loaded.Orphans(); len(orphans) != 1 || orphans["ghost"].NetPID != 5 {
		t.Errorf("orphans %v", orphans)
	}
	if info, err := os.Stat(filepath.Join(dir, logName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log's mode: %v, %v", info.Mode(), err)
	}
}

func TestDamageCostsOnlyItself(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	fill(t, s)
	must(t, s.Close())
	path := filepath.Join(dir, logName)
	text, err := os.ReadFile(path)
	must(t, err)
	whole := string(text)
	for desc, damage := range map[string]func(string) string{
		"a flipped bit in pod b": func(s string) string { return strings.Replace(s, `"pod/b"`, `"pod/B"`, 1) },
		"a torn last record":     func(s string) string { return s + `00000000 {"k":"pod/b","v":{"uid":"x` },
		"a line of rubbish":      func(s string) string { return "rubbish\n" + s },
		"an empty line":          func(s string) string { return "\n" + s },
	} {
		t.Run(desc, func(t *testing.T) {
			must(t, os.WriteFile(path, []byte(damage(whole)), 0o600))
			s, loaded := open(t, dir)
			if loaded.Pods["a"].Revision != 7 || len(loaded.Routes) != 1 || s.Meta().Revision != 12 {
				t.Errorf("loaded %+v", loaded)
			}
			must(t, s.PutPod(schemas.PodRecord{UID: "c", Revision: 1}))
			must(t, s.Close())
			s, loaded = open(t, dir)
			if loaded.Pods["c"].Revision != 1 {
				t.Error("what was written after the damage is not there")
			}
			must(t, s.Close())
		})
	}
}

func TestOneAgentPerDirectory(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if _, _, err := Open(dir, "c1", "n1", zerolog.Nop()); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second agent: %v", err)
	}
	must(t, s.Close())
	if _, _, err := Open(dir, "c2", "n1", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "cluster c1") {
		t.Errorf("another cluster: %v", err)
	}
	if _, _, err := Open(dir, "c1", "n2", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), `node "n1"`) {
		t.Errorf("another node: %v", err)
	}
}

func TestLogIsCompacted(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	fill(t, s)
	big := pod.Record{IP: strings.Repeat("x", 4<<10), StartTime: time.Unix(1, 0)}
	for range 1000 {
		must(t, s.Save("a", big))
	}
	info, err := os.Stat(filepath.Join(dir, logName))
	must(t, err)
	if info.Size() > 2*compactAt {
		t.Errorf("the log has %d bytes for %d that are alive", info.Size(), s.log.live)
	}
	must(t, s.Close())
	_, loaded := open(t, dir)
	if loaded.Records["a"].IP != big.IP || len(loaded.Pods) != 2 || len(loaded.Routes) != 1 {
		t.Errorf("after compaction: %d pods, %d routes", len(loaded.Pods), len(loaded.Routes))
	}
}

func FuzzDecode(f *testing.F) {
	line, err := encode(entry{Key: "pod/a", Value: []byte(`{"uid":"a"}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Fuzz(func(t *testing.T, line []byte) {
		_, _ = decode(line) // must not panic
	})
}
