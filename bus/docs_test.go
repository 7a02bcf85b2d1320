package bus

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus/examples"
	"gantry.dev/schemas"
)

// docTypes is every type that an example may name.
var docTypes = map[string]func() any{
	"Pod":             func() any { return &corev1.Pod{} },
	"Event":           func() any { return &corev1.Event{} },
	"ClusterRecord":   func() any { return &schemas.ClusterRecord{} },
	"Reservation":     func() any { return &schemas.Reservation{} },
	"PodRecord":       func() any { return &schemas.PodRecord{} },
	"NetworkRecord":   func() any { return &schemas.NetworkRecord{} },
	"RouteRecord":     func() any { return &schemas.RouteRecord{} },
	"SyncRequest":     func() any { return &schemas.SyncRequest{} },
	"SyncReply":       func() any { return &schemas.SyncReply{} },
	"PodHealth":       func() any { return &schemas.PodHealth{} },
	"NodeHealth":      func() any { return &schemas.NodeHealth{} },
	"PodEvent":        func() any { return &schemas.PodEvent{} },
	"LogRequest":      func() any { return &schemas.LogRequest{} },
	"WatchReply":      func() any { return &schemas.WatchReply{} },
	"Status":          func() any { return &metav1.Status{} },
	"Namespace":       func() any { return &corev1.Namespace{} },
	"Service":         func() any { return &corev1.Service{} },
	"ServiceList":     func() any { return &corev1.ServiceList{} },
	"Deployment":      func() any { return &appsv1.Deployment{} },
	"ConfigMap":       func() any { return &corev1.ConfigMap{} },
	"JSONSchema":      func() any { return &map[string]any{} },
	"Scale":           func() any { return &autoscalingv1.Scale{} },
	"PodList":         func() any { return &corev1.PodList{} },
	"Images":          func() any { return &[]map[string]any{} },
	"NodeStats":       func() any { return &schemas.NodeStats{} },
	"PodMetricsList":  func() any { return &map[string]any{} },
	"NodeCredentials": func() any { return &schemas.NodeCredentials{} },
	"UserCredentials": func() any { return &schemas.UserCredentials{} },
}

// replay is a bus with one node, on which the examples are said again.
type replay struct {
	*testing.T
	server *Server
	conn   *Conn
	store  Store
	node   *NodeConn

	mu   sync.Mutex
	told []any // what the node heard
}

func (r *replay) tell(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, v)
}

func (r *replay) last() any {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) == 0 {
		return nil
	}
	return r.told[len(r.told)-1]
}

// TestDocs replays docs/bus.md. Examples of the API and of nodes (api, node,
// answer) need the daemons: here only their form is checked, the end-to-end
// tests replay them with the same reader.
func TestDocs(t *testing.T) {
	all, err := examples.Read("../docs/bus.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 15 {
		t.Fatalf("only %d examples found", len(all))
	}
	r := &replay{T: t, server: startTestServer(t, t.TempDir())}
	r.conn = openTest(t, r.server)
	r.store = openTestStore(t, r.conn, nil)
	r.node = connectTestNode(t, r.server, "n1", NodeHandlers{
		Desired: func(p schemas.PodRecord) { r.tell(&p) },
		Network: func(n schemas.NetworkRecord) { r.tell(&n) },
		Route:   func(s schemas.RouteRecord) { r.tell(&s) },
	})
	for i, e := range all {
		var answer examples.Example
		if i+1 < len(all) {
			answer = all[i+1]
		}
		t.Run(e.Verb+" "+strings.Join(e.Args, " "), func(t *testing.T) {
			r.T = t
			t.Logf("docs/bus.md:%d", e.Line)
			r.example(e, answer)
		})
	}
}

func (r *replay) example(e, answer examples.Example) {
	switch e.Verb {
	case "kv":
		r.kv(e)
	case "message":
		r.health(e)
	case "request":
		r.request(e, answer)
	case "api":
		if _, err := (schemas.Names{}).ParseAPI(e.Args[0]); err != nil {
			r.Error(err)
		}
	case "node":
		known := []string{
			schemas.NodeMethodImages, schemas.NodeMethodImagePut, schemas.NodeMethodLogs, schemas.NodeMethodExec, schemas.NodeMethodAttach,
			schemas.NodeMethodPortForward, schemas.NodeMethodCopy, schemas.NodeMethodSend, schemas.NodeMethodRecv, schemas.NodeMethodStats,
		}
		if !slices.Contains(known, e.Args[0]) {
			r.Errorf("nodes have %q, not %q", known, e.Args[0])
		}
	case "reply", "answer", "file":
		r.decode(e, 0)
	default:
		r.Errorf("nobody replays %q", e.Verb)
	}
}

