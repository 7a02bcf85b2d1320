package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// control is a control plane that has pods, and a connection to it.
type control struct {
	mu       sync.Mutex
	cluster  string
	epoch    string
	seq      uint64
	revision uint64
	pods     []string
	page     int
	asked    []schemas.SyncRequest
	refuse   *metav1.Status
	tamper   func(*schemas.SyncReply)
	between  func() // called between pages
}

func (c *control) record(name string) schemas.PodRecord {
	return schemas.PodRecord{ClusterID: c.cluster, Node: "n1", Namespace: "default", Name: name, UID: types.UID("uid-" + name), Revision: c.revision}
}

func (c *control) Sync(_ context.Context, req schemas.SyncRequest) (schemas.SyncReply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, req)
	reply := schemas.SyncReply{ClusterID: c.cluster, Node: req.Node, Nonce: req.Nonce, Revision: c.revision, HeartbeatSeconds: 10, Error: c.refuse}
	if pos := (schemas.FeedPos{Epoch: c.epoch, Seq: c.seq}); req.Pods != pos {
		snap := &schemas.PodSnapshot{Pos: pos}
		rest := c.pods[:]
		for len(rest) > 0 && req.PodsAfter != "" && "default/"+rest[0] <= req.PodsAfter {
			rest = rest[1:]
		}
		if c.page > 0 && len(rest) > c.page {
			rest = rest[:c.page]
			snap.Next = "default/" + rest[len(rest)-1]
		}
		for _, name := range rest {
			snap.Records = append(snap.Records, c.record(name))
		}
		reply.Pods = snap
		if snap.Next != "" && c.between != nil {
			c.between()
		}
	}
	if c.tamper != nil {
		c.tamper(&reply)
	}
	return reply, nil
}

// node is a sink that remembers.
type node struct {
	pods     map[types.UID]bool
	absent   []types.UID
	revision uint64
	epochs   int
	routes   map[string]bool
	complete int
}

