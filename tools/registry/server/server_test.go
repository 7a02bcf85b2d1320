package server_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rs/zerolog"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/image/imagetest"
	"gantry.dev/tools/registry/server"
)

// TestPullWithPassword: the node's image store pulls from the program that
// people run, and from the one in this process, with the authentication that
// pull secrets are for.
func TestPullWithPassword(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	if _, err := exec.LookPath(server.Debian); err != nil {
		t.Fatal("needs docker-registry: apt-get install docker-registry (CI does)")
	}
	for _, kind := range []string{server.Debian, server.Embedded} {
		t.Run(kind, func(t *testing.T) { pullWithPassword(t, kind) })
	}
}

func pullWithPassword(t *testing.T, kind string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	reg, err := server.Start(ctx, server.Options{Dir: t.TempDir(), Kind: kind, Users: map[string]string{"ann": "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Stop(); err != nil {
			t.Error(err)
		}
	})
	ref := reg.Addr + "/team/app:1"
	n, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img := imagetest.Image(t, imagetest.Files(t, "bin/app", "x"),
		imagetest.Zstd(t, imagetest.Tar(t, imagetest.Entry{Name: "z", Body: "z"})))
	if err := remote.Write(n, img, remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: "ann", Password: "secret"}))); err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(image.Options{
		Dir: filepath.Join(t.TempDir(), "images"), Architecture: "amd64", InsecureRegistries: []string{reg.Addr},
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for desc, auth := range map[string]*image.Auth{"anonymous": nil, "wrong password": {Username: "ann", Password: "no"}, "stranger": {Username: "bob", Password: "secret"}} {
		if _, err := s.Pull(ctx, ref, auth, nil); !errors.Is(err, image.ErrUnauthorized) {
			t.Errorf("%s: %v", desc, err)
		}
	}
	auth := &image.Auth{Username: "ann", Password: "secret"}
	got, err := s.Pull(ctx, ref, auth, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Layers) != 2 {
		t.Fatalf("image = %+v", got)
	}
	if data, err := os.ReadFile(filepath.Join(got.Layers[0], "bin/app")); err != nil || string(data) != "x" {
		t.Errorf("bin/app = %q, %v", data, err)
	}
	for _, missing := range []string{"/team/app:none", "/team/none:1"} {
		if _, err := s.Pull(ctx, reg.Addr+missing, auth, nil); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("%s: %v", missing, err)
		}
	}
}

func TestStopEndsTheRegistry(t *testing.T) {
	for _, kind := range []string{"", server.Embedded} {
		reg, err := server.Start(context.Background(), server.Options{Dir: t.TempDir(), Kind: kind})
		if err != nil {
			t.Fatal(err)
		}
		if err := reg.Stop(); err != nil {
			t.Errorf("%s: %v", reg.Kind, err)
		}
		if resp, err := http.Get("http://" + reg.Addr + "/v2/"); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s still answers", reg.Kind)
		}
	}
}

func TestATakenAddressIsSaid(t *testing.T) {
	reg, err := server.Start(context.Background(), server.Options{Dir: t.TempDir(), Kind: server.Embedded})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reg.Stop() }()
	for _, kind := range []string{"", server.Embedded} {
		if _, err := server.Start(context.Background(), server.Options{Dir: t.TempDir(), Kind: kind, Listen: reg.Addr}); err == nil {
			t.Errorf("kind %q took the address twice", kind)
		}
	}
	if _, err := server.Start(context.Background(), server.Options{Dir: t.TempDir(), Kind: "other"}); err == nil {
		t.Error("an unknown kind was taken")
	}
}
