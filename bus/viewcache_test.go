package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry.dev/schemas"
)

// sortedSet against a map that is sorted at each look.
func TestSortedSetAgainstAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	set, twin := &sortedSet{}, map[string]schemas.Object{}
	for i := range 20_000 {
		key := fmt.Sprintf("%c/%04d", 'a'+rng.IntN(3), rng.IntN(3000))
		if rng.IntN(3) == 0 || i > 15_000 && rng.IntN(2) == 0 {
			set.remove(key)
			delete(twin, key)
		} else {
			o := testPod("x", fmt.Sprint(i), "")
			set.put(key, o)
			twin[key] = o
		}
		if i%500 != 0 {
			continue
		}
		for _, prefix := range []string{"", "a/", "b/", "b/1", "c/", "d/"} {
			var want []string
			for _, k := range slices.Sorted(maps.Keys(twin)) {
				if strings.HasPrefix(k, prefix) {
					want = append(want, twin[k].GetName())
				}
			}
			var got []string
			for _, o := range set.prefixed(prefix) {
				got = append(got, o.GetName())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("step %d, prefix %q (-want +got):\n%s", i, prefix, diff)
			}
		}
		if set.len() != len(twin) {
			t.Fatalf("length %d, want %d", set.len(), len(twin))
		}
	}
}

func podStep(name, node string, seq uint64) step {
	k := objKey{schemas.Pods, "default", name}
	if node == "" {
		return step{key: k, seq: seq, at: time.Now()}
	}
	o := testPod("default", name, node)
	stamp(o, seq)
	return step{key: k, obj: o, seq: seq, at: time.Now()}
}

func loadedView(steps ...step) *viewCache {
	v := newViewCache(map[string]IndexFunc{"node": byNode})
	seen := map[objKey]bool{}
	for _, s := range steps {
		v.deliver(s)
		seen[s.key] = s.obj != nil
	}
	v.finishLoad(&v.objects, seen, changeLog{}, 0)
	return v
}

// Whatever the order in which acknowledgements and feed come, the log is in
// the order of the stream and the state is the last one.
func TestViewTakesStepsInTheOrderOfTheStream(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		v := loadedView()
		var steps []step
		for i := range 30 {
			node := fmt.Sprint("n", rng.IntN(3))
			if rng.IntN(4) == 0 {
				node = ""
			}
			steps = append(steps, podStep(fmt.Sprint("p", rng.IntN(5)), node, uint64(i+1)))
		}
		own := rng.Perm(len(steps))[:rng.IntN(len(steps))]
		fed := 0
		for len(own) > 0 || fed < len(steps) {
			if len(own) > 0 && (fed == len(steps) || rng.IntN(2) == 0) {
				v.offer(steps[own[0]])
				own = own[1:]
			} else {
				// As the feed does: what an own write has brought is not decoded again.
				if !v.written(&v.objects, steps[fed].seq) {
					v.deliver(steps[fed])
				}
				fed++
			}
		}
		twin, want := map[string]string{}, []uint64{}
		for _, s := range steps {
			if s.obj == nil && twin[s.key.name] == "" {
				continue // nothing was there: no change
			}
			want = append(want, s.seq)
			twin[s.key.name] = ""
			if s.obj != nil {
				twin[s.key.name] = byNode(s.obj)[0]
			}
		}
		changes, reached, err := v.changesSince(context.Background(), "", 0, 100)
		if err != nil || reached != 30 {
			t.Fatalf("reached %d, %v", reached, err)
		}
		var got []uint64
		for _, c := range changes {
			got = append(got, c.Revision)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("log (-want +got):\n%s", diff)
		}
		for name, node := range twin {
			o := v.Get(schemas.Pods, "default", name)
			if (o == nil) != (node == "") || o != nil && byNode(o)[0] != node {
				t.Fatalf("%s is %v, want it on %q", name, o, node)
			}
			if o == nil != v.Tombstone(schemas.Pods, "default", name) {
				t.Fatalf("%s: tombstone and object disagree", name)
			}
		}
		for _, node := range []string{"n0", "n1", "n2"} {
			for _, o := range v.ByIndex("node", node) {
				if twin[o.GetName()] != node {
					t.Fatalf("index %s has %s", node, o.GetName())
				}
			}
		}
		if len(v.objects.pending)+len(v.objects.waiting) != 0 {
			t.Fatal("something was left over")
		}
	}
}

