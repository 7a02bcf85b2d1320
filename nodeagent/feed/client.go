// Package feed listens to what the control plane tells its node. It notices
// what it missed, asks for it again, shows that the node lives, and takes the
// absence of a pod for its end only when that can be trusted.
package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// ErrRefused says that the control plane will not have this agent, for example
// because another one runs under the node's name. Trying again cannot help.
var ErrRefused = errors.New("the control plane refused this agent")

const (
	defaultHeartbeat = 10 * time.Second
	syncTimeout      = 10 * time.Second
	retryFirst       = 500 * time.Millisecond
	// settle is how long a wake waits for others: after an outage many records
	// show the same gap.
	settle = 20 * time.Millisecond
)

// Conn asks the control plane.
type Conn interface {
	Sync(ctx context.Context, req schemas.SyncRequest) (schemas.SyncReply, error)
}

// Sink takes in what is told. Its methods are called one at a time and must
// not block for long.
type Sink interface {
	// Pod is told anew; records of one pod may repeat or come out of order.
	Pod(r schemas.PodRecord)
	// Route is told anew; Removed ones too.
	Route(r schemas.RouteRecord)
	Network(r schemas.NetworkRecord)
	// Pods are all that the node has, however it came by them.
	Pods() []types.UID
	// Absent is a pod of Pods that the control plane knows nothing of.
	Absent(uid types.UID)
	// Routes are the keys (namespace/name) of all that the node routes.
	Routes() []string
	RouteAbsent(key string)
	// RoutesComplete follows each complete word about the routes.
	RoutesComplete()
	// Revision is the newest revision ever told; Advance raises it.
	Revision() uint64
	Advance(revision uint64)
	// Joined tells the cluster's id where the credentials did not.
	Joined(clusterID string)
	// NewEpoch says that the control plane may know nothing of what the node
	// reported before.
	NewEpoch()
}

// Identity is what the node calls itself. ClusterID may be empty in credentials
// that are older than the cluster; what the control plane says is taken then.
type Identity struct {
	Node, ClusterID, Instance, Host string
}

// Client follows the two feeds of a node.
type Client struct {
	id   Identity
	conn Conn
	sink Sink
	log  zerolog.Logger
	now  func() time.Time
	wake chan struct{} // capacity 1: sync now

	mu     sync.Mutex // guards what follows, and calls of the sink
	pods   position
	routes position
	gate   gate
	// during collects what came while a sync was under way; nil otherwise.
	during *during
}

type during struct {
	pods   map[types.UID]bool
	routes map[string]bool
}

// New makes a client; Run makes it work.
func New(id Identity, conn Conn, sink Sink, log zerolog.Logger) *Client {
	return &Client{id: id, conn: conn, sink: sink, log: log, now: time.Now, wake: make(chan struct{}, 1)}
}

// Pod takes in one record from the feed.
func (c *Client) Pod(r schemas.PodRecord) {
	if !c.ours(r.ClusterID, r.Node) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.during != nil {
		c.during.pods[r.UID] = true
	}
	c.sink.Pod(r)
	if !c.pods.heard(r.Feed) {
		c.Sync()
	}
}

// Route takes in one record from the feed of routes.
func (c *Client) Route(r schemas.RouteRecord) {
	if !c.ours(r.ClusterID, c.id.Node) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.during != nil {
		c.during.routes[r.Namespace+"/"+r.Name] = true
	}
	c.sink.Route(r)
	if !c.routes.heard(r.Feed) {
		c.Sync()
	}
}

// Network takes in the node's part of the network.
func (c *Client) Network(r schemas.NetworkRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sink.Network(r)
}

func (c *Client) ours(cluster, node string) bool {
	if (cluster == c.id.ClusterID || c.id.ClusterID == "") && node == c.id.Node {
		return true
	}
	c.log.Error().Str("cluster", cluster).Str("node", node).Msg("ignored a record that is not for this node")
	return false
}

// Sync asks for a sync soon.
func (c *Client) Sync() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run syncs at once, then with each heartbeat, each gap and each failure,
// until ctx ends or the control plane refuses the agent.
func (c *Client) Run(ctx context.Context) error {
	failures := 0
	var wait time.Duration
	for {
		beat, err := c.sync(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRefused):
			return err
		case err != nil:
			failures++
			wait = min(retryFirst<<min(failures-1, 10), defaultHeartbeat)
			if failures == 1 || failures%30 == 0 {
				c.log.Warn().Err(err).Int("failures", failures).Msg("cannot sync with the control plane; what runs goes on")
			}
		default:
			if failures > 0 {
				c.log.Info().Int("failures", failures).Msg("synced with the control plane again")
			}
			failures, wait = 0, beat
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-c.wake:
			timer.Stop()
			// One sync for all that comes within a moment.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
			select {
			case <-c.wake:
			default:
			}
		}
	}
}

