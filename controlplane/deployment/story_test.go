package deployment_test

import (
	"fmt"
	"testing"
	"time"

	"gantry.dev/controlplane/deployment"
	"gantry.dev/controlplane/endpoints"
	"gantry.dev/controlplane/gc"
	"gantry.dev/controlplane/namespace"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/controlplane/replicaset"
	"gantry.dev/schemas"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

type story struct {
	testing.TB
	*reconciletest.World
	nodes reconciletest.Nodes
}

func controllers() []reconcile.Controller {
	return []reconcile.Controller{deployment.New(), replicaset.New(), gc.New(), namespace.New(), endpoints.New()}
}

func tell(t testing.TB) *story {
	return &story{TB: t, World: reconciletest.NewWorld(reconcile.Indexes(), controllers()...)}
}

func web(size int32, image string) *appsv1.Deployment {
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{"app": "web"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &size,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image}}},
			},
		},
	}
	schemas.Default(d)
	return d
}

// apply is what admission does with a manifest: the spec is the user's, the
// rest stays.
func (s *story) apply(d *appsv1.Deployment) {
	s.Helper()
	if old := s.deployment(); old != nil {
		next := old.DeepCopy()
		next.Spec = d.Spec
		next.Generation++
		d = next
	} else {
		d.Generation = 1
	}
	if _, err := s.Put(d); err != nil {
		s.Fatal(err)
	}
}

func (s *story) change(fn func(*appsv1.Deployment)) {
	s.Helper()
	d := s.deployment().DeepCopy()
	fn(d)
	s.apply(d)
}

func (s *story) live() {
	s.Helper()
	if err := s.nodes.Live(s.World); err != nil {
		s.Fatal(err)
	}
}

func (s *story) settle() {
	s.Helper()
	if err := s.Settle(); err != nil {
		s.Fatal(err)
	}
}

func (s *story) deployment() *appsv1.Deployment {
	d, _ := s.View().Get(schemas.Deployments, "default", "web").(*appsv1.Deployment)
	return d
}

func (s *story) sets() []*appsv1.ReplicaSet {
	var out []*appsv1.ReplicaSet
	for _, o := range s.View().List(schemas.ReplicaSets, "default") {
		out = append(out, o.(*appsv1.ReplicaSet))
	}
	return out
}

// sizes are how many pods each image should have, by its sets.
func (s *story) sizes() map[string]int {
	out := map[string]int{}
	for _, rs := range s.sets() {
		out[rs.Spec.Template.Spec.Containers[0].Image] += int(*rs.Spec.Replicas)
	}
	return out
}

func (s *story) set(image string) *appsv1.ReplicaSet {
	s.Helper()
	for _, rs := range s.sets() {
		if rs.Spec.Template.Spec.Containers[0].Image == image {
			return rs
		}
	}
	s.Fatalf("no set of %s", image)
	return nil
}

func (s *story) pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, o := range s.View().List(schemas.Pods, "default") {
		out = append(out, o.(*corev1.Pod))
	}
	return out
}

// running counts the active pods by image.
func (s *story) running() map[string]int {
	out := map[string]int{}
	for _, p := range s.pods() {
		if replicaset.Active(p) {
			out[p.Spec.Containers[0].Image]++
		}
	}
	return out
}