// decode reads the body strictly into the type that the example names, with
// the id of this test's cluster.
func (r *replay) decode(e examples.Example, arg int) any {
	r.Helper()
	make, ok := docTypes[e.Args[arg]]
	if !ok {
		r.Fatalf("type %q is not known", e.Args[arg])
	}
	v := make()
	d := json.NewDecoder(strings.NewReader(strings.ReplaceAll(e.Body, `"CLUSTER"`, `"`+r.conn.Cluster().ID+`"`)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		r.Fatal(err)
	}
	return v
}

// stored compares the example's text with what lies in a bucket, as JSON.
func (r *replay) stored(e examples.Example) {
	r.Helper()
	bucket, key := e.Args[0], e.Args[1]
	m, err := r.conn.lastMessage(testContext(r), "KV_"+bucket, schemas.KVSubject(bucket, key))
	if err != nil {
		r.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(e.Body, "CLUSTER", r.conn.Cluster().ID)), &want); err != nil {
		r.Fatal(err)
	}
	if err := json.Unmarshal(m.Data, &got); err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.Errorf("stored (-doc +bus):\n%s", diff)
	}
}

func (r *replay) kv(e examples.Example) {
	ctx := testContext(r)
	bucket, key := e.Args[0], e.Args[1]
	v := r.decode(e, 2)
	switch bucket {
	case "objects", "events":
		o := v.(schemas.Object)
		if schemas.KeyOf(o) != key {
			r.Errorf("key is %s", schemas.KeyOf(o))
		}
		mustCreate(r, r.store, o)
		r.stored(e)
	case "cluster":
		if key != schemas.ClusterKey {
			r.Errorf("key is %s", schemas.ClusterKey)
		}
	case "reservations":
		kind, value, _ := strings.Cut(key, ".")
		if _, err := r.conn.Reserve(ctx, kind, value, *v.(*schemas.Reservation)); err != nil {
			r.Fatal(err)
		}
		r.stored(e)
	case "desired":
		if err := r.conn.PutDesired(ctx, "n1", key, encode(r, v)); err != nil {
			r.Fatal(err)
		}
		r.heard(v)
	case "routes":
		if err := r.conn.PutRoute(ctx, key, encode(r, v)); err != nil {
			r.Fatal(err)
		}
		r.heard(v)
	default:
		r.Errorf("bucket %q is not known", bucket)
	}
}

func (r *replay) heard(want any) {
	r.Helper()
	eventually(r, "the node hears it", func() bool { return cmp.Equal(want, r.last()) })
}

func (r *replay) health(e examples.Example) {
	ctx, cancel := context.WithCancel(testContext(r))
	defer cancel()
	var err error
	v := r.decode(e, 1)
	switch h := v.(type) {
	case *schemas.PodHealth:
		err = r.node.ReportPod(ctx, *h)
	case *schemas.NodeHealth:
		err = r.node.ReportNode(ctx, *h)
	case *schemas.PodEvent:
		err = r.node.ReportEvent(ctx, *h)
	}
	if err != nil {
		r.Fatal(err)
	}
	m, err := r.conn.lastMessage(ctx, r.conn.names.HealthStream(), e.Args[0])
	if err != nil {
		r.Fatal(err)
	}
	var got HealthMsg
	if err := got.decode(r.conn.names, m.Subject, m.Data); err != nil {
		r.Fatal(err)
	}
	for _, part := range []any{got.Pod, got.NodeHealth, got.Event} {
		if cmp.Equal(part, v) {
			return
		}
	}
	r.Errorf("the control plane reads %+v", got)
}

func (r *replay) request(e, answer examples.Example) {
	ctx, cancel := context.WithTimeout(testContext(r), 10*time.Second)
	defer cancel()
	switch req := r.decode(e, 1).(type) {
	case *schemas.SyncRequest:
		want := r.decode(answer, 0).(*schemas.SyncReply)
		if err := r.conn.ServeSync(ctx, func(_ context.Context, got schemas.SyncRequest) schemas.SyncReply {
			if diff := cmp.Diff(*req, got); diff != "" {
				r.Errorf("request (-doc +bus):\n%s", diff)
			}
			return *want
		}); err != nil {
			r.Fatal(err)
		}
		got, err := r.node.Sync(ctx, *req)
		if diff := cmp.Diff(*want, got); diff != "" || err != nil {
			r.Errorf("%v, reply (-doc +bus):\n%s", err, diff)
		}
	case *schemas.LogRequest:
		want := r.decode(answer, 0).(*metav1.Status)
		if err := r.node.Serve(schemas.NodeMethodLogs, func(context.Context, map[string][]string, []byte) ([]byte, map[string][]string, error) {
			return nil, nil, &apierrors.StatusError{ErrStatus: *want}
		}); err != nil {
			r.Fatal(err)
		}
		if err := r.node.link.nc.Flush(); err != nil {
			r.Fatal(err)
		}
		_, _, err := r.conn.NodeRequest(ctx, "n1", strings.TrimPrefix(e.Args[0], "node.n1."), nil, encode(r, req))
		if !apierrors.IsNotFound(err) {
			r.Errorf("refusal: %v", err)
		}
	default:
		r.Errorf("nobody replays a request of %T", req)
	}
}
