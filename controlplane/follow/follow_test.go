package follow

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
)

// slow tells its replay late, from a goroutine, so that what happens before it
// is over can be seen.
type slow struct {
	*reconciletest.Store
	release chan struct{}
}

func (s slow) Subscribe(ctx context.Context, replay bool, fn func(bus.Change)) error {
	var waiting []bus.Change
	if err := s.Store.Subscribe(ctx, replay, func(c bus.Change) { waiting = append(waiting, c) }); err != nil {
		return err
	}
	<-s.release
	for _, c := range waiting {
		fn(c)
	}
	<-ctx.Done()
	return nil
}

func named(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func TestLoadedComesAfterTheLastOfWhatWasThere(t *testing.T) {
	s := slow{reconciletest.NewStore(), make(chan struct{})}
	for i := range 5 {
		if _, err := s.Create(t.Context(), named(fmt.Sprint("n", i))); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("x", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := map[string]bool{}
	loaded := make(chan int, 2)
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, s, []string{schemas.Nodes}, func() { loaded <- len(seen) }, func(c bus.Change) {
			if c.Resource != schemas.Nodes {
				t.Errorf("told of a %s", c.Resource)
			}
			seen[c.Object().GetName()] = true
		})
	}()
	select {
	case <-loaded:
		t.Fatal("loaded before anything was told")
	case <-time.After(10 * time.Millisecond):
	}
	close(s.release)
	if n := <-loaded; n != 5 {
		t.Errorf("loaded after %d of 5", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(loaded) != 0 {
		t.Error("loaded twice")
	}
}

func TestEmptyStoreIsLoadedAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	loaded := false
	err := Run(ctx, reconciletest.NewStore(), []string{schemas.Nodes}, func() { loaded = true; cancel() }, func(bus.Change) {})
	if err != nil || !loaded {
		t.Errorf("loaded %v, error %v", loaded, err)
	}
}
