package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry.dev/nodeagent/image/imagetest"
)

func TestPullReadsTheImage(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	src := imagetest.Image(t,
		imagetest.Plain(imagetest.Tar(t, imagetest.Entry{Name: "etc/"}, imagetest.Entry{Name: "etc/plain", Body: "p"})),
		imagetest.Files(t, "etc/gzip", "g"),
		imagetest.Zstd(t, imagetest.Tar(t, imagetest.Entry{Name: "etc/zstd", Body: "z"})))
	ref := reg.Push(t, "team/app:1", src)
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})

	var mu sync.Mutex
	var last Progress
	img, err := s.Pull(testContext(t), ref, nil, func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		last = p
	})
	if err != nil {
		t.Fatal(err)
	}
	id, err := src.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := src.Digest()
	if err != nil {
		t.Fatal(err)
	}
	want := Image{
		Ref: ref, ID: id.String(), RepoDigest: reg.Host + "/team/app@" + digest.String(), Size: 3,
		Layers: img.Layers, Loaded: img.Loaded,
		Config: Config{
			Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"A=b"}, User: "1000:1000",
			WorkingDir: "/srv", StopSignal: "SIGINT", ExposedPorts: []string{"53/udp", "8080/tcp"},
		},
	}
	if diff := cmp.Diff(want, img); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	var files []map[string]string
	for _, l := range img.Layers {
		files = append(files, tree(t, l))
	}
	if diff := cmp.Diff([]map[string]string{
		{"etc": "d---------", "etc/plain": "p"},
		{"etc": "d---------", "etc/gzip": "g"},
		{"etc": "d---------", "etc/zstd": "z"},
	}, files); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	if last.Layers != 3 || last.LayersDone != 3 || last.Bytes != last.TotalBytes || last.Bytes == 0 {
		t.Errorf("last progress = %+v", last)
	}

	byDigest, ok := s.Get(img.RepoDigest)
	if !ok || byDigest.ID != img.ID || byDigest.Ref != img.RepoDigest {
		t.Errorf("Get by digest = %+v, %v", byDigest, ok)
	}
	reg.Forget()
	if _, err := s.Pull(testContext(t), img.RepoDigest, nil, nil); err != nil {
		t.Error(err)
	}
	if n := reg.Count(""); n != 0 {
		t.Errorf("a digest that is present cost %d requests", n)
	}
	if _, err := s.Pull(testContext(t), ref, nil, nil); err != nil {
		t.Error(err)
	}
	if n := reg.Count("GET /v2/team/app/manifests/1"); n != 1 {
		t.Errorf("a tag asked the registry %d times", n)
	}
}

func TestPullTakesTheNodesPlatform(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	arm := imagetest.ImageFor(t, "linux", "arm64", imagetest.Files(t, "arch", "arm64"))
	amd := imagetest.ImageFor(t, "linux", "amd64", imagetest.Files(t, "arch", "amd64"))
	both := reg.PushIndex(t, "both:1", imagetest.Index(t, map[string]v1.Image{"linux/arm64": arm, "linux/amd64": amd}))
	armOnly := reg.PushIndex(t, "arm:1", imagetest.Index(t, map[string]v1.Image{"linux/arm64": arm}))
	single := reg.Push(t, "single:1", arm)
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	img := pulled(t, s, both)
	if got := tree(t, img.Layers[0])["arch"]; got != "amd64" {
		t.Errorf("arch = %q", got)
	}
	amdDigest, err := amd.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Get(reg.Ref("both@" + amdDigest.String())); !ok {
		t.Error("the chosen manifest's digest is not known")
	}
	for _, ref := range []string{armOnly, single} {
		_, err := s.Pull(testContext(t), ref, nil, nil)
		if !errors.Is(err, ErrNotFound) || !strings.Contains(fmt.Sprint(err), "linux/arm64") || !strings.Contains(fmt.Sprint(err), ref) {
			t.Errorf("Pull(%s) = %v", ref, err)
		}
	}
}

