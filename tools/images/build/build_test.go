package build_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rs/zerolog"

	"gantry.dev/nodeagent/image"
	"gantry.dev/tools/images/build"
)

// TestTheSampleImage: two builds are equal to the byte, two tags share what
// they can, and the node's store takes both forms in which it is written.
func TestTheSampleImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	make := func(tag string) v1.Image {
		t.Helper()
		img, err := build.Image(ctx, "web", tag)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	first, again, second := make("v1"), make("v1"), make("v2")
	a, err := first.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := again.Digest(); err != nil || a != b {
		t.Errorf("two builds: %s and %s, %v", a, b, err)
	}

	dir := t.TempDir()
	if err := build.WriteLayout(filepath.Join(dir, "v1"), "web:v1", first); err != nil {
		t.Fatal(err)
	}
	if err := build.WriteLayout(filepath.Join(dir, "v1"), "web:v1", first); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if err := build.WriteLayout(dir, "web:v1", first); err == nil {
		t.Error("a directory with other things in it was replaced")
	}
	if err := build.Save(second, "web:v2", filepath.Join(dir, "v2.tar")); err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(image.Options{Dir: filepath.Join(dir, "images")}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var images []image.Image
	for _, from := range []string{"v1", "v2.tar"} {
		loaded, err := s.Load(ctx, filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, loaded...)
	}
	if diff := cmp.Diff([]string{"docker.io/library/web:v1", "docker.io/library/web:v2"}, []string{images[0].Ref, images[1].Ref}); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(images[0].Layers[:2], images[1].Layers[:2]); diff != "" {
		t.Errorf("the base and the program are not shared:\n%s", diff)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(images[0].Layers[1], "web"), "lines", "--count", "2").CombinedOutput()
	if err != nil || string(out) != "line 1\nline 2\n" {
		t.Errorf("web said %q, %v", out, err)
	}
}
