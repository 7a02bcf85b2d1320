package lifecycle

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

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
		{"stateful set in the foreground", &appsv1.StatefulSet{}, policy(metav1.DeletePropagationForeground), marks{at(0), ptr[int64](0), []string{metav1.FinalizerDeleteDependents}, false}},
		{"daemon set orphans", &appsv1.DaemonSet{}, policy(metav1.DeletePropagationOrphan), marks{at(0), ptr[int64](0), []string{metav1.FinalizerOrphanDependents}, false}},
		{"job in the foreground", &batchv1.Job{}, policy(metav1.DeletePropagationForeground), marks{at(0), ptr[int64](0), []string{metav1.FinalizerDeleteDependents}, false}},
		{"cron job in the background", &batchv1.CronJob{}, policy(metav1.DeletePropagationBackground), marks{at(0), ptr[int64](0), nil, true}},
		{"a claim owns nothing", &corev1.PersistentVolumeClaim{}, policy(metav1.DeletePropagationForeground), marks{at(0), ptr[int64](0), nil, true}},
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

// TestPrepareKinds: every kind begins with generation and status of its own, and
// a change of its spec counts as one, of its labels as none.
func TestPrepareKinds(t *testing.T) {
	template := corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i:1"}}}}
	counted := map[string]struct {
		in     schemas.Object
		dirty  func(schemas.Object)
		change func(schemas.Object)
		clean  func(schemas.Object) bool // the status is that of a new object
	}{
		"deployment": {&appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: template}},
			func(o schemas.Object) { o.(*appsv1.Deployment).Status.Replicas = 3 },
			func(o schemas.Object) { o.SetAnnotations(map[string]string{"a": "b"}) },
			func(o schemas.Object) bool { return o.(*appsv1.Deployment).Status.Replicas == 0 }},
		"stateful set": {&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Template: template}},
			func(o schemas.Object) { o.(*appsv1.StatefulSet).Status.Replicas = 3 },
			func(o schemas.Object) { o.(*appsv1.StatefulSet).Spec.Replicas = ptr[int32](9) },
			func(o schemas.Object) bool { return o.(*appsv1.StatefulSet).Status.Replicas == 0 }},
		"daemon set": {&appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{Template: template}},
			func(o schemas.Object) { o.(*appsv1.DaemonSet).Status.NumberReady = 3 },
			func(o schemas.Object) { o.(*appsv1.DaemonSet).Spec.MinReadySeconds = 9 },
			func(o schemas.Object) bool { return o.(*appsv1.DaemonSet).Status.NumberReady == 0 }},
		"replication controller": {&corev1.ReplicationController{Spec: corev1.ReplicationControllerSpec{Template: &template}},
			func(o schemas.Object) { o.(*corev1.ReplicationController).Status.Replicas = 3 },
			func(o schemas.Object) { o.(*corev1.ReplicationController).Spec.Replicas = ptr[int32](9) },
			func(o schemas.Object) bool { return o.(*corev1.ReplicationController).Status.Replicas == 0 }},
		"job": {&batchv1.Job{Spec: batchv1.JobSpec{Template: template}},
			func(o schemas.Object) { o.(*batchv1.Job).Status.Active = 3 },
			func(o schemas.Object) { o.(*batchv1.Job).Spec.Suspend = ptr(true) },
			func(o schemas.Object) bool { return o.(*batchv1.Job).Status.Active == 0 }},
		"cron job": {&batchv1.CronJob{},
			func(o schemas.Object) { o.(*batchv1.CronJob).Status.LastScheduleTime = at(0) },
			func(o schemas.Object) { o.(*batchv1.CronJob).Spec.Schedule = "@daily" },
			func(o schemas.Object) bool { return o.(*batchv1.CronJob).Status.LastScheduleTime == nil }},
		"pod template": {&corev1.PodTemplate{Template: template}, func(schemas.Object) {},
			func(o schemas.Object) { o.(*corev1.PodTemplate).Template.Spec.Hostname = "h" },
			func(schemas.Object) bool { return true }},
		"disruption budget": {&policyv1.PodDisruptionBudget{},
			func(o schemas.Object) { o.(*policyv1.PodDisruptionBudget).Status.CurrentHealthy = 3 },
			func(o schemas.Object) { o.(*policyv1.PodDisruptionBudget).Spec.MinAvailable = ptr(intstr.FromInt32(1)) },
			func(o schemas.Object) bool { return o.(*policyv1.PodDisruptionBudget).Status.CurrentHealthy == 0 }},
	}
	for desc, tt := range counted {
		t.Run(desc, func(t *testing.T) {
			tt.in.SetGeneration(7)
			tt.dirty(tt.in)
			PrepareCreate(tt.in)
			if tt.in.GetGeneration() != 1 || !tt.clean(tt.in) {
				t.Errorf("created: %+v", tt.in)
			}
			tt.in.SetUID("u")
			tt.dirty(tt.in)
			same := tt.in.DeepCopyObject().(schemas.Object)
			same.SetLabels(map[string]string{"x": "y"})
			same.SetUID("")
			PrepareUpdate(same, tt.in)
			if same.GetGeneration() != 1 || same.GetUID() != "u" {
				t.Errorf("labels alone: generation %d, UID %q", same.GetGeneration(), same.GetUID())
			}
			other := tt.in.DeepCopyObject().(schemas.Object)
			tt.change(other)
			PrepareUpdate(other, tt.in)
			if other.GetGeneration() != 2 {
				t.Errorf("changed: generation %d", other.GetGeneration())
			}
		})
	}
}

