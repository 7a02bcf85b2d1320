package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// twins is a controller that wants a pod <name>-twin for every Service.
func twins(watch func(key string)) reconcile.Controller {
	return reconcile.Controller{
		Name:   "twins",
		Reads:  []string{schemas.Services, schemas.Pods},
		Writes: []string{schemas.Pods},
		Wakes: func(c bus.Change, _ bus.View) []string {
			return []string{reconcile.Key(c.Object().GetNamespace(), strings.TrimSuffix(c.Object().GetName(), "-twin"))}
		},
		Reconcile: func(key string, v bus.View, _ time.Time) reconcile.Outcome {
			if watch != nil {
				watch(key)
			}
			namespace, name, _ := strings.Cut(key, "/")
			var out reconcile.Outcome
			if old := v.Get(schemas.Pods, namespace, name+"-twin"); old != nil {
				out.Own = append(out.Own, old)
			}
			if s := v.Get(schemas.Services, namespace, name); s != nil {
				if len(out.Own) > 0 {
					out.Want = append(out.Want, out.Own[0].DeepCopyObject().(schemas.Object))
				} else {
					twin := pod(namespace, name+"-twin")
					out.Want = append(out.Want, twin)
					out.Events = append(out.Events, reconcile.Event{Involved: s, Type: "Normal", Reason: "Twinned", After: schemas.KeyOf(twin)})
				}
			}
			return out
		},
	}
}

func pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

type recorder struct {
	mu   sync.Mutex
	told []string
}

func (r *recorder) Record(source string, e reconcile.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, source+" "+e.Reason+" "+e.Involved.GetName())
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.told)
}

