package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"gantry.dev/nodeagent/image/imagetest"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func openStore(t *testing.T, o Options) *Store {
	t.Helper()
	needRoot(t)
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "images")
	}
	o.Architecture = "amd64"
	s, err := Open(o, zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func pulled(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(testContext(t), ref, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// tree lists what is below dir: path, kind, mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || rel == "." {
			return err
		}
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out[rel] = string(data)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out[rel] = "-> " + target
		default:
			out[rel] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leftovers are files that a failed or finished pull must not leave. A record
// that is being written to the disk in the background does not count.
func leftovers(t *testing.T, s *Store) []string {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			out = append(out, e.Name())
		}
		if len(out) == 0 || time.Now().After(deadline) || !strings.HasSuffix(out[0], ".json") {
			return out
		}
		time.Sleep(time.Millisecond)
	}
}

func layerDirs(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestASecondProcessCannotOpenTheStore(t *testing.T) {
	s := openStore(t, Options{})
	_, err := Open(Options{Dir: s.dir}, zerolog.Nop())
	if err == nil || !strings.Contains(err.Error(), "another process is using it") {
		t.Fatalf("Open = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Options{Dir: s.dir}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestReopenKeepsImagesAndRemovesWhatNoRecordNames(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app:1", imagetest.Image(t, imagetest.Files(t, "bin/app", "v1")))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	img := pulled(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"tmp/layer-1/root/x", "layers/" + strings.Repeat("ab", 32) + "/half", "images/torn.json.tmp/x"} {
		if err := os.MkdirAll(filepath.Join(s.dir, junk), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "images", "torn.json"), []byte(`{"version":1,"ima`), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Options{Dir: s.dir})
	got, ok := s.Get(ref)
	if !ok {
		t.Fatal("the image is gone")
	}
	if diff := cmp.Diff(img, got); diff != "" {
		t.Errorf("image changed (-before +after):\n%s", diff)
	}
	if got := layerDirs(t, s); len(got) != 1 {
		t.Errorf("layers = %v", got)
	}
	if got := leftovers(t, s); len(got) != 0 {
		t.Errorf("tmp = %v", got)
	}
}

func TestGetDoesNotShowAnImageWhoseLayerWasRemoved(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app:1", imagetest.Image(t, imagetest.Files(t, "bin/app", "v1")))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	img := pulled(t, s, ref)
	if err := os.RemoveAll(img.Layers[0]); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Get(ref); ok {
		t.Fatal("Get shows it")
	}
	again := pulled(t, s, ref)
	if got := tree(t, again.Layers[0])["bin/app"]; got != "v1" {
		t.Errorf("bin/app = %q after the second pull", got)
	}
}

func TestCollectKeepsWhatIsInUseOrHasAName(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	base := imagetest.Files(t, "etc/base", "same")
	push := func(tag, body string) string {
		return reg.Push(t, tag, imagetest.Image(t, base, imagetest.Files(t, "bin/app", body)))
	}
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	ref := push("app:1", "old")
	old := pulled(t, s, ref)
	push("app:1", "new") // the tag moves on
	now := pulled(t, s, ref)
	if old.ID == now.ID || old.Layers[0] != now.Layers[0] {
		t.Fatalf("old %v %v, new %v %v", old.ID, old.Layers, now.ID, now.Layers)
	}

	collect := func(inUse ...string) int64 {
		t.Helper()
		freed, err := s.Collect(inUse)
		if err != nil {
			t.Fatal(err)
		}
		return freed
	}
	if freed := collect(old.ID); freed != 0 {
		t.Errorf("freed %d bytes of an image in use", freed)
	}
	// The claim survives a restart, or running containers would lose their root.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Options{Dir: s.dir})
	if _, err := os.Stat(old.Layers[1]); err != nil {
		t.Fatalf("restart removed a layer that may be in use: %v", err)
	}
	if freed := collect(); freed != 3 {
		t.Errorf("freed %d bytes, want 3", freed)
	}
	if _, err := os.Stat(old.Layers[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old layer: %v", err)
	}
	if _, ok := s.Get(ref); !ok {
		t.Error("the named image is gone")
	}
	if err := s.Remove(ref); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ref); !errors.Is(err, ErrNotPresent) {
		t.Errorf("second Remove = %v", err)
	}
	if len(s.List()) != 0 {
		t.Errorf("List = %v", s.List())
	}
	if freed := collect(now.ID); freed != 0 {
		t.Errorf("freed %d bytes of an image in use", freed)
	}
	collect()
	if got := layerDirs(t, s); len(got) != 0 {
		t.Errorf("layers = %v", got)
	}
}

func TestLayersAreSharedBetweenImages(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	base := imagetest.Files(t, "etc/base", "same")
	a := reg.Push(t, "a:1", imagetest.Image(t, base, imagetest.Files(t, "bin/a", "a")))
	b := reg.Push(t, "b:1", imagetest.Image(t, base, imagetest.Files(t, "bin/b", "b")))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	first, second := pulled(t, s, a), pulled(t, s, b)
	if first.Layers[0] != second.Layers[0] {
		t.Errorf("%s and %s", first.Layers[0], second.Layers[0])
	}
	if n := reg.Count("GET /v2/b/blobs/" + base.Sum.String()); n != 0 {
		t.Errorf("the shared layer was fetched again %d times", n)
	}
	var refs []string
	for _, img := range s.List() {
		refs = append(refs, img.Ref)
	}
	if diff := cmp.Diff([]string{a, b}, refs); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func TestReferencesAreNormalised(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		"web":                             "docker.io/library/web:latest",
		"web:1":                           "docker.io/library/web:1",
		"me/web":                          "docker.io/me/web:latest",
		"docker.io/me/web":                "docker.io/me/web:latest",
		"index.docker.io/me/web":          "docker.io/me/web:latest",
		"localhost:5000/web":              "localhost:5000/web:latest",
		"reg.example/a/b/c:x":             "reg.example/a/b/c:x",
		"web@" + digest:                   "docker.io/library/web@" + digest,
		"reg.example/a:tag@" + digest:     "reg.example/a@" + digest,
		"[fd00::1]:5000/a:1":              "[fd00::1]:5000/a:1",
		"  web ":                          "docker.io/library/web:latest",
		"":                                "",
		"Web":                             "",
		"a b":                             "",
		"http://reg.example/a":            "",
		"web@sha256:12":                   "",
		"../../etc/passwd":                "",
		strings.Repeat("a", 300) + ":tag": "",
	} {
		got, err := Normalize(in)
		if want == "" {
			if !errors.Is(err, ErrBadReference) {
				t.Errorf("Normalize(%q) = %q, %v", in, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("Normalize(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestOpaqueRootsAndDoublesAreLeftOutOfTheStack(t *testing.T) {
	a, b, c := layer{Name: "a"}, layer{Name: "b"}, layer{Name: "c", Opaque: true}
	for _, tc := range []struct {
		desc     string
		in, want []layer
	}{
		{"plain", []layer{a, b}, []layer{a, b}},
		{"double", []layer{a, b, a}, []layer{b, a}},
		{"opaque", []layer{a, c, b}, []layer{c, b}},
		{"opaque on top", []layer{a, b, c}, []layer{c}},
		{"opaque, then double", []layer{a, c, a}, []layer{c, a}},
		{"none", nil, nil},
	} {
		if diff := cmp.Diff(tc.want, distinct(tc.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.desc, diff)
		}
	}
}

func TestFlightEndsWithItsLastWaiter(t *testing.T) {
	var f flight[int]
	began, ended := make(chan struct{}), make(chan struct{})
	work := func(ctx context.Context, _ func(Progress)) (int, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}
	ctx1, cancel1 := context.WithCancel(testContext(t))
	ctx2, cancel2 := context.WithCancel(testContext(t))
	results := make(chan error, 2)
	go func() { _, _, err := f.do(ctx1, "k", nil, work); results <- err }()
	<-began
	joined := make(chan struct{})
	go func() {
		close(joined)
		_, _, err := f.do(ctx2, "k", nil, work)
		results <- err
	}()
	<-joined
	for { // until the second one waits as well
		f.mu.Lock()
		n := f.calls["k"].waiters
		f.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel1()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("first waiter: %v", err)
	}
	select {
	case <-ended:
		t.Fatal("the work ended although somebody waits")
	default:
	}
	cancel2()
	<-ended
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("second waiter: %v", err)
	}
}
