package namespace_test

import (
	"testing"

	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/controlplane/namespace"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTerminatingNamespaceIsEmptiedThenGoes(t *testing.T) {
	w := reconciletest.NewWorld(reconcile.Indexes(), namespace.New())
	settle := func() {
		t.Helper()
		if err := w.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	put := func(o schemas.Object) schemas.Object {
		t.Helper()
		stored, err := w.Put(o)
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	lifecycle.PrepareCreate(ns)
	stored := put(ns)
	put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
	put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "web"}})
	p := put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{NodeName: "n"}})
	settle()
	if w.View().Get(schemas.Services, "shop", "web") == nil {
		t.Fatal("a living namespace was emptied")
	}

	marked, remove := lifecycle.MarkDeleted(stored, metav1.DeleteOptions{}, w.Clock())
	if remove {
		t.Fatal("a namespace with content may not go at once")
	}
	put(marked)
	settle()
	if w.View().Get(schemas.Services, "shop", "web") != nil {
		t.Error("its Service is still there")
	}
	if w.View().Get(schemas.Services, "other", "web") == nil {
		t.Error("another namespace's Service is gone")
	}
	got := w.View().Get(schemas.Pods, "shop", "web")
	if got == nil || got.GetDeletionTimestamp() == nil {
		t.Fatal("its pod is not ending")
	}
	phase := w.View().Get(schemas.Namespaces, "", "shop").(*corev1.Namespace).Status.Phase
	if phase != corev1.NamespaceTerminating {
		t.Errorf("phase %s", phase)
	}
	// What comes late goes too.
	put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late"}})
	settle()
	if w.View().Get(schemas.Services, "shop", "late") != nil {
		t.Error("what came late stays")
	}

	if err := w.Delete(t.Context(), w.View().Get(schemas.Pods, p.GetNamespace(), p.GetName())); err != nil {
		t.Fatal(err)
	}
	settle()
	if w.View().Get(schemas.Namespaces, "", "shop") != nil {
		t.Error("the empty namespace is still there")
	}
	before := w.Writes()
	w.Restart()
	settle()
	if w.Writes() != before {
		t.Error("a converged cluster was written to")
	}
}
