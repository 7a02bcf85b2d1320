package deployment_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/controlplane/replicaset"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

// judge watches a world and knows nothing of how rollouts are made: it only
// counts pods before and after each pass, against what the user has asked for
// since the world was last at rest.
type judge struct {
	s    *story
	most int // pods that may exist: the largest desired+surge asked for
	// least must stay available: the smallest desired-unavailable asked for,
	// less the pods that were taken from us by others.
	least             int
	active, available int // before the pass
}

func (j *judge) bounds() (most, least int) {
	d := j.s.deployment()
	n := int(*d.Spec.Replicas)
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return n, 0
	}
	up, _ := intstr.GetScaledValueFromIntOrPercent(d.Spec.Strategy.RollingUpdate.MaxSurge, n, true)
	down, _ := intstr.GetScaledValueFromIntOrPercent(d.Spec.Strategy.RollingUpdate.MaxUnavailable, n, false)
	if up == 0 && down == 0 {
		down = 1
	}
	return n + up, max(0, n-down)
}

// asked is called when the user has changed what he wants.
func (j *judge) asked() {
	most, least := j.bounds()
	j.most, j.least = max(j.most, most), min(j.least, least)
	j.look()
}

// rested is called when nothing is left to do.
func (j *judge) rested() {
	j.most, j.least = j.bounds()
	j.look()
}

// look counts. Of pods beyond what their set should have, some are given up
// already: that one of them becomes ready before it goes helps nobody.
func (j *judge) look() {
	j.active, j.available = 0, 0
	served := map[string]int{}
	for _, p := range j.s.pods() {
		if !replicaset.Active(p) {
			continue
		}
		j.active++
		if yes, _ := replicaset.Available(p, j.s.deployment().Spec.MinReadySeconds, j.s.Clock()); yes {
			served[p.Spec.Containers[0].Image]++
		}
	}
	sizes := j.s.sizes()
	for image, n := range served {
		j.available += min(n, sizes[image])
	}
}

// lost is called after somebody else than a controller has acted.
func (j *judge) lost() {
	before := j.available
	j.look()
	if j.available < before {
		j.least -= before - j.available
	}
}

func (j *judge) passed() {
	active, available := j.active, j.available
	j.look()
	if j.active > active && j.active > j.most {
		j.s.Fatalf("a pass left %d pods, more than %d\n%s", j.active, j.most, j.s.tale())
	}
	if j.available < available && j.available < j.least {
		j.s.Fatalf("a pass left %d available pods, fewer than %d\n%s", j.available, j.least, j.s.tale())
	}
}

