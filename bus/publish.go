package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// feedMarkerTTL is how long a deletion shows in the buckets that nodes hear.
const feedMarkerTTL = 10 * time.Minute

// FeedWrite is one record for nodes to hear.
type FeedWrite struct {
	// Node is whose desired state it is; empty for a route, which all hear.
	Node string
	// Key in the desired or routes bucket.
	Key string
	// Body is the record as JSON; nil leaves a marker of deletion instead, which
	// nodes ignore.
	Body []byte
}

// PutDesired tells one node a record under a key of the desired bucket. It is
// signed, and sent in the order of the calls.
func (c *Conn) PutDesired(ctx context.Context, node, key string, body []byte) error {
	return c.PutAll(ctx, []FeedWrite{{Node: node, Key: key, Body: body}})
}

// DeleteDesired takes a key out of the desired bucket. Nodes do not act on
// that: they are told by a last record with Removed.
func (c *Conn) DeleteDesired(ctx context.Context, node, key string) error {
	return c.PutAll(ctx, []FeedWrite{{Node: node, Key: key}})
}

// PutRoute tells all nodes a record under a key of the routes bucket.
func (c *Conn) PutRoute(ctx context.Context, key string, body []byte) error {
	return c.PutAll(ctx, []FeedWrite{{Key: key, Body: body}})
}

// DeleteRoute takes a key out of the routes bucket; see DeleteDesired.
func (c *Conn) DeleteRoute(ctx context.Context, key string) error {
	return c.PutAll(ctx, []FeedWrite{{Key: key}})
}

// PutAll sends many records, in order, without waiting for each, and returns
// when all are kept. After an error some may have been heard: nodes find out
// by the gap in the feed.
func (c *Conn) PutAll(ctx context.Context, writes []FeedWrite) error {
	acks := make([]jetstream.PubAckFuture, 0, len(writes))
	for _, w := range writes {
		m, err := c.feedMessage(w)
		if err != nil {
			return err
		}
		// Too many at once wait for acknowledgements of the first.
		ack, err := c.js.PublishMsgAsync(m, jetstream.WithStallWait(apiTimeout))
		if err != nil {
			return fmt.Errorf("tell nodes %s: %w", w.Key, err)
		}
		acks = append(acks, ack)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*apiTimeout)
	defer cancel()
	for i, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("tell nodes %s: %w", writes[i].Key, err)
		case <-ctx.Done():
			return fmt.Errorf("tell nodes %s: not acknowledged: %w", writes[i].Key, ctx.Err())
		}
	}
	return nil
}

func (c *Conn) feedMessage(w FeedWrite) (*nats.Msg, error) {
	bucket := c.names.RoutesBucket()
	if w.Node != "" {
		bucket = c.names.DesiredBucket()
		if !strings.HasPrefix(w.Key, schemas.NodeToken(w.Node)+".") {
			return nil, fmt.Errorf("tell node %q: key %q is not its own", w.Node, w.Key)
		}
	}
	m := nats.NewMsg(schemas.KVSubject(bucket, w.Key))
	if w.Body == nil {
		m.Header.Set(headerOperation, opDelete)
		m.Header.Set(headerTTL, feedMarkerTTL.String())
		return m, nil
	}
	if limit := c.MaxPayload() - answerRoom; int64(len(w.Body)) > limit {
		return nil, fmt.Errorf("tell nodes %s: %d bytes are %w: the limit is %d", w.Key, len(w.Body), ErrTooLarge, limit)
	}
	signature, err := c.signer.sign(m.Subject, w.Body)
	if err != nil {
		return nil, err
	}
	m.Data = w.Body
	m.Header.Set(schemas.HeaderSignature, signature)
	return m, nil
}

// ClearFeeds empties the desired and routes buckets. A publisher that starts
// does so before it writes what it compiled: nodes do not see it.
func (c *Conn) ClearFeeds(ctx context.Context) error {
	for _, bucket := range []string{c.names.DesiredBucket(), c.names.RoutesBucket()} {
		err := retryAPI(ctx, func(ctx context.Context) error {
			s, err := c.js.Stream(ctx, "KV_"+bucket)
			if err != nil {
				return err
			}
			return s.Purge(ctx)
		})
		if err != nil {
			return fmt.Errorf("clear bucket %s: %w", bucket, err)
		}
	}
	return nil
}

