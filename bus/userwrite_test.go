package bus

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// A write whose answer is lost is asked again under the same id, through the
// end of the server that it went to; a read is not.
func TestAWriteIsRepeatedUntilItIsAnswered(t *testing.T) {
	dir := t.TempDir()
	ctx := testContext(t)
	s, err := StartServer(ctx, ServerOptions{StateDir: dir, Listen: "127.0.0.1:0", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	u := connectTestUser(t, s)
	var mu sync.Mutex
	var ids []string
	heard := make(chan struct{}, 1)
	serve := func(conn *Conn, handle func(n int) *metav1.Status) {
		t.Helper()
		err := conn.ServeAPI(ctx, []string{schemas.VerbPatch, schemas.VerbGet}, func(ctx context.Context, _ schemas.Call, h map[string][]string, body []byte) ([]byte, map[string][]string, *metav1.Status) {
			mu.Lock()
			ids = append(ids, strings.Join(h[schemas.HeaderRequest], " "))
			n := len(ids)
			mu.Unlock()
			return body, nil, handle(n)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := u.Request(ctx, schemas.VerbPatch, schemas.Pods, "default", "web", nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("nobody listens: %v, want ErrNoAnswer at once", err)
	}
	conn := openTest(t, s)
	serve(conn, func(n int) *metav1.Status {
		switch n {
		case 1: // a server that stops
			return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "the server is stopping")
		case 2: // one that dies
			heard <- struct{}{}
			<-ctx.Done()
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		r, err := u.Request(ctx, schemas.VerbPatch, schemas.Pods, "default", "web", []byte("body"))
		if err == nil && string(r.Body) != "body" {
			err = errors.New("another answer: " + string(r.Body))
		}
		done <- err
	}()
	<-heard
	listen := strings.TrimPrefix(s.URLs()[0], "nats://")
	conn.Close()
	stopServer(t, s)
	again, err := StartServer(ctx, ServerOptions{StateDir: dir, Listen: listen, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(t, again)
	serve(openTest(t, again), func(int) *metav1.Status { return nil })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) != 3 || ids[0] == "" || ids[1] != ids[0] || ids[2] != ids[0] {
		t.Errorf("ids %q", ids)
	}
}

func TestAnUnansweredWriteSaysHowToRepeatIt(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	u := connectTestUser(t, s)
	ctx := testContext(t)
	if err := c.ServeAPI(ctx, []string{schemas.VerbPatch}, func(context.Context, schemas.Call, map[string][]string, []byte) ([]byte, map[string][]string, *metav1.Status) {
		<-ctx.Done()
		return nil, nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err := u.RequestWith(short, schemas.VerbPatch, schemas.Pods, "default", "web", map[string][]string{schemas.HeaderRequest: {"mine"}}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "may have happened") || !strings.Contains(err.Error(), "Gantry-Request: mine") {
		t.Errorf("got %v", err)
	}
}