func TestConcurrentPullsFetchOnce(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	shared := imagetest.Files(t, "etc/shared", strings.Repeat("x", 1000))
	a := reg.Push(t, "a:1", imagetest.Image(t, shared, imagetest.Files(t, "a", "a")))
	b := reg.Push(t, "b:1", imagetest.Image(t, shared, imagetest.Files(t, "b", "b")))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ref := a
			if i%2 == 1 {
				ref = b
			}
			if _, err := s.Pull(testContext(t), ref, nil, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	n := reg.Count("GET /v2/a/blobs/"+shared.Sum.String()) + reg.Count("GET /v2/b/blobs/"+shared.Sum.String())
	if n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
}

func TestPullErrors(t *testing.T) {
	layer := imagetest.Files(t, "bin/app", strings.Repeat("content ", 5000))
	other := imagetest.Files(t, "bin/app", "something else")
	lying := layer
	lying.Diff = other.Diff
	dead := closedPort(t)
	tests := []struct {
		desc   string
		image  v1.Image
		ref    string // instead of the pushed one
		fault  func(*imagetest.Registry)
		opt    Options
		want   error
		says   []string // all of them, and the reference
		secure bool     // do not list the registry as insecure
	}{
		{desc: "no such tag", ref: "HOST/app:none", want: ErrNotFound, says: []string{"no such repository, tag or digest"}},
		{desc: "no such repository", ref: "HOST/none:1", want: ErrNotFound},
		{desc: "bad reference", ref: "HOST/App:1", want: ErrBadReference},
		{desc: "registry down", ref: dead + "/app:1", opt: Options{InsecureRegistries: []string{dead}}, want: ErrUnavailable, says: []string{"connection refused"}},
		{desc: "plain HTTP", secure: true, want: ErrUnavailable, says: []string{"plain HTTP to HOST is refused", "insecure registry"}},
		{desc: "server error", fault: func(r *imagetest.Registry) { r.Break(imagetest.Status(500)) }, want: ErrUnavailable},
		{desc: "too many requests", fault: func(r *imagetest.Registry) { r.Break(imagetest.Status(429)) }, want: ErrUnavailable, says: []string{"no more pulls for now"}},
		{desc: "forbidden", fault: func(r *imagetest.Registry) { r.Break(imagetest.Status(403)) }, want: ErrUnauthorized, says: []string{"pull secret"}},
		{desc: "no credentials", fault: func(r *imagetest.Registry) { r.RequireAuth("u", "p") }, want: ErrUnauthorized},
		{desc: "layer of another digest", fault: func(r *imagetest.Registry) {
			bad := append([]byte(nil), layer.Bytes...)
			bad[len(bad)-1] ^= 1
			r.Break(imagetest.OnBlob(layer.Sum, imagetest.SendInstead(bad)))
		}, want: ErrCorrupt, says: []string{layer.Sum.String()}},
		{desc: "layer replaced by a good one", fault: func(r *imagetest.Registry) {
			r.Break(imagetest.OnBlob(layer.Sum, imagetest.SendInstead(other.Bytes)))
		}, want: ErrCorrupt, says: []string{layer.Sum.String()}},
		{desc: "truncated layer", fault: func(r *imagetest.Registry) {
			r.Break(imagetest.OnBlob(layer.Sum, imagetest.Truncate(layer.Bytes, len(layer.Bytes)/2)))
		}, want: ErrCorrupt, says: []string{"ended after", layer.Sum.String()}},
		{desc: "shorter than announced", fault: func(r *imagetest.Registry) {
			r.Break(imagetest.OnBlob(layer.Sum, imagetest.SendInstead(layer.Bytes[:len(layer.Bytes)/2])))
		}, want: ErrCorrupt},
		{desc: "layer missing", fault: func(r *imagetest.Registry) {
			r.Break(imagetest.OnBlob(layer.Sum, http.NotFound))
		}, want: ErrCorrupt, says: []string{"push the image again"}},
		{desc: "diff ID differs", image: imagetest.Image(t, lying), want: ErrCorrupt, says: []string{"diff ID"}},
		{desc: "manifest of another digest", fault: func(r *imagetest.Registry) {
			r.Break(func(w http.ResponseWriter, req *http.Request) bool {
				if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				w.Header().Set("Docker-Content-Digest", other.Sum.String())
				_, _ = w.Write([]byte(`{"schemaVersion":2}`))
				return true
			})
		}, want: ErrCorrupt, says: []string{"announced"}},
		{desc: "manifest is a web page", fault: func(r *imagetest.Registry) {
			r.Break(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, "/manifests/") {
					return false
				}
				_, _ = w.Write([]byte("<html>hello</html>"))
				return true
			})
		}, want: ErrCorrupt},
		{desc: "endless manifest", fault: func(r *imagetest.Registry) {
			r.Break(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				page := make([]byte, 1<<20)
				for range 64 {
					if _, err := w.Write(page); err != nil {
						return true
					}
				}
				return true
			})
		}, want: ErrTooLarge},
		{desc: "too many layers", opt: Options{Limits: Limits{Layers: 1}}, image: imagetest.Image(t, layer, other), want: ErrTooLarge},
		{desc: "too large", opt: Options{Limits: Limits{UnpackedBytes: 20000}}, want: ErrTooLarge},
		{desc: "too large together", opt: Options{Limits: Limits{UnpackedBytes: 40010}}, image: imagetest.Image(t, layer, other), want: ErrTooLarge},
	}
	for _, tc := range tests {
		t.Run(tc.desc, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			img := tc.image
			if img == nil {
				img = imagetest.Image(t, layer)
			}
			ref := reg.Push(t, "app:1", img)
			if tc.ref != "" {
				ref = strings.ReplaceAll(tc.ref, "HOST", reg.Host)
			}
			if tc.fault != nil {
				tc.fault(reg)
			}
			if !tc.secure {
				tc.opt.InsecureRegistries = append(tc.opt.InsecureRegistries, reg.Host)
			}
			s := openStore(t, tc.opt)
			_, err := s.Pull(testContext(t), ref, nil, nil)
			if !errors.Is(err, tc.want) {
				t.Fatalf("Pull = %v, want %v", err, tc.want)
			}
			for _, want := range append(tc.says, ref) {
				if want = strings.ReplaceAll(want, "HOST", reg.Host); !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q: %v", want, err)
				}
			}
			t.Log(err)
			if len(s.List()) != 0 || len(leftovers(t, s)) != 0 {
				t.Errorf("left behind: images %v, tmp %v", s.List(), leftovers(t, s))
			}
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestADownloadThatBreaksOffIsTriedAgain(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	layer := imagetest.Files(t, "bin/app", strings.Repeat("content ", 5000))
	ref := reg.Push(t, "app:1", imagetest.Image(t, layer))
	times := 0
	reg.Break(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, layer.Sum.String()) {
			return false
		}
		if times++; times > 2 {
			return false
		}
		imagetest.Truncate(layer.Bytes, 100)(w, req)
		return true
	})
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	pulled(t, s, ref)
}

