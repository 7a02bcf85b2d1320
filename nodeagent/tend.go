package main

import (
	"context"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/node"
	"gantry.dev/schemas"
)

// tendEvery is how often the node looks after itself.
const tendEvery = time.Minute

// tender reports the node's state when it changed and makes room on its disk.
type tender struct {
	a    *agent
	wake chan struct{} // capacity 1
	last corev1.NodeStatus
}

func newTender(a *agent) *tender { return &tender{a: a, wake: make(chan struct{}, 1)} }

// imagesChanged asks for a look soon.
func (t *tender) imagesChanged() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *tender) run(ctx context.Context) {
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			t.makeRoom()
		case <-t.wake:
		}
		t.look()
	}
}

// look reports the node where something other than the time has changed.
func (t *tender) look() {
	now := t.a.facts.Status(t.a.images.List(), t.last.Conditions, time.Now())
	if reflect.DeepEqual(timeless(now), timeless(t.last)) {
		return
	}
	t.last = now
	t.a.voice.Node(schemas.NodeHealth{
		Node: t.a.o.node, Instance: t.a.store.Instance, Labels: t.a.facts.Labels, Status: now,
	})
}

func timeless(s corev1.NodeStatus) corev1.NodeStatus {
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		s.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return s
}

// makeRoom removes images that no pod uses, the oldest first, while the disk
// is nearly full.
func (t *tender) makeRoom() {
	if !t.full() {
		return
	}
	refs, contents := t.inUse()
	images := t.a.images.List()
	oldest := slices.Clone(images)
	slices.SortFunc(oldest, func(x, y image.Image) int { return x.Loaded.Compare(y.Loaded) })
	for _, i := range oldest {
		if refs[i.Ref] || slices.Contains(contents, i.ID) {
			continue
		}
		if err := t.a.images.Remove(i.Ref); err != nil {
			t.a.log.Error().Err(err).Str("image", i.Ref).Msg("cannot remove the image")
			continue
		}
		freed, err := t.a.images.Collect(contents)
		if err != nil {
			t.a.log.Error().Err(err).Msg("cannot collect images")
		}
		t.a.log.Info().Str("image", i.Ref).Int64("bytes", freed).Msg("removed an unused image: the disk is nearly full")
		if !t.full() {
			return
		}
	}
}

func (t *tender) full() bool {
	size, used, err := node.Disk(t.a.o.state())
	return err == nil && size > 0 && float64(used)/float64(size) > node.DiskFull
}

// inUse are the references and contents that pods run or are to run.
func (t *tender) inUse() (refs map[string]bool, contents []string) {
	refs = map[string]bool{}
	for _, v := range t.a.pods.List() {
		if v.Want.Pod == nil {
			continue
		}
		for _, c := range v.Want.Pod.Spec.Containers {
			if i, ok := t.a.images.Get(c.Image); ok {
				refs[i.Ref] = true
				contents = append(contents, i.ID)
			}
		}
		for _, r := range v.Record.Containers {
			contents = append(contents, r.Content)
		}
	}
	return refs, contents
}
