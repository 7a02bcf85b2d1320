// Package build makes images from the Go programs beside it and writes them as
// OCI layouts, docker archives, or to a registry. Times and orders are fixed,
// so the same source gives the same digests.
package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of every file and of the image.
var epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// user runs the programs; the base layer names it.
const user = "65532:65532"

// Image builds gantry.dev/tools/images/<program> into an image of three
// layers: a base that all programs share, the program, and its version. Two
// tags of one program share the first two.
func Image(ctx context.Context, program, tag string) (v1.Image, error) {
	parts, err := contents(ctx, program, tag)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range parts {
		layer, err := pack(l.files)
		if err != nil {
			return nil, fmt.Errorf("build %s: layer %s: %w", program, l.says, err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: layer, MediaType: types.OCILayer,
			History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "gantry tools/images: " + l.says},
		})
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", program, err)
		}
	}
	return configure(img, program, tag)
}

type part struct {
	says  string
	files []file
}

func contents(ctx context.Context, program, tag string) ([]part, error) {
	binary, err := compile(ctx, program)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", program, err)
	}
	return []part{
		{"base", base()},
		{program, []file{{name: program, mode: 0o755, body: binary}}},
		{"version", []file{{name: "etc/version", mode: 0o644, body: []byte(tag + "\n")}}},
	}, nil
}

// RootFS writes the files of a program's image below dir.
func RootFS(ctx context.Context, program, dir string) error {
	parts, err := contents(ctx, program, "latest")
	if err != nil {
		return err
	}
	for _, p := range parts {
		for _, f := range p.files {
			if err := f.write(dir); err != nil {
				return fmt.Errorf("write files of %s: %w", program, err)
			}
		}
	}
	return nil
}

func (f file) write(dir string) error {
	path := filepath.Join(dir, f.name)
	if strings.HasSuffix(f.name, "/") {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		mode := os.FileMode(f.mode & 0o777)
		if f.mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		return os.Chmod(path, mode)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, f.body, os.FileMode(f.mode&0o777))
}

func configure(img v1.Image, program, tag string) (v1.Image, error) {
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Created = v1.Time{Time: epoch}
	cfg.Config = v1.Config{
		Entrypoint:   []string{"/" + program},
		Env:          []string{"PATH=/:/usr/bin:/bin", "VERSION=" + tag},
		User:         user,
		WorkingDir:   "/",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
	}
	return mutate.ConfigFile(img, cfg)
}

// compile makes a static program whose bytes depend on nothing but the source
// and the compiler.
func compile(ctx context.Context, program string) ([]byte, error) {
	if program != filepath.Base(program) || strings.HasPrefix(program, ".") {
		return nil, fmt.Errorf("%q is not the name of a program", program)
	}
	dir, err := os.MkdirTemp("", "gantry-image-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, program)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, "gantry.dev/tools/images/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(text))
	}
	return os.ReadFile(out)
}

type file struct {
	name string // directories end in a slash
	mode int64
	body []byte
	uid  int
}

func base() []file {
	return []file{
		{name: "dev/", mode: 0o755},
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, body: []byte("root:x:0:\nnonroot:x:65532:\n")},
		{name: "etc/nsswitch.conf", mode: 0o644, body: []byte("hosts: files dns\n")},
		{name: "etc/passwd", mode: 0o644, body: []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home:/sbin/nologin\n")},
		{name: "home/", mode: 0o755, uid: 65532},
		{name: "proc/", mode: 0o555},
		{name: "sys/", mode: 0o555},
		{name: "tmp/", mode: 0o1777},
	}
}

func pack(files []file) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.body)), ModTime: epoch, Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

// WriteLayout replaces dir by an OCI layout of the image, named ref.
func WriteLayout(dir, ref string, img v1.Image) error {
	// Only a layout is replaced: a slip of the hand must not remove anything else.
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
			return fmt.Errorf("write layout: %s is neither empty nor an OCI layout", dir)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	_, tag, _ := strings.Cut(ref, ":")
	full, err := name.ParseReference(ref)
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	err = p.AppendImage(img, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          strings.Replace(full.Name(), "index.docker.io/", "docker.io/", 1),
		"org.opencontainers.image.ref.name": tag,
	}))
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	return nil
}

// ReadLayout returns the one image of a layout.
func ReadLayout(dir string) (v1.Image, error) {
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("read layout: %w", err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read layout: %w", err)
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("read layout: %s holds %d images, one is expected", dir, len(m.Manifests))
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("read layout: %w", err)
	}
	return img, nil
}

// PushOptions say how a registry is reached.
type PushOptions struct {
	Insecure bool   // plain HTTP is fine
	User     string // name:password, or empty
}

// Push writes the image to a registry and returns its digest.
func Push(ctx context.Context, img v1.Image, ref string, o PushOptions) (string, error) {
	var opts []name.Option
	if o.Insecure {
		opts = append(opts, name.Insecure)
	}
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return "", fmt.Errorf("push: %w", err)
	}
	auth := authn.Anonymous
	if o.User != "" {
		n, password, ok := strings.Cut(o.User, ":")
		if !ok {
			return "", errors.New("push: the user is not name:password")
		}
		auth = authn.FromConfig(authn.AuthConfig{Username: n, Password: password})
	}
	if err := remote.Write(r, img, remote.WithContext(ctx), remote.WithAuth(auth)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	return r.Context().Digest(digest.String()).String(), nil
}

// Save writes a docker archive.
func Save(img v1.Image, ref, path string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	return nil
}
