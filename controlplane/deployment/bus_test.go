package deployment_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/events"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/controlplane/replicaset"
	"gantry.dev/schemas"
	"github.com/rs/zerolog"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// openBus is a store on an embedded bus of its own.
func openBus(t *testing.T) bus.Store {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server, err := bus.StartServer(ctx, bus.ServerOptions{StateDir: t.TempDir(), Listen: "127.0.0.1:0", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		end, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := server.Shutdown(end); err != nil {
			t.Error(err)
		}
	})
	conn, err := bus.Open(ctx, bus.OpenOptions{Server: server, PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	store, err := bus.OpenStore(ctx, conn, reconcile.Indexes())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// runNodes binds, runs and ends pods on a real store until ctx ends.
func runNodes(ctx context.Context, store bus.Store) {
	for ctx.Err() == nil {
		for _, o := range store.View().List(schemas.Pods, "") {
			p := o.DeepCopyObject().(*corev1.Pod)
			switch {
			case p.DeletionTimestamp != nil:
				_ = store.Delete(ctx, p) // whoever was sooner, it is looked at again
				continue
			case p.Status.Phase == corev1.PodRunning:
				continue
			}
			p.Spec.NodeName, p.Status.Phase, p.Status.PodIP = "node", corev1.PodRunning, "10.244.0.9"
			reconciletest.SetReady(p, true, time.Now().Add(-time.Second).Truncate(time.Second))
			_, _ = store.Update(ctx, p) // as above
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestRolloutOverTheRealBusComesToRest(t *testing.T) {
	store := openBus(t)
	ctx, cancel := context.WithCancel(context.Background())
	recorder := events.New(store, zerolog.Nop())
	engine, err := reconcile.New(store, zerolog.Nop(), controllers(), reconcile.WithRecorder(recorder))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- engine.Run(ctx) }()
	go func() { done <- recorder.Run(ctx) }()
	nodesDone := make(chan struct{})
	go func() { defer close(nodesDone); runNodes(ctx, store) }()
	defer func() {
		cancel()
		<-nodesDone
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()

	get := func() *appsv1.Deployment {
		d, _ := store.View().Get(schemas.Deployments, "default", "web").(*appsv1.Deployment)
		return d
	}
	running := func(image string) int {
		n := 0
		for _, o := range store.View().List(schemas.Pods, "default") {
			if p := o.(*corev1.Pod); replicaset.Active(p) && p.Status.Phase == corev1.PodRunning && p.Spec.Containers[0].Image == image {
				n++
			}
		}
		return n
	}
	finished := func() bool {
		d := get()
		return d != nil && d.Status.ObservedGeneration == d.Generation && d.Status.AvailableReplicas == *d.Spec.Replicas &&
			d.Status.UpdatedReplicas == *d.Spec.Replicas && d.Status.Replicas == *d.Spec.Replicas
	}

	d := web(30, "app:1")
	d.Generation = 1
	start := time.Now()
	if _, err := store.Create(ctx, d); err != nil {
		t.Fatal(err)
	}
	await(t, "30 pods run", func() bool { return running("app:1") == 30 && finished() })
	t.Logf("30 pods in %s", time.Since(start))

	await(t, "the new image is asked for", func() bool {
		next := get().DeepCopy()
		next.Spec.Template.Spec.Containers[0].Image = "app:2"
		next.Generation++
		_, err := store.Update(ctx, next)
		if err != nil && !errors.Is(err, bus.ErrConflict) {
			t.Fatal(err)
		}
		return err == nil
	})
	await(t, "30 new pods run", func() bool { return running("app:2") == 30 && running("app:1") == 0 && finished() })
	t.Logf("rolled after %s", time.Since(start))
	await(t, "quiet", func() bool { return engine.Quiet() && recorder.Pending() == 0 })
	if len(store.View().List(schemas.Events, "default")) == 0 {
		t.Error("nobody was told")
	}

	// A second engine that looks at everything finds nothing to write.
	before := store.View().Revision()
	second, err := reconcile.New(store, zerolog.Nop(), controllers())
	if err != nil {
		t.Fatal(err)
	}
	look, stop := context.WithCancel(ctx)
	looked := make(chan error, 1)
	go func() { looked <- second.Run(look) }()
	await(t, "the second engine has looked", func() bool { passes, _ := second.Stats(); return passes >= 30 && second.Quiet() })
	stop()
	if err := <-looked; err != nil {
		t.Error(err)
	}
	if after := store.View().Revision(); after != before {
		t.Errorf("a converged cluster was written to: revision %d, then %d", before, after)
	}

	if err := deleteForeground(ctx, store, get); err != nil {
		t.Fatal(err)
	}
	await(t, "all is gone", func() bool {
		return get() == nil && len(store.View().List(schemas.ReplicaSets, "")) == 0 && len(store.View().List(schemas.Pods, "")) == 0
	})
}

func deleteForeground(ctx context.Context, store bus.Store, get func() *appsv1.Deployment) error {
	for {
		d := get().DeepCopy()
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		d.DeletionTimestamp = &now
		d.Finalizers = []string{metav1.FinalizerDeleteDependents}
		if _, err := store.Update(ctx, d); !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}
