package replicaset

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSurplusGoesInKubernetesOrder(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	pod := func(edit ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
			Spec:       corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{
				Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour)),
			}}},
		}
		for _, e := range edit {
			e(p)
		}
		return p
	}
	unbound := func(p *corev1.Pod) { p.Spec.NodeName = "" }
	pending := func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }
	notReady := func(p *corev1.Pod) { p.Status.Conditions = nil }
	cheap := func(p *corev1.Pod) { p.Annotations = map[string]string{deletionCost: "-5"} }
	dear := func(p *corev1.Pod) { p.Annotations = map[string]string{deletionCost: "5"} }
	fresh := func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Second)) }
	restarted := func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
	}
	young := func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute)) }
	for _, tt := range []struct {
		name         string
		goes, stays  *corev1.Pod
		others       []*corev1.Pod
		minReadySecs int32
	}{
		{name: "unassigned before assigned", goes: pod(unbound), stays: pod(pending, notReady)},
		{name: "pending before running", goes: pod(pending, notReady), stays: pod(notReady)},
		{name: "not ready before ready", goes: pod(notReady, dear), stays: pod(cheap)},
		{name: "not available before available", goes: pod(fresh, dear), stays: pod(cheap), minReadySecs: 10},
		{name: "lower cost first", goes: pod(cheap), stays: pod(restarted)},
		{name: "from the fuller node", goes: pod(), stays: pod(fresh, func(p *corev1.Pod) { p.Spec.NodeName = "m" }), others: []*corev1.Pod{pod(dear)}},
		{name: "ready more recently first", goes: pod(fresh), stays: pod(restarted)},
		{name: "more restarts first", goes: pod(restarted), stays: pod(young)},
		{name: "newer first", goes: pod(young), stays: pod()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.goes.Name, tt.stays.Name = "goes", "stays"
			for _, in := range [][]*corev1.Pod{{tt.goes, tt.stays}, {tt.stays, tt.goes}} {
				got := surplus(append(in, tt.others...), 1, tt.minReadySecs, now)
				if got[0].Name != "goes" {
					t.Errorf("%q was given up", got[0].Name)
				}
			}
		})
	}
}
