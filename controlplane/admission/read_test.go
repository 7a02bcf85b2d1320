package admission

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

func podNames(t *testing.T, out string) (names []string, list *corev1.PodList) {
	t.Helper()
	list = decode[corev1.PodList](t, out)
	for _, p := range list.Items {
		names = append(names, p.Name)
	}
	return names, list
}

// TestThePagesOfAListAreOfOneMoment changes what is listed between its pages.
func TestThePagesOfAListAreOfOneMoment(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.ok(schemas.VerbCreate, "pods", "default", "", pod(fmt.Sprint("p", i), ""))
	}
	first, page := podNames(t, w.ok(schemas.VerbList, "pods", "default", "", metav1.ListOptions{Limit: 2}))
	w.ok(schemas.VerbDelete, "pods", "default", "p3", nil)
	w.ok(schemas.VerbCreate, "pods", "default", "", pod("p2a", ""))
	w.ok(schemas.VerbPatch, "pods", "default", "p4", `{"metadata":{"labels":{"late":"yes"}}}`)
	rest, last := podNames(t, w.ok(schemas.VerbList, "pods", "default", "", metav1.ListOptions{Continue: page.Continue}))
	if diff := cmp.Diff([]string{"p0", "p1", "p2", "p3", "p4"}, append(first, rest...)); diff != "" {
		t.Error(diff)
	}
	if last.ResourceVersion != page.ResourceVersion || last.Items[2].Labels["late"] != "" {
		t.Errorf("the second page is of %s, not %s: %v", last.ResourceVersion, page.ResourceVersion, last.Items[2].Labels)
	}
	exact := metav1.ListOptions{ResourceVersion: page.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}
	again, _ := podNames(t, w.ok(schemas.VerbList, "pods", "default", "", exact))
	if diff := cmp.Diff([]string{"p0", "p1", "p2", "p3", "p4"}, again); diff != "" {
		t.Error(diff)
	}
	exact.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	if now, _ := podNames(t, w.ok(schemas.VerbList, "pods", "default", "", exact)); len(now) != 5 || now[3] != "p2a" {
		t.Errorf("not older than: %v", now)
	}

	// A server that was not there at that moment reads it from the bus.
	fresh := w.another()
	for what, tt := range map[string]struct {
		opts metav1.ListOptions
		want []string
	}{
		"the second page": {metav1.ListOptions{Continue: page.Continue}, rest},
		"exactly then": {metav1.ListOptions{ResourceVersion: page.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact},
			[]string{"p0", "p1", "p2", "p3", "p4"}},
	} {
		got, _ := podNames(t, fresh.ok(schemas.VerbList, "pods", "default", "", tt.opts))
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
}

