package scheduler

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/controlplane/events"
	"gantry.dev/controlplane/follow"
	"gantry.dev/schemas"
)

// Source is the component that the scheduler's events name.
const Source = "default-scheduler"

const (
	// inFlight bounds the writes on their way. Each waits for a disk, so many at
	// once cost no more time than one.
	inFlight = 64
	// settle is how long changes of nodes that help nobody may gather before
	// what is said of the pods that wait is said anew.
	settle     = time.Second
	retryDelay = 200 * time.Millisecond
	newsDelay  = 5 * time.Millisecond
)

// Recorder takes events for people. It must not block.
type Recorder interface {
	Add(events.Entry)
}

// Scheduler binds pods to nodes.
type Scheduler struct {
	store    bus.Store
	recorder Recorder
	log      zerolog.Logger
	now      func() time.Time
	slots    chan struct{}
	wake     chan struct{} // capacity 1

	mu       sync.Mutex
	complete bool // every node and pod is known: before, nothing is decided
	snapshot *Snapshot
	queue    *queue
	restate  *time.Timer // runs while changes of nodes gather
	flying   int         // writes on their way
	decided  int         // decisions made, each of which looks at nodes
}

// New makes a scheduler over a store; nothing happens before Run.
func New(store bus.Store, recorder Recorder, log zerolog.Logger) *Scheduler {
	return &Scheduler{
		store: store, recorder: recorder, log: log, now: time.Now,
		slots: make(chan struct{}, inFlight), wake: make(chan struct{}, 1),
		snapshot: NewSnapshot(), queue: newQueue(),
	}
}

// Claims is what the scheduler alone writes, for the register of writers.
func Claims() []string { return []string{"pods/spec.nodeName", "pods/status.PodScheduled"} }

// Run schedules until ctx ends and then waits for the writes on their way.
func (s *Scheduler) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var followed error
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		followed = follow.Run(ctx, s.store, []string{schemas.Nodes, schemas.Pods}, s.loaded, s.take)
	})
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.restate != nil {
				s.restate.Stop()
			}
			return nil
		case <-done:
			return followed
		case <-s.wake:
		}
		for ctx.Err() == nil {
			job := s.decideNext()
			if job == nil {
				break
			}
			select {
			case <-ctx.Done():
			case s.slots <- struct{}{}:
				wg.Go(func() {
					defer func() { <-s.slots }()
					job(ctx)
				})
			}
		}
	}
}

// Quiet tells whether no pod is due and no write on its way.
func (s *Scheduler) Quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.complete && len(s.queue.due) == 0 && s.flying == 0
}

// Explain says of every node why it takes a pod or does not.
func (s *Scheduler) Explain(pod *corev1.Pod) []Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Explain(s.snapshot, pod)
}

func (s *Scheduler) loaded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete = true
	s.signal()
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take takes a change into the snapshot and wakes the pods that it can help.
func (s *Scheduler) take(c bus.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch o := c.Object().(type) {
	case *corev1.Node:
		s.takeNode(o, c)
	case *corev1.Pod:
		s.takePod(o, c.New == nil)
	}
	if len(s.queue.due) > 0 {
		s.signal()
	}
}

func (s *Scheduler) takeNode(o *corev1.Node, c bus.Change) {
	if c.New == nil {
		s.snapshot.RemoveNode(o.Name)
		s.restateSoon()
		return
	}
	old, _ := c.Old.(*corev1.Node)
	if old != nil && sameForPods(old, o) {
		s.snapshot.SetNode(o)
		return
	}
	s.snapshot.SetNode(o)
	s.queue.helped(s.snapshot.nodes[o.Name])
	s.restateSoon()
}

// sameForPods tells whether nothing changed that a decision looks at.
func sameForPods(a, b *corev1.Node) bool {
	return ready(a) == ready(b) && a.Spec.Unschedulable == b.Spec.Unschedulable &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		equality.Semantic.DeepEqual(allocatable(a), allocatable(b)) &&
		reflect.DeepEqual(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints)
}

