package deployment

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestBoundsRoundAsKubernetesDoes(t *testing.T) {
	number, percent := intstr.FromInt32, intstr.FromString
	for _, tt := range []struct {
		n                        int32
		surge, unavailable       intstr.IntOrString
		wantSurge, wantUnavailed int32
	}{
		{10, percent("25%"), percent("25%"), 3, 2},
		{1, percent("25%"), percent("25%"), 1, 0},
		{4, percent("25%"), percent("25%"), 1, 1},
		{3, number(2), number(1), 2, 1},
		{3, number(0), number(0), 0, 1},
		{3, percent("0%"), percent("10%"), 0, 1},
		{3, number(1), number(9), 1, 3},
		{0, number(5), number(5), 0, 0},
		{7, percent("100%"), percent("100%"), 7, 7},
	} {
		d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &tt.n, Strategy: appsv1.DeploymentStrategy{
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &tt.surge, MaxUnavailable: &tt.unavailable},
		}}}
		if s, u := bounds(d); s != tt.wantSurge || u != tt.wantUnavailed {
			t.Errorf("%d with %s and %s: %d and %d, want %d and %d", tt.n, tt.surge.String(), tt.unavailable.String(), s, u, tt.wantSurge, tt.wantUnavailed)
		}
	}
}

func TestTemplateHashIsOfTheTemplateAlone(t *testing.T) {
	a := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i:1"}}}}
	labelled := a.DeepCopy()
	labelled.Labels = map[string]string{hashLabel: "x"}
	other := a.DeepCopy()
	other.Spec.Containers[0].Image = "i:2"
	if templateHash(a, 0) != templateHash(labelled, 0) || !sameTemplate(a, labelled) {
		t.Error("the label that holds the hash changes it")
	}
	if templateHash(a, 0) == templateHash(other, 0) || sameTemplate(a, other) {
		t.Error("another image has the same hash")
	}
	if templateHash(a, 0) == templateHash(a, 1) {
		t.Error("a collision is not resolved")
	}
}
