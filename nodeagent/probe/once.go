package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	maxOutput = 1 << 10 // of a failed probe, in messages
	maxBody   = 10 << 10
)

// once probes one time; nil means success.
func (p *Prober) once(ctx context.Context, key Key, t Target) error {
	limit := timeout(t.Probe)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch {
	case t.Probe.HTTPGet != nil:
		return httpGet(ctx, t, limit)
	case t.Probe.TCPSocket != nil:
		return tcpSocket(ctx, t)
	case t.Probe.Exec != nil:
		return p.command(ctx, key, t, limit)
	}
	return errors.New("the probe names no handler that is supported")
}

func (p *Prober) command(ctx context.Context, key Key, t Target, limit time.Duration) error {
	code, output, err := p.exec(ctx, key, t.Probe.Exec.Command, limit)
	if err != nil {
		return fmt.Errorf("command %q: %w", strings.Join(t.Probe.Exec.Command, " "), err)
	}
	if code != 0 {
		return fmt.Errorf("command %q: exit code %d: %s", strings.Join(t.Probe.Exec.Command, " "), code, tail(output))
	}
	return nil
}

func tcpSocket(ctx context.Context, t Target) error {
	address, err := address(t, t.Probe.TCPSocket.Host, t.Probe.TCPSocket.Port)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	// The connection itself was the answer; how it closes says nothing.
	_ = conn.Close()
	return nil
}

func httpGet(ctx context.Context, t Target, limit time.Duration) error {
	get := t.Probe.HTTPGet
	address, err := address(t, get.Host, get.Port)
	if err != nil {
		return err
	}
	scheme := "http"
	if get.Scheme == corev1.URISchemeHTTPS {
		scheme = "https"
	}
	path := get.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	u, err := url.Parse(path)
	if err != nil {
		return fmt.Errorf("httpGet path %q: %w", get.Path, err)
	}
	u.Scheme, u.Host = scheme, address
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("httpGet: %w", err)
	}
	req.Header.Set("User-Agent", "gantry-probe")
	req.Header.Set("Accept", "*/*")
	for _, h := range get.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	// A transport of its own: probes must see the server as a new client does,
	// and must leave no idle connection behind.
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, Proxy: nil,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as documented for probes: the certificate is not verified
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport, Timeout: limit,
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			const most = 10
			if next.URL.Hostname() != via[0].URL.Hostname() || len(via) >= most {
				return http.ErrUseLastResponse // a redirect elsewhere counts as success
			}
			return nil
		},
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if res.StatusCode < http.StatusOK || res.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("HTTP probe failed with statuscode: %d: %s", res.StatusCode, tail(body))
	}
	return nil
}

// address is where to dial; a named port is one of the container's.
func address(t Target, host string, port intstr.IntOrString) (string, error) {
	if host == "" {
		host = t.IP
	}
	if host == "" {
		return "", errors.New("the pod has no address yet")
	}
	number := port.IntValue()
	if port.Type == intstr.String {
		n, err := strconv.Atoi(port.StrVal)
		number = n
		if err != nil {
			number = 0
			for _, p := range t.Ports {
				if p.Name == port.StrVal {
					number = int(p.ContainerPort)
				}
			}
		}
	}
	if number < 1 || number > 65535 {
		return "", fmt.Errorf("the container has no port %q", port.String())
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), nil
}

func tail(b []byte) string {
	if len(b) > maxOutput {
		b = b[len(b)-maxOutput:]
	}
	return strings.TrimSpace(string(b))
}
