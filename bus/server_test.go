package bus

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

func TestServerRefusesBadOptions(t *testing.T) {
	for _, c := range []struct {
		desc string
		o    ServerOptions
		want string
	}{
		{"no directory", ServerOptions{}, "no state directory"},
		{"all addresses without TLS", ServerOptions{StateDir: "x", Listen: "0.0.0.0:4222"}, "beyond loopback without TLS"},
		{"an address without TLS", ServerOptions{StateDir: "x", Listen: "192.0.2.1:4222"}, "beyond loopback without TLS"},
		{"no port", ServerOptions{StateDir: "x", Listen: "127.0.0.1"}, "missing port"},
		{"port by name", ServerOptions{StateDir: "x", Listen: "127.0.0.1:nats"}, "not a number"},
		{"websockets everywhere without TLS", ServerOptions{StateDir: "x", Listen: ":0", Websocket: "0.0.0.0:0"}, "beyond loopback without TLS"},
		{"websockets without a listener", ServerOptions{StateDir: "x", Websocket: "127.0.0.1:0"}, "websockets need Listen"},
		{"half of TLS", ServerOptions{StateDir: "x", Listen: ":0", TLSCert: "cert.pem"}, "both a certificate and its key"},
	} {
		if c.o.StateDir != "" {
			c.o.StateDir = t.TempDir()
		}
		s, err := StartServer(t.Context(), c.o)
		if err == nil {
			stopServer(t, s)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.desc, err, c.want)
		}
	}
}

func TestServerReportsATakenPort(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	address := strings.TrimPrefix(s.URLs()[0], "nats://")
	if second, err := StartServer(testContext(t), ServerOptions{StateDir: t.TempDir(), Listen: address}); err == nil {
		stopServer(t, second)
		t.Error("two servers on one port")
	} else if !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("taken port: %v, want the reason", err)
	}
}

