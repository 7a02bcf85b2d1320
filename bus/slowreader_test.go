package bus

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// rawClient speaks the protocol itself, and so need not read what comes.
func rawClient(t *testing.T, s *Server) net.Conn {
	t.Helper()
	creds, err := s.AdminCredentials()
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.FromSeed([]byte(creds.Seed))
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(creds.URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(50 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReaderSize(conn, 16)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Nonce string }
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
		t.Fatal(err)
	}
	sig, err := key.Sign([]byte(info.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "CONNECT {\"nkey\":%q,\"sig\":%q,\"verbose\":false,\"headers\":true,\"lang\":\"raw\",\"version\":\"0\",\"protocol\":1}\r\nPING\r\n",
		public, base64.RawURLEncoding.EncodeToString(sig)); err != nil {
		t.Fatal(err)
	}
	for line != "PONG\r\n" {
		if line, err = r.ReadString('\n'); err != nil || strings.HasPrefix(line, "-ERR") {
			t.Fatalf("not let in: %q, %v", line, err)
		}
	}
	return conn
}

// TestAClientThatStopsReading asks for more than a server should keep for
// anyone, and reads none of it: it is cut off, what was kept for it is dropped,
// and others are served all the while.
func TestAClientThatStopsReading(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	user := connectTestUser(t, s)
	ctx := testContext(t)
	answer := []byte(strings.Repeat("x", 512<<10))
	err := c.ServeAPI(ctx, []string{schemas.VerbList, schemas.VerbGet}, func(_ context.Context, call schemas.Call, _ map[string][]string, _ []byte) ([]byte, map[string][]string, *metav1.Status) {
		if call.Verb == schemas.VerbList {
			return answer, nil, nil
		}
		return []byte("{}"), nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := s.ns.NumClients()
	deaf := rawClient(t, s)
	if n := s.ns.NumClients(); n != before+1 {
		t.Fatalf("%d clients, want %d", n, before+1)
	}
	if _, err := io.WriteString(deaf, "SUB inbox.of.the.deaf 1\r\n"); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for s.ns.NumClients() > before {
		if ctx.Err() != nil {
			t.Fatalf("it asked %d times for half a megabyte, read nothing, and is still there", asked)
		}
		// Once it is cut off it cannot ask either.
		_, _ = io.WriteString(deaf, "PUB api.list.pods._ inbox.of.the.deaf 0\r\n\r\n")
		asked++
		if asked%8 == 0 {
			if _, err := user.Request(ctx, schemas.VerbGet, schemas.Pods, "default", "web", nil); err != nil {
				t.Fatalf("another one was not served: %v", err)
			}
		}
	}
	if s.ns.NumSlowConsumers() == 0 {
		t.Error("it was cut off for another reason")
	}
	if _, err := user.Request(ctx, schemas.VerbGet, schemas.Pods, "default", "web", nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