func TestAnyHistoryKeepsTheBoundsAndComesToRest(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := tell(t)
		s.TB = tb{t, rt}
		j := &judge{s: s}
		s.AfterPass = j.passed
		s.Choose = func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "next") }
		sick := map[string]bool{}
		s.nodes.Healthy = func(p *corev1.Pod) bool { return !sick[p.Spec.Containers[0].Image] }
		faults := rapid.Bool().Draw(rt, "faults")
		s.Fault = func(int) reconciletest.Fault {
			if !faults || !s.InPass {
				return reconciletest.None
			}
			return rapid.SampledFrom([]reconciletest.Fault{
				reconciletest.None, reconciletest.None, reconciletest.None, reconciletest.None, reconciletest.None,
				reconciletest.CrashBefore, reconciletest.CrashAfter, reconciletest.Conflict,
			}).Draw(rt, "fault")
		}
		number := func(what string) *intstr.IntOrString {
			v := intstr.FromInt32(rapid.Int32Range(0, 4).Draw(rt, what))
			if rapid.Bool().Draw(rt, what+" in percent") {
				v = intstr.FromString(fmt.Sprintf("%d%%", rapid.IntRange(0, 100).Draw(rt, what)))
			}
			return &v
		}
		d := web(rapid.Int32Range(0, 8).Draw(rt, "replicas"), "app:0")
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: number("surge"), MaxUnavailable: number("unavailable")}
		d.Spec.MinReadySeconds = rapid.SampledFrom([]int32{0, 0, 7}).Draw(rt, "minReadySeconds")
		s.apply(d)
		j.rested()

		steps := func() {
			for range rapid.IntRange(0, 12).Draw(rt, "passes") {
				if more, err := s.Step(); err != nil {
					rt.Fatal(err)
				} else if !more {
					return
				}
			}
		}
		rest := func() {
			for acted := true; acted; {
				s.settle()
				var err error
				if acted, err = s.nodes.Act(s.World, 0); err != nil {
					rt.Fatal(err)
				}
				j.lost()
			}
		}
		for range rapid.IntRange(1, 25).Draw(rt, "length") {
			switch rapid.SampledFrom([]string{"image", "size", "pause", "delete", "fail", "sick", "nodes", "nodes", "time", "rest"}).Draw(rt, "op") {
			case "image":
				image := fmt.Sprintf("app:%d", rapid.IntRange(0, 3).Draw(rt, "image"))
				s.change(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
			case "size":
				n := rapid.Int32Range(0, 8).Draw(rt, "replicas")
				s.change(func(d *appsv1.Deployment) { d.Spec.Replicas = &n })
			case "pause":
				s.change(func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
			case "delete", "fail":
				if pods := s.pods(); len(pods) > 0 {
					p := pods[rapid.IntRange(0, len(pods)-1).Draw(rt, "pod")].DeepCopy()
					p.Status.Phase = corev1.PodFailed
					if rapid.Bool().Draw(rt, "by deletion") {
						now := metav1.NewTime(s.Clock())
						p.DeletionTimestamp = &now
					}
					if _, err := s.Update(rt.Context(), p); err != nil {
						rt.Fatal(err)
					}
				}
				j.lost()
			case "sick":
				image := fmt.Sprintf("app:%d", rapid.IntRange(0, 3).Draw(rt, "image"))
				sick[image] = !sick[image]
			case "nodes":
				if _, err := s.nodes.Act(s.World, rapid.IntRange(0, 5).Draw(rt, "limit")); err != nil {
					rt.Fatal(err)
				}
				j.lost()
			case "time":
				if err := s.Advance(time.Duration(rapid.IntRange(1, 20).Draw(rt, "seconds")) * time.Second); err != nil {
					rt.Fatal(err)
				}
				j.lost()
			case "rest":
				rest()
				j.rested()
			}
			j.asked()
			steps()
		}

		// Whatever has happened: when faults end and all is well, the user gets
		// what he asked for last, and then nothing is written any more.
		faults = false
		clear(sick)
		s.change(func(d *appsv1.Deployment) { d.Spec.Paused = false })
		j.asked()
		for range 60 {
			rest()
			if err := s.Advance(7 * time.Second); err != nil {
				rt.Fatal(err)
			}
			j.lost()
		}
		rest()
		final := s.deployment()
		image, n := final.Spec.Template.Spec.Containers[0].Image, int(*final.Spec.Replicas)
		want := map[string]int{image: n}
		if n == 0 {
			want = map[string]int{}
		}
		s.want("running", s.running(), want)
		s.want("available", final.Status.AvailableReplicas, int32(n))
		s.want("progressing", s.condition(appsv1.DeploymentProgressing), "True NewReplicaSetAvailable")
		s.quiet()
	})
}

// tale is what somebody needs who wonders how it came to this.
func (s *story) tale() string {
	var b strings.Builder
	for _, e := range s.Events[max(0, len(s.Events)-30):] {
		fmt.Fprintf(&b, "%s %s\n", e.Reason, e.Message)
	}
	for _, rs := range s.sets() {
		fmt.Fprintf(&b, "%s %s: spec %d, status %d/%d available, %v\n", rs.Name, rs.Spec.Template.Spec.Containers[0].Image,
			*rs.Spec.Replicas, rs.Status.Replicas, rs.Status.AvailableReplicas, rs.Annotations)
	}
	for _, p := range s.pods() {
		fmt.Fprintf(&b, "%s %s %s ready %t deleted %t\n", p.Name, p.Spec.Containers[0].Image, p.Status.Phase, reconciletest.IsReady(p), p.DeletionTimestamp != nil)
	}
	return b.String()
}

// tb makes a rapid run fail as one, so that it is shrunk.
type tb struct {
	testing.TB
	rt *rapid.T
}

func (t tb) Fatal(args ...any)                 { t.rt.Helper(); t.rt.Fatal(args...) }
func (t tb) Fatalf(format string, args ...any) { t.rt.Helper(); t.rt.Fatalf(format, args...) }
func (t tb) Helper()                           { t.rt.Helper() }
