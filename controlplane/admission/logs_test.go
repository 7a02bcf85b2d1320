package admission

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhyAContainerWaits(t *testing.T) {
	waits := apierrors.NewBadRequest(`container "c" in pod "p" is waiting to start`)
	for _, tc := range []struct {
		reason string
		err    error
		want   string
	}{
		{"ContainerCreating", waits, `container "c" in pod "p" is waiting to start: ContainerCreating`},
		{"ImagePullBackOff", waits, `container "c" in pod "p" is waiting to start: trying and failing to pull image`},
		{"ErrImagePull", waits, `container "c" in pod "p" is waiting to start: image can't be pulled`},
		{"", waits, waits.Error()},
		{"ContainerCreating", errors.New("another"), "another"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "other", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "Other"}}},
			{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: tc.reason}}},
		}}}
		if got := whyWaiting(tc.err, pod, "c"); got.Error() != tc.want || apierrors.IsBadRequest(got) != apierrors.IsBadRequest(tc.err) {
			t.Errorf("%s: %v, want %s", tc.reason, got, tc.want)
		}
	}
}
