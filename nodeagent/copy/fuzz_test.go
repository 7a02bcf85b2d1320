//go:build linux

package copy

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// FuzzWrite unpacks whatever somebody may send: it ends, and nothing beside the
// destination is touched.
func FuzzWrite(f *testing.F) {
	for _, h := range [][]tar.Header{
		{file("file", "x")}, {file("../planted", "x")}, {{Typeflag: tar.TypeSymlink, Name: "out", Linkname: ".."}, file("out/planted", "x")},
		{{Typeflag: tar.TypeLink, Name: "h", Linkname: "../secret"}}, {{Typeflag: tar.TypeDir, Name: "d/"}, file("d/f", "")},
		{{Typeflag: tar.TypeFifo, Name: "fifo"}}, {file("a/../../planted", "x")},
	} {
		stream, err := io.ReadAll(pack(f, h...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(stream)
		f.Add(stream[:len(stream)/2])
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		host := t.TempDir()
		dst := filepath.Join(host, "root", "dst")
		if err := os.MkdirAll(dst, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, "root", "secret"), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := openRoot(filepath.Join(host, "root"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		_, _ = root.Write(t.Context(), "/dst", bytes.NewReader(stream), Options{}) // most of it is no tar
		var beside []string
		if err := filepath.WalkDir(host, func(path string, _ fs.DirEntry, err error) error {
			if path == dst {
				return fs.SkipDir
			}
			beside = append(beside, path)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if len(beside) != 3 { // two directories and the secret
			t.Errorf("there is now %q", beside)
		}
		info, err := os.Lstat(filepath.Join(host, "root", "secret"))
		if err != nil || info.Mode() != 0o600 || info.Size() != 4 {
			t.Errorf("the secret is now %v, %v", info, err)
		}
	})
}