func (n *node) Pod(r schemas.PodRecord) {
	if r.Removed {
		delete(n.pods, r.UID)
		return
	}
	n.pods[r.UID] = true
}
func (n *node) Route(r schemas.RouteRecord)   { n.routes[r.Namespace+"/"+r.Name] = true }
func (n *node) Network(schemas.NetworkRecord) {}
func (n *node) Pods() (out []types.UID) {
	for uid := range n.pods {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}
func (n *node) Absent(uid types.UID) {
	n.absent = append(n.absent, uid)
	delete(n.pods, uid)
}
func (n *node) Routes() (out []string) {
	for key := range n.routes {
		out = append(out, key)
	}
	return out
}
func (n *node) RouteAbsent(key string) { delete(n.routes, key) }
func (n *node) RoutesComplete()        { n.complete++ }
func (n *node) Revision() uint64       { return n.revision }
func (n *node) Advance(r uint64)       { n.revision = max(n.revision, r) }
func (n *node) Joined(string)          {}
func (n *node) NewEpoch()              { n.epochs++ }

func pair(pods ...string) (*control, *node, *Client) {
	c := &control{cluster: "c1", epoch: "e1", seq: 5, revision: 100, pods: pods}
	n := &node{pods: map[types.UID]bool{}, routes: map[string]bool{}}
	client := New(Identity{Node: "n1", ClusterID: "c1", Instance: "i"}, c, n, zerolog.Nop())
	return c, n, client
}

func sync1(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func names(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%s%03d", prefix, i))
	}
	return out
}

func TestSnapshotComesInPages(t *testing.T) {
	c, n, client := pair(names("p", 10)...)
	c.page = 3
	sync1(t, client)
	if len(n.pods) != 10 || len(c.asked) != 4 || n.epochs != 1 {
		t.Errorf("%d pods after %d requests, %d epochs", len(n.pods), len(c.asked), n.epochs)
	}
	sync1(t, client)
	if len(c.asked) != 5 {
		t.Errorf("a sync without news took %d requests", len(c.asked)-4)
	}
}

func TestPodHeardBetweenPagesIsNotAbsent(t *testing.T) {
	c, n, client := pair(names("p", 6)...)
	c.page = 3
	c.between = func() {
		r := c.record("a-new-one") // its page has passed
		r.Feed = schemas.FeedPos{Epoch: c.epoch, Seq: c.seq + 1}
		client.Pod(r)
		c.between = nil
	}
	sync1(t, client)
	if !n.pods["uid-a-new-one"] || len(n.absent) != 0 {
		t.Errorf("pods %v, absent %v", n.Pods(), n.absent)
	}
	if client.pods.pos.Seq != 6 {
		t.Errorf("position %v, want seq 6: the record after the snapshot was heard", client.pods.pos)
	}
}

func TestGapAsksAgain(t *testing.T) {
	c, n, client := pair("a")
	sync1(t, client)
	hear := func(seq uint64, name string) {
		r := c.record(name)
		r.Feed = schemas.FeedPos{Epoch: c.epoch, Seq: seq}
		client.Pod(r)
	}
	hear(6, "b")
	if len(client.wake) != 0 {
		t.Error("a record that follows on asks for a sync")
	}
	hear(8, "d") // 7 is lost
	if len(client.wake) != 1 || !n.pods["uid-d"] {
		t.Errorf("wakes %d, pods %v", len(client.wake), n.Pods())
	}
	c.seq, c.pods = 8, []string{"a", "b", "c", "d"}
	sync1(t, client)
	if len(n.pods) != 4 || client.pods.pos.Seq != 8 {
		t.Errorf("pods %v at %v", n.Pods(), client.pods.pos)
	}
}

func TestAbsenceIsActedUponWithCare(t *testing.T) {
	const beat = 10 * time.Second
	for _, tt := range []struct {
		desc   string
		have   []string
		now    []string
		change func(*control)
		want   []int // how many are absent after each of three snapshots
	}{
		{"one of three", names("p", 3), names("p", 2), nil, []int{1, 1, 1}},
		{"two of two", names("p", 2), nil, nil, []int{2, 2, 2}},
		{"half", names("p", 6), names("p", 3), nil, []int{3, 3, 3}},
		{"most: believed the second time", names("p", 10), names("p", 2), nil, []int{0, 8, 8}},
		{"all, and the state went backwards", names("p", 10), nil, func(c *control) { c.revision = 50 }, []int{0, 0, 0}},
		{"one, and the state went backwards", names("p", 3), names("p", 2), func(c *control) { c.revision = 50 }, []int{0, 0, 0}},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			c, n, client := pair(tt.have...)
			now := time.Now()
			client.now = func() time.Time { return now }
			sync1(t, client)
			c.epoch, c.pods = "e2", tt.now
			if tt.change != nil {
				tt.change(c)
			}
			var got []int
			for range 3 {
				sync1(t, client)
				got = append(got, len(n.absent))
				now = now.Add(beat)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("absent (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMostAbsentMustBeSaidTwiceAHeartbeatApart(t *testing.T) {
	c, n, client := pair(names("p", 10)...)
	now := time.Now()
	client.now = func() time.Time { return now }
	sync1(t, client)
	c.epoch, c.pods = "e2", names("p", 2)
	sync1(t, client)
	now = now.Add(time.Second)
	sync1(t, client)
	if len(n.absent) != 0 {
		t.Fatal("believed within a heartbeat")
	}
	c.pods = names("p", 1) // not the same as before
	now = now.Add(20 * time.Second)
	sync1(t, client)
	if len(n.absent) != 0 {
		t.Fatal("believed although the two snapshots differ")
	}
	now = now.Add(10 * time.Second)
	sync1(t, client)
	if len(n.absent) != 9 {
		t.Fatalf("absent %d, want 9", len(n.absent))
	}
}

func TestAnswersThatAreRefused(t *testing.T) {
	for _, tt := range []struct {
		desc    string
		tamper  func(*schemas.SyncReply)
		refused bool
		says    string
	}{
		{"old answer", func(r *schemas.SyncReply) { r.Nonce = "old" }, false, "another question"},
		{"another node's", func(r *schemas.SyncReply) { r.Node = "n2" }, false, `node "n2"`},
		{"another cluster", func(r *schemas.SyncReply) { r.ClusterID = "c2" }, true, "c2"},
		{"another instance has the name", func(r *schemas.SyncReply) {
			r.Error = &metav1.Status{Reason: metav1.StatusReasonConflict, Message: "node n1 is run by host h2"}
		}, true, "host h2"},
		{"busy", func(r *schemas.SyncReply) {
			r.Error = &metav1.Status{Reason: metav1.StatusReasonServiceUnavailable, Message: "not leading"}
		}, false, "not leading"},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			c, n, client := pair("a")
			c.tamper = tt.tamper
			_, err := client.sync(t.Context())
			if err == nil || errors.Is(err, ErrRefused) != tt.refused || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v", err)
			}
			if len(n.pods) != 0 {
				t.Error("took in pods all the same")
			}
		})
	}
}

func TestRunEndsWhenRefused(t *testing.T) {
	c, _, client := pair("a")
	c.refuse = &metav1.Status{Reason: metav1.StatusReasonConflict, Message: "taken"}
	if err := client.Run(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("ended with %v", err)
	}
}
