package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

func names(objects []schemas.Object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, o.GetNamespace()+"/"+o.GetName())
	}
	return out
}

func mustCreate(t testing.TB, s Store, o schemas.Object) schemas.Object {
	t.Helper()
	created, err := s.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func TestStoreLife(t *testing.T) {
	s := newTestStore(t, map[string]IndexFunc{"node": byNode})
	ctx := testContext(t)

	created := mustCreate(t, s, testPod("default", "web", ""))
	if created.GetUID() == "" || created.GetResourceVersion() == "" || created.GetCreationTimestamp().Time.IsZero() {
		t.Errorf("created object lacks uid, resourceVersion or creationTimestamp: %+v", created)
	}
	got := s.View().Get(schemas.Pods, "default", "web")
	if diff := cmp.Diff(created, got); diff != "" {
		t.Errorf("view after create (-returned +view):\n%s", diff)
	}
	if kind := got.GetObjectKind().GroupVersionKind().String(); kind != "/v1, Kind=Pod" {
		t.Errorf("view says kind %q", kind)
	}
	if _, err := s.Create(ctx, testPod("default", "web", "")); !errors.Is(err, ErrExists) {
		t.Errorf("create twice: %v, want ErrExists", err)
	}

	bound := created.DeepCopyObject().(*corev1.Pod)
	bound.Spec.NodeName = "n1"
	updated, err := s.Update(ctx, bound)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"default/web"}, names(s.View().ByIndex("node", "n1"))); diff != "" {
		t.Errorf("index after update (-want +got):\n%s", diff)
	}
	if _, err := s.Update(ctx, bound); !errors.Is(err, ErrConflict) {
		t.Errorf("update from an old revision: %v, want ErrConflict", err)
	}
	same, err := s.Update(ctx, updated)
	if err != nil || same.GetResourceVersion() != updated.GetResourceVersion() {
		t.Errorf("update without a change: revision %s, %v, want %s as before", same.GetResourceVersion(), err, updated.GetResourceVersion())
	}

	if err := s.Delete(ctx, created); !errors.Is(err, ErrConflict) {
		t.Errorf("delete at an old revision: %v, want ErrConflict", err)
	}
	if s.View().Tombstone(schemas.Pods, "default", "web") {
		t.Error("tombstone before deletion")
	}
	if err := s.Delete(ctx, updated); err != nil {
		t.Fatal(err)
	}
	if s.View().Get(schemas.Pods, "default", "web") != nil || len(s.View().ByIndex("node", "n1")) != 0 {
		t.Error("view or index still has the deleted pod")
	}
	if !s.View().Tombstone(schemas.Pods, "default", "web") {
		t.Error("no tombstone after deletion")
	}
	if err := s.Delete(ctx, updated); !errors.Is(err, ErrNotFound) {
		t.Errorf("delete twice: %v, want ErrNotFound", err)
	}
	if _, err := s.Update(ctx, updated); !errors.Is(err, ErrNotFound) {
		t.Errorf("update what is gone: %v, want ErrNotFound", err)
	}

	again := mustCreate(t, s, testPod("default", "web", ""))
	if again.GetUID() == created.GetUID() {
		t.Error("created again with the same uid")
	}
	if s.View().Tombstone(schemas.Pods, "default", "web") {
		t.Error("tombstone beside a living object")
	}
	rev, err := strconv.ParseUint(again.GetResourceVersion(), 10, 64)
	if err != nil || rev != s.View().Revision() {
		t.Errorf("view is at %d, the newest object at %s", s.View().Revision(), again.GetResourceVersion())
	}
}

// What a writer sees is what every other reader decodes.
func TestUpdateThatOnlyLosesInWritingChangesNothing(t *testing.T) {
	s := newTestStore(t, nil)
	pod := testPod("default", "web", "")
	pod.Labels = map[string]string{}
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000m")}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, LastTransitionTime: metav1.NewTime(time.Unix(1767607201, 5))}}
	created := mustCreate(t, s, pod)
	again := pod.DeepCopy()
	again.ObjectMeta = created.(*corev1.Pod).ObjectMeta
	again.Status.Conditions[0].LastTransitionTime = metav1.NewTime(time.Unix(1767607201, 9))
	updated, err := s.Update(testContext(t), again)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(created, updated); diff != "" {
		t.Errorf("update (-created +updated):\n%s", diff)
	}
}

func TestStoreRefusesWhatIsTooLarge(t *testing.T) {
	s := newTestStore(t, nil)
	big := testPod("default", "big", "")
	big.Annotations = map[string]string{"a": strings.Repeat("x", 1<<20)}
	_, err := s.Create(testContext(t), big)
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), strconv.Itoa(1<<20-objectOverhead)) {
		t.Errorf("create of 1 MiB: %v, want ErrTooLarge with the limit", err)
	}
}