func (s *Scheduler) takePod(pod *corev1.Pod, gone bool) {
	var freed string
	if gone {
		freed = s.snapshot.RemovePod(pod.UID)
	} else {
		freed = s.snapshot.SetPod(pod)
	}
	if !gone && wants(pod) {
		s.queue.offer(pod)
	} else {
		s.queue.drop(pod.UID)
	}
	if freed != "" {
		s.queue.helped(s.snapshot.nodes[freed])
	}
}

// wants tells whether a pod needs a word from us: a node, or, where it names
// its node itself, the condition that says so.
func wants(pod *corev1.Pod) bool {
	if Finished(pod) || pod.DeletionTimestamp != nil || len(pod.Spec.SchedulingGates) > 0 {
		return false
	}
	if pod.Spec.SchedulerName != "" && pod.Spec.SchedulerName != corev1.DefaultSchedulerName {
		return false
	}
	return pod.Spec.NodeName == "" || !saysScheduled(pod)
}

func saysScheduled(pod *corev1.Pod) bool {
	c := scheduledCondition(pod)
	return c != nil && c.Status == corev1.ConditionTrue
}

func scheduledCondition(pod *corev1.Pod) *corev1.PodCondition {
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
	if i < 0 {
		return nil
	}
	return &pod.Status.Conditions[i]
}

// restateSoon has what is said of the pods that wait said anew, once for many
// changes of nodes: "0/3 nodes" is wrong when there are four.
func (s *Scheduler) restateSoon() {
	if !s.complete || len(s.queue.shapes) == 0 || s.restate != nil {
		return
	}
	s.restate = time.AfterFunc(settle, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.restate = nil
		s.queue.again()
		s.signal()
	})
}

// decideNext decides about one pod and returns the write that follows, or nil
// where no pod is due.
func (s *Scheduler) decideNext() func(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.complete {
		w, ok := s.queue.next()
		if !ok {
			return nil
		}
		if why, ok := s.queue.known(w); ok && w.pod.Spec.NodeName == "" {
			s.queue.park(w, why)
			if job := s.refuse([]*waiter{w}, why); job != nil {
				return job
			}
			continue
		}
		s.decided++
		node, reasons := Decide(s.snapshot, w.pod)
		if node == "" {
			why := reasons.String()
			also := s.queue.park(w, why)
			if job := s.refuse(append(also, w), why); job != nil {
				return job
			}
			continue
		}
		if w.pod.Spec.NodeName == "" {
			s.snapshot.Assume(w.pod, node)
		}
		w.busy = true
		s.queue.placed(w)
		s.flying++
		return func(ctx context.Context) { s.bind(ctx, w, node) }
	}
	return nil
}

// bind stores a decision. A binding whose answer was lost is repeated with the
// room still taken; one that came too late for the pod is decided anew.
func (s *Scheduler) bind(ctx context.Context, w *waiter, node string) {
	for {
		err := s.bindOnce(ctx, w, node)
		if err == nil || ctx.Err() != nil {
			s.landed(w, false)
			return
		}
		s.mu.Lock()
		key := w.pod.Namespace + "/" + w.pod.Name
		_, waits := s.queue.pods[w.pod.UID]
		s.mu.Unlock()
		if errors.Is(err, errMoved) || errors.Is(err, bus.ErrConflict) || errors.Is(err, bus.ErrNotFound) || !waits {
			s.log.Debug().Err(err).Str("pod", key).Str("node", node).Msg("decide again")
			// The news that made it fail may still be on its way to us.
			pause(ctx, newsDelay)
			s.landed(w, true)
			return
		}
		s.log.Warn().Err(err).Str("pod", key).Str("node", node).Msg("bind pod, trying again")
		pause(ctx, retryDelay)
	}
}

// errMoved is a decision that no longer holds when it is to be stored.
var errMoved = errors.New("the node or the pod has changed since the decision")

