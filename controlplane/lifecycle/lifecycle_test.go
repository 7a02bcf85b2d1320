package lifecycle

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

func ptr[T any](v T) *T { return &v }

func at(seconds int) *metav1.Time {
	t := metav1.NewTime(now.Truncate(time.Second).Add(time.Duration(seconds) * time.Second))
	return &t
}

func pod(node string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: ptr[int64](20)}}
	for _, c := range change {
		c(p)
	}
	return p
}

func dying(since, grace int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = at(since+grace), ptr(int64(grace))
	}
}

func finalizers(names ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Finalizers = names }
}

func grace(seconds int64) metav1.DeleteOptions {
	return metav1.DeleteOptions{GracePeriodSeconds: &seconds}
}

func policy(p metav1.DeletionPropagation) metav1.DeleteOptions {
	return metav1.DeleteOptions{PropagationPolicy: &p}
}

func TestMarkDeleted(t *testing.T) {
	type marks struct {
		At         *metav1.Time
		Grace      *int64
		Finalizers []string
		Remove     bool
	}
	tests := []struct {
		desc string
		in   schemas.Object
		opts metav1.DeleteOptions
		want marks
	}{
		{"pod on no node", pod(""), metav1.DeleteOptions{}, marks{at(0), ptr[int64](0), nil, true}},
		{"pod on a node", pod("n"), metav1.DeleteOptions{}, marks{at(20), ptr[int64](20), nil, false}},
		{"shorter by name", pod("n"), grace(5), marks{at(5), ptr[int64](5), nil, false}},
		{"forced", pod("n"), grace(0), marks{at(0), ptr[int64](0), nil, true}},
		{"negative is one second", pod("n"), grace(-1), marks{at(1), ptr[int64](1), nil, false}},
		{"a spec of 0 does not force", pod("n", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr[int64](0) }), metav1.DeleteOptions{}, marks{at(1), ptr[int64](1), nil, false}},
		{"again changes nothing", pod("n", dying(-5, 20)), metav1.DeleteOptions{}, marks{at(15), ptr[int64](20), nil, false}},
		{"again, sooner", pod("n", dying(-5, 20)), grace(10), marks{at(5), ptr[int64](10), nil, false}},
		{"again, sooner than now", pod("n", dying(-5, 20)), grace(2), marks{at(0), ptr[int64](2), nil, false}},
		{"again, later", pod("n", dying(-5, 20)), grace(60), marks{at(15), ptr[int64](20), nil, false}},
		{"again, forced", pod("n", dying(-5, 20)), grace(0), marks{at(0), ptr[int64](0), nil, true}},
		{"forced with finalizer", pod("n", finalizers("x/y")), grace(0), marks{at(0), ptr[int64](0), []string{"x/y"}, false}},
		{"finalizer, on no node", pod("", finalizers("x/y")), metav1.DeleteOptions{}, marks{at(0), ptr[int64](0), []string{"x/y"}, false}},
		{"pods own nothing", pod("n"), policy(metav1.DeletePropagationForeground), marks{at(20), ptr[int64](20), nil, false}},
		{"deployment", &appsv1.Deployment{}, policy(metav1.DeletePropagationBackground), marks{at(0), ptr[int64](0), nil, true}},
		{"foreground", &appsv1.Deployment{}, policy(metav1.DeletePropagationForeground), marks{at(0), ptr[int64](0), []string{metav1.FinalizerDeleteDependents}, false}},
		{"orphan after foreground", &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Finalizers: []string{"x/y", metav1.FinalizerDeleteDependents}, DeletionTimestamp: at(-9), DeletionGracePeriodSeconds: ptr[int64](0)}},
			policy(metav1.DeletePropagationOrphan), marks{at(-9), ptr[int64](0), []string{"x/y", metav1.FinalizerOrphanDependents}, false}},
		{"background ends foreground", &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Finalizers: []string{metav1.FinalizerDeleteDependents}, DeletionTimestamp: at(-9), DeletionGracePeriodSeconds: ptr[int64](0)}},
			policy(metav1.DeletePropagationBackground), marks{at(-9), ptr[int64](0), nil, true}},
		{"namespace", &corev1.Namespace{Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}, metav1.DeleteOptions{}, marks{at(0), ptr[int64](0), nil, false}},
		{"empty namespace", &corev1.Namespace{}, metav1.DeleteOptions{}, marks{at(0), ptr[int64](0), nil, true}},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			before := tt.in.DeepCopyObject()
			got, remove := MarkDeleted(tt.in, tt.opts, now)
			if diff := cmp.Diff(before, tt.in); diff != "" {
				t.Error("changed its argument: " + diff)
			}
			if diff := cmp.Diff(tt.want, marks{got.GetDeletionTimestamp(), got.GetDeletionGracePeriodSeconds(), got.GetFinalizers(), remove}); diff != "" {
				t.Error(diff)
			}
			// Once more, a moment later: the same marks.
			again, removeAgain := MarkDeleted(got, tt.opts, now.Add(time.Second))
			if removeAgain != remove {
				t.Error("a repeated delete differs")
			}
			if tt.want.At != nil && again.GetDeletionTimestamp().After(got.GetDeletionTimestamp().Add(time.Second)) {
				t.Error("a repeated delete is later")
			}
			if ns, ok := got.(*corev1.Namespace); ok && ns.Status.Phase != corev1.NamespaceTerminating {
				t.Errorf("phase %s", ns.Status.Phase)
			}
		})
	}
}

