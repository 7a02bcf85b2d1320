package imagetest

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Fault handles a request in the registry's place and returns true, or returns
// false to let it pass.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// Registry is a registry in this process, over plain HTTP on loopback.
type Registry struct {
	// Host is its host:port.
	Host string

	server *httptest.Server
	inner  http.Handler

	mu       sync.Mutex
	faults   []Fault
	requests []string // method and path
	user     string
	password string
}

// NewRegistry starts a registry that ends with the test.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	r.Host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

// ServeHTTP applies the faults in the order in which they were added.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	faults := append([]Fault(nil), r.faults...)
	user, password := r.user, r.password
	r.mu.Unlock()
	if user != "" {
		if u, p, ok := req.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
	}
	for _, f := range faults {
		if f(w, req) {
			return
		}
	}
	r.inner.ServeHTTP(w, req)
}

// RequireAuth asks for a user name and password from now on.
func (r *Registry) RequireAuth(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password = user, password
}

// Break adds a fault.
func (r *Registry) Break(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Count says how many requests had this prefix, such as "GET /v2/app/blobs/".
func (r *Registry) Count(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, req := range r.requests {
		if strings.HasPrefix(req, prefix) {
			n++
		}
	}
	return n
}

// Forget starts counting anew.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Close stops the registry before the test ends.
func (r *Registry) Close() { r.server.Close() }

// Ref is the reference of a name here, such as "app:1".
func (r *Registry) Ref(name string) string { return r.Host + "/" + name }

// Push stores an image and returns its reference. Layers are written past the
// protocol's own checks, so they may lie.
func (r *Registry) Push(t testing.TB, ref string, img v1.Image) string {
	t.Helper()
	n, err := name.ParseReference(r.Ref(ref), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(n, img, r.auth()); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return r.Ref(ref)
}

// PushIndex stores an index and its images.
func (r *Registry) PushIndex(t testing.TB, ref string, idx v1.ImageIndex) string {
	t.Helper()
	n, err := name.ParseReference(r.Ref(ref), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(n, idx, r.auth()); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return r.Ref(ref)
}

func (r *Registry) auth() remote.Option {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.user == "" {
		return remote.WithAuth(authn.Anonymous)
	}
	return remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: r.user, Password: r.password}))
}

// OnBlob makes f answer downloads of one blob.
func OnBlob(digest v1.Hash, f http.HandlerFunc) Fault {
	return func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, "/blobs/"+digest.String()) {
			return false
		}
		f(w, req)
		return true
	}
}

// SendInstead answers with other bytes than those of the digest.
func SendInstead(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
}

// Truncate promises all of data, sends n bytes and hangs up.
func Truncate(data []byte, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Status answers everything with an HTTP status.
func Status(code int) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, http.StatusText(code), code)
		return true
	}
}
