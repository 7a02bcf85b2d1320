package bus

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

func startWebsockets(t *testing.T, origins ...string) *Server {
	t.Helper()
	s, err := StartServer(testContext(t), ServerOptions{
		StateDir: t.TempDir(), Listen: "127.0.0.1:0", Websocket: "127.0.0.1:0", WebsocketOrigins: origins, Nodes: []string{"n1"}, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(t, s) })
	return s
}

// TestWebsocketsAskWhoOneIs: the second way in has the locks of the first.
func TestWebsocketsAskWhoOneIs(t *testing.T) {
	s := startWebsockets(t)
	openTest(t, s)
	at := s.WebsocketURLs()[0]
	stranger, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := stranger.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for desc, options := range map[string][]nats.Option{
		"nobody":     nil,
		"a stranger": {nats.Nkey(public, stranger.Sign)},
		"a name":     {nats.UserInfo("admin", "admin")},
	} {
		if nc, err := nats.Connect(at, options...); err == nil {
			t.Errorf("%s came in", desc)
			nc.Close()
		}
	}
	creds, err := s.AdminCredentials()
	if err != nil {
		t.Fatal(err)
	}
	creds.URLs = creds.Websockets
	u, err := ConnectUser(testContext(t), creds)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	// Nobody serves here: an answer of the server itself.
	if _, err := u.Request(testContext(t), schemas.VerbList, schemas.Pods, "", "", nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("the administrator: %v", err)
	}
	if _, err := u.link.nc.Request("$JS.API.STREAM.DELETE.KV_objects", nil, nats.DefaultTimeout); err == nil || !strings.Contains(fmt.Sprint(err, u.link.nc.LastError()), "ermission") {
		t.Errorf("the administrator deletes a stream: %v, %v", err, u.link.nc.LastError())
	}
}

// TestWebsocketsOfStrangePages: a browser sends the page's origin, and anybody's
// page can tell it to connect to this machine.
func TestWebsocketsOfStrangePages(t *testing.T) {
	for _, tt := range []struct {
		origins []string
		origin  string
		code    int
	}{
		{nil, "", http.StatusSwitchingProtocols}, // no browser
		{nil, "https://strange.example", http.StatusForbidden},
		{nil, "http://HOST", http.StatusSwitchingProtocols},
		{[]string{"https://console.example"}, "https://console.example", http.StatusSwitchingProtocols},
		{[]string{"https://console.example"}, "https://strange.example", http.StatusForbidden},
		{[]string{"https://console.example"}, "http://HOST", http.StatusForbidden},
	} {
		s := startWebsockets(t, tt.origins...)
		u, err := url.Parse(s.WebsocketURLs()[0])
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		text := "GET / HTTP/1.1\r\nHost: " + u.Host + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
		if tt.origin != "" {
			text += "Origin: " + strings.Replace(tt.origin, "HOST", u.Host, 1) + "\r\n"
		}
		if _, err := fmt.Fprint(c, text+"\r\n"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.StatusCode != tt.code {
			t.Errorf("allowed %q, from %q: %s, want %d", tt.origins, tt.origin, r.Status, tt.code)
		}
		_ = r.Body.Close()
		_ = c.Close()
	}
}
