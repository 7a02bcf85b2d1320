package report

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/schemas"
)

// far is the other end: it fails as often as it is told to.
type far struct {
	mu     sync.Mutex
	fail   int
	pods   []schemas.PodHealth
	nodes  []schemas.NodeHealth
	events []schemas.PodEvent
	floor  uint64
}

func (f *far) do(keep func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		f.fail--
		return errors.New("no connection")
	}
	keep()
	return nil
}

func (f *far) ReportPod(_ context.Context, h schemas.PodHealth) error {
	return f.do(func() { f.pods = append(f.pods, h) })
}
func (f *far) ReportNode(_ context.Context, h schemas.NodeHealth) error {
	return f.do(func() { f.nodes = append(f.nodes, h) })
}
func (f *far) ReportEvent(_ context.Context, e schemas.PodEvent) error {
	return f.do(func() { f.events = append(f.events, e) })
}
func (f *far) ReserveSeq(seq uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.floor = seq
	return nil
}

func begin(t *testing.T, f *far, floor uint64) *Reporter {
	t.Helper()
	r := New("n1", f, f, floor, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func (f *far) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		f.mu.Lock()
		reached := ok()
		f.mu.Unlock()
		if reached {
			return
		}
	}
	t.Fatal("not reached: " + what)
}

func status(uid types.UID, message string, urgent bool) pod.Report {
	return pod.Report{
		Want:   pod.Desired{UID: uid, Namespace: "default", Name: string(uid), Revision: 3},
		Status: corev1.PodStatus{Message: message}, Urgent: urgent,
	}
}

func (f *far) last(uid types.UID) string {
	for i := len(f.pods) - 1; i >= 0; i-- {
		if f.pods[i].UID == uid {
			return f.pods[i].Status.Message
		}
	}
	return ""
}

func TestNewestTruthArrivesWhateverFails(t *testing.T) {
	f := &far{fail: 3}
	r := begin(t, f, 0)
	const pods, rounds = 20, 30
	for round := range rounds {
		for p := range pods {
			r.Pod(status(types.UID(fmt.Sprint("p", p)), fmt.Sprint(round), round%2 == 0))
		}
	}
	f.until(t, "newest of every pod", func() bool {
		for p := range pods {
			if f.last(types.UID(fmt.Sprint("p", p))) != fmt.Sprint(rounds-1) {
				return false
			}
		}
		return true
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pods) > pods*rounds/2 {
		t.Errorf("%d reports for %d changes: nothing was coalesced", len(f.pods), pods*rounds)
	}
	seqs := map[types.UID]uint64{}
	for _, h := range f.pods {
		if h.Seq <= seqs[h.UID] {
			t.Errorf("sequence of %s went from %d to %d", h.UID, seqs[h.UID], h.Seq)
		}
		seqs[h.UID] = h.Seq
	}
}

func TestStormOfOnePodIsBounded(t *testing.T) {
	f := &far{}
	r := begin(t, f, 0)
	for i := range 2000 {
		r.Pod(status("p", fmt.Sprint(i), true))
		if i%100 == 0 {
			runtime.Gosched() // let senders take part
		}
	}
	f.until(t, "the newest", func() bool { return f.last("p") == "1999" })
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pods) > 2*burst {
		t.Errorf("%d reports of one pod", len(f.pods))
	}
}

func TestSequenceStaysAboveItsFloor(t *testing.T) {
	f := &far{}
	future := uint64(time.Now().Add(time.Hour).UnixNano())
	r := begin(t, f, future)
	r.Pod(status("p", "x", true))
	f.until(t, "a report", func() bool { return len(f.pods) == 1 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pods[0].Seq <= future || f.floor <= f.pods[0].Seq {
		t.Errorf("seq %d, floor before %d and after %d", f.pods[0].Seq, future, f.floor)
	}
}

func TestAgainTellsEverything(t *testing.T) {
	f := &far{}
	r := begin(t, f, 0)
	r.Node(schemas.NodeHealth{Instance: "i"})
	r.Pod(status("p", "x", true))
	r.Pod(status("gone", "x", true))
	f.until(t, "the first time", func() bool { return len(f.pods) == 2 && len(f.nodes) == 1 })
	r.Drop("gone")
	r.Again()
	f.until(t, "the second time", func() bool { return len(f.pods) == 3 && len(f.nodes) == 2 })
}

func TestEventsAreBoundedAndNotRepeated(t *testing.T) {
	q := newEventQueue()
	now := time.Now()
	event := func(i int, at time.Time) schemas.PodEvent {
		return schemas.PodEvent{UID: "p", Reason: "BackOff", Message: fmt.Sprint(i), Time: at}
	}
	for i := range maxEvents + 10 {
		q.add(event(i, now))
		q.add(event(i, now.Add(time.Second)))
	}
	e, dropped, _ := q.take()
	if len(q.items) != maxEvents-1 || dropped != 10 || e.Message != "10" {
		t.Errorf("%d held, %d dropped, first %s", len(q.items)+1, dropped, e.Message)
	}
	if !q.add(event(maxEvents, now.Add(time.Minute))) {
		t.Error("an event that comes again later is not told")
	}
}
