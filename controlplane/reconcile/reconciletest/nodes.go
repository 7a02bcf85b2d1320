package reconciletest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gantry.dev/schemas"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nodes stands for the scheduler and all nodes: it binds pods, runs them and
// ends them. The zero value makes every pod ready at once.
type Nodes struct {
	// Healthy says whether a pod becomes ready; nil is always.
	Healthy func(*corev1.Pod) bool
	// Stuck says that a pod's end takes longer; nil is never.
	Stuck func(*corev1.Pod) bool

	bound int
}

// Act lets the nodes do everything that is due for up to limit pods (all for
// zero), and says whether anything was done.
func (n *Nodes) Act(w *World, limit int) (bool, error) {
	done := 0
	for _, o := range w.View().List(schemas.Pods, "") {
		p, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		acted, err := n.act(w, p)
		if err != nil {
			return done > 0, err
		}
		if acted {
			done++
		}
		if limit > 0 && done == limit {
			break
		}
	}
	return done > 0, nil
}

func (n *Nodes) act(w *World, p *corev1.Pod) (bool, error) {
	ctx := context.Background()
	if p.DeletionTimestamp != nil {
		if len(p.Finalizers) > 0 || n.Stuck != nil && n.Stuck(p) {
			return false, nil
		}
		return true, w.Delete(ctx, p)
	}
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return false, nil
	}
	ready := n.Healthy == nil || n.Healthy(p)
	if p.Status.Phase == corev1.PodRunning && ready == IsReady(p) {
		return false, nil
	}
	p = p.DeepCopy()
	if p.Spec.NodeName == "" {
		n.bound++
		p.Spec.NodeName = fmt.Sprintf("node-%d", n.bound%3)
		p.Status.PodIP = fmt.Sprintf("10.0.%d.%d", n.bound/250, n.bound%250+1)
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	p.Status.Phase = corev1.PodRunning
	SetReady(p, ready, w.Clock())
	_, err := w.Update(ctx, p)
	return true, err
}

// Live lets controllers and nodes act in turns until both rest.
func (n *Nodes) Live(w *World) error {
	for range maxPasses {
		if err := w.Settle(); err != nil {
			return err
		}
		acted, err := n.Act(w, 0)
		if err != nil {
			return err
		}
		if !acted {
			return nil
		}
	}
	return fmt.Errorf("no rest after %d rounds", maxPasses)
}

// IsReady says whether the pod's Ready condition is true.
func IsReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// SetReady sets the pod's Ready condition.
func SetReady(p *corev1.Pod, ready bool, now time.Time) {
	p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(now),
	})
}
