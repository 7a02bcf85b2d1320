package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/image/imagetest"
)

type entry = imagetest.Entry

// TestHostileLayers: whatever a layer tries, nothing outside of the store
// changes; what tries to leave its root or costs too much is refused by name,
// and a refused layer leaves nothing.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	up := strings.Repeat("../", 30)
	climb := up + strings.TrimPrefix(outside, "/")
	long := strings.Repeat("d/", 2100)
	zeros := strings.Repeat("\x00", 1<<20)

	tests := []struct {
		desc    string
		entries []entry
		raw     []byte // instead of entries
		limits  Limits
		want    error
		says    string
		files   map[string]string // of the layer where it is taken
	}{
		{desc: "path with ..", entries: []entry{{Name: climb + "/evil", Body: "x"}}, want: ErrUnsafe, says: "/evil\" leaves the root"},
		{desc: "path with .. in the middle", entries: []entry{{Name: "a/", Mode: 0o755}, {Name: "a/../../b", Body: "x"}}, want: ErrUnsafe, says: `"../b" leaves the root`},
		{desc: "absolute path stays below the root", entries: []entry{{Name: outside + "/evil", Body: "x"}}, files: map[string]string{outside[1:] + "/evil": "x"}},
		{desc: "write through an absolute link", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: outside}, {Name: "l/evil", Body: "x"}}, want: ErrUnsafe, says: `entry "l/evil" goes through the symbolic link "l" -> "` + outside},
		{desc: "write through a climbing link", entries: []entry{{Name: "a/l", Type: tar.TypeSymlink, Link: climb}, {Name: "a/l/evil", Body: "x"}}, want: ErrUnsafe, says: `entry "a/l/evil" goes through`},
		{desc: "write through a chain of links", entries: []entry{
			{Name: "one", Type: tar.TypeSymlink, Link: "two"}, {Name: "two", Type: tar.TypeSymlink, Link: "d/three"},
			{Name: "d/three", Type: tar.TypeSymlink, Link: outside}, {Name: "one/evil", Body: "x"}}, want: ErrUnsafe, says: `entry "one/evil"`},
		{desc: "link replaced between", entries: []entry{{Name: "d/", Mode: 0o755}, {Name: "d/f", Body: "x"}, {Name: "d", Type: tar.TypeSymlink, Link: outside}, {Name: "d/evil", Body: "x"}}, want: ErrUnsafe, says: `entry "d/evil"`},
		{desc: "directory times through a link", entries: []entry{{Name: "d/", Mode: 0o700}, {Name: "d", Type: tar.TypeSymlink, Link: outside}}, want: ErrCorrupt},
		{desc: "file over a link", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: canary}, {Name: "l", Body: "x"}}, files: map[string]string{"l": "x"}},
		{desc: "directory over a link", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: outside}, {Name: "l/", Mode: 0o700}, {Name: "l/evil", Body: "x"}}, files: map[string]string{"l/evil": "x"}},
		{desc: "circle of links", entries: []entry{{Name: "a", Type: tar.TypeSymlink, Link: "b"}, {Name: "b", Type: tar.TypeSymlink, Link: "a"}, {Name: "a/evil", Body: "x"}}, want: ErrUnsafe, says: "more than 40 symbolic links"},
		{desc: "hard link to outside", entries: []entry{{Name: "h", Type: tar.TypeLink, Link: climb + "/canary"}}, want: ErrUnsafe, says: `hard link "h"`},
		{desc: "hard link to an absolute path", entries: []entry{{Name: "h", Type: tar.TypeLink, Link: canary}, {Name: "h", Body: "x"}}, want: ErrCorrupt, says: "no such file"},
		{desc: "hard link through a link", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: outside}, {Name: "h", Type: tar.TypeLink, Link: "l/canary"}}, want: ErrUnsafe, says: `hard link "h" to "l/canary" goes through`},
		{desc: "hard link to a link, then written", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: canary}, {Name: "h", Type: tar.TypeLink, Link: "l"}, {Name: "h", Body: "x"}}, files: map[string]string{"h": "x"}},
		{desc: "device nodes are left out", entries: []entry{{Name: "dev/sda", Type: tar.TypeBlock, Major: 8, Mode: 0o666}, {Name: "dev/mem", Type: tar.TypeChar, Major: 1, Minor: 1, Mode: 0o666}, {Name: "f", Body: "x"}}, files: map[string]string{"f": "x"}},
		{desc: "whiteout of ..", entries: []entry{{Name: "a/.wh...", Body: ""}}, want: ErrUnsafe, says: "whiteout"},
		{desc: "whiteout of .", entries: []entry{{Name: "a/.wh..", Body: ""}}, want: ErrUnsafe, says: "whiteout"},
		{desc: "whiteout of nothing", entries: []entry{{Name: "a/.wh.", Body: ""}}, want: ErrUnsafe, says: "whiteout"},
		{desc: "whiteout through a link", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: outside}, {Name: "l/.wh.canary"}}, want: ErrUnsafe, says: "goes through"},
		{desc: "opaque mark through a link", entries: []entry{{Name: "l", Type: tar.TypeSymlink, Link: outside}, {Name: "l/.wh..wh..opq"}}, want: ErrUnsafe, says: "goes through"},
		{desc: "entry inside of a whiteout", entries: []entry{{Name: ".wh.a/b", Body: "x"}}, want: ErrCorrupt, says: "inside of a whiteout"},
		{desc: "overlay's own attributes are dropped", entries: []entry{{Name: "d/", Mode: 0o755, Xattrs: map[string]string{"trusted.overlay.redirect": outside}}, {Name: "d/f", Body: "x"}}, files: map[string]string{"d/f": "x"}},
		{desc: "long path", entries: []entry{{Name: long + "f", Body: "x"}}, want: ErrTooLarge, says: "the path of entry"},
		{desc: "long name", entries: []entry{{Name: strings.Repeat("n", 300), Body: "x"}}, want: ErrTooLarge, says: "has a name of 300 bytes"},
		{desc: "deep nesting", entries: []entry{{Name: strings.Repeat("d/", 200) + "f", Body: "x"}}, want: ErrTooLarge, says: "201 directories deep"},
		{desc: "too many entries", entries: []entry{{Name: "a"}, {Name: "b"}, {Name: "c"}}, limits: Limits{Entries: 2}, want: ErrTooLarge, says: `"c"`},
		{desc: "sparse bomb", raw: imagetest.SparseTar("bomb", 10<<30), want: ErrTooLarge, says: `"bomb" (10.0 GiB)`},
		{desc: "sparse bomb against a size limit", raw: imagetest.SparseTar("bomb", 10<<30), limits: Limits{UnpackedBytes: 1 << 30, LayerRatio: 1 << 40}, want: ErrTooLarge, says: "more than 1.0 GiB"},
		{desc: "file of zeros", entries: []entry{{Name: "bomb", Body: strings.Repeat(zeros, 80)}}, want: ErrTooLarge, says: "more than 200 times"},
		{desc: "zeros after the end", raw: append(imagetest.Tar(t, entry{Name: "f", Body: "x"}), make([]byte, 80<<20)...), want: ErrTooLarge, says: "more than 200 times"},
		{desc: "the same entry often", entries: []entry{{Name: "f", Body: "1"}, {Name: "f", Body: "2"}, {Name: "./f", Body: "3"}}, files: map[string]string{"f": "3"}},
		{desc: "file over a directory", entries: []entry{{Name: "d/", Mode: 0o755}, {Name: "d/e/f", Body: "1"}, {Name: "d", Body: "2"}}, files: map[string]string{"d": "2"}},
		{desc: "directory over a file", entries: []entry{{Name: "d", Body: "1"}, {Name: "d/", Mode: 0o755}, {Name: "d/f", Body: "2"}}, files: map[string]string{"d/f": "2"}},
		{desc: "below a file", entries: []entry{{Name: "d", Body: "1"}, {Name: "d/f", Body: "2"}}, want: ErrCorrupt},
		{desc: "not an archive", raw: bytes.Repeat([]byte("garbage!"), 512), want: ErrCorrupt},
		{desc: "cut archive", raw: imagetest.Tar(t, entry{Name: "f", Body: strings.Repeat("x", 5000)})[:2048], want: ErrCorrupt},
		{desc: "link inside one's own directories", entries: []entry{{Name: "run/", Mode: 0o755}, {Name: "var/run", Type: tar.TypeSymlink, Link: "/run"}, {Name: "var/run/f", Body: "x"}}, files: map[string]string{"run/f": "x"}},
		{desc: "links that nothing goes through", entries: []entry{{Name: "etc/mtab", Type: tar.TypeSymlink, Link: "/proc/mounts"}, {Name: "up", Type: tar.TypeSymlink, Link: "../../x"}}, files: map[string]string{"etc/mtab": "-> /proc/mounts", "up": "-> ../../x"}},
	}
	for _, tc := range tests {
		t.Run(tc.desc, func(t *testing.T) {
			if err := os.WriteFile(canary, []byte("alive"), 0o644); err != nil {
				t.Fatal(err)
			}
			before := tree(t, outside)
			raw := tc.raw
			if raw == nil {
				raw = imagetest.Tar(t, tc.entries...)
			}
			reg := imagetest.NewRegistry(t)
			ref := reg.Push(t, "evil:1", imagetest.Image(t, imagetest.Gzip(t, raw)))
			s := openStore(t, Options{InsecureRegistries: []string{reg.Host}, Limits: tc.limits})
			img, err := s.Pull(testContext(t), ref, nil, nil)
			if diff := cmp.Diff(before, tree(t, outside)); diff != "" {
				t.Errorf("ESCAPED (-before +after):\n%s", diff)
			}
			if got := leftovers(t, s); len(got) != 0 {
				t.Errorf("left in tmp: %v", got)
			}
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				got := tree(t, img.Layers[0])
				for name, content := range tc.files {
					if got[name] != content {
						t.Errorf("%s = %.40q, want %q", name, got[name], content)
					}
				}
				for name, kind := range got {
					if strings.Contains(kind, "D") && !strings.Contains(kind, "d") {
						t.Errorf("device %s was made", name)
					}
				}
				return
			}
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.says) || !strings.Contains(fmt.Sprint(err), ref) {
				t.Fatalf("Pull = %v; want %v saying %q", err, tc.want, tc.says)
			}
			t.Log(err)
			if got := layerDirs(t, s); len(got) != 0 {
				t.Errorf("layers = %v", got)
			}
		})
	}
}

