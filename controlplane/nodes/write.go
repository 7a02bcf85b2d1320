package nodes

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"gantry.dev/bus"
	"gantry.dev/controlplane/events"
	"gantry.dev/schemas"
)

// orphanGrace is how long a pod may name a node that has never been there
// before it is let go: the node may be about to register.
const orphanGrace = 40 * time.Second

// startGrace is how long word that a pod's containers are being created may
// wait for what comes of it. Most pods start within that, and one write tells
// all: each costs a sync, and in a burst they stand in line for the disk.
const startGrace = 2 * time.Second

// writeNode makes the Node object say what is known, and returns its revision
// if that took a write.
func (n *Nodes) writeNode(ctx context.Context, name string) (uint64, error) {
	have, _ := n.store.View().Get(schemas.Nodes, "", name).(*corev1.Node)
	now := n.Now()
	n.mu.Lock()
	a := n.nodes[name]
	if a == nil && have != nil {
		n.mu.Unlock()
		return 0, nil
	}
	if a == nil || have == nil && !a.alive(now) {
		// Nobody speaks for it: a node that was deleted stays deleted.
		delete(n.nodes, name)
		n.ranges.release(name)
		n.mu.Unlock()
		return 0, nil
	}
	cidr := ""
	given := true
	if have == nil || have.Spec.PodCIDR == "" {
		cidr, given = n.ranges.give(name)
	}
	report, who, lost := a.report, a.life, a.lost
	n.mu.Unlock()

	want := Compose(name, have, report, who, cidr, lost, now)
	if have == nil {
		stored, err := n.store.Create(ctx, want)
		if err != nil {
			return 0, fmt.Errorf("register node %s: %w", name, err)
		}
		n.log.Info().Str("node", name).Str("podCIDR", cidr).Msg("node registered")
		n.tellNode(stored, "RegisteredNode", corev1.EventTypeNormal, "Node "+name+" registered with the control plane")
		if !given {
			n.tellNode(stored, "CIDRNotAvailable", corev1.EventTypeWarning, "Node "+name+" has no pod range: all of the cluster's are taken")
		}
		return revisionOf(stored), nil
	}
	if equality.Semantic.DeepEqual(have, want) {
		return 0, nil
	}
	stored, err := n.store.Update(ctx, want)
	if err != nil {
		return 0, fmt.Errorf("update node %s: %w", name, err)
	}
	if was, is := readyStatus(have), readyStatus(want); was != is {
		n.log.Info().Str("node", name).Str("ready", string(is)).Msg("node turned")
		if is == corev1.ConditionTrue {
			n.tellNode(stored, "NodeReady", corev1.EventTypeNormal, "Node "+name+" status is now: NodeReady")
		} else {
			n.tellNode(stored, "NodeNotReady", corev1.EventTypeNormal, "Node "+name+" status is now: NodeNotReady")
		}
	}
	if lost != isLost(have) {
		n.wakePodsOf(name)
	}
	return revisionOf(stored), nil
}

func (n *Nodes) tellNode(o schemas.Object, reason, typ, message string) {
	n.recorder.Add(events.Entry{
		Involved: events.Reference(o), Source: corev1.EventSource{Component: Source}, Type: typ, Reason: reason, Message: message,
	})
}

func readyStatus(node *corev1.Node) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// deed is what is to be done about a pod.
type deed int

const (
	nothing deed = iota
	remove       // the object
	release      // the object is free of its node; who takes the last finalizer off removes it
	fold         // the report into the status
	wait         // and look again
)

// verdict says what is to be done about a pod. Removal is the answer to three
// questions alone: it is being deleted and its node says that nothing is left;
// it is being deleted and no node ever had it; or its node does not exist.
func verdict(pod *corev1.Pod, nodeExists, nodeDeleted, gone bool, orphanFor time.Duration) deed {
	if pod.DeletionTimestamp != nil && (pod.Spec.NodeName == "" || gone || !nodeExists) {
		if len(pod.Finalizers) == 0 {
			return remove
		}
		if grace := pod.DeletionGracePeriodSeconds; grace == nil || *grace != 0 {
			return release
		}
		return nothing
	}
	if pod.Spec.NodeName == "" {
		return nothing
	}
	if !nodeExists {
		if (nodeDeleted || orphanFor >= orphanGrace) && len(pod.Finalizers) == 0 {
			return remove
		}
		return wait
	}
	return fold
}

