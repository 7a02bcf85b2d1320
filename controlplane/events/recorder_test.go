package events

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func entry(message string, after time.Duration) Entry {
	return Entry{
		Involved: corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "web", UID: "u"},
		Source:   corev1.EventSource{Component: "nodeagent", Host: "a"},
		Type:     corev1.EventTypeWarning, Reason: "Unhealthy", Message: message, Time: noon.Add(after),
	}
}

// record adds entries and returns the events that are stored for them.
func record(t *testing.T, fault func(int) reconciletest.Fault, entries ...Entry) []*corev1.Event {
	t.Helper()
	store := reconciletest.NewStore()
	store.Fault = fault
	r := New(store, zerolog.Nop())
	r.now = func() time.Time { return noon }
	for _, e := range entries {
		r.Add(e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	deadline := time.Now().Add(10 * time.Second)
	total := func() (n int32) {
		for _, o := range store.View().List(schemas.Events, "") {
			n += o.(*corev1.Event).Count
		}
		return n
	}
	for total() < int32(len(entries)) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var out []*corev1.Event
	for _, o := range store.View().List(schemas.Events, "") {
		out = append(out, o.(*corev1.Event))
	}
	return out
}

func TestSameEventIsCounted(t *testing.T) {
	// Every fourth write conflicts, as when something else wrote meanwhile.
	conflicts := func(n int) reconciletest.Fault {
		if n%4 == 0 {
			return reconciletest.Conflict
		}
		return reconciletest.None
	}
	got := record(t, conflicts, entry("no", 0), entry("no", time.Minute), entry("no", 30*time.Second))
	if len(got) != 1 {
		t.Fatalf("%d events", len(got))
	}
	e := got[0]
	if e.Count != 3 || !e.FirstTimestamp.Time.Equal(noon) || !e.LastTimestamp.Time.Equal(noon.Add(time.Minute)) {
		t.Errorf("count %d from %s to %s", e.Count, e.FirstTimestamp, e.LastTimestamp)
	}
	if diff := cmp.Diff(corev1.EventSource{Component: "nodeagent", Host: "a"}, e.Source); diff != "" || e.Namespace != "shop" || !strings.HasPrefix(e.Name, "web.") {
		t.Errorf("%s/%s: %s", e.Namespace, e.Name, diff)
	}
}

func TestMessagesWithoutEndAreSummedUp(t *testing.T) {
	var entries []Entry
	for i := range 50 {
		entries = append(entries, entry(fmt.Sprintf("refused on port %d", i), time.Duration(i)*time.Second))
	}
	got := record(t, nil, entries...)
	if len(got) != variants+1 {
		t.Fatalf("%d events, want %d and one for the rest", len(got), variants)
	}
	for _, e := range got {
		if strings.HasPrefix(e.Message, similarPrefix) && e.Count != 50-variants {
			t.Errorf("the sum counts %d: %s", e.Count, e.Message)
		}
	}
}

func TestEventOfANodeLiesInTheDefaultNamespace(t *testing.T) {
	e := Compile(Entry{Involved: Reference(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u"}}), Reason: "NodeReady"})
	if e.Namespace != "default" || e.InvolvedObject.Kind != "Node" || e.InvolvedObject.APIVersion != "v1" {
		t.Errorf("%s: %+v", e.Namespace, e.InvolvedObject)
	}
}