func (s *story) condition(t appsv1.DeploymentConditionType) string {
	for _, c := range s.deployment().Status.Conditions {
		if c.Type == t {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

func (s *story) want(what string, got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		s.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// quiet checks that nothing more would be written, even after a restart.
func (s *story) quiet() {
	s.Helper()
	before := s.Writes()
	s.Restart()
	s.settle()
	if n := s.Writes() - before; n != 0 {
		s.Fatalf("a converged cluster wrote %d times", n)
	}
}

func bad(image string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image != image }
}

func TestNewDeploymentRunsItsPodsAndSaysSo(t *testing.T) {
	s := tell(t)
	s.apply(web(3, "app:1"))
	s.live()
	s.want("running", s.running(), map[string]int{"app:1": 3})
	rs := s.set("app:1")
	hash := rs.Labels["pod-template-hash"]
	s.want("set's name", rs.Name, "web-"+hash)
	s.want("set's selector", rs.Spec.Selector.MatchLabels, map[string]string{"app": "web", "pod-template-hash": hash})
	for _, p := range s.pods() {
		s.want("pod's labels", p.Labels, map[string]string{"app": "web", "pod-template-hash": hash})
		s.want("length of the pod's name", len(p.Name), len(rs.Name)+6)
	}
	d := s.deployment()
	zero := int32(0)
	d = d.DeepCopy()
	d.Status.Conditions = nil
	s.want("status", d.Status, appsv1.DeploymentStatus{
		ObservedGeneration: 1, Replicas: 3, UpdatedReplicas: 3, ReadyReplicas: 3, AvailableReplicas: 3, TerminatingReplicas: &zero,
	})
	s.want("revision", d.Annotations["deployment.kubernetes.io/revision"], "1")
	s.want("available", s.condition(appsv1.DeploymentAvailable), "True MinimumReplicasAvailable")
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True NewReplicaSetAvailable")
	var told []string
	for _, e := range s.Events {
		told = append(told, e.Reason)
	}
	s.want("events", told, []string{"ScalingReplicaSet", "SuccessfulCreate", "SuccessfulCreate", "SuccessfulCreate"})
	s.quiet()
}

func TestRollingUpdateReplacesAllPods(t *testing.T) {
	s := tell(t)
	s.apply(web(4, "app:1"))
	s.live()
	s.apply(web(4, "app:2"))
	s.live()
	s.want("running", s.running(), map[string]int{"app:2": 4})
	s.want("sizes", s.sizes(), map[string]int{"app:1": 0, "app:2": 4})
	s.want("revision", s.deployment().Annotations["deployment.kubernetes.io/revision"], "2")
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True NewReplicaSetAvailable")
	s.quiet()
}

func TestRollingUpdateToAnImageThatNeverGetsReadyStopsAndTimesOut(t *testing.T) {
	s := tell(t)
	s.apply(web(4, "app:1"))
	s.live()
	s.nodes.Healthy = bad("app:2")
	s.apply(web(4, "app:2"))
	s.live()
	// 25% of 4 is 1 above and 1 below.
	s.want("running", s.running(), map[string]int{"app:1": 3, "app:2": 2})
	s.want("available", s.condition(appsv1.DeploymentAvailable), "True MinimumReplicasAvailable")
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True ReplicaSetUpdated")
	s.quiet()
	if err := s.Advance(10*time.Minute + time.Second); err != nil {
		t.Fatal(err)
	}
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "False ProgressDeadlineExceeded")
	s.quiet()

	// Rolling back takes the set that is still there, under a new revision.
	s.apply(web(4, "app:1"))
	s.live()
	s.want("running", s.running(), map[string]int{"app:1": 4})
	s.want("sets", len(s.sets()), 2)
	s.want("revision", s.deployment().Annotations["deployment.kubernetes.io/revision"], "3")
	s.want("history", s.set("app:1").Annotations["deployment.kubernetes.io/revision-history"], "1")
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True NewReplicaSetAvailable")
	s.quiet()
}

func TestRecreateWaitsForTheLastOldPod(t *testing.T) {
	s := tell(t)
	d := web(2, "app:1")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	s.apply(d)
	s.live()
	stuck := true
	s.nodes.Stuck = func(*corev1.Pod) bool { return stuck }
	s.change(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "app:2" })
	s.live()
	s.want("sizes while the old end", s.sizes(), map[string]int{"app:1": 0})
	s.want("pods that are ending", len(s.pods()), 2)
	s.quiet()
	stuck = false
	s.live()
	s.want("running", s.running(), map[string]int{"app:2": 2})
	s.quiet()
}

func TestPausedDeploymentScalesButDoesNotRoll(t *testing.T) {
	s := tell(t)
	s.apply(web(2, "app:1"))
	s.live()
	s.change(func(d *appsv1.Deployment) {
		d.Spec.Paused = true
		d.Spec.Template.Spec.Containers[0].Image = "app:2"
		*d.Spec.Replicas = 5
	})
	s.live()
	s.want("running", s.running(), map[string]int{"app:1": 5})
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "Unknown DeploymentPaused")
	s.quiet()
	s.change(func(d *appsv1.Deployment) { d.Spec.Paused = false })
	s.live()
	s.want("running", s.running(), map[string]int{"app:2": 5})
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True NewReplicaSetAvailable")
	s.quiet()
}