// onTheWay tells whether a status says no more of a pod than that its start is
// under way, as one that was bound a moment ago says by itself.
func onTheWay(pod *corev1.Pod, status *corev1.PodStatus) bool {
	if len(pod.Status.ContainerStatuses) > 0 || len(status.ContainerStatuses) == 0 ||
		pod.DeletionTimestamp != nil || status.Phase != corev1.PodPending {
		return false
	}
	for i := range status.ContainerStatuses {
		w := status.ContainerStatuses[i].State.Waiting
		if w == nil || w.Reason != reasonCreating || w.Message != "" || status.ContainerStatuses[i].RestartCount > 0 {
			return false
		}
	}
	return true
}

func (n *Nodes) writePod(ctx context.Context, key, namespace, name string) error {
	pod, _ := n.store.View().Get(schemas.Pods, namespace, name).(*corev1.Pod)
	if pod == nil {
		n.mu.Lock()
		delete(n.pods, key)
		n.mu.Unlock()
		return nil
	}
	node := pod.Spec.NodeName
	exists := node != "" && n.store.View().Get(schemas.Nodes, "", node) != nil
	deleted := node != "" && !exists && n.store.View().Tombstone(schemas.Nodes, "", node)
	now := n.Now()

	n.mu.Lock()
	p := n.pods[key]
	if p != nil && p.uid != pod.UID {
		// A report of an earlier life of this name.
		delete(n.pods, key)
		p = nil
	}
	if p == nil {
		p = &podNews{uid: pod.UID}
	}
	if p.report != nil && p.report.Node != node {
		// Only its own node has a say about a pod.
		p.report, p.gone, p.seq = nil, false, 0
	}
	if !exists && node != "" && p.orphan.IsZero() {
		p.orphan = now
		n.pods[key] = p
	}
	gone := p.gone
	var orphanFor time.Duration
	if !p.orphan.IsZero() {
		orphanFor = now.Sub(p.orphan)
	}
	report, held := p.report, p.held
	if report != nil && p.since.IsZero() {
		p.since = now
	}
	since := p.since
	lost := false
	if a := n.nodes[node]; a != nil {
		lost = a.lost
	}
	n.mu.Unlock()

	switch verdict(pod, exists, deleted, gone, orphanFor) {
	case nothing:
		return nil
	case wait:
		n.lanes.wakeAfter(key, orphanGrace-orphanFor)
		return nil
	case release:
		next, none := pod.DeepCopy(), int64(0)
		next.DeletionGracePeriodSeconds = &none
		if _, err := n.store.Update(ctx, next); err != nil {
			return fmt.Errorf("free pod %s/%s: %w", namespace, name, err)
		}
		return nil
	case remove:
		if err := n.store.Delete(ctx, pod); err != nil && !errors.Is(err, bus.ErrNotFound) {
			return fmt.Errorf("remove pod %s/%s: %w", namespace, name, err)
		}
		return nil
	}
	status, hold := Fold(pod, report, held, lost, now)
	if report != nil && onTheWay(pod, &status) {
		if left := startGrace - now.Sub(since); left > 0 {
			n.lanes.wakeAfter(key, left)
			return nil
		}
	}
	if !equality.Semantic.DeepEqual(status, pod.Status) {
		next := pod.DeepCopy()
		next.Status = status
		if _, err := n.store.Update(ctx, next); err != nil {
			return fmt.Errorf("update status of pod %s/%s: %w", namespace, name, err)
		}
		if hold != nil && held == nil {
			n.recorder.Add(events.Entry{
				Involved: events.Reference(pod), Source: corev1.EventSource{Component: Source}, Type: corev1.EventTypeWarning,
				Reason: reasonNodeNotReady, Message: "Node is not ready",
			})
		}
	}
	n.folded(key, p, report, hold)
	return nil
}

// folded forgets the report that is in the object now. What must outlive it is
// the number of the last report and what to go back to.
func (n *Nodes) folded(key string, p *podNews, report *schemas.PodHealth, hold *corev1.PodCondition) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := n.pods[key]; now != nil && now != p {
		return
	}
	if p.report == report {
		p.report = nil
	}
	if hold != nil {
		p.held = hold
	} else if report != nil || p.held != nil {
		p.held = nil
	}
	p.orphan = time.Time{}
	if p.seq != 0 || p.held != nil {
		n.pods[key] = p
	}
}

func revisionOf(o schemas.Object) uint64 {
	r, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return r
}
