package bus

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// FuzzHealth reads whatever a node may report: it is refused, or it is what its
// subject says, which the server vouches for.
func FuzzHealth(f *testing.F) {
	var n schemas.Names
	f.Add(n.HealthPod("n1", "default", "web"), []byte(`{"node":"n1","namespace":"default","name":"web","uid":"u","status":{"phase":"Running"}}`))
	f.Add(n.HealthPod("n1", "default", "web"), []byte(`{"node":"n2","namespace":"default","name":"web"}`))
	f.Add(n.HealthNode("n1.example"), []byte(`{"node":"n1.example","seq":18446744073709551615,"status":{"capacity":{"cpu":"1e400"}}}`))
	f.Add(n.HealthEvent("n1", "default", "web"), []byte(`{"node":"n1","namespace":"default","pod":"web","time":"0000-00-00T00:00:00Z"}`))
	f.Add("health.n1", []byte(`null`))
	f.Add("health.n1.pod", []byte(`{}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		var h HealthMsg
		if err := h.decode(n, subject, data); err != nil {
			return
		}
		set, node := 0, ""
		if h.Pod != nil {
			set, node = set+1, h.Pod.Node
		}
		if h.NodeHealth != nil {
			set, node = set+1, h.NodeHealth.Node
		}
		if h.Event != nil {
			set, node = set+1, h.Event.Node
		}
		if set != 1 || schemas.NodeToken(node) != strings.Split(subject, ".")[1] {
			t.Errorf("%q was taken for %d reports of node %q: %+v", subject, set, node, h)
		}
	})
}

// FuzzRecords signs whatever bytes as the control plane would, and plays them
// to a node: it takes only records of itself, under the key that they claim.
func FuzzRecords(f *testing.F) {
	var n schemas.Names
	desired, routes := schemas.KVSubject(n.DesiredBucket(), ""), schemas.KVSubject(n.RoutesBucket(), "")
	f.Add(desired+schemas.DesiredPodKey("n1", "default", "web"), []byte(`{"clusterID":"c1","node":"n1","namespace":"default","name":"web","uid":"u","pod":{"spec":{"containers":[]}}}`), "")
	f.Add(desired+schemas.DesiredPodKey("n2", "default", "web"), []byte(`{"clusterID":"c1","node":"n2","namespace":"default","name":"web"}`), "")
	f.Add(desired+schemas.DesiredNetworkKey("n1"), []byte(`{"podCIDR":"x"}`), "")
	f.Add(routes+schemas.RouteServiceKey("default", "web"), []byte(`{"clusterID":"c1","namespace":"default","name":"web","ports":[{"port":80,"endpoints":[{"ip":"","port":1}]}]}`), "")
	f.Add(routes+schemas.RouteServiceKey("default", "web"), []byte(`{"clusterID":"c2"}`), "bm8=")
	key, err := nkeys.CreateAccount()
	if err != nil {
		f.Fatal(err)
	}
	s, err := newSigner(key)
	if err != nil {
		f.Fatal(err)
	}
	public, err := nkeys.FromPublicKey(s.public)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, subject string, data []byte, forged string) {
		taken := 0
		node := &NodeConn{creds: schemas.NodeCredentials{Node: "n1", ClusterID: "c1"}, signer: public, log: zerolog.Nop(), handlers: NodeHandlers{
			Desired: func(r schemas.PodRecord) {
				taken++
				if r.ClusterID != "c1" || subject != desired+schemas.DesiredPodKey("n1", r.Namespace, r.Name) {
					t.Errorf("took %+v for its own", r)
				}
			},
			Network: func(schemas.NetworkRecord) { taken++ },
			Route: func(r schemas.RouteRecord) {
				taken++
				if r.ClusterID != "c1" || subject != routes+schemas.RouteServiceKey(r.Namespace, r.Name) {
					t.Errorf("took %+v for a route of %s", r, subject)
				}
			},
		}}
		m := nats.NewMsg(subject)
		m.Data = data
		signature, err := s.sign(subject, data)
		if err != nil {
			t.Fatal(err)
		}
		if forged != "" && forged != signature {
			m.Header.Set(schemas.HeaderSignature, forged)
			node.hearDesired(m)
			node.hearRoute(m)
			if taken > 0 {
				t.Errorf("took what %q signs", forged)
			}
		}
		m.Header.Set(schemas.HeaderSignature, signature)
		node.hearDesired(m)
		node.hearRoute(m)
	})
}

// FuzzSync asks with whatever a node may send: every question gets an answer
// for that node, and only its own questions reach the control plane.
func FuzzSync(f *testing.F) {
	f.Add("n1", []byte(`{"node":"n1","instance":"i","nonce":"x","pods":{"epoch":"e","seq":1}}`), "c1")
	f.Add("n1", []byte(`{"node":"n2"}`), "")
	f.Add("n1.a", []byte(`{"node":"n1.a","podsAfter":"\u0000"}`), "c2")
	f.Add("n1", []byte(`[]`), "c1")
	c := &Conn{cluster: schemas.ClusterRecord{ID: "c1"}, log: zerolog.Nop()}
	f.Fuzz(func(t *testing.T, node string, data []byte, cluster string) {
		m := nats.NewMsg(c.names.Sync(node))
		m.Data = data
		m.Header.Set(schemas.HeaderCluster, cluster)
		reply := c.syncReply(t.Context(), node, m, func(_ context.Context, req schemas.SyncRequest) schemas.SyncReply {
			if req.Node != node || cluster != "" && cluster != "c1" {
				t.Errorf("node %q of cluster %q reached the control plane as %q", node, cluster, req.Node)
			}
			return schemas.SyncReply{Nonce: req.Nonce}
		})
		if reply.Node != node || reply.ClusterID != "c1" {
			t.Errorf("answered %+v", reply)
		}
		if _, err := json.Marshal(reply); err != nil {
			t.Error(err)
		}
	})
}

// message is one message of a stream.
type message struct {
	jetstream.Msg
	subject string
	header  nats.Header
	data    []byte
}

func (m message) Subject() string      { return m.subject }
func (m message) Headers() nats.Header { return m.header }
func (m message) Data() []byte         { return m.data }

// FuzzFeed reads whatever lies in the objects bucket: it is no object, or one
// that calls itself as its key does and may be stored again under it.
func FuzzFeed(f *testing.F) {
	var n schemas.Names
	prefix := schemas.KVSubject(n.ObjectsBucket(), "")
	f.Add(prefix+"pods.default.web", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default"},"spec":{"containers":[{"name":"c"}]}}`), "", "")
	f.Add(prefix+"clusterroles._.system=3Aadmin", []byte(`{"metadata":{"name":"system:admin"}}`), "", "7 1700000000 - id")
	f.Add(prefix+"roles.default.=FF", []byte(`{"metadata":{"name":"\ufffd","namespace":"default"}}`), "", "x y z")
	f.Add(prefix+"pods.default.web", []byte{}, "DEL", "18446744073709551615 -1 created a b")
	f.Add(prefix+"events.default.web", []byte(`{}`), "", "")
	v := newViewCache(nil)
	fd := &feed{bucket: n.ObjectsBucket(), view: v, lane: &v.objects, log: zerolog.Nop()}
	f.Fuzz(func(t *testing.T, subject string, data []byte, operation, earlier string) {
		h := nats.Header{headerEarlier: {earlier}}
		if operation != "" {
			h.Set(headerOperation, operation)
		}
		meta := &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Stream: 9}, Timestamp: time.Unix(1_700_000_000, 0)}
		s, err := fd.decode(message{subject: subject, header: h, data: data}, meta)
		if err != nil {
			return
		}
		for _, r := range s.requests {
			if again := requestedIn(nats.Header{headerEarlier: {r.String()}}, 0, time.Time{}); len(again) != 1 || again[0] != r {
				t.Errorf("request %+v is carried on as %+v", r, again)
			}
		}
		if operation != "" {
			return
		}
		if s.obj == nil || keyOf(s.obj) != s.key || s.obj.GetResourceVersion() != "9" {
			t.Fatalf("%q is %+v", subject, s)
		}
		st := &store{conn: &Conn{}, limit: 1 << 20}
		if p, _, err := st.encode(s.key, s.obj.DeepCopyObject().(schemas.Object)); err != nil || p.subject != subject {
			t.Errorf("%q would be stored as %q, %v", subject, p.subject, err)
		}
	})
}

