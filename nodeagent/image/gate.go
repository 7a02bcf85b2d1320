package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second
	// idleTimeout ends a download of which nothing came for so long. There is
	// no limit on the whole: a large layer over a slow line is fine.
	idleTimeout = 30 * time.Second
	// manifestLimit is what the specification asks registries to accept.
	manifestLimit = 4 << 20
)

// gate is the only way to the network. The registry library goes over to plain
// HTTP by itself for loopback and private addresses; here that is refused
// unless the registry was named as insecure.
type gate struct {
	checked, unchecked *http.Transport
	idle               time.Duration
	hosts              map[string]bool
}

// plainHTTPError says that plain HTTP was asked for and refused.
type plainHTTPError struct{ host string }

func (e plainHTTPError) Error() string {
	return fmt.Sprintf("plain HTTP to %s is refused: give the registry a certificate, or name it as an insecure registry", e.host)
}

// stalledError says that a download stopped without ending.
type stalledError struct {
	host string
	wait time.Duration
}

func (e stalledError) Error() string {
	return fmt.Sprintf("%s sent nothing for %s", e.host, e.wait)
}

func newGate(insecureRegistries []string) *gate {
	g := &gate{checked: newTransport(), unchecked: newTransport(), idle: idleTimeout, hosts: map[string]bool{}}
	g.unchecked.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // asked for by name
	for _, h := range insecureRegistries {
		g.hosts[strings.TrimSuffix(h, "/")] = true
	}
	return g
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          16,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		// Layers are compressed already, and their digest is that of the bytes sent.
		DisableCompression: true,
	}
}

// insecure says whether host[:port] was named; a name without a port stands
// for all of that host's ports.
func (g *gate) insecure(hostport string) bool {
	if g.hosts[hostport] {
		return true
	}
	host, _, err := net.SplitHostPort(hostport)
	return err == nil && (g.hosts[host] || g.hosts["["+host+"]"])
}

func (g *gate) close() {
	g.checked.CloseIdleConnections()
	g.unchecked.CloseIdleConnections()
}

// manifestDigest is put into a request's context to learn which digest the
// registry gave for a manifest: the library does not compare it for tags.
type manifestDigest struct {
	mu    sync.Mutex
	first string
}

type manifestDigestKey struct{}

func (m *manifestDigest) note(digest string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first == "" {
		m.first = digest
	}
}

// RoundTrip sees each request, those after redirects and for tokens included.
func (g *gate) RoundTrip(req *http.Request) (*http.Response, error) {
	insecure := g.insecure(req.URL.Host)
	t := g.checked
	if insecure {
		t = g.unchecked
	}
	if req.URL.Scheme != "https" && !insecure {
		return nil, plainHTTPError{host: req.URL.Host}
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(err)
		return nil, err
	}
	resp.Request = req
	body := &watchedBody{inner: resp.Body, ctx: ctx, cancel: cancel, stalled: stalledError{req.URL.Host, g.idle}}
	body.timer = time.AfterFunc(g.idle, func() { cancel(body.stalled) })
	body.timer.Stop()
	resp.Body = body
	if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/manifests/") {
		body.left = manifestLimit
		if m, ok := req.Context().Value(manifestDigestKey{}).(*manifestDigest); ok && resp.StatusCode == http.StatusOK {
			m.note(resp.Header.Get("Docker-Content-Digest"))
		}
	}
	return resp, nil
}

// watchedBody fails a read that waits for too long, and a manifest that is too
// large for memory.
type watchedBody struct {
	inner   io.ReadCloser
	ctx     context.Context // the body lives as long as its request
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	stalled stalledError
	left    int64 // 0 means no limit
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, fmt.Errorf("%w: the manifest is larger than %d bytes", ErrTooLarge, manifestLimit)
	}
	b.timer.Reset(b.stalled.wait)
	n, err := b.inner.Read(p)
	b.timer.Stop()
	if b.left > 0 {
		if b.left -= int64(n); b.left <= 0 {
			b.left = -1
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	b.cancel(context.Canceled)
	return b.inner.Close()
}