func run(t *testing.T, e *reconcile.Engine) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func create(t *testing.T, s bus.Store, o schemas.Object) schemas.Object {
	t.Helper()
	stored, err := s.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

func engine(t *testing.T, store bus.Store, controllers []reconcile.Controller, options ...reconcile.Option) *reconcile.Engine {
	t.Helper()
	e, err := reconcile.New(store, zerolog.Nop(), controllers, options...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEngineMakesWhatShouldBeAndThenIsQuiet(t *testing.T) {
	store := reconciletest.NewStore()
	create(t, store, service("early"))
	told := &recorder{}
	e := engine(t, store, []reconcile.Controller{twins(nil)}, reconcile.WithRecorder(told))
	run(t, e)
	create(t, store, service("late"))
	has := func(name string) bool { return store.View().Get(schemas.Pods, "default", name) != nil }
	eventually(t, "both twins", func() bool { return has("early-twin") && has("late-twin") })
	eventually(t, "two events", func() bool { return told.count() == 2 })

	// What somebody takes away comes back, and what is not wanted any more goes.
	if err := store.Delete(t.Context(), store.View().Get(schemas.Pods, "default", "early-twin")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "early-twin is back", func() bool { return has("early-twin") })
	if err := store.Delete(t.Context(), store.View().Get(schemas.Services, "default", "late")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "late-twin is gone", func() bool { return !has("late-twin") })
	eventually(t, "quiet", e.Quiet)
	before := store.Writes()
	run(t, engine(t, store, []reconcile.Controller{twins(nil)}))
	second := engine(t, store, []reconcile.Controller{twins(nil)})
	run(t, second)
	eventually(t, "the second engine has looked", func() bool { passes, _ := second.Stats(); return passes > 0 && second.Quiet() })
	if n := store.Writes() - before; n != 0 {
		t.Errorf("a converged store was written %d times", n)
	}
}

func TestEngineOutlivesEveryFault(t *testing.T) {
	for _, fault := range []reconciletest.Fault{reconciletest.CrashBefore, reconciletest.CrashAfter, reconciletest.Conflict} {
		store := reconciletest.NewStore()
		for i := range 20 {
			create(t, store, service(fmt.Sprintf("s%d", i)))
		}
		store.Fault = func(n int) reconciletest.Fault {
			if n%2 != 0 {
				return fault
			}
			return reconciletest.None
		}
		run(t, engine(t, store, []reconcile.Controller{twins(nil)}))
		eventually(t, "all twins", func() bool { return len(store.View().List(schemas.Pods, "default")) == 20 })
	}
}

func TestOneKeyIsNeverWorkedOnTwiceAtATime(t *testing.T) {
	store := reconciletest.NewStore()
	create(t, store, service("a"))
	var inside, passes atomic.Int32
	c := twins(func(string) {
		if inside.Add(1) > 1 {
			t.Error("two passes for one key at a time")
		}
		time.Sleep(100 * time.Microsecond)
		inside.Add(-1)
		passes.Add(1)
	})
	run(t, engine(t, store, []reconcile.Controller{c}))
	o := store.View().Get(schemas.Services, "default", "a")
	for i := range 200 {
		next := o.DeepCopyObject().(schemas.Object)
		next.SetAnnotations(map[string]string{"n": fmt.Sprint(i)})
		var err error
		if o, err = store.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a pass after the last change", func() bool { return passes.Load() > 1 })
	if n := passes.Load(); n > 200 {
		t.Errorf("%d passes for 200 changes", n)
	}
}

func TestRequeueAfterComesBack(t *testing.T) {
	store := reconciletest.NewStore()
	create(t, store, service("a"))
	var passes atomic.Int32
	c := twins(nil)
	c.Reconcile = func(string, bus.View, time.Time) reconcile.Outcome {
		passes.Add(1)
		return reconcile.Outcome{RequeueAfter: time.Millisecond}
	}
	run(t, engine(t, store, []reconcile.Controller{c}))
	eventually(t, "five passes", func() bool { return passes.Load() >= 5 })
}

func TestSecondWriterIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name     string
		a, b     []string
		conflict string // part of the message; empty for none
	}{
		{"different resources", []string{"pods"}, []string{"services"}, ""},
		{"the same resource", []string{"pods"}, []string{"services", "pods"}, "b cannot write pods: a writes pods"},
		{"a record and its status", []string{"pods"}, []string{"pods/status"}, ""},
		{"the same part", []string{"pods/status"}, []string{"pods/status"}, "pods/status"},
		{"different owners", []string{"pods@ReplicaSet"}, []string{"pods@Job"}, ""},
		{"one owner's and all", []string{"pods@ReplicaSet"}, []string{"pods"}, "a writes pods@ReplicaSet"},
		{"every resource", []string{"*/metadata.finalizers[x]"}, []string{"pods/metadata.finalizers[x]"}, "a writes */metadata"},
		{"no resource", []string{"/status"}, nil, "names no resource"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := twins(nil), twins(nil)
			a.Name, a.Writes = "a", tt.a
			b.Name, b.Writes = "b", tt.b
			_, err := reconcile.New(reconciletest.NewStore(), zerolog.Nop(), []reconcile.Controller{a, b})
			switch {
			case tt.conflict == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.conflict != "" && (err == nil || !strings.Contains(err.Error(), tt.conflict)):
				t.Errorf("error %v, want %q", err, tt.conflict)
			}
		})
	}
}

func TestControllerMayNotTakeWhatARoleOutsideClaimed(t *testing.T) {
	claims := &reconcile.Claims{}
	if err := claims.Register("scheduler", "pods/spec.nodeName", "pods"); err != nil {
		t.Fatal(err)
	}
	_, err := reconcile.New(reconciletest.NewStore(), zerolog.Nop(), []reconcile.Controller{twins(nil)}, reconcile.WithClaims(claims))
	if err == nil || !strings.Contains(err.Error(), "twins cannot write pods: scheduler writes pods") {
		t.Errorf("error %v", err)
	}
}

func TestWriteThatNobodyClaimedIsRefused(t *testing.T) {
	store := reconciletest.NewStore()
	create(t, store, service("a"))
	c := twins(nil)
	c.Writes = []string{schemas.Pods + "/status"}
	claims := &reconcile.Claims{}
	if err := claims.Register(c.Name, c.Writes...); err != nil {
		t.Fatal(err)
	}
	_, err := reconcile.Pass(t.Context(), store, claims, c, "default/a", time.Now(), 1, false)
	if err == nil || !strings.Contains(err.Error(), "has not claimed it") || len(store.View().List(schemas.Pods, "")) > 0 {
		t.Errorf("error %v", err)
	}
}

func TestDiffWritesOnlyDifferences(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	old := pod("default", "a")
	old.UID, old.ResourceVersion, old.Generation = "u", "7", 1
	old.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	edit := func(fn func(p *corev1.Pod)) schemas.Object {
		p := old.DeepCopy()
		fn(p)
		return p
	}
	bound := edit(func(p *corev1.Pod) { p.Spec.NodeName = "n" })
	stamp := metav1.NewTime(now)
	ending := edit(func(p *corev1.Pod) { p.DeletionTimestamp = &stamp; p.Finalizers = []string{"x/y"} })
	for _, tt := range []struct {
		name string
		out  reconcile.Outcome
		want []string
	}{
		{"nothing", reconcile.Outcome{}, nil},
		{"the same", reconcile.Outcome{Own: []schemas.Object{old}, Want: []schemas.Object{old.DeepCopy()}}, nil},
		{"empty for nil", reconcile.Outcome{Own: []schemas.Object{old}, Want: []schemas.Object{edit(func(p *corev1.Pod) { p.Labels = map[string]string{} })}}, nil},
		{"new", reconcile.Outcome{Want: []schemas.Object{pod("default", "b")}}, []string{"create pods.default.b"}},
		{"label", reconcile.Outcome{Own: []schemas.Object{old}, Want: []schemas.Object{edit(func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} })}}, []string{"update pods.default.a"}},
		{"status", reconcile.Outcome{Own: []schemas.Object{old}, Want: []schemas.Object{edit(func(p *corev1.Pod) { p.Status.Message = "x" })}}, []string{"status pods.default.a"}},
		{"unwanted", reconcile.Outcome{Own: []schemas.Object{old}}, []string{"remove pods.default.a"}},
		{"unwanted on a node", reconcile.Outcome{Own: []schemas.Object{bound}}, []string{"update pods.default.a"}},
		{"unwanted and ending", reconcile.Outcome{Own: []schemas.Object{ending}}, nil},
		{"last finalizer", reconcile.Outcome{Own: []schemas.Object{ending}, Want: []schemas.Object{edit(func(p *corev1.Pod) { p.DeletionTimestamp = &stamp })}}, []string{"remove pods.default.a"}},
		{"deletion is not taken back", reconcile.Outcome{Own: []schemas.Object{ending}, Want: []schemas.Object{old.DeepCopy()}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, w := range reconcile.Diff(tt.out, now) {
				got = append(got, string(w.Op)+" "+w.Key)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChangedSpecCountsTheGenerationUp(t *testing.T) {
	old := pod("default", "a")
	old.Generation = 4
	next := old.DeepCopy()
	next.Spec.NodeName = "n"
	writes := reconcile.Diff(reconcile.Outcome{Own: []schemas.Object{old}, Want: []schemas.Object{next}}, time.Now())
	if len(writes) != 1 || writes[0].Object.GetGeneration() != 5 {
		t.Errorf("%+v", writes)
	}
}

func TestStatusWaitsForDeedsButNotForErrors(t *testing.T) {
	store := reconciletest.NewStore()
	create(t, store, service("a"))
	c := reconcile.Controller{Name: "c", Writes: []string{"pods", "services/status"}}
	c.Reconcile = func(_ string, v bus.View, _ time.Time) reconcile.Outcome {
		var out reconcile.Outcome
		s := v.Get(schemas.Services, "default", "a").(*corev1.Service)
		next := s.DeepCopy()
		next.Status.Conditions = []metav1.Condition{{Type: "Seen"}}
		out.Keep(s, next)
		if v.Get(schemas.Pods, "default", "p") == nil {
			out.Want = append(out.Want, pod("default", "p"))
		}
		return out
	}
	claims := &reconcile.Claims{}
	if err := claims.Register(c.Name, c.Writes...); err != nil {
		t.Fatal(err)
	}
	pass := func() (reconcile.Result, error) {
		return reconcile.Pass(t.Context(), store, claims, c, "", time.Now(), 1, false)
	}
	store.Fault = func(n int) reconciletest.Fault { // 1 was the Service
		if n == 2 {
			return reconciletest.CrashBefore
		}
		return reconciletest.None
	}
	r, err := pass()
	if !errors.Is(err, reconciletest.ErrCrash) || len(r.Done) != 1 || r.Done[0].Op != reconcile.OpStatus {
		t.Errorf("after a fault: %+v, %v", r, err)
	}
	r, err = pass()
	if err != nil || len(r.Done) != 1 || r.Done[0].Op != reconcile.OpCreate {
		t.Errorf("the deed: %+v, %v", r, err)
	}
}

func TestDerivedNamesAreLabels(t *testing.T) {
	long := strings.Repeat("x", 70)
	for _, tt := range []struct{ base, hash, want string }{
		{"web", "abcde", "web-abcde"},
		{long, "abcde", strings.Repeat("x", 57) + "-abcde"},
		{long, "abcdefghij", strings.Repeat("x", 52) + "-abcdefghij"},
	} {
		if got := reconcile.DerivedName(tt.base, tt.hash); got != tt.want || len(got) > 63 {
			t.Errorf("DerivedName(%q, %q) = %q, want %q", tt.base, tt.hash, got, tt.want)
		}
	}
	if a, b := reconcile.Hash(5, "a", "b"), reconcile.Hash(5, "ab"); a == b || len(a) != 5 {
		t.Errorf("hashes %q and %q", a, b)
	}
}

func TestStatusIsToldAtOnceThenSeldomAndAtLast(t *testing.T) {
	store := reconciletest.NewStore()
	create(t, store, service("a"))
	c := reconcile.Controller{
		Name: "c", Reads: []string{schemas.Services, schemas.Pods}, Writes: []string{"services/status"},
		Wakes: func(bus.Change, bus.View) []string { return []string{"a"} },
		Reconcile: func(_ string, v bus.View, _ time.Time) reconcile.Outcome {
			var out reconcile.Outcome
			s := v.Get(schemas.Services, "default", "a").(*corev1.Service)
			next := s.DeepCopy()
			next.Status.Conditions = []metav1.Condition{{Type: fmt.Sprint(len(v.List(schemas.Pods, "")))}}
			out.Keep(s, next)
			return out
		},
	}
	e := engine(t, store, []reconcile.Controller{c})
	run(t, e)
	seen := func() string {
		s := store.View().Get(schemas.Services, "default", "a").(*corev1.Service)
		if len(s.Status.Conditions) == 0 {
			return ""
		}
		return s.Status.Conditions[0].Type
	}
	eventually(t, "the first status", func() bool { return seen() == "0" })
	for i := range 300 {
		create(t, store, pod("default", fmt.Sprintf("p%d", i)))
	}
	eventually(t, "the last status", func() bool { return seen() == "300" && e.Quiet() })
	if _, writes := e.Stats(); writes > 100 {
		t.Errorf("%d writes of one status", writes)
	}
}