// TestLayersKeepWhatFilesAre: ownership, modes with setuid, attributes, hard
// links and times arrive as they were packed.
func TestLayersKeepWhatFilesAre(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app:1", imagetest.Image(t, imagetest.Gzip(t, imagetest.Tar(t,
		entry{Name: "bin/", Mode: 0o751, UID: 7, GID: 8},
		entry{Name: "bin/su", Mode: 0o4755, Body: "su", UID: 1000, GID: 2000},
		entry{Name: "bin/ping", Mode: 0o755, Body: "ping", Xattrs: map[string]string{"security.capability": capability}},
		entry{Name: "bin/also", Type: tar.TypeLink, Link: "bin/su", Mode: 0o4755, UID: 1000, GID: 2000},
		entry{Name: "tmp/", Mode: 0o1777},
		entry{Name: "pipe", Type: tar.TypeFifo, Mode: 0o600},
		entry{Name: "ln", Type: tar.TypeSymlink, Link: "bin/su", UID: 5, GID: 6},
	))))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	root := pulled(t, s, ref).Layers[0]
	got := map[string]string{}
	inode := map[string]uint64{}
	for _, name := range []string{".", "bin", "bin/su", "bin/ping", "bin/also", "tmp", "pipe", "ln"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(name, err)
		}
		got[name] = fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		inode[name] = st.Ino
		if name != "." && st.Mtim.Sec != imagetest.Epoch.Unix() {
			t.Errorf("%s is of %d", name, st.Mtim.Sec)
		}
	}
	want := map[string]string{
		".": "40755 0:0", "bin": "40751 7:8", "bin/su": "104755 1000:2000", "bin/ping": "100755 0:0", "bin/also": "104755 1000:2000",
		"tmp": "41777 0:0", "pipe": "10600 0:0", "ln": "120777 5:6",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if inode["bin/su"] != inode["bin/also"] {
		t.Error("the hard link is a copy")
	}
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(filepath.Join(root, "bin/ping"), "security.capability", value)
	if err != nil || string(value[:n]) != capability {
		t.Errorf("capability = %q, %v", value[:n], err)
	}
}
