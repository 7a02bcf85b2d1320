package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/schemas"
)

// heard collects what an agent hears.
type heard struct {
	mu    sync.Mutex
	words []string
}

func (h *heard) add(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.words = append(h.words, fmt.Sprintf(format, args...))
}

func (h *heard) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.words...)
}

func (h *heard) handlers() NodeHandlers {
	return NodeHandlers{
		Desired: func(r schemas.PodRecord) { h.add("pod %s/%s %d", r.Namespace, r.Name, r.Revision) },
		Network: func(r schemas.NetworkRecord) { h.add("network %s", r.PodCIDR) },
		Route:   func(r schemas.RouteRecord) { h.add("route %s/%s", r.Namespace, r.Name) },
	}
}

func connectTestNode(t testing.TB, s *Server, node string, h NodeHandlers) *NodeConn {
	t.Helper()
	creds, err := s.AddNode(node)
	if err != nil {
		t.Fatal(err)
	}
	n, err := ConnectNode(testContext(t), creds, h, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	eventually(t, "node "+node+" connects", n.Connected)
	if err := n.link.nc.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	return n
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func podRecord(c *Conn, node, name string, revision uint64) (string, schemas.PodRecord) {
	return schemas.DesiredPodKey(node, "default", name), schemas.PodRecord{
		ClusterID: c.Cluster().ID, Node: node, Revision: revision, Namespace: "default", Name: name,
	}
}

func TestNodeHearsItsOwnAndNothingElse(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	var one, two heard
	n1 := connectTestNode(t, s, "n1", one.handlers())
	connectTestNode(t, s, "n2.example", two.handlers())
	ctx := testContext(t)

	var writes []FeedWrite
	for i, node := range []string{"n1", "n2.example", "n1"} {
		key, r := podRecord(c, node, fmt.Sprint("p", i), uint64(i+1))
		writes = append(writes, FeedWrite{Node: node, Key: key, Body: encode(t, r)})
	}
	writes = append(writes, FeedWrite{Node: "n1", Key: schemas.DesiredNetworkKey("n1"), Body: encode(t, schemas.NetworkRecord{PodCIDR: "10.244.1.0/24"})})
	if err := c.PutAll(ctx, writes); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteDesired(ctx, "n1", writes[0].Key); err != nil {
		t.Fatal(err)
	}
	key := schemas.RouteServiceKey("default", "web")
	if err := c.PutRoute(ctx, key, encode(t, schemas.RouteRecord{ClusterID: c.Cluster().ID, Namespace: "default", Name: "web"})); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteRoute(ctx, key); err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct {
		name string
		h    *heard
		want []string
	}{
		{"n1", &one, []string{"pod default/p0 1", "pod default/p2 3", "network 10.244.1.0/24", "route default/web"}},
		{"n2.example", &two, []string{"pod default/p1 2", "route default/web"}},
	} {
		eventually(t, w.name+" hears", func() bool { return len(w.h.all()) >= len(w.want) })
		got := w.h.all()
		// Routes and desired state are two subscriptions: only each is in order.
		if route := w.want[len(w.want)-1]; got[len(got)-1] != route {
			for i, word := range got {
				if word == route {
					got = append(append(got[:i:i], got[i+1:]...), route)
					break
				}
			}
		}
		if diff := cmp.Diff(w.want, got); diff != "" {
			t.Errorf("%s heard (-want +got):\n%s", w.name, diff)
		}
	}
	if n1.Refused() != 0 {
		t.Errorf("node refused %d messages, want none: markers are not refused", n1.Refused())
	}
}

func TestManyRecordsComeInOrder(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	const records = 10_000
	var mu sync.Mutex
	var revisions []uint64
	connectTestNode(t, s, "n1", NodeHandlers{Desired: func(r schemas.PodRecord) {
		mu.Lock()
		defer mu.Unlock()
		revisions = append(revisions, r.Revision)
	}})
	var writes []FeedWrite
	for i := range records {
		key, r := podRecord(c, "n1", fmt.Sprint("p", i), uint64(i+1))
		writes = append(writes, FeedWrite{Node: "n1", Key: key, Body: encode(t, r)})
	}
	if err := c.PutAll(testContext(t), writes); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have come", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(revisions) == records
	})
	for i, r := range revisions {
		if r != uint64(i+1) {
			t.Fatalf("record %d came in place %d", r, i+1)
		}
	}
	if err := c.ClearFeeds(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.lastMessage(testContext(t), "KV_desired", schemas.KVSubject("desired", writes[0].Key)); !errors.Is(err, ErrNotFound) {
		t.Errorf("cleared bucket: %v, want ErrNotFound", err)
	}
}

func TestNodeRefusesWhatIsNotSigned(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	var h heard
	n := connectTestNode(t, s, "n1", h.handlers())
	key, record := podRecord(c, "n1", "web", 1)
	subject := schemas.KVSubject(c.names.DesiredBucket(), key)
	body := encode(t, record)
	otherSubject := schemas.KVSubject(c.names.DesiredBucket(), schemas.DesiredPodKey("n1", "default", "other"))
	sign := func(subject string, body []byte) string {
		sig, err := c.signer.sign(subject, body)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	foreign := record
	foreign.ClusterID = "another"
	others := record
	others.Node = "n2"
	for i, m := range []struct {
		desc, subject string
		body          []byte
		signature     string
	}{
		{"no signature", subject, body, ""},
		{"signature that is not base64", subject, body, "?"},
		{"changed body", subject, []byte(strings.Replace(string(body), "web", "wet", 1)), sign(subject, body)},
		{"moved to another key", otherSubject, body, sign(subject, body)},
		{"signed for another key than it says", otherSubject, body, sign(otherSubject, body)},
		{"another cluster", subject, encode(t, foreign), sign(subject, encode(t, foreign))},
		{"another node", subject, encode(t, others), sign(subject, encode(t, others))},
		{"not JSON", subject, []byte("{"), sign(subject, []byte("{"))},
	} {
		msg := nats.NewMsg(m.subject)
		msg.Data = m.body
		msg.Header.Set(schemas.HeaderSignature, m.signature)
		if err := c.link.nc.PublishMsg(msg); err != nil {
			t.Fatal(err)
		}
		eventually(t, "refused: "+m.desc, func() bool { return n.Refused() == uint64(i+1) })
	}
	if len(h.all()) != 0 {
		t.Errorf("agent was told %v", h.all())
	}
}

// What stolen credentials of a node could try. Each attempt runs on a raw
// connection with the node's key, inside and outside what it may do.
func TestNodeCanDoNothingElse(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	st := openTestStore(t, c, nil)
	mustCreate(t, st, testPod("default", "secret", "n2"))
	var second heard
	connectTestNode(t, s, "n2", second.handlers())
	n1 := connectTestNode(t, s, "n1", NodeHandlers{})
	if err := c.ServeAPI(testContext(t), []string{schemas.VerbGet}, func(context.Context, schemas.Call, map[string][]string, []byte) ([]byte, map[string][]string, *metav1.Status) {
		t.Error("the API answered a node")
		return nil, nil, nil
	}); err != nil {
		t.Fatal(err)
	}

	requests := []string{
		"$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.KV_objects", "$JS.API.STREAM.MSG.GET.KV_objects",
		"$JS.API.DIRECT.GET.KV_desired.$KV.desired.n1.network", "$JS.API.DIRECT.GET.KV_desired.$KV.desired.n2.network",
		"$JS.API.CONSUMER.CREATE.KV_objects.x", "$JS.API.STREAM.PURGE.KV_desired",
		"$KV.objects.pods.default.secret", "$KV.desired.n2.network", "$KV.desired.n1.network", "$KV.routes.service.default.web",
		"$KV.reservations.clusterip.x", "$KV.cluster.cluster",
		"health.n2.node", "health.n2.pod.default.web", "sync.n2", "node.n2.logs",
		"api.get.pods.default.secret", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SRV.PING",
	}
	ctx := testContext(t)
	for _, subject := range requests {
		t.Run("publish "+subject, func(t *testing.T) {
			reply, err := n1.link.request(ctx, nats.NewMsg(subject))
			if !errors.Is(err, ErrForbidden) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, %v, want ErrForbidden and no timeout", reply, err)
			}
		})
	}
	for _, subject := range []string{
		">", "$KV.>", "$KV.desired.>", "$KV.desired.n2.>", "$KV.desired.*.network", "$KV.objects.>",
		"health.>", "sync.>", "node.n2.>", "api.>", "$JS.>", "$SYS.>",
	} {
		t.Run("subscribe "+subject, func(t *testing.T) {
			sub, err := n1.link.nc.SubscribeSync(subject)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sub.Unsubscribe() }()
			if _, err := sub.NextMsg(5 * time.Second); !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("got %v, want a permission error", err)
			}
		})
	}

	// Within its own subjects: reply subjects and headers that would make the
	// stream act on others.
	t.Run("reply to another's subject", func(t *testing.T) {
		m := nats.NewMsg("health.n1.node")
		m.Reply = "$KV.desired.n2.network"
		m.Data = encode(t, schemas.NodeHealth{Node: "n1"})
		if err := n1.link.nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		if err := n1.ReportNode(ctx, schemas.NodeHealth{Node: "n1"}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.lastMessage(ctx, "KV_desired", "$KV.desired.n2.network"); !errors.Is(err, ErrNotFound) {
			t.Errorf("the acknowledgement was stored as desired state of another: %v", err)
		}
	})
	for _, header := range []string{"Nats-Rollup", "Nats-TTL", "Nats-Schedule"} {
		t.Run("header "+header, func(t *testing.T) {
			m := nats.NewMsg("health.n1.node")
			m.Header.Set(header, map[string]string{"Nats-Rollup": "all", "Nats-TTL": "1s", "Nats-Schedule": "@every 1s"}[header])
			reply, err := n1.link.request(ctx, m)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readAck(m.Subject, reply.Data); err == nil {
				t.Error("the stream took it")
			}
		})
	}
	if len(second.all()) != 0 {
		t.Errorf("n2 was told %v", second.all())
	}
}

