package gc_test

import (
	"testing"
	"time"

	"gantry.dev/controlplane/gc"
	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type story struct {
	*testing.T
	*reconciletest.World
}

func tell(t *testing.T) story {
	return story{t, reconciletest.NewWorld(gc.Indexes(), gc.New())}
}

func (s story) put(o schemas.Object) schemas.Object {
	s.Helper()
	stored, err := s.Put(o)
	if err != nil {
		s.Fatal(err)
	}
	return stored
}

func (s story) settle() {
	s.Helper()
	if err := s.Settle(); err != nil {
		s.Fatal(err)
	}
}

// remove is what admission does with a delete.
func (s story) remove(o schemas.Object, policy metav1.DeletionPropagation) {
	s.Helper()
	marked, remove := lifecycle.MarkDeleted(o, metav1.DeleteOptions{PropagationPolicy: &policy}, s.Clock())
	var err error
	if remove {
		err = s.Delete(s.Context(), o)
	} else {
		_, err = s.Update(s.Context(), marked)
	}
	if err != nil {
		s.Fatal(err)
	}
	s.settle()
}

// left are the keys of what there is; those that are being deleted with a mark.
func (s story) left() []string {
	var out []string
	for _, kind := range schemas.Kinds {
		for _, o := range s.View().List(kind.Resource, "") {
			key := schemas.KeyOf(o)
			if o.GetDeletionTimestamp() != nil {
				key += " ending"
			}
			out = append(out, key)
		}
	}
	return out
}

func (s story) want(what string, want ...string) {
	s.Helper()
	if diff := cmp.Diff(want, s.left()); diff != "" {
		s.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func ownedBy(owners ...schemas.Object) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: "default"}
	for i, o := range owners {
		ref := *metav1.NewControllerRef(o, schemas.KindOf(o).GVK)
		first := i == 0
		ref.Controller = &first
		m.OwnerReferences = append(m.OwnerReferences, ref)
	}
	return m
}

func deployment(name string) *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

func set(name string, owners ...schemas.Object) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{ObjectMeta: ownedBy(owners...)}
	rs.Name = name
	return rs
}

func pod(name, node string, owners ...schemas.Object) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: ownedBy(owners...)}
	p.Name, p.Spec.NodeName = name, node
	return p
}

func TestBackgroundDeleteTakesTheWholeTree(t *testing.T) {
	s := tell(t)
	d := s.put(deployment("d"))
	rs := s.put(set("rs", d))
	s.put(pod("waiting", "", rs))
	s.put(pod("running", "node", rs))
	s.put(pod("bystander", ""))
	s.settle()
	s.remove(d, metav1.DeletePropagationBackground)
	s.want("a pod on a node ends there first", "pods.default.bystander", "pods.default.running ending")
}

func TestForegroundDeleteWaitsForWhatBlocksIt(t *testing.T) {
	s := tell(t)
	d := s.put(deployment("d"))
	rs := s.put(set("rs", d))
	p := s.put(pod("running", "node", rs))
	s.settle()
	s.remove(d, metav1.DeletePropagationForeground)
	s.want("all wait for the pod", "pods.default.running ending", "deployments.default.d ending", "replicasets.default.rs ending")
	if err := s.Delete(t.Context(), s.View().Get(schemas.Pods, "default", p.GetName())); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.want("nothing is left")
}

func TestOrphanDeleteSetsTheDependentsFree(t *testing.T) {
	s := tell(t)
	d := s.put(deployment("d"))
	rs := s.put(set("rs", d))
	s.put(pod("p", "node", rs))
	s.settle()
	s.remove(d, metav1.DeletePropagationOrphan)
	s.want("the set stays, and so does its pod", "pods.default.p", "replicasets.default.rs")
	if refs := s.View().Get(schemas.ReplicaSets, "default", "rs").GetOwnerReferences(); len(refs) != 0 {
		t.Errorf("owners %v", refs)
	}
}

func TestSecondOwnerKeepsTheDependent(t *testing.T) {
	s := tell(t)
	a, b := s.put(deployment("a")), s.put(deployment("b"))
	s.put(set("rs", a, b))
	s.settle()
	s.remove(a, metav1.DeletePropagationBackground)
	s.want("b still owns it", "deployments.default.b", "replicasets.default.rs")
	if refs := s.View().Get(schemas.ReplicaSets, "default", "rs").GetOwnerReferences(); len(refs) != 1 || refs[0].UID != b.GetUID() {
		t.Errorf("owners %v", refs)
	}
	s.remove(b, metav1.DeletePropagationBackground)
	s.want("nobody does")
}

func TestOwnerOfTheSameNameIsAnother(t *testing.T) {
	s := tell(t)
	d := s.put(deployment("d"))
	s.put(set("rs", d))
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	s.put(deployment("d"))
	s.settle()
	s.want("only the new one", "deployments.default.d")
}

func TestOwnerThatWasNeverSeenIsWaitedFor(t *testing.T) {
	s := tell(t)
	late := deployment("late")
	late.UID = "known-before"
	s.put(set("rs", late))
	s.settle()
	s.want("not enough is known", "replicasets.default.rs")
	s.put(late)
	if err := s.Advance(2 * time.Minute); err != nil {
		t.Fatal(err)
	}
	s.want("it came", "deployments.default.late", "replicasets.default.rs")

	never := deployment("never")
	never.UID = "nobody"
	s.put(set("lost", never))
	s.settle()
	if err := s.Advance(2 * time.Minute); err != nil {
		t.Fatal(err)
	}
	s.want("it did not", "deployments.default.late", "replicasets.default.rs")
}

func TestOwnerOfAKindThatIsNotKnownIsNotGone(t *testing.T) {
	s := tell(t)
	rs := set("rs")
	rs.OwnerReferences = []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "App", Name: "x", UID: "x"}}
	s.put(rs)
	s.settle()
	if err := s.Advance(time.Hour); err != nil {
		t.Fatal(err)
	}
	s.want("it stays", "replicasets.default.rs")
}

func TestOwnersInACircleGoTogether(t *testing.T) {
	s := tell(t)
	a := s.put(set("a")).(*appsv1.ReplicaSet)
	b := s.put(set("b", a))
	a = a.DeepCopy()
	a.OwnerReferences = ownedBy(b).OwnerReferences
	stored := s.put(a)
	s.settle()
	s.want("each keeps the other", "replicasets.default.a", "replicasets.default.b")
	s.remove(stored, metav1.DeletePropagationBackground)
	s.want("nothing is left")
}

func TestCrashAtEveryWriteOfAForegroundDelete(t *testing.T) {
	for _, fault := range []reconciletest.Fault{reconciletest.CrashBefore, reconciletest.CrashAfter, reconciletest.Conflict} {
		for at := 1; at <= 10; at++ {
			s := tell(t)
			d := s.put(deployment("d"))
			rs := s.put(set("rs", d))
			for _, name := range []string{"a", "b", "c"} {
				s.put(pod(name, "", rs))
			}
			s.settle()
			n := 0
			s.Fault = func(int) reconciletest.Fault {
				if s.InPass {
					n++
				}
				if s.InPass && n == at {
					return fault
				}
				return reconciletest.None
			}
			s.remove(d, metav1.DeletePropagationForeground)
			s.want("nothing is left")
		}
	}
}