func TestSecretsAreKept(t *testing.T) {
	dir := t.TempDir()
	s := startTestServer(t, dir, "n1")
	openTest(t, s)
	out := t.TempDir()
	if err := s.WriteAdminCredentials(filepath.Join(out, "admin.json")); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteNodeCredentials("n1", filepath.Join(out, "n1.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteNATSContext(out, "gantry"); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteNodeCredentials("n9", filepath.Join(out, "n9.json")); !errors.Is(err, ErrNotFound) {
		t.Errorf("credentials of an unknown node: %v, want ErrNotFound", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "keys", "*"))
	if err != nil || len(files) != 4 {
		t.Errorf("keys %v, %v, want signer, control, admin, node-n1", files, err)
	}
	for _, name := range []string{"admin.json", "n1.json", "gantry.nk", "gantry.json"} {
		files = append(files, filepath.Join(out, name))
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v, want 0600", f, info.Mode(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "keys")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("key directory: mode %v, %v, want 0700", info.Mode(), err)
	}
	creds, err := ReadNodeCredentials(filepath.Join(out, "n1.json"))
	if err != nil || creds.Node != "n1" || creds.ClusterID == "" || creds.Signer == "" || len(creds.URLs) != 1 {
		t.Errorf("credentials %+v, %v", creds, err)
	}
	admin, err := ReadUserCredentials(filepath.Join(out, "admin.json"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := ConnectUser(testContext(t), admin)
	if err != nil {
		t.Fatal(err)
	}
	u.Close()
}

func TestNodesComeAndGoWithoutDisturbance(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	var gone heard
	s.OnNodeDisconnect(func(node string) { gone.add("%s", node) })
	n1 := connectTestNode(t, s, "n1", NodeHandlers{})
	ctx := testContext(t)
	for i := range 20 {
		if _, err := s.AddNode("extra-" + string(rune('a'+i))); err != nil {
			t.Fatal(err)
		}
	}
	n2 := connectTestNode(t, s, "n2.example", NodeHandlers{})
	if err := n2.ReportNode(ctx, schemas.NodeHealth{Node: "n2.example"}); err != nil {
		t.Error(err)
	}
	if err := s.RemoveNode("n2.example"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed node is disconnected, and this is told", func() bool {
		words := gone.all()
		return len(words) > 0 && words[0] == "n2.example" && !n2.Connected()
	})
	if err := n1.ReportNode(ctx, schemas.NodeHealth{Node: "n1"}); err != nil {
		t.Error(err)
	}
	if n1.link.nc.Reconnects != 0 || c.link.nc.Reconnects != 0 {
		t.Error("a connection was disturbed by other nodes")
	}
	// The name may be used again, with a new key.
	old := n2.creds.Seed
	again := connectTestNode(t, s, "n2.example", NodeHandlers{})
	if again.creds.Seed == old {
		t.Error("the old key of a removed node is valid again")
	}
	if err := again.ReportNode(ctx, schemas.NodeHealth{Node: "n2.example"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "a b", "*", "a/b", ">"} {
		if _, err := s.AddNode(bad); err == nil {
			t.Errorf("node name %q was taken", bad)
		}
	}
}

func TestNodeHasFewConnections(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	for range maxNodeConns {
		connectTestNode(t, s, "n1", NodeHandlers{})
	}
	creds, err := s.NodeCredentials("n1")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.NodeConnections("n1"); n != maxNodeConns {
		t.Errorf("%d connections, want %d", n, maxNodeConns)
	}
	fifth, err := ConnectNode(testContext(t), creds, NodeHandlers{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer fifth.Close()
	eventually(t, "the server refuses one more", func() bool { return fifth.link.nc.LastError() != nil })
	if fifth.Connected() {
		t.Error("one connection too many")
	}
}

func TestAdminReadsAllAndWritesThroughTheAPIOnly(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	st := openTestStore(t, openTest(t, s), nil)
	mustCreate(t, st, testPod("default", "web", ""))
	creds, err := s.AdminCredentials()
	if err != nil {
		t.Fatal(err)
	}
	u, err := ConnectUser(testContext(t), creds)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	js, err := jetstream.New(u.link.nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	kv, err := js.KeyValue(ctx, "objects")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := kv.Get(ctx, "pods.default.web")
	if err != nil {
		t.Fatal(err)
	}
	if text := string(entry.Value()); !strings.Contains(text, `"kind":"Pod","apiVersion":"v1"`) || strings.Contains(text, "resourceVersion") {
		t.Errorf("stored manifest: %s", text)
	}
	for _, subject := range []string{"$KV.objects.pods.default.web", "health.n1.node", "$JS.API.STREAM.DELETE.KV_objects", "$JS.API.STREAM.PURGE.KV_objects"} {
		m := put{subject: subject}.message()
		if _, err := u.link.request(ctx, m); !errors.Is(err, ErrForbidden) {
			t.Errorf("admin writes %s: %v, want ErrForbidden", subject, err)
		}
	}
}

func TestOpenRefusesAnotherSigner(t *testing.T) {
	dir := t.TempDir()
	s, err := StartServer(testContext(t), ServerOptions{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	openTest(t, s).Close()
	stopServer(t, s)
	if err := os.Remove(filepath.Join(dir, "keys", "signer.nk")); err != nil {
		t.Fatal(err)
	}
	s2 := startTestServer(t, dir)
	if _, err := Open(testContext(t), OpenOptions{Server: s2}); err == nil || !strings.Contains(err.Error(), "restore the signing key") {
		t.Errorf("opened with another signing key: %v", err)
	}
}

func TestStreamOfAnEarlierVersionIsTakenAsItIs(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	ctx := testContext(t)
	for _, cfg := range streamConfigs(c.names, 1) {
		if cfg.PersistMode == jetstream.DefaultPersistMode {
			continue
		}
		if err := c.js.DeleteStream(ctx, cfg.Name); err != nil {
			t.Fatal(err)
		}
		cfg.PersistMode = jetstream.DefaultPersistMode
		if _, err := c.js.CreateStream(ctx, cfg); err != nil {
			t.Fatal(err)
		}
	}
	openTest(t, s)
}
