package image

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/image/imagetest"
)

// TestDiskFull: the error says so, nothing half done stays, and with more room
// the same pull succeeds.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	noise := make([]byte, 6<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	reg := imagetest.NewRegistry(t)
	small := imagetest.Files(t, "etc/small", "s")
	big := imagetest.Gzip(t, imagetest.Tar(t, entry{Name: "noise", Body: string(noise)}))
	// Packs well enough to pass the look at the free space before the download.
	zeros := imagetest.Gzip(t, imagetest.Tar(t, entry{Name: "zeros", Body: strings.Repeat("0", 6<<20)}))
	refs := []string{
		reg.Push(t, "noise:1", imagetest.Image(t, small, big)),
		reg.Push(t, "zeros:1", imagetest.Image(t, small, zeros)),
	}
	dir := t.TempDir()
	// Mounts of a private namespace are seen by its thread only, and a store
	// works in several: so this mount is the machine's, for a moment.
	if err := unix.Mount("gtest-image", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(Options{Dir: dir, Architecture: "amd64", InsecureRegistries: []string{reg.Host}}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for _, ref := range refs {
		_, err := s.Pull(testContext(t), ref, nil, nil)
		if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), ref) {
			t.Fatalf("Pull(%s) = %v", ref, err)
		}
		t.Log(err)
		if got := append(leftovers(t, s), layerDirs(t, s)...); len(got) != 0 {
			t.Errorf("%s left %v", ref, got)
		}
		if _, ok := s.Get(ref); ok {
			t.Errorf("%s is shown as present", ref)
		}
	}
	// A layer that another image needs stays.
	kept := reg.Push(t, "small:1", imagetest.Image(t, small))
	pulled(t, s, kept)
	if _, err := s.Pull(testContext(t), refs[1], nil, nil); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if _, ok := s.Get(kept); !ok {
		t.Error("the full disk cost another image a layer")
	}
	if err := unix.Mount("gtest-image", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		img := pulled(t, s, ref)
		if _, err := os.Stat(img.Layers[1]); errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}
