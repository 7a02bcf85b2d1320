package replicaset_test

import (
	"slices"
	"testing"
	"time"

	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/controlplane/replicaset"
	"gantry.dev/schemas"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type story struct {
	*testing.T
	*reconciletest.World
	nodes reconciletest.Nodes
}

func tell(t *testing.T, size int32) *story {
	s := &story{T: t, World: reconciletest.NewWorld(reconcile.Indexes(), replicaset.New())}
	s.put(&appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 1},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &size,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "x"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "app"}}},
			},
		},
	})
	return s
}

func (s *story) put(o schemas.Object) schemas.Object {
	s.Helper()
	stored, err := s.Put(o)
	if err != nil {
		s.Fatal(err)
	}
	return stored
}

func (s *story) live() {
	s.Helper()
	if err := s.nodes.Live(s.World); err != nil {
		s.Fatal(err)
	}
}

func (s *story) rest() {
	s.Helper()
	if err := s.Settle(); err != nil {
		s.Fatal(err)
	}
}

func (s *story) set() *appsv1.ReplicaSet {
	return s.View().Get(schemas.ReplicaSets, "default", "web").(*appsv1.ReplicaSet)
}

func (s *story) resize(n int32) {
	rs := s.set().DeepCopy()
	rs.Spec.Replicas = &n
	rs.Generation++
	s.put(rs)
}

func (s *story) pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, o := range s.View().List(schemas.Pods, "default") {
		out = append(out, o.(*corev1.Pod))
	}
	return out
}

func (s *story) active() []string {
	var out []string
	for _, p := range s.pods() {
		if replicaset.Active(p) && metav1.GetControllerOf(p) != nil {
			out = append(out, p.Name)
		}
	}
	return out
}

func (s *story) want(what string, got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		s.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func TestPodsAreMadeFromTheTemplate(t *testing.T) {
	s := tell(t, 2)
	s.live()
	s.want("pods", len(s.pods()), 2)
	for _, p := range s.pods() {
		s.want("label", p.Labels["app"], "web")
		s.want("annotation", p.Annotations["note"], "x")
		s.want("owner", metav1.GetControllerOf(p).UID, s.set().UID)
		s.want("class", p.Status.QOSClass, corev1.PodQOSBestEffort)
	}
	s.want("ready", s.set().Status.ReadyReplicas, int32(2))
	before := s.Writes()
	s.Restart()
	s.rest()
	s.want("writes at rest", s.Writes(), before)
}

func TestDeletedPodIsReplacedUnderAnotherName(t *testing.T) {
	s := tell(t, 1)
	s.live()
	names := map[string]bool{}
	for range 20 {
		p := s.pods()[0]
		if names[p.Name] {
			t.Fatalf("the name %s came back", p.Name)
		}
		names[p.Name] = true
		if err := s.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		s.live()
		s.want("pods", len(s.pods()), 1)
	}
}

func TestEndingPodIsReplacedBeforeItIsGone(t *testing.T) {
	s := tell(t, 1)
	s.live()
	p := s.pods()[0].DeepCopy()
	now := metav1.NewTime(s.Clock())
	p.DeletionTimestamp = &now
	s.put(p)
	s.rest()
	s.want("pods", len(s.pods()), 2)
	s.want("active", len(s.active()), 1)
	s.want("ending", *s.set().Status.TerminatingReplicas, int32(1))
}

func TestFailedPodIsReplacedAndLeftToBeLookedAt(t *testing.T) {
	s := tell(t, 1)
	s.live()
	p := s.pods()[0].DeepCopy()
	p.Status.Phase = corev1.PodFailed
	s.put(p)
	s.live()
	s.want("pods", len(s.pods()), 2)
	s.want("active", len(s.active()), 1)
}

func TestScaleDownTakesTheNewestAndFreesItsSlot(t *testing.T) {
	s := tell(t, 2)
	s.live()
	old := s.active()
	if err := s.Advance(time.Hour); err != nil {
		t.Fatal(err)
	}
	s.resize(3) // each on a node of its own
	s.live()
	s.resize(2)
	s.live()
	s.want("active", s.active(), old)
	s.resize(4)
	s.live()
	s.want("active", len(s.active()), 4)
}

func TestOrphanThatMatchesIsAdoptedAndCounts(t *testing.T) {
	s := tell(t, 2)
	bare := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bare", Labels: map[string]string{"app": "web"}}}
	s.put(bare)
	s.live()
	s.want("active", len(s.active()), 2)
	if !slices.Contains(s.active(), "bare") {
		t.Errorf("active %v", s.active())
	}
	// Taken out of the set by its label, it lives on and is replaced.
	p := s.View().Get(schemas.Pods, "default", "bare").(*corev1.Pod).DeepCopy()
	p.Labels["app"] = "debug"
	s.put(p)
	s.live()
	s.want("active", len(s.active()), 2)
	s.want("owners", len(s.View().Get(schemas.Pods, "default", "bare").GetOwnerReferences()), 0)
}

func TestSetThatIsEndingMakesNoPods(t *testing.T) {
	s := tell(t, 2)
	rs := s.set().DeepCopy()
	now := metav1.NewTime(s.Clock())
	rs.DeletionTimestamp, rs.Finalizers = &now, []string{"foregroundDeletion"}
	s.put(rs)
	s.rest()
	s.want("pods", len(s.pods()), 0)
}

func TestNamespaceThatIsEndingGetsNoPods(t *testing.T) {
	s := tell(t, 2)
	now := metav1.NewTime(s.Clock())
	s.put(&corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: "default", DeletionTimestamp: &now},
		Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
	})
	s.rest()
	s.want("pods", len(s.pods()), 0)
}

func TestNamesOfManyPodsDoNotCollide(t *testing.T) {
	s := tell(t, 5000) // by the birthday rule one pair shares a hash
	s.rest()
	s.want("pods", len(s.pods()), 5000)
}

func TestSameDecisionTwiceMakesOnePod(t *testing.T) {
	s := tell(t, 3)
	c := replicaset.New()
	first := c.Reconcile("default/web", s.View(), s.Clock())
	second := c.Reconcile("default/web", s.View(), s.Clock())
	for i, w := range first.Want {
		s.want("name", w.GetName(), second.Want[i].GetName())
	}
}
