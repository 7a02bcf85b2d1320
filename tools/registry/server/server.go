// Package server runs an image registry for demonstrations and tests: Debian's
// docker-registry where it is installed, or one inside of this process.
// Either keeps what is pushed in a directory.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/crypto/bcrypt"
)

// Kinds of registry.
const (
	// Debian is the docker-registry program of the distribution.
	Debian = "docker-registry"
	// Embedded is go-containerregistry's, inside of this process. It keeps
	// layers on disk and manifests in memory only.
	Embedded = "embedded"
)

// startTimeout is how long the program may take to answer.
const startTimeout = 15 * time.Second

// Options of a registry. Zero fields take the defaults.
type Options struct {
	// Listen is host:port, default 127.0.0.1:0.
	Listen string
	// Dir keeps the images; it is created, and never removed.
	Dir string
	// Kind is Debian or Embedded; empty takes Debian where it is installed.
	Kind string
	// Users are names and passwords; none means that anybody may do anything.
	Users map[string]string
	// Log takes what the program says; default is to drop it.
	Log io.Writer
}

// Server is a registry that runs.
type Server struct {
	// Addr is its host:port; Kind is Debian or Embedded.
	Addr, Kind string

	stop func()
	done chan struct{}
	mu   sync.Mutex
	err  error
}

// Start runs a registry until ctx ends or Stop is called. It returns when the
// registry answers.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Kind == "" {
		o.Kind = Embedded
		if _, err := exec.LookPath(Debian); err == nil {
			o.Kind = Debian
		}
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	var s *Server
	var err error
	switch o.Kind {
	case Debian:
		s, err = startProgram(ctx, o)
	case Embedded:
		s, err = startEmbedded(ctx, o)
	default:
		err = fmt.Errorf("unknown kind %q: use %q or %q", o.Kind, Debian, Embedded)
	}
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	return s, nil
}

// Done is closed when the registry has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why the registry ended by itself; nil where it was told to.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stop ends the registry and waits for it.
func (s *Server) Stop() error {
	s.stop()
	<-s.done
	return s.Err()
}

func startEmbedded(ctx context.Context, o Options) (*Server, error) {
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, err
	}
	h := registry.New(
		registry.Logger(log.New(o.Log, "", log.LstdFlags)),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(o.Dir)))
	if len(o.Users) > 0 {
		h = basicAuth(o.Users, h)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	ctx, cancel := context.WithCancel(ctx)
	s := &Server{Addr: l.Addr().String(), Kind: Embedded, stop: cancel, done: make(chan struct{})}
	go func() {
		<-ctx.Done()
		_ = srv.Close() // pulls that are under way are cut off, as with any stop
	}()
	go func() {
		defer close(s.done)
		defer cancel()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
		}
	}()
	return s, nil
}

func basicAuth(users map[string]string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, ok := r.BasicAuth()
		if want, known := users[name]; !ok || !known || want != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// startProgram runs docker-registry with a configuration of ours: the packaged
// one listens on every address and asks for passwords that nobody set.
func startProgram(ctx context.Context, o Options) (*Server, error) {
	addr, err := freeAddress(o.Listen)
	if err != nil {
		return nil, err
	}
	config, err := writeConfig(o, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	said := &tail{inner: o.Log}
	cmd := exec.CommandContext(ctx, Debian, "serve", config)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// The program must not outlive us, even by kill -9.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	s := &Server{Addr: addr, Kind: Debian, stop: cancel, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(s.done)
		defer cancel()
		// The death signal comes when the thread that forked ends, so it must
		// stay as long as the program.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		err := cmd.Wait()
		if ctx.Err() == nil {
			s.mu.Lock()
			s.err = fmt.Errorf("docker-registry ended: %w: %s", err, said.last())
			s.mu.Unlock()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if err := s.awaitAnswer(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Server) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized {
				return nil
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		select {
		case <-s.done:
			return s.Err()
		case <-ctx.Done():
			return fmt.Errorf("no answer from %s within %s: %w", s.Addr, startTimeout, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freeAddress fills in a port where 0 was asked for: docker-registry does not
// tell which one it got.
func freeAddress(listen string) (string, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return "", err
	}
	addr := l.Addr().String()
	return addr, l.Close()
}

func writeConfig(o Options, addr string) (string, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: %q\n  delete:\n    enabled: true\n", filepath.Join(dir, "data"))
	fmt.Fprintf(&b, "http:\n  addr: %q\n", addr)
	if len(o.Users) > 0 {
		passwords := filepath.Join(dir, "htpasswd")
		if err := writePasswords(passwords, o.Users); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "auth:\n  htpasswd:\n    realm: gantry\n    path: %q\n", passwords)
	}
	config := filepath.Join(dir, "config.yml")
	return config, os.WriteFile(config, []byte(b.String()), 0o600)
}

func writePasswords(path string, users map[string]string) error {
	var b strings.Builder
	for name, password := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			return fmt.Errorf("password of %s: %w", name, err)
		}
		fmt.Fprintf(&b, "%s:%s\n", name, hash)
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

// tail passes on what a program says and keeps the end of it for messages.
type tail struct {
	inner io.Writer
	mu    sync.Mutex
	end   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if over := len(t.end) - 1000; over > 0 {
		t.end = t.end[over:]
	}
	return t.inner.Write(p)
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.end))
}