// sync asks once, and on until every page is there.
func (c *Client) sync(ctx context.Context) (heartbeat time.Duration, err error) {
	c.mu.Lock()
	req := schemas.SyncRequest{
		Node: c.id.Node, Instance: c.id.Instance, Host: c.id.Host,
		Pods: c.pods.ask(), Routes: c.routes.ask(),
	}
	c.during = &during{pods: map[types.UID]bool{}, routes: map[string]bool{}}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.during = nil
		c.mu.Unlock()
	}()

	reply, err := c.ask(ctx, req)
	if err != nil {
		return 0, err
	}
	heartbeat = time.Duration(reply.HeartbeatSeconds) * time.Second
	if heartbeat <= 0 {
		heartbeat = defaultHeartbeat
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.id.ClusterID == "" {
		c.id.ClusterID = reply.ClusterID
		c.sink.Joined(reply.ClusterID)
	}
	backwards := reply.Revision < c.sink.Revision()
	if backwards {
		c.log.Error().Uint64("revision", reply.Revision).Uint64("seen", c.sink.Revision()).
			Msg("the control plane's state went backwards: nothing is removed because of it")
	}
	if reply.Network != nil {
		c.sink.Network(*reply.Network)
	}
	if reply.Routes != nil {
		if err := c.takeRoutes(ctx, req, reply.Routes, backwards); err != nil {
			return 0, err
		}
	}
	if reply.Pods != nil {
		if err := c.takePods(ctx, req, reply.Pods, backwards, heartbeat); err != nil {
			return 0, err
		}
	}
	if !backwards {
		c.sink.Advance(reply.Revision)
	}
	return heartbeat, nil
}

// ask sends one request and checks that the answer is one to it.
func (c *Client) ask(ctx context.Context, req schemas.SyncRequest) (schemas.SyncReply, error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	req.Nonce = rand.Text()
	reply, err := c.conn.Sync(ctx, req)
	if err != nil {
		return schemas.SyncReply{}, fmt.Errorf("sync with the control plane: %w", err)
	}
	switch {
	case reply.Nonce != req.Nonce:
		return schemas.SyncReply{}, errors.New("sync with the control plane: the answer is to another question")
	case reply.Node != req.Node:
		return schemas.SyncReply{}, fmt.Errorf("sync with the control plane: the answer is for node %q", reply.Node)
	case reply.Error != nil:
		return schemas.SyncReply{}, refusal(*reply.Error)
	case c.id.ClusterID != "" && reply.ClusterID != c.id.ClusterID:
		return schemas.SyncReply{}, fmt.Errorf("%w: it is cluster %s, this node belongs to %s", ErrRefused, reply.ClusterID, c.id.ClusterID)
	}
	return reply, nil
}

// refusal tells a refusal for good from one that may pass.
func refusal(s metav1.Status) error {
	switch s.Reason {
	case metav1.StatusReasonConflict, metav1.StatusReasonAlreadyExists, metav1.StatusReasonForbidden,
		metav1.StatusReasonInvalid, metav1.StatusReasonGone, metav1.StatusReasonUnauthorized:
		return fmt.Errorf("%w: %s", ErrRefused, s.Message)
	}
	return fmt.Errorf("sync with the control plane: %s", s.Message)
}

// more asks for a next page without the lock, so that the feed is heard meanwhile.
func (c *Client) more(ctx context.Context, req schemas.SyncRequest) (schemas.SyncReply, error) {
	c.mu.Unlock()
	defer c.mu.Lock()
	return c.ask(ctx, req)
}

func (c *Client) takePods(ctx context.Context, req schemas.SyncRequest, page *schemas.PodSnapshot, backwards bool, heartbeat time.Duration) error {
	pos, present := page.Pos, map[types.UID]bool{}
	req.Pods, req.Routes = schemas.FeedPos{}, c.routes.ask()
	for {
		for _, r := range page.Records {
			if c.ours(r.ClusterID, r.Node) {
				present[r.UID] = true
				c.sink.Pod(r)
			}
		}
		if page.Next == "" {
			break
		}
		req.PodsAfter = page.Next
		reply, err := c.more(ctx, req)
		if err != nil {
			return err
		}
		if reply.Pods == nil || reply.Pods.Pos.Epoch != pos.Epoch {
			return errors.New("sync with the control plane: the pods moved on between two pages")
		}
		page = reply.Pods
	}
	if c.pods.reached(pos) {
		c.sink.NewEpoch()
	}
	known := c.sink.Pods()
	var absent []types.UID
	for _, uid := range known {
		if !present[uid] && !c.during.pods[uid] {
			absent = append(absent, uid)
		}
	}
	if backwards {
		if len(absent) > 0 {
			c.pods.again = true
		}
		return nil
	}
	if !c.gate.pass(absent, len(known), c.now(), heartbeat) {
		c.log.Warn().Int("absent", len(absent)).Int("known", len(known)).
			Msg("the control plane no longer knows most pods of this node: waiting for it to say so again")
		c.pods.again = true
		return nil
	}
	for _, uid := range absent {
		c.sink.Absent(uid)
	}
	return nil
}

func (c *Client) takeRoutes(ctx context.Context, req schemas.SyncRequest, page *schemas.RouteSnapshot, backwards bool) error {
	pos, present := page.Pos, map[string]bool{}
	req.Routes, req.Pods = schemas.FeedPos{}, c.pods.ask()
	for {
		for _, r := range page.Records {
			if c.ours(r.ClusterID, c.id.Node) {
				present[r.Namespace+"/"+r.Name] = true
				c.sink.Route(r)
			}
		}
		if page.Next == "" {
			break
		}
		req.RoutesAfter = page.Next
		reply, err := c.more(ctx, req)
		if err != nil {
			return err
		}
		if reply.Routes == nil || reply.Routes.Pos.Epoch != pos.Epoch {
			return errors.New("sync with the control plane: the routes moved on between two pages")
		}
		page = reply.Routes
	}
	c.routes.reached(pos)
	if backwards {
		return nil
	}
	for _, key := range c.sink.Routes() {
		if !present[key] && !c.during.routes[key] {
			c.sink.RouteAbsent(key)
		}
	}
	c.sink.RoutesComplete()
	return nil
}