// ServeSync answers the nodes' SyncRequests until ctx ends; it returns once
// they are heard. fn runs for many nodes at once. The node is who the subject
// says; a request that claims another is refused before fn. Nonce, node and
// cluster id of the answer are filled in.
func (c *Conn) ServeSync(ctx context.Context, fn func(context.Context, schemas.SyncRequest) schemas.SyncReply) error {
	p := newPool(256, c.log)
	sub, err := c.link.nc.QueueSubscribe(c.names.SyncAll(), "sync", func(m *nats.Msg) {
		p.wait(ctx, func() { c.answerSync(ctx, m, fn) })
	})
	if err != nil {
		return fmt.Errorf("serve sync: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = sub.Unsubscribe() }) // fails only where the connection is closed
	if err := c.link.nc.FlushWithContext(flushContext(ctx)); err != nil {
		return fmt.Errorf("serve sync: %w", err)
	}
	return nil
}

func (c *Conn) answerSync(ctx context.Context, m *nats.Msg, fn func(context.Context, schemas.SyncRequest) schemas.SyncReply) {
	token := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	node := schemas.NodeFromToken(token)
	reply := c.syncReply(ctx, node, m, fn)
	body, err := json.Marshal(reply)
	if err == nil && int64(len(body))+answerRoom > c.MaxPayload() {
		reply = c.refuseSync(node, reply.Nonce, tooLargeAnswer(len(body), c.MaxPayload()-answerRoom))
		body, err = json.Marshal(reply)
	}
	if err != nil {
		c.log.Error().Err(err).Str("node", node).Msg("encode answer to sync")
		return
	}
	signature, err := c.signer.sign(m.Subject, body)
	if err != nil {
		c.log.Error().Err(err).Str("node", node).Msg("sign answer to sync")
		return
	}
	out := nats.NewMsg(m.Reply)
	out.Data = body
	out.Header.Set(schemas.HeaderSignature, signature)
	if err := m.RespondMsg(out); err != nil {
		c.log.Warn().Err(err).Str("node", node).Msg("answer sync")
	}
}

func (c *Conn) syncReply(ctx context.Context, node string, m *nats.Msg, fn func(context.Context, schemas.SyncRequest) schemas.SyncReply) (reply schemas.SyncReply) {
	var req schemas.SyncRequest
	if err := json.Unmarshal(m.Data, &req); err != nil {
		return c.refuseSync(node, "", newStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, "read sync request: "+err.Error()))
	}
	if req.Node != node {
		c.log.Warn().Str("node", node).Str("claims", req.Node).Msg("refuse sync of a node that claims to be another")
		return c.refuseSync(node, req.Nonce, newStatus(http.StatusForbidden, metav1.StatusReasonForbidden,
			fmt.Sprintf("node %q may not ask as %q", node, req.Node)))
	}
	if id := m.Header.Get(schemas.HeaderCluster); id != "" && id != c.cluster.ID {
		// Not counted as a sign of life: nothing may be bound to a node that will
		// not listen. 503, because the data may come back with a backup.
		return c.refuseSync(node, req.Nonce, newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable,
			fmt.Sprintf("node %q belongs to cluster %s, and this is %s: restore the control plane's data, or reset the node", node, id, c.cluster.ID)))
	}
	a := guarded(c.log, m.Subject, func() answer {
		reply = fn(ctx, req)
		return answer{}
	})
	if a.status != nil {
		return c.refuseSync(node, req.Nonce, a.status)
	}
	reply.ClusterID, reply.Node, reply.Nonce = c.cluster.ID, node, req.Nonce
	return reply
}

func (c *Conn) refuseSync(node, nonce string, s *metav1.Status) schemas.SyncReply {
	return schemas.SyncReply{ClusterID: c.cluster.ID, Node: node, Nonce: nonce, Error: s}
}

// NodeRequest asks one node. Errors wrap ErrNoAnswer where it is not
// connected, or are what the node refused with (an APIStatus).
func (c *Conn) NodeRequest(ctx context.Context, node, method string, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	return c.link.nodeRequest(ctx, c.names, node, method, header, body)
}

func (l *link) nodeRequest(ctx context.Context, names schemas.Names, node, method string, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	m := nats.NewMsg(names.Node(node, method))
	if err := checkTokens(schemas.NodeToken(node), method); err != nil {
		return nil, nil, fmt.Errorf("ask node %q for %s: %w", node, method, err)
	}
	m.Data = body
	for k, v := range header {
		m.Header[k] = v
	}
	reply, err := l.request(ctx, m)
	if errors.Is(err, ErrNoAnswer) {
		return nil, nil, fmt.Errorf("ask node %s for %s: the node is not connected: %w", node, method, ErrNoAnswer)
	}
	if err == nil {
		err = refusal(reply)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ask node %s for %s: %w", node, method, err)
	}
	return reply.Data, reply.Header, nil
}

// flushContext gives a context a deadline where it has none: NATS wants one.
// The context that comes out ends by itself.
func flushContext(ctx context.Context) context.Context {
	if _, ok := ctx.Deadline(); ok {
		return ctx
	}
	bounded, cancel := context.WithTimeout(ctx, apiTimeout)
	context.AfterFunc(bounded, cancel)
	return bounded
}