// TestPrepareClaims: what has no generation keeps its status in an update.
func TestPrepareClaims(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimLost}}
	PrepareCreate(claim)
	volume := &corev1.PersistentVolume{Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
	PrepareCreate(volume)
	if claim.Status.Phase != corev1.ClaimPending || volume.Status.Phase != corev1.VolumePending || claim.Generation != 0 || volume.Generation != 0 {
		t.Errorf("created %+v, %+v", claim, volume)
	}
	claim.Status.Phase, volume.Status.Phase = corev1.ClaimBound, corev1.VolumeBound
	later, bigger := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	PrepareUpdate(later, claim)
	PrepareUpdate(bigger, volume)
	if later.Status.Phase != corev1.ClaimBound || bigger.Status.Phase != corev1.VolumeBound {
		t.Errorf("updated %+v, %+v", later, bigger)
	}
}

func TestPrepareJobSelector(t *testing.T) {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "default"}}
	PrepareCreate(j)
	uid := string(j.UID)
	if uid == "" || j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] != uid || j.Spec.Template.Labels[batchv1.JobNameLabel] != "j" {
		t.Errorf("%+v", j)
	}
	PrepareCreate(j)
	if string(j.UID) != uid {
		t.Error("another UID for the same Job")
	}
}

func TestPrepareGatedPod(t *testing.T) {
	p := pod("", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "x"}} })
	PrepareCreate(p)
	if c := p.Status.Conditions; len(c) != 1 || c[0].Type != corev1.PodScheduled || c[0].Reason != corev1.PodReasonSchedulingGated {
		t.Errorf("%+v", c)
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
	budget := &corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c"}},
		Resources:  &corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")},
	}
	if got := QOSClass(budget); got != corev1.PodQOSGuaranteed {
		t.Errorf("a pod's own budget: %s", got)
	}
	init := &corev1.PodSpec{
		Containers:     []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")}}},
		InitContainers: []corev1.Container{{}},
	}
	if got := QOSClass(init); got != corev1.PodQOSBurstable {
		t.Errorf("an init container without limits: %s", got)
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

// TestGraceBeyondTheClock: a grace of more seconds than a clock counts ended
// long ago.
func TestGraceBeyondTheClock(t *testing.T) {
	const ever = 1<<63 - 1
	spec := func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr[int64](ever) }
	for _, seconds := range []int64{ever, 9_223_372_037, 10_000_000_000} {
		for _, opts := range []metav1.DeleteOptions{{}, grace(seconds)} {
			marked, removed := MarkDeleted(pod("n1", spec), opts, now)
			if due := marked.GetDeletionTimestamp(); removed || due.Before(at(longestGrace-1)) || due.After(at(longestGrace+1).Time) {
				t.Errorf("%d seconds are due at %v", seconds, due)
			}
			sooner, _ := MarkDeleted(marked, grace(5), now)
			if due := sooner.GetDeletionTimestamp(); !due.Equal(at(5)) {
				t.Errorf("5 seconds after all are due at %v", due)
			}
		}
	}
}
