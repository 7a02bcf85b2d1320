package deployment_test

import (
	"testing"

	"gantry.dev/controlplane/reconcile/reconciletest"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// life is a Deployment's life with a Service beside it: it is made, rolled,
// scaled, loses a pod, and is rolled back. fault is asked at each write of a
// controller, counted from 1. It returns the states at every rest, and how
// often the controllers wrote and crashed.
func life(t *testing.T, fault func(int) reconciletest.Fault) (states []map[string]string, writes, crashes int) {
	s := tell(t)
	s.Fault = func(int) reconciletest.Fault {
		if !s.InPass {
			return reconciletest.None
		}
		writes++
		return fault(writes)
	}
	rest := func() {
		s.live()
		states = append(states, s.Dump())
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}},
		},
	}
	if _, err := s.Put(service); err != nil {
		t.Fatal(err)
	}
	s.apply(web(3, "app:1"))
	rest()
	s.apply(web(3, "app:2"))
	rest()
	s.change(func(d *appsv1.Deployment) { *d.Spec.Replicas = 5 })
	rest()
	if err := s.Delete(t.Context(), s.pods()[2]); err != nil {
		t.Fatal(err)
	}
	rest()
	s.change(func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		d.Spec.Template.Spec.Containers[0].Image = "app:1"
	})
	rest()
	foreground := s.deployment().DeepCopy()
	now := metav1.NewTime(s.Clock())
	foreground.DeletionTimestamp = &now
	foreground.Finalizers = []string{metav1.FinalizerDeleteDependents}
	if _, err := s.Update(t.Context(), foreground); err != nil {
		t.Fatal(err)
	}
	rest()
	return states, writes, s.Crashes
}

func TestCrashAtEveryWriteEndsInTheSameState(t *testing.T) {
	want, writes, _ := life(t, func(int) reconciletest.Fault { return reconciletest.None })
	if len(want[len(want)-1]) != 2 { // the Service and its empty slice
		t.Fatalf("left over: %v", want[len(want)-1])
	}
	t.Logf("%d writes", writes)
	for _, how := range []struct {
		name  string
		fault reconciletest.Fault
	}{
		{"before", reconciletest.CrashBefore},
		{"after", reconciletest.CrashAfter},
		{"conflict", reconciletest.Conflict},
	} {
		t.Run(how.name, func(t *testing.T) {
			for at := 1; at <= writes; at++ {
				got, _, crashes := life(t, func(n int) reconciletest.Fault {
					if n == at {
						return how.fault
					}
					return reconciletest.None
				})
				if how.fault != reconciletest.Conflict && crashes != 1 {
					t.Fatalf("%d crashes at write %d, want 1", crashes, at)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("crash %s write %d leads elsewhere (-want +got):\n%s", how.name, at, diff)
				}
			}
		})
	}
}
