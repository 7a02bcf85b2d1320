package bus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// told is a change in a form that two stores can be compared by.
func told(c Change) string {
	version := func(o schemas.Object) string {
		if o == nil {
			return "-"
		}
		return o.GetResourceVersion()
	}
	return fmt.Sprintf("%d %s %s->%s", c.Revision, keyOf(c.Object()), version(c.Old), version(c.New))
}

func changesAfter(t *testing.T, s Store, revision uint64) []string {
	t.Helper()
	var out []string
	ctx, cancel := context.WithCancel(testContext(t))
	cancel() // what is there, without waiting for more
	changes, _, err := s.ChangesSince(ctx, schemas.ConfigMaps, revision, 0)
	if err != nil {
		t.Fatalf("changes since %d: %v", revision, err)
	}
	for _, c := range changes {
		out = append(out, told(c))
	}
	return out
}

// history writes at random: creations, updates, deletions, and names that come back.
func history(t *testing.T, s Store, seed uint64, steps int) (revisions []uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range steps {
		name := fmt.Sprintf("cm-%d", random.IntN(6))
		ctx := testContext(t)
		var err error
		switch old := s.View().Get(schemas.ConfigMaps, "default", name); {
		case old == nil:
			_, err = s.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{"i": fmt.Sprint(i)}})
		case random.IntN(4) == 0:
			err = s.Delete(ctx, old)
		default:
			cm := old.DeepCopyObject().(*corev1.ConfigMap)
			cm.Data["i"] = fmt.Sprint(i)
			_, err = s.Update(ctx, cm)
		}
		if err != nil {
			t.Fatal(err)
		}
		revisions = append(revisions, s.View().Revision())
	}
	return revisions
}

// TestRestartKeepsTheLog: a store that is opened anew knows the changes that
// the one before it knew, each with what it replaced.
func TestRestartKeepsTheLog(t *testing.T) {
	for seed := range uint64(5) {
		dir := t.TempDir()
		srv, conn := startIn(t, dir)
		first := openTestStore(t, conn, nil)
		start := first.View().Revision()
		revisions := append([]uint64{start}, history(t, first, seed, 60)...)
		want := map[uint64][]string{}
		for _, r := range revisions {
			want[r] = changesAfter(t, first, r)
		}
		conn.Close()
		if err := srv.Shutdown(testContext(t)); err != nil {
			t.Fatal(err)
		}
		_, conn = startIn(t, dir)
		second := openTestStore(t, conn, nil)
		for _, r := range revisions {
			if diff := cmp.Diff(want[r], changesAfter(t, second, r)); diff != "" {
				t.Fatalf("seed %d: changes since %d (-before +after the restart):\n%s", seed, r, diff)
			}
		}
	}
}

// TestLogEndsWhereVersionsAreMissing: a key that changed more often than the
// bus keeps versions of it ends the log there; it is never told with a gap.
func TestLogEndsWhereVersionsAreMissing(t *testing.T) {
	dir := t.TempDir()
	srv, conn := startIn(t, dir)
	first := openTestStore(t, conn, nil)
	start := first.View().Revision()
	var cm schemas.Object = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "busy"}, Data: map[string]string{"i": "none"}}
	var err error
	if cm, err = first.Create(testContext(t), cm); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		cm.(*corev1.ConfigMap).Data["i"] = fmt.Sprint(i)
		if cm, err = first.Update(testContext(t), cm); err != nil {
			t.Fatal(err)
		}
	}
	last := first.View().Revision()
	conn.Close()
	if err := srv.Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	_, conn = startIn(t, dir)
	second := openTestStore(t, conn, nil)
	if _, _, err := second.ChangesSince(testContext(t), schemas.ConfigMaps, start, 0); err == nil {
		t.Error("changes are told from before a gap")
	}
	if got := changesAfter(t, second, last-3); len(got) != 3 {
		t.Errorf("the last three changes are %v", got)
	}
}

// TestSweep: the history of a deletion goes when it is old, its name stays
// known, and one that is in use again is left alone.
func TestSweep(t *testing.T) {
	_, conn := startIn(t, t.TempDir())
	st := openTestStore(t, conn, nil)
	s := st.(*store)
	ctx := testContext(t)
	add := func(name string) schemas.Object {
		o, err := s.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, name := range []string{"gone", "back"} {
		if err := s.Delete(ctx, add(name)); err != nil {
			t.Fatal(err)
		}
	}
	add("back")
	s.sweepOnce(ctx, time.Now().Add(-sweepAfter))
	if n := len(s.view.unswept(time.Now())); n != 1 {
		t.Fatalf("%d deletions are to be swept, not 1: young ones stay", n)
	}
	s.sweepOnce(ctx, time.Now().Add(time.Second))
	if n := len(s.view.unswept(time.Now().Add(time.Hour))); n != 0 {
		t.Errorf("%d deletions are left to be swept", n)
	}
	info, err := conn.js.Stream(ctx, "KV_"+conn.names.ObjectsBucket())
	if err != nil {
		t.Fatal(err)
	}
	m, err := info.GetLastMsgForSubject(ctx, s.subject(objKey{schemas.ConfigMaps, "default", "gone"}))
	if err != nil || m.Header.Get(headerOperation) != opPurge || m.Header.Get(headerTTL) == "" {
		t.Errorf("the key's last message is %+v, %v", m, err)
	}
	if !s.View().Tombstone(schemas.ConfigMaps, "default", "gone") {
		t.Error("the name is forgotten")
	}
	if s.View().Get(schemas.ConfigMaps, "default", "back") == nil {
		t.Error("what is there was swept")
	}
	add("gone") // over the new marker
}

// startIn opens a server and a connection on a directory. The server must be
// stopped by the test where it is started again on the same one.
func startIn(t *testing.T, dir string) (*Server, *Conn) {
	t.Helper()
	srv, err := StartServer(testContext(t), ServerOptions{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	conn := openTest(t, srv)
	t.Cleanup(func() {
		conn.Close()
		if srv.ns.Running() {
			stopServer(t, srv)
		}
	})
	return srv, conn
}
