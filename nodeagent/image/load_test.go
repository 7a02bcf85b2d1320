package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gantry.dev/nodeagent/image/imagetest"
)

func writeLayout(t *testing.T, dir string, annotations map[string]string, images ...v1.Image) {
	t.Helper()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if err := p.AppendImage(img, layout.WithAnnotations(annotations)); err != nil {
			t.Fatal(err)
		}
	}
}

// tarOf packs a directory.
func tarOf(t *testing.T, dir, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func gzipFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// plainLayers makes the layers of a docker archive readable for the tool that
// writes it.
func dockerArchive(t *testing.T, file string, tags map[string]v1.Image) {
	t.Helper()
	refs := map[name.Tag]v1.Image{}
	for tag, img := range tags {
		n, err := name.NewTag(tag)
		if err != nil {
			t.Fatal(err)
		}
		refs[n] = img
	}
	if err := tarball.MultiWriteToFile(file, refs); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	app := imagetest.Image(t, imagetest.Files(t, "a", "a"), imagetest.Files(t, "b", "b"))
	other := imagetest.Image(t, imagetest.Files(t, "a", "a"), imagetest.Files(t, "c", "c"))

	writeLayout(t, at("full"), map[string]string{annotationName: "docker.io/team/app:1"}, app)
	writeLayout(t, at("tagonly"), map[string]string{annotationRefName: "v2"}, app)
	writeLayout(t, at("refname"), map[string]string{annotationRefName: "reg.example/app:3"}, app)
	writeLayout(t, at("noname"), nil, app)
	tarOf(t, at("full"), at("oci.tar"))
	gzipFile(t, at("oci.tar"), at("oci.tar.gz"))
	tarOf(t, at("noname"), at("My_App.tar"))
	dockerArchive(t, at("docker.tar"), map[string]v1.Image{"app:1": app, "app:latest": app, "reg.example/other:2": other})
	gzipFile(t, at("docker.tar"), at("docker.tgz"))

	p, err := layout.Write(at("index"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	idx := imagetest.Index(t, map[string]v1.Image{"linux/arm64": imagetest.ImageFor(t, "linux", "arm64", imagetest.Files(t, "x", "x")), "linux/amd64": app})
	if err := p.AppendIndex(idx, layout.WithAnnotations(map[string]string{annotationName: "multi:1"})); err != nil {
		t.Fatal(err)
	}

	docker := []string{"docker.io/library/app:1", "docker.io/library/app:latest", "reg.example/other:2"}
	for file, want := range map[string][]string{
		"full":       {"docker.io/team/app:1"},
		"tagonly":    {"docker.io/library/tagonly:v2"},
		"refname":    {"reg.example/app:3"},
		"noname":     {"docker.io/library/noname:latest"},
		"My_App.tar": {"docker.io/library/my_app:latest"},
		"oci.tar":    {"docker.io/team/app:1"},
		"oci.tar.gz": {"docker.io/team/app:1"},
		"docker.tar": docker,
		"docker.tgz": docker,
		"index":      {"docker.io/library/multi:1"},
	} {
		t.Run(file, func(t *testing.T) {
			s := openStore(t, Options{})
			images, err := s.Load(testContext(t), at(file))
			if err != nil {
				t.Fatal(err)
			}
			if len(images) != len(want) {
				t.Errorf("%d images were loaded", len(images))
			}
			var refs []string
			for _, img := range s.List() {
				refs = append(refs, img.Ref)
				got := map[string]string{}
				for _, l := range img.Layers {
					for k, v := range tree(t, l) {
						got[k] = v
					}
				}
				second := "b"
				if strings.Contains(img.Ref, "other") {
					second = "c"
				}
				if diff := cmp.Diff(map[string]string{"a": "a", second: second}, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", img.Ref, diff)
				}
			}
			if diff := cmp.Diff(want, refs); diff != "" {
				t.Errorf("List (-want +got):\n%s", diff)
			}
			if got := leftovers(t, s); len(got) != 0 {
				t.Errorf("tmp = %v", got)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	layer := imagetest.Files(t, "bin/app", strings.Repeat("content ", 5000))
	app := imagetest.Image(t, layer)
	blob := func(layoutDir string, h v1.Hash) string {
		return filepath.Join(at(layoutDir), "blobs", h.Algorithm, h.Hex)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	config, err := app.ConfigName()
	must(err)
	for _, l := range []string{"missing", "flipped", "short", "badconfig", "link"} {
		writeLayout(t, at(l), map[string]string{annotationName: "app:1"}, app)
	}
	must(os.Remove(blob("missing", layer.Sum)))
	bad := bytes.Clone(layer.Bytes)
	bad[len(bad)-1] ^= 1
	must(os.WriteFile(blob("flipped", layer.Sum), bad, 0o600))
	must(os.WriteFile(blob("short", layer.Sum), layer.Bytes[:len(layer.Bytes)/2], 0o600))
	must(os.WriteFile(blob("badconfig", config), []byte(`{"os":"linux"}`), 0o600))
	must(os.Remove(blob("link", layer.Sum)))
	must(os.WriteFile(at("secret"), layer.Bytes, 0o600))
	must(os.Symlink(at("secret"), blob("link", layer.Sum)))
	must(os.Mkdir(at("empty"), 0o755))
	must(os.WriteFile(at("text"), []byte("this is not an archive at all"), 0o600))
	must(os.WriteFile(at("zero"), nil, 0o600))
	arm := imagetest.ImageFor(t, "linux", "arm64", layer)
	dockerArchive(t, at("arm.tar"), map[string]v1.Image{"app:1": arm})
	writeLayout(t, at("évil name"), nil, app)
	must(os.WriteFile(at("traverse.tar"), imagetest.Tar(t, entry{Name: "manifest.json", Body: `[{"Config":"../secret","RepoTags":["app:1"],"Layers":["../secret"]}]`}), 0o600))
	must(os.WriteFile(at("loop.tar"), imagetest.Tar(t, entry{Name: "manifest.json", Type: tar.TypeSymlink, Link: "other"}, entry{Name: "other", Type: tar.TypeSymlink, Link: "manifest.json"}), 0o600))
	must(os.WriteFile(at("bomb.tar"), bytes.Repeat([]byte{0}, 80<<20), 0o600))
	gzipFile(t, at("bomb.tar"), at("bomb.tar.gz"))

	for file, want := range map[string]error{
		"missing": ErrCorrupt, "flipped": ErrCorrupt, "short": ErrCorrupt, "badconfig": ErrCorrupt, "link": nil, "empty": ErrCorrupt,
		"text": ErrCorrupt, "zero": ErrCorrupt, "arm.tar": ErrNotFound, "évil name": ErrBadReference, "traverse.tar": ErrCorrupt,
		"loop.tar": nil, "bomb.tar.gz": ErrTooLarge, "absent": fs.ErrNotExist,
	} {
		t.Run(file, func(t *testing.T) {
			s := openStore(t, Options{})
			images, err := s.Load(testContext(t), at(file))
			if err == nil || (want != nil && !errors.Is(err, want)) {
				t.Fatalf("Load = %v, %v; want %v", images, err, want)
			}
			if !strings.Contains(fmt.Sprint(err), at(file)) {
				t.Errorf("error does not name the file: %v", err)
			}
			t.Log(err)
			if got := append(leftovers(t, s), layerDirs(t, s)...); len(got) != 0 || len(s.List()) != 0 {
				t.Errorf("left %v, images %v", got, s.List())
			}
		})
	}
}
