package image

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/image/imagetest"
)

// inPrivateMounts runs f in a mount namespace of its own, so that nothing that
// it mounts outlives it.
func inPrivateMounts(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// The thread is never given back: it ends with its namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			done <- err
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// mounted shows the layers as a container sees them.
func mounted(t *testing.T, layers []string) map[string]string {
	t.Helper()
	var out map[string]string
	at := t.TempDir()
	inPrivateMounts(t, func() {
		lower := make([]string, len(layers))
		for i, l := range layers {
			lower[len(layers)-1-i] = l
		}
		// Overlayfs wants two where nothing is written.
		empty := filepath.Join(t.TempDir(), "empty")
		if err := os.Mkdir(empty, 0o755); err != nil {
			t.Error(err)
			return
		}
		lower = append(lower, empty)
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
			t.Errorf("mount overlay: %v", err)
			return
		}
		out = tree(t, at)
		for name := range out {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(at, name), &st); err != nil {
				t.Error(err)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				out[name] = fmt.Sprintf("dir %o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
			}
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return out
}

func TestWhatAContainerSees(t *testing.T) {
	base := []entry{{Name: "d/", Mode: 0o750, UID: 3, GID: 4}, {Name: "d/a", Body: "a"}, {Name: "d/b", Body: "b"}, {Name: "f", Body: "f"}, {Name: "tmp/", Mode: 0o1777}}
	plainD, plainTmp := "dir 750 3:4", "dir 1777 0:0"
	for _, tc := range []struct {
		desc   string
		layers [][]entry
		want   map[string]string
	}{
		{"a whiteout hides a file", [][]entry{base, {{Name: "d/.wh.a"}}},
			map[string]string{"d": plainD, "d/b": "b", "f": "f", "tmp": plainTmp}},
		{"a whiteout hides a directory", [][]entry{base, {{Name: ".wh.d"}}},
			map[string]string{"f": "f", "tmp": plainTmp}},
		{"an opaque directory hides what was in it", [][]entry{base, {{Name: "d/", Mode: 0o700}, {Name: "d/.wh..wh..opq"}, {Name: "d/c", Body: "c"}}},
			map[string]string{"d": "dir 700 0:0", "d/c": "c", "f": "f", "tmp": plainTmp}},
		{"deleted and made anew with the mark first", [][]entry{base, {{Name: ".wh.d"}, {Name: "d/", Mode: 0o700}, {Name: "d/c", Body: "c"}}},
			map[string]string{"d": "dir 700 0:0", "d/c": "c", "f": "f", "tmp": plainTmp}},
		{"deleted and made anew with the mark last", [][]entry{base, {{Name: "d/", Mode: 0o700}, {Name: "d/c", Body: "c"}, {Name: ".wh.d"}}},
			map[string]string{"d": "dir 700 0:0", "d/c": "c", "f": "f", "tmp": plainTmp}},
		{"deleted and made anew without an entry", [][]entry{base, {{Name: ".wh.d"}, {Name: "d/c", Body: "c"}}},
			map[string]string{"d": "dir 755 0:0", "d/c": "c", "f": "f", "tmp": plainTmp}},
		{"a file replaced and marked", [][]entry{base, {{Name: "f", Body: "new"}, {Name: ".wh.f"}}},
			map[string]string{"d": plainD, "d/a": "a", "d/b": "b", "f": "new", "tmp": plainTmp}},
		{"an opaque root hides all", [][]entry{base, {{Name: ".wh..wh..opq"}, {Name: "only", Body: "me"}}},
			map[string]string{"only": "me"}},
		{"directories nobody describes keep their look", [][]entry{base, {{Name: "tmp/x", Body: "x"}, {Name: "d/sub/y", Body: "y"}}},
			map[string]string{"d": plainD, "d/a": "a", "d/b": "b", "d/sub": "dir 755 0:0", "d/sub/y": "y", "f": "f", "tmp": plainTmp, "tmp/x": "x"}},
		{"and keep it through several layers", [][]entry{base, {{Name: "tmp/x", Body: "x"}}, {{Name: "tmp/y", Body: "y"}, {Name: "d/", Mode: 0o711}}},
			map[string]string{"d": "dir 711 0:0", "d/a": "a", "d/b": "b", "f": "f", "tmp": plainTmp, "tmp/x": "x", "tmp/y": "y"}},
		{"but not inside of an opaque directory", [][]entry{{{Name: "d/"}, {Name: "d/sub/", Mode: 0o700}}, {{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/sub/y", Body: "y"}}},
			map[string]string{"d": "dir 755 0:0", "d/sub": "dir 755 0:0", "d/sub/y": "y"}},
		{"but not through a whiteout", [][]entry{base, {{Name: ".wh.tmp"}}, {{Name: "tmp/y", Body: "y"}}},
			map[string]string{"d": plainD, "d/a": "a", "d/b": "b", "f": "f", "tmp": "dir 755 0:0", "tmp/y": "y"}},
		{"the same layer twice", [][]entry{{{Name: "f", Body: "1"}}, {{Name: "f", Body: "2"}}, {{Name: "f", Body: "1"}}},
			map[string]string{"f": "1"}},
	} {
		t.Run(tc.desc, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			var layers []imagetest.Layer
			for _, entries := range tc.layers {
				layers = append(layers, imagetest.Gzip(t, imagetest.Tar(t, entries...)))
			}
			ref := reg.Push(t, "app:1", imagetest.Image(t, layers...))
			s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
			img := pulled(t, s, ref)
			if diff := cmp.Diff(tc.want, mounted(t, img.Layers)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// What was built for the stack outlives garbage collection and a restart.
			if _, err := s.Collect(nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, Options{Dir: s.dir})
			again, ok := s.Get(ref)
			if !ok {
				t.Fatal("not complete after a restart")
			}
			if diff := cmp.Diff(tc.want, mounted(t, again.Layers)); diff != "" {
				t.Errorf("after a restart (-want +got):\n%s", diff)
			}
		})
	}
}

// TestVariantsAreShared: two images whose lower layers agree use one variant;
// an image whose lower layers differ has another.
func TestVariantsAreShared(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	top := imagetest.Files(t, "tmp/x", "x")
	image := func(mode int64, extra string) v1.Image {
		return imagetest.Image(t, imagetest.Gzip(t, imagetest.Tar(t, entry{Name: "tmp/", Mode: mode}, entry{Name: extra})), top)
	}
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	a := pulled(t, s, reg.Push(t, "a:1", image(0o1777, "a")))
	b := pulled(t, s, reg.Push(t, "b:1", image(0o1777, "b")))
	c := pulled(t, s, reg.Push(t, "c:1", image(0o700, "c")))
	d := pulled(t, s, reg.Push(t, "d:1", image(0o755, "d")))
	if a.Layers[1] != b.Layers[1] || a.Layers[1] == c.Layers[1] || a.Layers[1] == d.Layers[1] {
		t.Errorf("a %s\nb %s\nc %s\nd %s", a.Layers[1], b.Layers[1], c.Layers[1], d.Layers[1])
	}
	if n := reg.Count("GET /v2/b/blobs/" + top.Sum.String()); n != 0 {
		t.Errorf("the shared layer was fetched again %d times", n)
	}
}