func TestOptionsOfReads(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, "pods", "default", "", pod("p", ""))
	many := make([]string, 300)
	for i := range many {
		many[i] = fmt.Sprintf("l%d=x", i)
	}
	var rv = func(n int) string { return fmt.Sprint(int(w.store.View().Revision()) + n) }
	tests := []struct {
		desc, verb, name, body string
		code                   int32
		says                   string
	}{
		{"unknown option", schemas.VerbList, "", `{"labels":"a=b"}`, 400, `unknown field "labels"`},
		{"an option twice", schemas.VerbList, "", `{"limit":1,"limit":2}`, 400, `duplicate field "limit"`},
		{"negative limit", schemas.VerbList, "", `{"limit":-1}`, 400, "limit"},
		{"watch within a list", schemas.VerbList, "", `{"watch":true}`, 400, "a verb of its own"},
		{"initial events of a list", schemas.VerbList, "", `{"sendInitialEvents":true}`, 400, "sendInitialEvents"},
		{"bookmarks of a list", schemas.VerbList, "", `{"allowWatchBookmarks":true}`, 400, "allowWatchBookmarks"},
		{"match without revision", schemas.VerbList, "", `{"resourceVersionMatch":"Exact"}`, 400, "resourceVersionMatch"},
		{"match of nobody", schemas.VerbList, "", `{"resourceVersion":"1","resourceVersionMatch":"Near"}`, 400, "Near"},
		{"exactly anything", schemas.VerbList, "", `{"resourceVersion":"0","resourceVersionMatch":"Exact"}`, 400, "Exact"},
		{"match with continue", schemas.VerbList, "", `{"continue":"x","resourceVersionMatch":"Exact","resourceVersion":"5"}`, 400, "continue"},
		{"revision with continue", schemas.VerbList, "", `{"continue":"x","resourceVersion":"5"}`, 400, "continue"},
		{"a token of nobody", schemas.VerbList, "", `{"continue":"x"}`, 400, "not a token"},
		{"a revision of letters", schemas.VerbList, "", `{"resourceVersion":"new"}`, 400, "invalid resource version"},
		{"a revision to come", schemas.VerbList, "", `{"resourceVersion":"` + rv(1000) + `"}`, 504, "Too large resource version"},
		{"a revision to come, of one object", schemas.VerbGet, "p", `{"resourceVersion":"` + rv(1000) + `"}`, 504, "Too large resource version"},
		{"an option of a get", schemas.VerbGet, "p", `{"export":true}`, 400, "export"},
		{"pages of a watch", schemas.VerbWatch, "", `{"continue":"x"}`, 400, "a watch has no pages"},
		{"match of a watch", schemas.VerbWatch, "", `{"resourceVersion":"1","resourceVersionMatch":"NotOlderThan"}`, 400, "without sendInitialEvents"},
		{"initial events without match", schemas.VerbWatch, "", `{"sendInitialEvents":true}`, 400, "NotOlderThan"},
		{"no selector", schemas.VerbList, "", `{"labelSelector":"a in ("}`, 400, "labelSelector"},
		{"a long selector", schemas.VerbList, "", `{"labelSelector":"a in (` + strings.Repeat("x,", 10_000) + `x)"}`, 400, "16384"},
		{"a selector of many terms", schemas.VerbList, "", `{"labelSelector":"` + strings.Join(many, ",") + `"}`, 400, "256 terms"},
		{"a field selector of many terms", schemas.VerbWatch, "", `{"fieldSelector":"` + strings.Repeat("metadata.name!=x,", 300) + `metadata.name!=y"}`, 400, "256 terms"},
		{"deep nesting", schemas.VerbList, "", strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000), 400, "nested deeper"},
		{"invalid UTF-8", schemas.VerbList, "", "{\"labelSelector\":\"\xff\"}", 400, "UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			t.Parallel()
			_, _, st := w.call(tt.verb, "pods", "default", tt.name, tt.body)
			if st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
				t.Errorf("got %+v", st)
			}
		})
	}
}

func TestInitialEventsAndBookmarks(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, "pods", "default", "", pod("a", ""))
	watch := func(body string) (types []string, reply *schemas.WatchReply) {
		t.Helper()
		reply = decode[schemas.WatchReply](t, w.ok(schemas.VerbWatch, "pods", "default", "", body))
		for _, e := range reply.Items {
			types = append(types, e.Type)
		}
		return types, reply
	}
	got, r := watch(`{"sendInitialEvents":true,"allowWatchBookmarks":true,"resourceVersionMatch":"NotOlderThan"}`)
	if diff := cmp.Diff([]string{"ADDED", "BOOKMARK"}, got); diff != "" {
		t.Fatal(diff)
	}
	mark := decode[corev1.Pod](t, string(r.Items[1].Object.Raw))
	if mark.Kind != "Pod" || mark.ResourceVersion != r.ResourceVersion || mark.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("bookmark %+v", mark)
	}
	if got, _ = watch(`{"sendInitialEvents":true,"resourceVersionMatch":"NotOlderThan"}`); len(got) != 1 {
		t.Errorf("without bookmarks: %v", got)
	}
	if got, _ = watch(`{"sendInitialEvents":false,"resourceVersionMatch":"NotOlderThan"}`); len(got) != 0 {
		t.Errorf("without initial events: %v", got)
	}
	// What is not selected moves the revision on; a bookmark tells of it.
	w.ok(schemas.VerbCreate, "pods", "kube-system", "", pod("b", ""))
	next := fmt.Sprintf(`{"resourceVersion":%q,"timeoutSeconds":0`, r.ResourceVersion)
	got, later := watch(next + `,"allowWatchBookmarks":true}`)
	if diff := cmp.Diff([]string{"BOOKMARK"}, got); diff != "" || later.ResourceVersion == r.ResourceVersion {
		t.Errorf("%s at %s", diff, later.ResourceVersion)
	}
	if got, _ = watch(next + `}`); len(got) != 0 {
		t.Errorf("unasked: %v", got)
	}
	w.ok(schemas.VerbDelete, "pods", "default", "a", nil)
	got, last := watch(fmt.Sprintf(`{"resourceVersion":%q,"timeoutSeconds":5,"allowWatchBookmarks":true}`, later.ResourceVersion))
	if diff := cmp.Diff([]string{"DELETED"}, got); diff != "" {
		t.Error(diff)
	}
	if gone := decode[corev1.Pod](t, string(last.Items[0].Object.Raw)); gone.ResourceVersion != last.ResourceVersion {
		t.Errorf("the deletion is of %s, the answer of %s", gone.ResourceVersion, last.ResourceVersion)
	}
}