func TestPullWithCredentials(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	reg.RequireAuth("ann", "secret")
	ref := reg.Push(t, "app:1", imagetest.Image(t, imagetest.Files(t, "a", "b")))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	if _, err := s.Pull(testContext(t), ref, &Auth{Username: "ann", Password: "wrong"}, nil); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("wrong password: %v", err)
	}
	if _, err := s.Pull(testContext(t), ref, &Auth{Username: "ann", Password: "secret"}, nil); err != nil {
		t.Error(err)
	}
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	layer := imagetest.Files(t, "bin/app", strings.Repeat("content ", 5000))
	ref := reg.Push(t, "app:1", imagetest.Image(t, layer))
	reached := make(chan struct{})
	reg.Break(imagetest.OnBlob(layer.Sum, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(layer.Bytes)))
		_, _ = w.Write(layer.Bytes[:50])
		w.(http.Flusher).Flush()
		close(reached)
		<-req.Context().Done()
	}))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		<-reached
		cancel()
	}()
	if _, err := s.Pull(ctx, ref, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Pull = %v", err)
	}
	if got := leftovers(t, s); len(got) != 0 {
		t.Errorf("tmp = %v", got)
	}
	reg.Heal()
	pulled(t, s, ref)
}

func TestAStalledDownloadFails(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	layer := imagetest.Files(t, "bin/app", strings.Repeat("content ", 5000))
	ref := reg.Push(t, "app:1", imagetest.Image(t, layer))
	reg.Break(imagetest.OnBlob(layer.Sum, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(layer.Bytes)))
		_, _ = w.Write(layer.Bytes[:50])
		w.(http.Flusher).Flush()
		<-req.Context().Done()
	}))
	s := openStore(t, Options{InsecureRegistries: []string{reg.Host}})
	s.gate.idle = 50 * time.Millisecond
	_, err := s.Pull(testContext(t), ref, nil, nil)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "sent nothing for") {
		t.Errorf("Pull = %v", err)
	}
}
