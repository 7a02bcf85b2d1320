package bus

import (
	"context"
	"testing"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// testContext ends before the test's own deadline would dump goroutines.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func startTestServer(t testing.TB, dir string, nodes ...string) *Server {
	t.Helper()
	s, err := StartServer(testContext(t), ServerOptions{
		StateDir: dir, Listen: "127.0.0.1:0", Nodes: nodes, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(t, s) })
	return s
}

func stopServer(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func openTest(t testing.TB, s *Server) *Conn {
	t.Helper()
	c, err := Open(testContext(t), OpenOptions{Server: s, PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func openTestStore(t testing.TB, c *Conn, indexes map[string]IndexFunc) Store {
	t.Helper()
	st, err := OpenStore(testContext(t), c, indexes)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// newTestStore is a store on a new server in a directory of its own.
func newTestStore(t testing.TB, indexes map[string]IndexFunc) Store {
	return openTestStore(t, openTest(t, startTestServer(t, t.TempDir())), indexes)
}

func testPod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "app", Image: "example.test/app:1"}}},
	}
}

func byNode(o schemas.Object) []string {
	if p, ok := o.(*corev1.Pod); ok && p.Spec.NodeName != "" {
		return []string{p.Spec.NodeName}
	}
	return nil
}

// eventually waits for a condition of which nothing tells when it holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("did not happen: %s", what)
}
