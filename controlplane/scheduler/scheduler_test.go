package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/bus"
	"gantry.dev/controlplane/events"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
)

// store tells its changes from a goroutine of each subscriber, as the bus does.
type store struct{ *reconciletest.Store }

func (s store) Subscribe(ctx context.Context, replay bool, fn func(bus.Change)) error {
	var mu sync.Mutex
	var waiting []bus.Change
	wake := make(chan struct{}, 1)
	err := s.Store.Subscribe(ctx, replay, func(c bus.Change) {
		mu.Lock()
		waiting = append(waiting, c)
		mu.Unlock()
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	for err == nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-wake:
		}
		mu.Lock()
		batch := waiting
		waiting = nil
		mu.Unlock()
		for _, c := range batch {
			fn(c)
		}
	}
	return err
}

type log struct {
	mu      sync.Mutex
	entries []events.Entry
}

func (l *log) Add(e events.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
}

func (l *log) count(reason string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.entries {
		if e.Reason == reason {
			n++
		}
	}
	return n
}

type bench struct {
	*testing.T
	store store
	log   *log
	*Scheduler
}

func run(t *testing.T, fault func(int) reconciletest.Fault) *bench {
	t.Helper()
	s := store{reconciletest.NewStore()}
	s.Fault = fault
	b := &bench{T: t, store: s, log: &log{}}
	b.Scheduler = New(s, b.log, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Scheduler.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

// put creates or replaces, whatever faults there are.
func (b *bench) put(o schemas.Object) {
	b.Helper()
	for range 1000 {
		kind := schemas.KindOf(o)
		var err error
		if have := b.store.View().Get(kind.Resource, o.GetNamespace(), o.GetName()); have != nil {
			o.SetResourceVersion(have.GetResourceVersion())
			o.SetUID(have.GetUID())
			_, err = b.store.Update(b.Context(), o)
		} else {
			o.SetResourceVersion("")
			_, err = b.store.Create(b.Context(), o)
		}
		if err == nil {
			return
		}
	}
	b.Fatalf("cannot store %s", o.GetName())
}

func (b *bench) remove(name string) {
	b.Helper()
	for range 1000 {
		have := b.store.View().Get(schemas.Pods, "default", name)
		if have == nil || b.store.Delete(b.Context(), have) == nil {
			return
		}
	}
	b.Fatalf("cannot remove %s", name)
}

func (b *bench) pods() (bound, waiting []*corev1.Pod) {
	for _, o := range b.store.View().List(schemas.Pods, "default") {
		if p := o.(*corev1.Pod); p.Spec.NodeName != "" {
			bound = append(bound, p)
		} else {
			waiting = append(waiting, p)
		}
	}
	return bound, waiting
}

func (b *bench) until(what string, holds func() error) {
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: %v", what, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (b *bench) untilBound(n, of int) {
	b.Helper()
	b.until(fmt.Sprintf("%d of %d are bound and the rest know why not", n, of), func() error {
		bound, waiting := b.pods()
		if len(bound) != n || len(waiting) != of-n {
			return fmt.Errorf("%d are bound, %d wait", len(bound), len(waiting))
		}
		for _, p := range waiting {
			if c := scheduledCondition(p); c == nil || c.Status != corev1.ConditionFalse {
				return fmt.Errorf("%s has not been told", p.Name)
			}
		}
		for _, p := range bound {
			if !saysScheduled(p) {
				return fmt.Errorf("%s does not say that it is scheduled", p.Name)
			}
		}
		if !b.Quiet() {
			return errors.New("not quiet")
		}
		return nil
	})
}

// noneOver checks by hand that no node has more than fits.
func (b *bench) noneOver() {
	b.Helper()
	w := &twin{nodes: map[string]*corev1.Node{}, pods: nil}
	for _, o := range b.store.View().List(schemas.Nodes, "") {
		w.nodes[o.GetName()] = o.(*corev1.Node)
	}
	w.pods = map[types.UID]*corev1.Pod{}
	bound, _ := b.pods()
	for _, p := range bound {
		w.pods[p.UID] = p
	}
	for name := range w.nodes {
		if cpu, memory, pods := w.left(name); cpu < 0 || memory < 0 || pods < 0 {
			b.Errorf("node %s is over: %d CPU, %d bytes, %d pods left", name, cpu, memory, pods)
		}
	}
}

// TestNoRoomIsGivenTwiceUnderFaults binds many pods at once to nodes that are
// too small for all, while writes conflict, fail, or succeed and say otherwise.
func TestNoRoomIsGivenTwiceUnderFaults(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	b := run(t, func(int) reconciletest.Fault {
		switch random.IntN(10) {
		case 0:
			return reconciletest.Conflict
		case 1:
			return reconciletest.CrashBefore
		case 2:
			return reconciletest.CrashAfter
		}
		return reconciletest.None
	})
	for i := range 5 {
		b.put(newNode(fmt.Sprintf("n%d", i), "4", "8Gi", "110"))
	}
	for i := range 30 {
		b.put(newPod(fmt.Sprintf("p%d", i), "1", "64Mi"))
	}
	b.untilBound(20, 30)
	b.noneOver()
	bound, _ := b.pods()
	for _, p := range bound[:7] {
		b.remove(p.Name)
	}
	b.untilBound(20, 23)
	b.noneOver()
	b.put(newNode("n5", "4", "8Gi", "110"))
	b.untilBound(23, 23)
	b.noneOver()
}

// TestManyThatWaitCostNoMoreThanOne: pods of one shape are decided about once,
// and room for one wakes one.
func TestManyThatWaitCostNoMoreThanOne(t *testing.T) {
	b := run(t, nil)
	b.put(newNode("a", "4", "8Gi", "110"))
	for i := range 200 {
		b.put(newPod(fmt.Sprintf("p%03d", i), "1", ""))
	}
	b.untilBound(4, 200)
	before := b.count()
	bound, _ := b.pods()
	b.remove(bound[0].Name)
	b.untilBound(4, 199)
	if n := b.count() - before; n > 2 {
		t.Errorf("room for one of 196 pods took %d decisions, want 2 at most", n)
	}
	// What helps nobody wakes nobody.
	before = b.count()
	n := newNode("a", "4", "8Gi", "110")
	n.Annotations = map[string]string{"x": "y"}
	b.put(n)
	b.untilBound(4, 199)
	if n := b.count() - before; n != 0 {
		t.Errorf("an annotation took %d decisions", n)
	}
	if got := b.log.count("Scheduled"); got != 5 {
		t.Errorf("%d events of placement, want 5", got)
	}
}

func (b *bench) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.decided
}

func TestMessageFollowsTheNodes(t *testing.T) {
	b := run(t, nil)
	b.put(newPod("p", "8", ""))
	says := func(want string) {
		t.Helper()
		b.until("it says "+want, func() error {
			_, waiting := b.pods()
			if len(waiting) != 1 {
				return errors.New("it does not wait")
			}
			if c := scheduledCondition(waiting[0]); c == nil || c.Message != want || c.Reason != "Unschedulable" {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
	}
	says("no nodes available to schedule pods")
	b.put(newNode("a", "4", "8Gi", "110"))
	says("0/1 nodes are available: 1 Insufficient cpu.")
	b.put(newNode("b", "4", "8Gi", "110", cordoned))
	says("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.")
	b.put(newNode("a", "16", "8Gi", "110"))
	b.untilBound(1, 1)
	if n := b.log.count("FailedScheduling"); n != 3 {
		t.Errorf("%d events, want one for each message", n)
	}
}

func TestPodsThatAreNotOursAreLeftAlone(t *testing.T) {
	b := run(t, nil)
	b.put(newNode("a", "4", "8Gi", "110"))
	now := metav1.Now()
	b.put(newPod("other", "1", "", func(p *corev1.Pod) { p.Spec.SchedulerName = "other" }))
	b.put(newPod("gated", "1", "", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} }))
	b.put(newPod("ending", "1", "", func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &now, []string{"x/y"} }))
	b.put(newPod("named", "1", "", on("elsewhere")))
	b.put(newPod("ours", "1", ""))
	b.until("ours is bound", func() error {
		bound, _ := b.pods()
		if len(bound) != 2 || !saysScheduled(bound[0]) || !saysScheduled(bound[1]) {
			return fmt.Errorf("%d are bound", len(bound))
		}
		return nil
	})
	_, waiting := b.pods()
	for _, p := range waiting {
		if scheduledCondition(p) != nil {
			t.Errorf("%s was told something", p.Name)
		}
	}
}