func TestSync(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	n := connectTestNode(t, s, "n1", NodeHandlers{})
	ctx := testContext(t)
	if _, err := n.Sync(ctx, schemas.SyncRequest{}); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("sync without a control plane: %v, want ErrNoAnswer at once", err)
	}
	if err := c.ServeSync(ctx, func(_ context.Context, req schemas.SyncRequest) schemas.SyncReply {
		if req.Instance == "panic" {
			panic("no")
		}
		return schemas.SyncReply{Revision: 7, HeartbeatSeconds: 10, Pods: &schemas.PodSnapshot{Pos: schemas.FeedPos{Epoch: "e", Seq: 3}}}
	}); err != nil {
		t.Fatal(err)
	}
	got, err := n.Sync(ctx, schemas.SyncRequest{Instance: "i", Nonce: "x"})
	if err != nil {
		t.Fatal(err)
	}
	want := schemas.SyncReply{
		ClusterID: c.Cluster().ID, Node: "n1", Nonce: "x", Revision: 7, HeartbeatSeconds: 10,
		Pods: &schemas.PodSnapshot{Pos: schemas.FeedPos{Epoch: "e", Seq: 3}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
	if got, err := n.Sync(ctx, schemas.SyncRequest{Instance: "panic"}); err != nil || got.Error == nil || got.Error.Code != 500 {
		t.Errorf("sync that panics: %+v, %v, want a Status 500", got.Error, err)
	}
	reply, err := n.link.request(ctx, &nats.Msg{Subject: "sync.n1", Data: encode(t, schemas.SyncRequest{Node: "n2"})})
	if err != nil {
		t.Fatal(err)
	}
	var refused schemas.SyncReply
	if err := json.Unmarshal(reply.Data, &refused); err != nil || refused.Error == nil || refused.Error.Code != 403 {
		t.Errorf("sync under another's name: %s, want a Status 403", reply.Data)
	}
}

func TestHealthRoundTrip(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	n := connectTestNode(t, s, "n1.example", NodeHandlers{})
	ctx, cancel := context.WithCancel(testContext(t))
	report := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("report %s: %v", what, err)
		}
	}
	report("pod", n.ReportPod(ctx, schemas.PodHealth{Node: "n1.example", Namespace: "default", Name: "web.0", Seq: 1}))
	report("pod again", n.ReportPod(ctx, schemas.PodHealth{Node: "n1.example", Namespace: "default", Name: "web.0", Seq: 2}))
	report("a lie", n.ReportPod(ctx, schemas.PodHealth{Node: "n2", Namespace: "default", Name: "lie"}))

	var h heard
	done := make(chan error)
	go func() {
		done <- c.WatchHealth(ctx, func(m HealthMsg) {
			switch {
			case m.Pod != nil:
				h.add("%s pod %s/%s %d", m.Node, m.Pod.Namespace, m.Pod.Name, m.Pod.Seq)
			case m.NodeHealth != nil:
				h.add("%s node %s", m.Node, m.NodeHealth.Instance)
			case m.Event != nil:
				h.add("%s event %s", m.Node, m.Event.Reason)
			}
		})
	}()
	eventually(t, "the newest report of the pod comes", func() bool { return len(h.all()) == 1 })
	report("node", n.ReportNode(ctx, schemas.NodeHealth{Node: "n1.example", Instance: "i"}))
	report("event", n.ReportEvent(ctx, schemas.PodEvent{Node: "n1.example", Namespace: "default", Pod: "web.0", Reason: "Started"}))
	want := []string{"n1.example pod default/web.0 2", "n1.example node i", "n1.example event Started"}
	eventually(t, "all reports come", func() bool { return len(h.all()) >= len(want) })
	if diff := cmp.Diff(want, h.all()); diff != "" {
		t.Errorf("health (-want +got):\n%s", diff)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNodeRequest(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	n := connectTestNode(t, s, "n1", NodeHandlers{})
	ctx := testContext(t)
	pods := schema.GroupResource{Resource: schemas.Pods}
	if err := n.Serve(schemas.NodeMethodLogs, func(_ context.Context, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
		switch string(body) {
		case "missing":
			return nil, nil, apierrors.NewNotFound(pods, "web")
		case "panic":
			panic("no")
		case "big":
			return make([]byte, 1<<20), nil, nil
		}
		return append([]byte("said "), body...), map[string][]string{schemas.HeaderCursor: header["Ask"]}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	body, header, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodLogs, map[string][]string{"Ask": {"7"}}, []byte("hello"))
	if err != nil || string(body) != "said hello" || header[schemas.HeaderCursor][0] != "7" {
		t.Errorf("answer %q %v, %v", body, header, err)
	}
	if _, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodLogs, nil, []byte("missing")); !apierrors.IsNotFound(err) {
		t.Errorf("refusal: %v, want IsNotFound", err)
	}
	if _, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodLogs, nil, []byte("panic")); !apierrors.IsInternalError(err) {
		t.Errorf("panic: %v, want IsInternalError", err)
	}
	if _, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodLogs, nil, []byte("big")); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("answer of 1 MiB: %v, want IsRequestEntityTooLargeError", err)
	}
	for _, node := range []string{"n1", "n2"} {
		if _, _, err := c.NodeRequest(ctx, node, "nothing", nil, nil); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("ask %s for what nobody serves: %v, want ErrNoAnswer", node, err)
		}
	}
	// The server forgets how answers go back as soon as they went.
	acc, err := s.ns.LookupAccount(nodeAccount + "n1")
	if err != nil {
		t.Fatal(err)
	}
	if pending := acc.NumPendingAllResponses(); pending != 0 {
		t.Errorf("%d responses are still awaited", pending)
	}
}