func TestScalingInTheMidstOfARolloutKeepsTheShares(t *testing.T) {
	s := tell(t)
	s.apply(web(10, "app:1"))
	s.live()
	s.nodes.Healthy = bad("app:2")
	s.change(func(d *appsv1.Deployment) {
		three, two := intstr.FromInt32(3), intstr.FromInt32(2)
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &three, MaxUnavailable: &two}
		d.Spec.Template.Spec.Containers[0].Image = "app:2"
	})
	s.live()
	s.want("before", s.sizes(), map[string]int{"app:1": 8, "app:2": 5})
	// The example of Kubernetes' documentation: 10 to 15 adds 3 and 2.
	s.change(func(d *appsv1.Deployment) { *d.Spec.Replicas = 15 })
	s.live()
	s.want("after", s.sizes(), map[string]int{"app:1": 11, "app:2": 7})
	s.quiet()
}

func TestScaleToZeroAndBack(t *testing.T) {
	s := tell(t)
	s.apply(web(3, "app:1"))
	s.live()
	s.change(func(d *appsv1.Deployment) { *d.Spec.Replicas = 0 })
	s.live()
	s.want("pods", len(s.pods()), 0)
	s.want("available", s.condition(appsv1.DeploymentAvailable), "True MinimumReplicasAvailable")
	s.quiet()
	s.change(func(d *appsv1.Deployment) { *d.Spec.Replicas = 2 })
	s.live()
	s.want("running", s.running(), map[string]int{"app:1": 2})
	s.quiet()
}

func TestHistoryIsKeptUpToItsLimit(t *testing.T) {
	s := tell(t)
	for i := range 6 {
		d := web(1, fmt.Sprintf("app:%d", i))
		limit := int32(2)
		d.Spec.RevisionHistoryLimit = &limit
		s.apply(d)
		s.live()
	}
	s.want("sizes", s.sizes(), map[string]int{"app:3": 0, "app:4": 0, "app:5": 1})
	s.want("revision", s.deployment().Annotations["deployment.kubernetes.io/revision"], "6")
	s.quiet()
}

func TestMinReadySecondsHoldsTheRolloutBack(t *testing.T) {
	s := tell(t)
	d := web(2, "app:1")
	d.Spec.MinReadySeconds = 30
	s.apply(d)
	s.live()
	s.want("available", s.deployment().Status.AvailableReplicas, int32(0))
	s.want("ready", s.deployment().Status.ReadyReplicas, int32(2))
	if err := s.Advance(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.want("available", s.deployment().Status.AvailableReplicas, int32(2))
	s.change(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "app:2" })
	s.live()
	s.want("running while the first new one proves itself", s.running(), map[string]int{"app:1": 2, "app:2": 1})
	for range 3 {
		if err := s.Advance(30 * time.Second); err != nil {
			t.Fatal(err)
		}
		s.live()
	}
	s.want("running", s.running(), map[string]int{"app:2": 2})
	s.quiet()
}

func TestDeletedDeploymentTakesItsSetsAndPodsAlong(t *testing.T) {
	s := tell(t)
	s.apply(web(3, "app:1"))
	s.live()
	if err := s.Delete(t.Context(), s.deployment()); err != nil {
		t.Fatal(err)
	}
	s.live()
	s.want("sets", len(s.sets()), 0)
	s.want("pods", len(s.pods()), 0)
	s.quiet()
}

func TestOrphanedSetIsAdoptedWithItsPods(t *testing.T) {
	s := tell(t)
	s.apply(web(3, "app:1"))
	s.live()
	before := s.pods()
	for _, rs := range s.sets() {
		free := rs.DeepCopy()
		free.OwnerReferences = nil
		// As after a delete with orphaning: both at once, before anybody looks.
		if _, err := s.Update(t.Context(), free); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), s.deployment()); err != nil {
		t.Fatal(err)
	}
	s.live()
	s.want("sets", len(s.sets()), 1)
	s.apply(web(3, "app:1"))
	s.live()
	s.want("sets", len(s.sets()), 1)
	s.want("owner", s.sets()[0].OwnerReferences[0].UID, s.deployment().UID)
	for i, p := range s.pods() {
		s.want("pod", p.UID, before[i].UID)
	}
	s.quiet()
}

func TestLostPodIsNoRollout(t *testing.T) {
	s := tell(t)
	s.apply(web(3, "app:1"))
	s.live()
	if err := s.Delete(t.Context(), s.pods()[0]); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True NewReplicaSetAvailable")
	s.live()
	s.want("running", s.running(), map[string]int{"app:1": 3})
	s.quiet()
}