// After a long loss of the connection the bucket is read again; what is not in
// it any more was deleted meanwhile.
func TestViewLoadsAgain(t *testing.T) {
	v := loadedView(podStep("kept", "n1", 1), podStep("lost", "n1", 2))
	ctx, cancel := context.WithCancel(t.Context())
	words := make(chan string, 10)
	go v.subscribe(ctx, false, func(c Change) { words <- fmt.Sprint(c.Object().GetName(), c.New != nil) })
	eventually(t, "subscribed", func() bool {
		v.mu.RLock()
		defer v.mu.RUnlock()
		return len(v.subs) == 1
	})
	v.deliver(podStep("new", "n2", 9))
	v.finishLoad(&v.objects, map[objKey]bool{
		{schemas.Pods, "default", "kept"}: true, {schemas.Pods, "default", "new"}: true,
	}, changeLog{start: 9}, 9)
	if diff := cmp.Diff([]string{"newtrue", "lostfalse"}, []string{<-words, <-words}); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	cancel()
	if diff := cmp.Diff([]string{"default/kept", "default/new"}, names(v.List(schemas.Pods, ""))); diff != "" {
		t.Errorf("view (-want +got):\n%s", diff)
	}
	if got := names(v.ByIndex("node", "n1")); len(got) != 1 {
		t.Errorf("index has %v", got)
	}
	if _, _, err := v.changesSince(t.Context(), "", 2, 10); !errors.Is(err, ErrTooOld) {
		t.Errorf("changes across a second load: %v, want ErrTooOld", err)
	}
}

func TestTombstonesAreBounded(t *testing.T) {
	stones := tombstones{at: map[objKey]tombstone{}}
	now := time.Now()
	for i := range maxTombstones + 100 {
		stones.add(objKey{"pods", "default", fmt.Sprint(i)}, uint64(i+1), now, false)
	}
	if len(stones.at) > maxTombstones || len(stones.order) > maxTombstones {
		t.Errorf("%d tombstones, %d in order", len(stones.at), len(stones.order))
	}
	newest := objKey{"pods", "default", fmt.Sprint(maxTombstones + 99)}
	if stones.revision(newest, now) == 0 {
		t.Error("the newest is gone")
	}
	if stones.revision(newest, now.Add(tombstoneTTL+time.Second)) != 0 {
		t.Error("a tombstone outlives its marker")
	}
	stones.add(objKey{"pods", "default", "late"}, 1, now.Add(-2*tombstoneTTL), false)
	if stones.revision(objKey{"pods", "default", "late"}, now) != 0 {
		t.Error("an old marker counts")
	}
}

func TestChangeLogForgets(t *testing.T) {
	var l changeLog
	now := time.Now()
	for i := range maxLogged + 10 {
		l.add(Change{Resource: "pods", Revision: uint64(i + 1)}, now)
	}
	if len(l.entries) != maxLogged || l.start != 10 {
		t.Errorf("%d entries from %d, want %d from 10", len(l.entries), l.start, maxLogged)
	}
	l.add(Change{Resource: "pods", Revision: 1 << 40}, now.Add(logAge+time.Second))
	if len(l.entries) != 1 || l.start != maxLogged+10 {
		t.Errorf("%d entries from %d after %v", len(l.entries), l.start, logAge)
	}
}

func BenchmarkViewAt100000(b *testing.B) {
	const objects = 100_000
	v := newViewCache(map[string]IndexFunc{"node": byNode})
	for i := range objects {
		v.deliver(podStep(fmt.Sprint("p", i), fmt.Sprint("n", i%1000), uint64(i+1)))
	}
	v.finishLoad(&v.objects, map[objKey]bool{}, changeLog{}, 0)
	for i := range objects { // finishLoad took them for lost: they come again
		v.deliver(podStep(fmt.Sprint("p", i), fmt.Sprint("n", i%1000), uint64(objects+i+1)))
	}
	b.Run("change", func(b *testing.B) {
		for i := range b.N {
			v.deliver(podStep(fmt.Sprint("p", i%objects), fmt.Sprint("n", i%1000), v.Revision()+1))
		}
	})
	b.Run("byIndex", func(b *testing.B) {
		for i := range b.N {
			if len(v.ByIndex("node", fmt.Sprint("n", i%1000))) == 0 {
				b.Fatal("empty")
			}
		}
	})
	b.Run("list", func(b *testing.B) {
		for range b.N {
			v.List(schemas.Pods, "")
		}
	})
}