func TestStoreKeepsEverythingThroughRestart(t *testing.T) {
	dir := t.TempDir()
	srv, err := StartServer(testContext(t), ServerOptions{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := openTest(t, srv)
	s := openTestStore(t, c, nil)
	for i := range 20 {
		mustCreate(t, s, testPod("default", fmt.Sprintf("p%02d", i), ""))
	}
	if err := s.Delete(t.Context(), s.View().Get(schemas.Pods, "default", "p19")); err != nil {
		t.Fatal(err)
	}
	before, revision, id := names(s.View().List(schemas.Pods, "")), s.View().Revision(), c.Cluster().ID
	c.Close()
	stopServer(t, srv)

	c2 := openTest(t, startTestServer(t, dir))
	s2 := openTestStore(t, c2, nil)
	if diff := cmp.Diff(before, names(s2.View().List(schemas.Pods, ""))); diff != "" {
		t.Errorf("objects after restart (-before +after):\n%s", diff)
	}
	if s2.View().Revision() != revision {
		t.Errorf("revision after restart %d, want %d", s2.View().Revision(), revision)
	}
	if c2.Cluster().ID != id {
		t.Errorf("cluster id changed from %s to %s", id, c2.Cluster().ID)
	}
	if !s2.View().Tombstone(schemas.Pods, "default", "p19") {
		t.Error("tombstone lost in restart")
	}
	if changes, _, err := s2.ChangesSince(t.Context(), "", revision-1, 10); err != nil || len(changes) != 1 || changes[0].Old == nil || changes[0].New != nil {
		t.Errorf("the last change before the restart is %v, %v, want the deletion", changes, err)
	}
}

// 64 clients count in 4 objects by compare-and-swap: none of their increments
// may be lost or doubled.
func TestCompareAndSwapLosesNothing(t *testing.T) {
	srv := startTestServer(t, t.TempDir())
	stores := []Store{
		openTestStore(t, openTest(t, srv), nil),
		openTestStore(t, openTest(t, srv), nil), // a second control plane
	}
	const clients, each, objects = 64, 10, 4
	for i := range objects {
		mustCreate(t, stores[0], testPod("default", fmt.Sprint("counter", i), ""))
	}
	ctx := testContext(t)
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			s, name := stores[client%len(stores)], fmt.Sprint("counter", client%objects)
			for range each {
				if err := increment(ctx, s, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		for i := range objects {
			eventually(t, "both views count the same", func() bool {
				o := s.View().Get(schemas.Pods, "default", fmt.Sprint("counter", i))
				return o.GetLabels()["n"] == strconv.Itoa(clients*each/objects)
			})
		}
	}
}

func increment(ctx context.Context, s Store, name string) error {
	for ctx.Err() == nil {
		o := s.View().Get(schemas.Pods, "default", name)
		if o == nil {
			continue
		}
		o = o.DeepCopyObject().(schemas.Object)
		n, _ := strconv.Atoi(o.GetLabels()["n"])
		o.SetLabels(map[string]string{"n": strconv.Itoa(n + 1)})
		_, err := s.Update(ctx, o)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return ctx.Err()
}

func TestListIsOrderedAndScoped(t *testing.T) {
	s := newTestStore(t, nil)
	for _, k := range []string{"b/x", "a/z", "a/y.z", "ab/a", "a/y"} {
		namespace, name, _ := strings.Cut(k, "/")
		mustCreate(t, s, testPod(namespace, name, ""))
	}
	for _, c := range []struct {
		namespace string
		want      []string
	}{
		{"", []string{"a/y", "a/y.z", "a/z", "ab/a", "b/x"}},
		{"a", []string{"a/y", "a/y.z", "a/z"}},
		{"ab", []string{"ab/a"}},
		{"c", nil},
	} {
		if diff := cmp.Diff(c.want, names(s.View().List(schemas.Pods, c.namespace))); diff != "" {
			t.Errorf("list of %q (-want +got):\n%s", c.namespace, diff)
		}
	}
}

func TestEventsHaveRevisionsOfTheirOwn(t *testing.T) {
	s := newTestStore(t, nil)
	pod := mustCreate(t, s, testPod("default", "web", ""))
	event := mustCreate(t, s, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web.1"}, Reason: "Started",
	})
	if got := strconv.FormatUint(s.View().Revision(), 10); got != pod.GetResourceVersion() {
		t.Errorf("an event moved the revision of the objects to %s", got)
	}
	if diff := cmp.Diff([]string{"default/web.1"}, names(s.View().List(schemas.Events, "default"))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	changes, reached, err := s.ChangesSince(t.Context(), schemas.Events, 0, 10)
	if err != nil || len(changes) != 1 || strconv.FormatUint(reached, 10) != event.GetResourceVersion() {
		t.Errorf("changes of events: %v at %d, %v", changes, reached, err)
	}
}

// Events go by themselves, from the bucket and from the view.
func TestEventsExpire(t *testing.T) {
	srv := startTestServer(t, t.TempDir())
	c := openTest(t, srv)
	s := openTestStore(t, c, nil)
	for _, cfg := range streamConfigs(c.names, 1) {
		if cfg.Name == "KV_"+c.names.EventsBucket() {
			cfg.MaxAge, cfg.Duplicates = time.Second, time.Second
			if err := c.ensureStream(testContext(t), cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	event := mustCreate(t, s, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web.1"}})
	rev, err := strconv.ParseUint(event.GetResourceVersion(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	changes, reached, err := s.ChangesSince(testContext(t), schemas.Events, rev, 10)
	if err != nil || len(changes) != 1 || changes[0].New != nil || reached != rev+1 {
		t.Errorf("changes %+v at %d, %v, want a deletion at %d", changes, reached, err, rev+1)
	}
	if left := s.View().List(schemas.Events, ""); len(left) != 0 {
		t.Errorf("left over: %v", names(left))
	}
	mustCreate(t, s, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web.1"}})
}

func TestChangesSince(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	start := s.View().Revision()
	pod := mustCreate(t, s, testPod("default", "a", ""))
	mustCreate(t, s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	if err := s.Delete(ctx, pod); err != nil {
		t.Fatal(err)
	}

	describe := func(changes []Change) (out []string) {
		for _, c := range changes {
			word := "changed"
			switch {
			case c.Old == nil:
				word = "created"
			case c.New == nil:
				word = "deleted"
			}
			out = append(out, word+" "+schemas.KeyOf(c.Object()))
		}
		return out
	}
	changes, reached, err := s.ChangesSince(ctx, "", start, 100)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"created pods.default.a", "created namespaces._.n", "deleted pods.default.a"}
	if diff := cmp.Diff(want, describe(changes)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if reached != s.View().Revision() {
		t.Errorf("reached %d, want %d", reached, s.View().Revision())
	}
	one, first, err := s.ChangesSince(ctx, schemas.Pods, start, 1)
	if err != nil || len(one) != 1 {
		t.Fatalf("one change: %v, %v", one, err)
	}
	rest, _, err := s.ChangesSince(ctx, schemas.Pods, first, 100)
	if diff := cmp.Diff([]string{"deleted pods.default.a"}, describe(rest)); diff != "" || err != nil {
		t.Errorf("changes after the first (-want +got):\n%s%v", diff, err)
	}

	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if none, at, err := s.ChangesSince(short, "", reached, 100); len(none) != 0 || at != reached || err != nil {
		t.Errorf("quiet time gave %v at %d, %v", none, at, err)
	}

	woken := make(chan []string)
	go func() {
		changes, _, err := s.ChangesSince(ctx, schemas.Pods, reached, 100)
		if err != nil {
			t.Error(err)
		}
		woken <- describe(changes)
	}()
	mustCreate(t, s, testPod("default", "b", ""))
	if diff := cmp.Diff([]string{"created pods.default.b"}, <-woken); diff != "" {
		t.Errorf("changes of a waiting reader (-want +got):\n%s", diff)
	}
	if _, _, err := s.ChangesSince(ctx, "", reached+1000, 1); !errors.Is(err, ErrTooOld) {
		t.Errorf("changes since a revision that was lost: %v, want ErrTooOld", err)
	}
}

func TestSubscribeMissesNothing(t *testing.T) {
	s := newTestStore(t, nil)
	mustCreate(t, s, testPod("default", "before", ""))
	ctx, cancel := context.WithCancel(testContext(t))
	var mu sync.Mutex
	var got []uint64
	state := map[string]string{}
	done := make(chan error)
	go func() {
		done <- s.Subscribe(ctx, true, func(c Change) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, c.Revision)
			if c.New == nil {
				delete(state, schemas.KeyOf(c.Old))
				return
			}
			state[schemas.KeyOf(c.New)] = c.New.GetResourceVersion()
		})
	}()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			o := mustCreate(t, s, testPod("default", fmt.Sprint("p", i), ""))
			if i%2 == 0 {
				if err := s.Delete(ctx, o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "the subscriber has the state of the view", func() bool {
		mu.Lock()
		defer mu.Unlock()
		want := map[string]string{}
		for _, o := range s.View().List(schemas.Pods, "") {
			want[schemas.KeyOf(o)] = o.GetResourceVersion()
		}
		return cmp.Equal(want, state)
	})
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Fatalf("revisions out of order: %v", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			s := newTestStore(b, nil)
			work := make(chan int)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for i := range work {
						mustCreate(b, s, testPod("default", fmt.Sprint("p", i), "n1"))
					}
				})
			}
			b.ResetTimer()
			for i := range b.N {
				work <- i
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		})
	}
}