func TestNodeComesBackAfterRestartOfTheServer(t *testing.T) {
	dir := t.TempDir()
	ctx := testContext(t)
	start := func(listen string) *Server {
		s, err := StartServer(ctx, ServerOptions{StateDir: dir, Listen: listen, Nodes: []string{"n1"}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := start("127.0.0.1:0")
	c1 := openTest(t, first)
	creds, err := first.NodeCredentials("n1")
	if err != nil {
		t.Fatal(err)
	}
	c1.Close()
	address := strings.TrimPrefix(first.URLs()[0], "nats://")
	stopServer(t, first)

	// The agent starts while there is no server.
	var h heard
	handlers := h.handlers()
	handlers.Reconnected = func() { h.add("connected") }
	n, err := ConnectNode(ctx, creds, handlers, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Connected() {
		t.Error("connected to nothing")
	}
	if err := n.ReportNode(ctx, schemas.NodeHealth{Node: "n1"}); err == nil {
		t.Error("a report was acknowledged by nobody")
	}
	second := start(address)
	eventually(t, "the agent connects to the server that came", func() bool { return len(h.all()) == 1 })
	c2 := openTest(t, second)
	stopServer(t, second)
	c2.Close()
	third := start(address)
	defer stopServer(t, third)
	eventually(t, "the agent connects again", func() bool { return len(h.all()) == 2 })

	c3 := openTest(t, third)
	key, r := podRecord(c3, "n1", "web", 1)
	if err := c3.PutDesired(ctx, "n1", key, encode(t, r)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent hears its state", func() bool { return len(h.all()) == 3 })
	if err := n.ReportNode(ctx, schemas.NodeHealth{Node: "n1"}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"connected", "connected", "pod default/web 1"}, h.all()); diff != "" {
		t.Errorf("heard (-want +got):\n%s", diff)
	}
}
