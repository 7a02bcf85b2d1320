package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func hostPort(t *testing.T, address string) (string, int) {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return a.IP.String(), a.Port
}

func TestHandlers(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			if r.Host != "example.test" || r.Header.Get("X-Probe") != "yes" {
				w.WriteHeader(http.StatusTeapot)
			}
		case "/moved":
			http.Redirect(w, r, "/ok-after", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://elsewhere.test/", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		case "/bad":
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	host, port := hostPort(t, plain.Listener.Addr().String())
	_, securePort := hostPort(t, secure.Listener.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, closedPort := hostPort(t, closed.Addr().String())
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	headers := []corev1.HTTPHeader{{Name: "Host", Value: "example.test"}, {Name: "x-probe", Value: "yes"}}
	get := func(path string, port int, scheme corev1.URIScheme) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt(port), Scheme: scheme, HTTPHeaders: headers}}
	}
	named := get("/ok", 0, "")
	named.HTTPGet.Port = intstr.FromString("web")
	unnamed := get("/ok", 0, "")
	unnamed.HTTPGet.Port = intstr.FromString("other")
	p := New(func(_ context.Context, _ Key, args []string, _ time.Duration) (int, []byte, error) {
		switch args[0] {
		case "true":
			return 0, nil, nil
		case "false":
			return 1, []byte("no\n"), nil
		}
		return 0, nil, errors.New("not found")
	}, nil)
	exec := func(name string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{name}}}
	}
	for _, tt := range []struct {
		desc    string
		handler corev1.ProbeHandler
		want    string // part of the error; empty for success
	}{
		{"http", get("/ok", port, ""), ""},
		{"http without a slash", get("ok", port, ""), ""},
		{"https without verification", get("/ok", securePort, corev1.URISchemeHTTPS), ""},
		{"named port", named, ""},
		{"unknown name", unnamed, `no port "other"`},
		{"redirect on the host", get("/moved", port, ""), ""},
		{"redirect elsewhere", get("/away", port, ""), ""},
		{"http 503", get("/bad", port, ""), "statuscode: 503: not yet"},
		{"http times out", get("/slow", port, ""), "deadline exceeded"},
		{"http refused", get("/ok", closedPort, ""), "connection refused"},
		{"tcp", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}, ""},
		{"tcp refused", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(closedPort)}}, "connection refused"},
		{"exec", exec("true"), ""},
		{"exec fails", exec("false"), "exit code 1: no"},
		{"exec cannot", exec("what"), "not found"},
		{"no handler", corev1.ProbeHandler{}, "no handler"},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			t.Parallel()
			err := p.once(t.Context(), Key{}, Target{
				Probe: &corev1.Probe{ProbeHandler: tt.handler}, IP: host,
				Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}},
			})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("failed: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestThresholds(t *testing.T) {
	var verdicts []Verdict
	p := New(nil, func(v Verdict) { verdicts = append(verdicts, v) })
	key := Key{UID: "u", Container: "c"}
	p.Watch(key, Target{Probe: &corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3, PeriodSeconds: 1}, Started: time.Now()})
	e := p.entries[key]
	var got []bool
	for _, ok := range []bool{true, true, false, false, true, false, false, false, true, true} {
		p.due = nil
		err := errors.New("down")
		if ok {
			err = nil
		}
		p.finish(e, time.Now(), err)
		got = append(got, e.ready)
	}
	want := []bool{false, true, true, true, true, true, true, false, false, true}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("ready %v, want %v", got, want)
		}
	}
	changes := 0
	for _, v := range verdicts {
		if v.Changed {
			changes++
		}
	}
	if changes != 3 || len(verdicts) != 7 {
		t.Errorf("%d verdicts with %d changes, want 7 with 3", len(verdicts), changes)
	}
}

func TestProberFollowsItsRuns(t *testing.T) {
	var up atomic.Bool
	var mu sync.Mutex
	ready := map[Key]bool{}
	p := New(func(context.Context, Key, []string, time.Duration) (int, []byte, error) {
		if up.Load() {
			return 0, nil, nil
		}
		return 1, nil, nil
	}, func(v Verdict) {
		mu.Lock()
		defer mu.Unlock()
		ready[v.Key] = v.Ready
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { p.Run(ctx); close(done) }()
	probe := &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
	a, b := Key{UID: "u", Container: "a"}, Key{UID: "u", Container: "b"}
	p.Watch(a, Target{Probe: probe, Started: time.Now()})
	p.Watch(b, Target{Probe: probe, Started: time.Now()})
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			reached := ok()
			mu.Unlock()
			if reached {
				return
			}
		}
		t.Fatal("not reached: " + what)
	}
	await("both failed", func() bool { return len(ready) == 2 && !ready[a] && !ready[b] })
	up.Store(true)
	await("both ready", func() bool { return ready[a] && ready[b] })
	p.Keep("u", map[Key]bool{a: true})
	up.Store(false)
	await("one unready", func() bool { return !ready[a] })
	if !ready[b] {
		t.Error("a dropped probe still runs")
	}
	cancel()
	<-done
}

func TestInitialDelay(t *testing.T) {
	p := New(nil, nil)
	now := time.Now()
	p.now = func() time.Time { return now }
	probe := &corev1.Probe{InitialDelaySeconds: 5, PeriodSeconds: 10}
	if at := p.first(Key{UID: "u"}, Target{Probe: probe, Started: now}); at.Sub(now) != 5*time.Second {
		t.Errorf("first probe after %s, want 5s", at.Sub(now))
	}
	if at := p.first(Key{UID: "u"}, Target{Probe: probe, Started: now.Add(-time.Hour)}); at.Before(now) || at.Sub(now) > 10*time.Second {
		t.Errorf("first probe of an old run after %s", at.Sub(now))
	}
}