func TestRemovable(t *testing.T) {
	gone := pod("n", dying(-5, 20))
	gone.DeletionGracePeriodSeconds = ptr[int64](0)
	for desc, tt := range map[string]struct {
		in   schemas.Object
		want bool
	}{
		"alive":              {pod(""), false},
		"node has it still":  {pod("n", dying(-50, 20)), false},
		"node is done":       {gone, true},
		"finalizer":          {pod("", dying(0, 0), finalizers("x/y")), false},
		"namespace with all": {&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: at(0)}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}}}, false},
		"namespace emptied":  {&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: at(0)}}, true},
	} {
		if got := Removable(tt.in); got != tt.want {
			t.Errorf("%s: %v", desc, got)
		}
	}
}

func TestPrepare(t *testing.T) {
	p := pod("", func(p *corev1.Pod) {
		p.Status.Phase, p.Generation, p.DeletionTimestamp = corev1.PodRunning, 9, at(0)
	})
	PrepareCreate(p)
	if p.Status.Phase != corev1.PodPending || p.Status.QOSClass != corev1.PodQOSBestEffort || p.Generation != 1 || p.DeletionTimestamp != nil || p.Kind != "Pod" {
		t.Errorf("created %+v", p)
	}
	old := &appsv1.Deployment{}
	PrepareCreate(old)
	old.UID, old.CreationTimestamp, old.Status.Replicas = "u", *at(-9), 3
	same := old.DeepCopy()
	same.UID, same.Status.Replicas, same.Labels = "", 0, map[string]string{"a": "b"}
	PrepareUpdate(same, old)
	if same.UID != "u" || same.Status.Replicas != 3 || same.Generation != 1 {
		t.Errorf("metadata alone: %+v", same.ObjectMeta)
	}
	same.Spec.Paused = true
	PrepareUpdate(same, old)
	if same.Generation != 2 {
		t.Errorf("generation %d", same.Generation)
	}
}

func TestQOSClass(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	for _, tt := range []struct {
		requests, limits corev1.ResourceList
		want             corev1.PodQOSClass
	}{
		{nil, nil, corev1.PodQOSBestEffort},
		{list("0", ""), nil, corev1.PodQOSBestEffort},
		{list("1", ""), nil, corev1.PodQOSBurstable},
		{list("1", "1Gi"), list("1", "1Gi"), corev1.PodQOSGuaranteed},
		{list("500m", "1Gi"), list("1", "1Gi"), corev1.PodQOSBurstable},
		{nil, list("1", ""), corev1.PodQOSBurstable},
	} {
		s := &corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: tt.requests, Limits: tt.limits}}}}
		if got := QOSClass(s); got != tt.want {
			t.Errorf("%v of %v: %s", tt.requests, tt.limits, got)
		}
	}
}