// bindOnce looks at pod and node once more, at the point where it counts.
func (s *Scheduler) bindOnce(ctx context.Context, w *waiter, node string) error {
	s.mu.Lock()
	uid, namespace, name := w.pod.UID, w.pod.Namespace, w.pod.Name
	preset := w.pod.Spec.NodeName != ""
	fits := preset || s.snapshot.StillFits(w.pod)
	s.mu.Unlock()
	pod, ok := s.store.View().Get(schemas.Pods, namespace, name).(*corev1.Pod)
	if !ok || pod.UID != uid || !wants(pod) {
		return errMoved
	}
	if pod.Spec.NodeName == "" && !fits {
		return errMoved
	}
	next := pod.DeepCopy()
	if next.Spec.NodeName == "" {
		next.Spec.NodeName = node
	}
	SetScheduled(next, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, s.now())
	if _, err := s.store.Update(ctx, next); err != nil {
		return err
	}
	if !preset {
		s.recorder.Add(events.Entry{
			Involved: events.Reference(pod), Source: corev1.EventSource{Component: Source}, Type: corev1.EventTypeNormal,
			Reason: "Scheduled", Message: "Successfully assigned " + namespace + "/" + name + " to " + node,
		})
	}
	return nil
}

// landed ends the flight of a binding. Where it failed, its room is given back
// and the pod, if it still waits, is due again.
func (s *Scheduler) landed(w *waiter, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying--
	w.busy = false
	if !failed {
		return
	}
	if freed := s.snapshot.Forget(w.pod.UID); freed != "" {
		s.queue.helped(s.snapshot.nodes[freed])
	}
	s.queue.push(w)
	s.signal()
}

// refuse is the writes that tell pods why they wait; nil where each has been
// told so already.
func (s *Scheduler) refuse(waiters []*waiter, why string) func(context.Context) {
	var pods []*corev1.Pod
	for _, w := range waiters {
		if c := scheduledCondition(w.pod); c == nil || c.Status != corev1.ConditionFalse || c.Message != why {
			pods = append(pods, w.pod)
		}
	}
	if len(pods) == 0 {
		return nil
	}
	s.flying++
	return func(ctx context.Context) {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.flying--
		}()
		for _, pod := range pods {
			s.tell(ctx, pod, why)
		}
	}
}

func (s *Scheduler) tell(ctx context.Context, seen *corev1.Pod, why string) {
	for ctx.Err() == nil {
		pod, ok := s.store.View().Get(schemas.Pods, seen.Namespace, seen.Name).(*corev1.Pod)
		if !ok || pod.UID != seen.UID || pod.Spec.NodeName != "" || !wants(pod) {
			return
		}
		if c := scheduledCondition(pod); c != nil && c.Status == corev1.ConditionFalse && c.Message == why {
			return
		}
		next := pod.DeepCopy()
		SetScheduled(next, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: why,
		}, s.now())
		_, err := s.store.Update(ctx, next)
		if err == nil {
			s.recorder.Add(events.Entry{
				Involved: events.Reference(pod), Source: corev1.EventSource{Component: Source}, Type: corev1.EventTypeWarning,
				Reason: "FailedScheduling", Message: why,
			})
			return
		}
		if errors.Is(err, bus.ErrNotFound) {
			return
		}
		if !errors.Is(err, bus.ErrConflict) {
			s.log.Warn().Err(err).Str("pod", seen.Namespace+"/"+seen.Name).Msg("say why a pod waits, trying again")
		}
		pause(ctx, retryDelay)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// SetScheduled puts the PodScheduled condition into a pod's status. It keeps
// the time of the last transition while the status is the same.
func SetScheduled(pod *corev1.Pod, c corev1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now.UTC().Truncate(time.Second))
	c.ObservedGeneration = 0
	if have := scheduledCondition(pod); have != nil {
		if have.Status == c.Status {
			c.LastTransitionTime = have.LastTransitionTime
		}
		*have = c
		return
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}
