package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

func connectTestUser(t testing.TB, s *Server) *UserConn {
	t.Helper()
	creds, err := s.AdminCredentials()
	if err != nil {
		t.Fatal(err)
	}
	u, err := ConnectUser(testContext(t), creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

func TestAPI(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	u := connectTestUser(t, s)
	ctx := testContext(t)
	if _, err := u.Request(ctx, schemas.VerbGet, schemas.Pods, "default", "web", nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("without a control plane: %v, want ErrNoAnswer at once", err)
	}
	err := c.ServeAPI(ctx, []string{schemas.VerbGet, schemas.VerbApply}, func(_ context.Context, call schemas.Call, _ map[string][]string, body []byte) ([]byte, map[string][]string, *metav1.Status) {
		switch call.Name {
		case "missing":
			return nil, nil, newStatus(http.StatusNotFound, metav1.StatusReasonNotFound, "pods \"missing\"\nnot found")
		case "panic":
			panic("no")
		case "big":
			return make([]byte, 1<<20), nil, nil
		}
		return body, map[string][]string{schemas.HeaderWarning: {fmt.Sprintf("%+v", call), "two"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := u.Request(ctx, schemas.VerbApply, "deployments/scale", "default", "web.x", []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"{Verb:apply Resource:deployments Subresource:scale Namespace:default Name:web.x}", "two"}
	if diff := cmp.Diff(want, got.Header[schemas.HeaderWarning]); diff != "" || string(got.Body) != "body" {
		t.Errorf("answer %q, headers (-want +got):\n%s", got.Body, diff)
	}
	for _, w := range []struct {
		resource, namespace, name string
		is                        func(error) bool
	}{
		{schemas.Pods, "default", "missing", apierrors.IsNotFound},
		{schemas.Pods, "default", "panic", apierrors.IsInternalError},
		{schemas.Pods, "default", "big", apierrors.IsRequestEntityTooLargeError},
		{schemas.Pods, "bad.namespace", "x", apierrors.IsBadRequest},
		{"po ds", "", "x", apierrors.IsBadRequest},
		{"*", "", "x", apierrors.IsBadRequest},
	} {
		if _, err := u.Request(ctx, schemas.VerbGet, w.resource, w.namespace, w.name, nil); !w.is(err) {
			t.Errorf("get %s %s/%s: %v", w.resource, w.namespace, w.name, err)
		}
	}
	// Any NATS client sees the service and its refusals.
	reply, err := u.link.nc.RequestWithContext(ctx, "api.get.pods.default.missing", nil)
	if err != nil || reply.Header.Get("Nats-Service-Error-Code") != "404" {
		t.Errorf("raw refusal: %v %v", reply.Header, err)
	}
	stats, err := u.link.nc.RequestWithContext(ctx, "$SRV.STATS.api", nil)
	if err != nil {
		t.Fatal(err)
	}
	var service struct {
		Endpoints []struct {
			Name       string         `json:"name"`
			QueueGroup string         `json:"queue_group"`
			Data       map[string]int `json:"data"`
		} `json:"endpoints"`
	}
	if err := json.Unmarshal(stats.Data, &service); err != nil || len(service.Endpoints) != 2 || service.Endpoints[0].QueueGroup == "" {
		t.Errorf("micro stats: %s, %v", stats.Data, err)
	}
}

func TestWaitingWatchesStarveNobody(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	u := connectTestUser(t, s)
	ctx := testContext(t)
	release := make(chan struct{})
	var waiting sync.WaitGroup
	const watches = apiRequests + 50
	waiting.Add(watches)
	err := c.ServeAPI(ctx, []string{schemas.VerbGet, schemas.VerbWatch}, func(_ context.Context, call schemas.Call, _ map[string][]string, _ []byte) ([]byte, map[string][]string, *metav1.Status) {
		if call.Verb == schemas.VerbWatch {
			waiting.Done()
			<-release
		}
		return []byte("{}"), nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	for range watches {
		done.Go(func() {
			if _, err := u.Request(ctx, schemas.VerbWatch, schemas.Pods, "", "", nil); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	if _, err := u.Request(ctx, schemas.VerbGet, schemas.Pods, "default", "web", nil); err != nil {
		t.Error(err)
	}
	close(release)
	done.Wait()
}

func TestListFollowsPagesAndWatchGoesOn(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	u := connectTestUser(t, s)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	err := c.ServeAPI(ctx, []string{schemas.VerbList, schemas.VerbWatch}, func(_ context.Context, call schemas.Call, _ map[string][]string, body []byte) ([]byte, map[string][]string, *metav1.Status) {
		var opts metav1.ListOptions
		if err := json.Unmarshal(body, &opts); err != nil {
			return nil, nil, newStatus(400, metav1.StatusReasonBadRequest, err.Error())
		}
		if call.Verb == schemas.VerbList {
			page, _ := strconv.Atoi(opts.Continue)
			next := ""
			if page < 2 {
				next = strconv.Itoa(page + 1)
			}
			return fmt.Appendf(nil, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"5","continue":%q},"items":[{"n":%d}]}`, next, page), nil, nil
		}
		rv, _ := strconv.Atoi(opts.ResourceVersion)
		if rv == 8 {
			return nil, nil, newStatus(http.StatusGone, metav1.StatusReasonExpired, "too old")
		}
		return fmt.Appendf(nil, `{"resourceVersion":"%d","items":[{"type":"ADDED","object":{"n":%d}}]}`, rv+1, rv), nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := u.List(ctx, schemas.Pods, "", metav1.ListOptions{})
	if err != nil || list.ResourceVersion != "5" || list.Kind != "PodList" || list.Continue != "" {
		t.Errorf("list %+v, %v", list, err)
	}
	if diff := cmp.Diff([]json.RawMessage{[]byte(`{"n":0}`), []byte(`{"n":1}`), []byte(`{"n":2}`)}, list.Items); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
	var events []string
	err = u.Watch(ctx, schemas.Pods, "", metav1.ListOptions{ResourceVersion: list.ResourceVersion}, func(e metav1.WatchEvent) error {
		events = append(events, e.Type+string(e.Object.Raw))
		return nil
	})
	if !apierrors.IsResourceExpired(err) {
		t.Errorf("watch ended with %v, want IsResourceExpired", err)
	}
	if diff := cmp.Diff([]string{`ADDED{"n":5}`, `ADDED{"n":6}`, `ADDED{"n":7}`}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A bus of its own for two clusters: prefixes keep them apart.
func TestPrefixes(t *testing.T) {
	s, err := StartServer(testContext(t), ServerOptions{StateDir: t.TempDir(), Listen: "127.0.0.1:0", Names: schemas.Names{Prefix: "east"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(t, s) })
	c, err := Open(testContext(t), OpenOptions{Names: schemas.Names{Prefix: "east"}, Server: s})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var h heard
	n := connectTestNode(t, s, "n1", h.handlers())
	st := openTestStore(t, c, nil)
	mustCreate(t, st, testPod("default", "web", "n1"))
	key, r := podRecord(c, "n1", "web", 1)
	if err := c.PutDesired(t.Context(), "n1", key, encode(t, r)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node hears", func() bool { return len(h.all()) == 1 })
	if err := n.ReportNode(t.Context(), schemas.NodeHealth{Node: "n1"}); err != nil {
		t.Error(err)
	}
	if _, err := n.link.request(testContext(t), nats.NewMsg("health.n1.node")); !errors.Is(err, ErrForbidden) {
		t.Errorf("without the prefix: %v, want ErrForbidden", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := c.ServeAPI(ctx, []string{schemas.VerbGet}, func(_ context.Context, call schemas.Call, _ map[string][]string, _ []byte) ([]byte, map[string][]string, *metav1.Status) {
		return []byte(call.Name), nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	u := connectTestUser(t, s)
	if reply, err := u.Request(ctx, schemas.VerbGet, schemas.Pods, "default", "web", nil); err != nil || string(reply.Body) != "web" {
		t.Errorf("get: %s, %v", reply.Body, err)
	}
}
