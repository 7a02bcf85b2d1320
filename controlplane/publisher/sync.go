package publisher

import (
	"encoding/json"
	"fmt"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// HeartbeatSeconds is how often a node asks, and so shows that it lives.
const HeartbeatSeconds = 10

// pageBytes bounds the records in one answer, well below what the bus carries
// in one message. A single larger record goes alone.
const pageBytes = 700 << 10

// frozen is the rest of a snapshot that takes several pages. All pages come
// from the moment of the first, so a node that puts them together has a true
// picture, and what changed meanwhile it has heard with later positions.
type frozen struct {
	instance string
	pods     *rest[schemas.PodRecord]
	routes   *rest[schemas.RouteRecord]
}

type rest[R any] struct {
	pos     schemas.FeedPos
	records []R
	sizes   []int
	last    string // the key after which the rest begins
}

// sync answers a node. The answer is exact for the moment of the call: every
// record that its positions cover is in it, and none beyond.
func (s *state) sync(req schemas.SyncRequest, pages map[string]*frozen) schemas.SyncReply {
	reply := schemas.SyncReply{
		ClusterID: s.facts.ClusterID, Node: req.Node, Nonce: req.Nonce,
		HeartbeatSeconds: HeartbeatSeconds, Revision: s.revision,
	}
	network, known := s.nodes[req.Node]
	if !known {
		reply.Error = refusal(http.StatusNotFound, metav1.StatusReasonNotFound,
			fmt.Sprintf("node %q is not registered", req.Node))
		return reply
	}
	if network != "" {
		reply.Network = &schemas.NetworkRecord{}
		if err := json.Unmarshal([]byte(network), reply.Network); err != nil {
			reply.Error = refusal(http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
			return reply
		}
	}
	page := pages[req.Node]
	if page == nil || page.instance != req.Instance {
		page = &frozen{instance: req.Instance}
	}
	budget := pageBytes
	if err := s.syncPods(req, &reply, page, &budget); err != nil {
		return schemas.SyncReply{ClusterID: reply.ClusterID, Node: reply.Node, Nonce: reply.Nonce, HeartbeatSeconds: HeartbeatSeconds, Revision: reply.Revision, Error: err}
	}
	if err := s.syncRoutes(req, &reply, page, &budget); err != nil {
		return schemas.SyncReply{ClusterID: reply.ClusterID, Node: reply.Node, Nonce: reply.Nonce, HeartbeatSeconds: HeartbeatSeconds, Revision: reply.Revision, Error: err}
	}
	if page.pods == nil && page.routes == nil {
		delete(pages, req.Node)
	} else {
		pages[req.Node] = page
	}
	return reply
}

func (s *state) syncPods(req schemas.SyncRequest, reply *schemas.SyncReply, page *frozen, budget *int) *metav1.Status {
	f := s.feeds[req.Node]
	if f == nil {
		f = &feed{}
	}
	pos := schemas.FeedPos{Epoch: s.facts.Epoch, Seq: f.seq}
	switch {
	case req.PodsAfter != "":
		if page.pods == nil || page.pods.last != req.PodsAfter {
			return expired(req.PodsAfter)
		}
	case req.Pods == pos:
		page.pods = nil
		return nil
	case req.RoutesAfter != "":
		return nil // it is busy with its routes
	default:
		page.pods = &rest[schemas.PodRecord]{pos: pos, records: make([]schemas.PodRecord, 0, len(f.pods))}
		for _, key := range f.sortedKeys() {
			t := f.pods[key]
			record := CompilePod(s.facts.ClusterID, t.pod)
			record.Revision = t.revision
			record.Feed = schemas.FeedPos{Epoch: s.facts.Epoch, Seq: t.seq}
			page.pods.add(record, t.size)
		}
	}
	snapshot := &schemas.PodSnapshot{Pos: page.pods.pos}
	snapshot.Records = page.pods.take(budget)
	if page.pods.done() {
		page.pods = nil
	} else {
		last := snapshot.Records[len(snapshot.Records)-1]
		snapshot.Next = last.Namespace + "/" + last.Name
		page.pods.last = snapshot.Next
	}
	reply.Pods = snapshot
	return nil
}

func (s *state) syncRoutes(req schemas.SyncRequest, reply *schemas.SyncReply, page *frozen, budget *int) *metav1.Status {
	pos := schemas.FeedPos{Epoch: s.facts.Epoch, Seq: s.routeSeq}
	switch {
	case req.RoutesAfter != "":
		if page.routes == nil || page.routes.last != req.RoutesAfter {
			return expired(req.RoutesAfter)
		}
	case req.Routes == pos:
		page.routes = nil
		return nil
	case reply.Pods != nil && reply.Pods.Next != "" || req.PodsAfter != "":
		// Pods come first. Saying nothing of the routes leaves the node where it
		// is with them, so it asks again once it has all of its pods.
		return nil
	default:
		page.routes = &rest[schemas.RouteRecord]{pos: pos}
		for _, key := range s.sortedRoutes() {
			r := s.routes[key]
			page.routes.add(*r.said, r.size)
		}
	}
	if reply.Pods != nil && !page.routes.fits(*budget) {
		return nil
	}
	snapshot := &schemas.RouteSnapshot{Pos: page.routes.pos}
	snapshot.Records = page.routes.take(budget)
	if page.routes.done() {
		page.routes = nil
	} else {
		last := snapshot.Records[len(snapshot.Records)-1]
		snapshot.Next = last.Namespace + "/" + last.Name
		page.routes.last = snapshot.Next
	}
	reply.Routes = snapshot
	return nil
}

func (r *rest[R]) add(record R, size int) {
	r.records = append(r.records, record)
	r.sizes = append(r.sizes, size)
}

// fits tells whether at least the next record goes into the budget.
func (r *rest[R]) fits(budget int) bool { return len(r.sizes) == 0 || r.sizes[0] <= budget }

// take cuts off as many records as the budget holds, at least one where there
// is any, so that paging always moves on.
func (r *rest[R]) take(budget *int) []R {
	n := 0
	for n < len(r.sizes) && (n == 0 || r.sizes[n]+1 <= *budget) {
		*budget -= r.sizes[n] + 1
		n++
	}
	out := make([]R, n)
	copy(out, r.records)
	r.records, r.sizes = r.records[n:], r.sizes[n:]
	return out
}

func (r *rest[R]) done() bool { return len(r.records) == 0 }

func expired(after string) *metav1.Status {
	return refusal(http.StatusGone, metav1.StatusReasonExpired,
		fmt.Sprintf("the snapshot that %q is a place in is no longer kept: ask from the start", after))
}

func refusal(code int32, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	}
}
