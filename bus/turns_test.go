package bus

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// TestReportsGoOnBesideAFlood copies 100 MB out of a node while many read its
// logs, all as fast as they can, and has the node report meanwhile: each report
// must be kept before it would be given up.
func TestReportsGoOnBesideAFlood(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	n := connectTestNode(t, s, "n1", NodeHandlers{})
	piece := make([]byte, schemas.MaxSessionPiece)
	serve := func(method string, fn NodeMethod) {
		t.Helper()
		if err := n.Serve(method, fn); err != nil {
			t.Fatal(err)
		}
	}
	flood := func(context.Context, map[string][]string, []byte) ([]byte, map[string][]string, error) {
		return piece, nil, nil
	}
	serve(schemas.NodeMethodRecv, flood)
	serve(schemas.NodeMethodLogs, flood)
	serve(schemas.NodeMethodImages, func(context.Context, map[string][]string, []byte) ([]byte, map[string][]string, error) {
		return []byte("[]"), nil, nil
	})
	if err := n.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	var logs sync.WaitGroup
	for range 64 {
		logs.Go(func() {
			for ctx.Err() == nil {
				if _, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodLogs, nil, nil); err != nil && ctx.Err() == nil {
					t.Errorf("read log: %v", err)
					return
				}
			}
		})
	}
	defer logs.Wait()
	defer cancel()
	var copied atomic.Int64
	const all = 100 << 20
	done := make(chan struct{})
	go func() {
		defer close(done)
		for copied.Load() < all {
			body, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodRecv, nil, nil)
			if err != nil {
				t.Errorf("copy: %v", err)
				return
			}
			copied.Add(int64(len(body)))
		}
	}()
	reports := 0
	for over := false; !over; reports++ {
		select {
		case <-done:
			over = true
		default:
		}
		if err := n.ReportPod(ctx, schemas.PodHealth{Namespace: "default", Name: "web-" + strconv.Itoa(reports%10)}); err != nil {
			t.Fatalf("report %d, after %d bytes: %v", reports, copied.Load(), err)
		}
		if _, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodImages, nil, nil); err != nil {
			t.Fatalf("another request, after %d bytes: %v", copied.Load(), err)
		}
	}
	if copied.Load() < all {
		t.Errorf("copied %d bytes", copied.Load())
	}
	t.Logf("%d reports were kept while the copy was under way", reports)
	if reports < 3 {
		t.Errorf("only %d reports got through", reports)
	}
}

// Requests that wait for something to happen must not keep others out.
func TestWaitingRequestsKeepNobodyOut(t *testing.T) {
	s := startTestServer(t, t.TempDir())
	c := openTest(t, s)
	n := connectTestNode(t, s, "n1", NodeHandlers{})
	waiting := map[string]*atomic.Int64{}
	for _, method := range []string{schemas.NodeMethodRecv, schemas.NodeMethodLogs} {
		count := &atomic.Int64{}
		waiting[method] = count
		if err := n.Serve(method, func(ctx context.Context, _ map[string][]string, _ []byte) ([]byte, map[string][]string, error) {
			count.Add(1)
			<-ctx.Done()
			return nil, nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Serve(schemas.NodeMethodImages, func(context.Context, map[string][]string, []byte) ([]byte, map[string][]string, error) {
		return []byte("[]"), nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	ask := func(method string, times int) {
		for range times {
			all.Go(func() {
				if _, _, err := c.NodeRequest(ctx, "n1", method, nil, nil); err == nil {
					t.Errorf("%s was answered", method)
				}
			})
		}
	}
	ask(schemas.NodeMethodRecv, nodeSessions)
	ask(schemas.NodeMethodLogs, nodeLogs)
	eventually(t, "all wait", func() bool {
		return waiting[schemas.NodeMethodRecv].Load() == nodeSessions && waiting[schemas.NodeMethodLogs].Load() == nodeLogs
	})
	if _, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodLogs, nil, nil); apierrors.ReasonForError(err) != metav1.StatusReasonTooManyRequests {
		t.Errorf("one log more: %v, want too many requests", err)
	}
	if body, _, err := c.NodeRequest(ctx, "n1", schemas.NodeMethodImages, nil, nil); err != nil || string(body) != "[]" {
		t.Errorf("another method: %q, %v", body, err)
	}
}
