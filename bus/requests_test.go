package bus

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

func labelled(o schemas.Object, value string) schemas.Object {
	p := o.DeepCopyObject().(schemas.Object)
	p.SetLabels(map[string]string{"v": value})
	return p
}

// A write is found by its request's id by this view, by another server's, and
// by one that loads afterwards, though others wrote the object since.
func TestWritesAreFoundByTheirRequest(t *testing.T) {
	srv := startTestServer(t, t.TempDir())
	conn := openTest(t, srv)
	s := openTestStore(t, conn, nil).(History)
	other := openTestStore(t, conn, nil).(History)
	ctx := testContext(t)

	created, err := s.Create(WithRequest(ctx, Request{ID: "r1", Result: "created"}), testPod("default", "web", ""))
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Update(WithRequest(ctx, Request{ID: "r2", Result: "configured"}), labelled(created, "2"))
	if err != nil {
		t.Fatal(err)
	}
	third, err := s.Update(ctx, labelled(second, "3"))
	if err != nil {
		t.Fatal(err)
	}
	gone, err := s.Create(ctx, testPod("default", "gone", ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(WithRequest(ctx, Request{ID: "r3"}), gone); err != nil {
		t.Fatal(err)
	}
	check := func(what string, h History) {
		t.Helper()
		for id, want := range map[string]Written{
			"r1": {Object: created, Result: "created"},
			"r2": {Object: second, Result: "configured"},
		} {
			got, found, err := h.WrittenBy(ctx, schemas.Pods, "default", "web", id, false)
			want.Revision = got.Revision
			if diff := cmp.Diff(want, got); diff != "" || !found || err != nil {
				t.Errorf("%s: %s: found %v, %v\n%s", what, id, found, err, diff)
			}
		}
		got, found, err := h.WrittenBy(ctx, schemas.Pods, "default", "gone", "r3", false)
		if !got.Deleted || !found || err != nil {
			t.Errorf("%s: deletion: %+v, found %v, %v", what, got, found, err)
		}
		for _, id := range []string{"r3", "other", ""} {
			if _, found, err := h.WrittenBy(ctx, schemas.Pods, "default", "web", id, true); found || err != nil {
				t.Errorf("%s: %q is found for what it never wrote, %v", what, id, err)
			}
		}
	}
	check("own view", s)
	eventually(t, "the other view follows", func() bool { return other.View().Revision() == s.View().Revision() })
	check("another server's", other)
	check("one that loaded afterwards", openTestStore(t, conn, nil).(History))
	if third.GetResourceVersion() == second.GetResourceVersion() {
		t.Error("the last update wrote nothing")
	}
}

func TestRequestsAreBounded(t *testing.T) {
	now := time.Now()
	var list []requested
	for i := range 3 * maxRequests {
		list = mergeRequests(list, []requested{{id: fmt.Sprint("r", i), seq: uint64(i + 1), at: now.Unix()}}, now)
	}
	if len(list) != maxRequests || list[0].id != fmt.Sprint("r", 2*maxRequests) {
		t.Errorf("%d, from %+v", len(list), list[0])
	}
	told := []requested{{id: "again", seq: 3, at: now.Unix()}, {id: "new", seq: 1000, at: now.Unix()}}
	if got := mergeRequests(list, told, now); got[len(got)-1].id != "new" || got[len(got)-2].id != list[len(list)-1].id {
		t.Errorf("what is known was taken in again: %+v", got[len(got)-2:])
	}
	old := now.Add(2 * requestHorizon)
	if got := mergeRequests(list, []requested{{id: "new", seq: 1000, at: old.Unix()}}, old); len(got) != 1 {
		t.Errorf("%d are left beyond the horizon", len(got))
	}
	v := newViewCache(nil)
	v.aging = append(v.aging, aging{key: objKey{name: "x"}, at: now.Add(-2 * requestHorizon).Unix()})
	v.requests[objKey{name: "x"}] = []requested{{id: "r", at: now.Add(-2 * requestHorizon).Unix()}}
	v.noteRequests(step{key: objKey{name: "y"}, requests: []requested{{id: "s", seq: 9, at: now.Unix()}}})
	if len(v.requests) != 1 || len(v.aging) != 1 {
		t.Errorf("the old stay: %v, %v", v.requests, v.aging)
	}
}

// A list at a revision is the list that was read at it, whatever came since.
func TestListAtARevision(t *testing.T) {
	s := newTestStore(t, nil).(History)
	ctx := testContext(t)
	mustCreate(t, s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "first"}})
	type moment struct {
		revision uint64
		want     []schemas.Object
	}
	var moments []moment
	remember := func() {
		moments = append(moments, moment{s.View().Revision(), s.View().List(schemas.Pods, "default")})
	}
	start := s.View().Revision()
	for i := range 6 {
		mustCreate(t, s, testPod("default", fmt.Sprint("p", i), ""))
		mustCreate(t, s, testPod("other", fmt.Sprint("p", i), ""))
		remember()
	}
	for i, o := range s.View().List(schemas.Pods, "default") {
		var err error
		if i%2 == 0 {
			err = s.Delete(ctx, o)
		} else {
			_, err = s.Update(ctx, labelled(o, "x"))
		}
		if err != nil {
			t.Fatal(err)
		}
		remember()
	}
	mustCreate(t, s, testPod("default", "p0", ""))
	remember()
	for _, m := range moments {
		got, err := s.ListAt(schemas.Pods, "default", m.revision, Place{})
		if diff := cmp.Diff(m.want, got); diff != "" || err != nil {
			t.Errorf("at %d: %v (-then +now)\n%s", m.revision, err, diff)
		}
	}
	if got, err := s.ListAt(schemas.Pods, "", start, Place{}); len(got) != 0 || err != nil {
		t.Errorf("before the first: %d, %v", len(got), err)
	}
	for _, m := range moments {
		for i, o := range m.want {
			got, err := s.ListAt(schemas.Pods, "default", m.revision, Place{Namespace: o.GetNamespace(), Name: o.GetName()})
			if diff := cmp.Diff(m.want[i:], got); diff != "" || err != nil {
				t.Errorf("at %d from %s: %v (-then +now)\n%s", m.revision, o.GetName(), err, diff)
			}
		}
	}
	// A store that is opened anew reads the log from the stream.
	fresh := openTestStore(t, s.(*store).conn, nil)
	for _, m := range moments {
		got, err := fresh.(History).ListAt(schemas.Pods, "default", m.revision, Place{})
		if diff := cmp.Diff(m.want, got); diff != "" || err != nil {
			t.Errorf("opened anew, at %d: %v (-then +now)\n%s", m.revision, err, diff)
		}
	}
	fresh.(*store).view.objects.log = changeLog{start: fresh.View().Revision()}
	if _, err := fresh.(History).ListAt(schemas.Pods, "", start, Place{}); !errors.Is(err, ErrTooOld) {
		t.Errorf("before the log begins: %v", err)
	}
}