// FuzzAnswers reads whatever is answered to a client and to a store.
func FuzzAnswers(f *testing.F) {
	f.Add("1", "404", []byte(`{"kind":"Status","status":"Failure","reason":"NotFound","code":404}`))
	f.Add("error", "x", []byte(`{"error":{"code":400,"err_code":10071}}`))
	f.Add("", "", []byte(`{"stream":"KV_objects","seq":1}`))
	f.Fuzz(func(t *testing.T, text, code string, data []byte) {
		m := nats.NewMsg("s")
		m.Data = data
		m.Header.Set("Nats-Service-Error", text)
		m.Header.Set("Nats-Service-Error-Code", code)
		err := refusal(m)
		var known apierrors.APIStatus
		if (err == nil) != (text == "" && code == "") || err != nil && !errors.As(err, &known) {
			t.Errorf("%q, %q is refused as %v", text, code, err)
		}
		if seq, err := readAck("s", data); err == nil && seq > 0 {
			var ack pubAck
			if json.Unmarshal(data, &ack) != nil || ack.Stream == "" || ack.Error != nil {
				t.Errorf("%q acknowledges %d", data, seq)
			}
		}
	})
}

// FuzzReplies sends whatever a handler answers: the message fits, and each of
// its headers is one line of text.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("body"), "cursor", "a warning\nof two lines", 3, "", int32(0))
	f.Add([]byte{}, "", strings.Repeat("ü", 300), 5000, "refused: "+strings.Repeat("ü", 600), int32(422))
	f.Add([]byte{}, "", "", 0, strings.Repeat("\x00", 40<<10), int32(500))
	const limit = 64 << 10
	f.Fuzz(func(t *testing.T, body []byte, cursor, warning string, warnings int, refusal string, code int32) {
		a := answer{body: body, header: map[string][]string{schemas.HeaderCursor: {cursor}}}
		for range max(min(warnings, 5000), 0) {
			a.header[schemas.HeaderWarning] = append(a.header[schemas.HeaderWarning], warning)
		}
		if refusal != "" {
			a = answer{status: &metav1.Status{Message: refusal, Code: code, Details: &metav1.StatusDetails{Name: refusal,
				Causes: []metav1.StatusCause{{Message: refusal}, {Message: refusal}}}}}
		}
		m := a.message("reply", limit)
		if m.Size() > limit {
			t.Errorf("a message of %d bytes cannot be sent", m.Size())
		}
		for k, v := range m.Header {
			for _, line := range v {
				if strings.ContainsAny(line, "\r\n") || !utf8.ValidString(line) {
					t.Errorf("header %s is %q", k, line)
				}
			}
		}
		if refusal != "" {
			var s metav1.Status
			if err := json.Unmarshal(m.Data, &s); err != nil || s.Kind != "Status" || s.Status != metav1.StatusFailure || s.Code == 0 {
				t.Errorf("refused with %q, %v", m.Data, err)
			}
		}
	})
}

// FuzzCredentials reads whatever a file of credentials may hold. Nothing is
// dialled without a key, and no error tells the seed.
func FuzzCredentials(f *testing.F) {
	user, err := nkeys.CreateUser()
	if err != nil {
		f.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"node":"n1","urls":["nats://127.0.0.1:1"],"seed":"` + string(seed) + `","signer":"A"}`))
	f.Add([]byte(`{"user":"admin","urls":[],"seed":"SUAM"}`))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n"))
	f.Add([]byte(`{"seed":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "credentials.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := ReadNodeCredentials(path)
		_, userErr := ReadUserCredentials(path)
		for _, err := range []error{err, userErr} {
			if err != nil && (!strings.Contains(err.Error(), path) || strings.Contains(err.Error(), string(seed))) {
				t.Errorf("the error names no file, or a secret: %v", err)
			}
		}
		if err != nil {
			return
		}
		if _, err := nkeys.FromSeed(trimSeed([]byte(c.Seed))); err == nil {
			return // it would be dialled
		}
		if _, err := ConnectNode(t.Context(), c, NodeHandlers{}, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "seed") {
			t.Errorf("connected with seed %q: %v", c.Seed, err)
		}
	})
}
