package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

// ErrWrongCluster is word from a control plane of another cluster, or of this
// one after its data was lost and it began anew.
var ErrWrongCluster = errors.New("is of another cluster")

// NodeHandlers is what an agent does with what it hears. Any may be nil. Each
// is called for one record at a time; Desired and Network from one goroutine,
// Route and Reconnected from others. They must not block for long.
type NodeHandlers struct {
	Desired func(schemas.PodRecord)
	Network func(schemas.NetworkRecord)
	Route   func(schemas.RouteRecord)
	// Reconnected is called when a connection stands, the first one included.
	// What was said before has not been heard: Sync.
	Reconnected func()
}

// NodeConn is an agent's connection: its whole contract with the cluster.
type NodeConn struct {
	link     *link
	names    schemas.Names
	creds    schemas.NodeCredentials
	signer   nkeys.KeyPair
	handlers NodeHandlers
	log      zerolog.Logger
	refused  atomic.Uint64
	ctx      context.Context // of Serve's handlers; ends with Close
	cancel   context.CancelFunc
	lanes    nodeLanes
}

// ConnectNode connects an agent. It returns at once, also while the server
// cannot be reached, and keeps trying until Close.
func ConnectNode(ctx context.Context, creds schemas.NodeCredentials, h NodeHandlers, log zerolog.Logger) (*NodeConn, error) {
	key, err := nkeys.FromSeed(trimSeed([]byte(creds.Seed)))
	if err != nil {
		return nil, fmt.Errorf("connect node %q: read seed: %w", creds.Node, err)
	}
	n := &NodeConn{names: schemas.Names{Prefix: creds.Prefix}, creds: creds, handlers: h, log: log, lanes: newLanes(log)}
	if n.signer, err = nkeys.FromPublicKey(creds.Signer); err != nil {
		return nil, fmt.Errorf("connect node %q: read signer: %w", creds.Node, err)
	}
	n.link, err = dial(ctx, dialOptions{
		name: "gantry node " + creds.Node, urls: creds.URLs, ca: creds.CA, key: key, log: log, patient: true,
		onReconnect: func() {
			log.Info().Msg("connected to the control plane")
			if h.Reconnected != nil {
				h.Reconnected()
			}
		},
		onDisconnect: func(err error) { log.Warn().Err(err).Msg("connection to the control plane lost") },
	})
	if err != nil {
		return nil, fmt.Errorf("connect node %q: %w", creds.Node, err)
	}
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for subject, fn := range map[string]func(*nats.Msg){
		n.names.DesiredSubjects(creds.Node): n.hearDesired,
		n.names.RoutesSubjects():            n.hearRoute,
	} {
		if _, err := n.link.nc.Subscribe(subject, fn); err != nil {
			n.Close()
			return nil, fmt.Errorf("connect node %q: listen on %s: %w", creds.Node, subject, err)
		}
	}
	return n, nil
}

// Connected says whether there is a connection right now.
func (n *NodeConn) Connected() bool { return n.link.nc.IsConnected() }

// Refused counts the messages that were dropped because their signature,
// cluster, node or key did not hold.
func (n *NodeConn) Refused() uint64 { return n.refused.Load() }

// Close ends the connection and waits for requests that are being answered.
func (n *NodeConn) Close() {
	n.link.nc.Close()
	n.cancel()
	n.lanes.wait()
}

func (n *NodeConn) refuse(m *nats.Msg, err error) {
	n.refused.Add(1)
	n.log.Warn().Err(err).Str("subject", m.Subject).Msg("refuse message")
}

// open checks the signature of a KV message and decodes it. A marker of
// deletion has no body and means nothing to a node: ok is false.
func (n *NodeConn) open(m *nats.Msg, into any) (ok bool) {
	if len(m.Data) == 0 {
		return false
	}
	if err := verify(n.signer, m.Subject, m.Data, m.Header.Get(schemas.HeaderSignature)); err != nil {
		n.refuse(m, err)
		return false
	}
	if err := json.Unmarshal(m.Data, into); err != nil {
		n.refuse(m, fmt.Errorf("decode record: %w", err))
		return false
	}
	return true
}

// ofCluster says whether the id is that of the cluster the node belongs to.
// Credentials that were made before the cluster leave it open.
func (n *NodeConn) ofCluster(id string) bool {
	return n.creds.ClusterID == "" || id == n.creds.ClusterID
}

func (n *NodeConn) hearDesired(m *nats.Msg) {
	key := strings.TrimPrefix(m.Subject, schemas.KVSubject(n.names.DesiredBucket(), ""))
	if key == schemas.DesiredNetworkKey(n.creds.Node) {
		var r schemas.NetworkRecord
		if n.open(m, &r) && n.handlers.Network != nil {
			n.handlers.Network(r)
		}
		return
	}
	var r schemas.PodRecord
	if !n.open(m, &r) {
		return
	}
	switch {
	case !n.ofCluster(r.ClusterID):
		n.refuse(m, fmt.Errorf("record %w: %q, not %q", ErrWrongCluster, r.ClusterID, n.creds.ClusterID))
	case r.Node != n.creds.Node || schemas.DesiredPodKey(r.Node, r.Namespace, r.Name) != key:
		n.refuse(m, fmt.Errorf("record is of node %q, pod %s/%s", r.Node, r.Namespace, r.Name))
	case n.handlers.Desired != nil:
		n.handlers.Desired(r)
	}
}

func (n *NodeConn) hearRoute(m *nats.Msg) {
	var r schemas.RouteRecord
	if !n.open(m, &r) {
		return
	}
	key := strings.TrimPrefix(m.Subject, schemas.KVSubject(n.names.RoutesBucket(), ""))
	switch {
	case !n.ofCluster(r.ClusterID):
		n.refuse(m, fmt.Errorf("record %w: %q, not %q", ErrWrongCluster, r.ClusterID, n.creds.ClusterID))
	case schemas.RouteServiceKey(r.Namespace, r.Name) != key:
		n.refuse(m, fmt.Errorf("record is of service %s/%s", r.Namespace, r.Name))
	case n.handlers.Route != nil:
		n.handlers.Route(r)
	}
}

// Sync asks for what the node misses, which also shows that it lives. Node and
// nonce of the request are filled in. A reply whose Error is set is returned as it is: the
// control plane refuses the node, and says why.
func (n *NodeConn) Sync(ctx context.Context, req schemas.SyncRequest) (schemas.SyncReply, error) {
	req.Node = n.creds.Node
	if req.Nonce == "" {
		req.Nonce = randomID()
	}
	m, err := n.send(ctx, n.names.Sync(n.creds.Node), req)
	if err != nil {
		return schemas.SyncReply{}, fmt.Errorf("sync: %w", err)
	}
	if err := verify(n.signer, n.names.Sync(n.creds.Node), m.Data, m.Header.Get(schemas.HeaderSignature)); err != nil {
		n.refuse(m, err)
		return schemas.SyncReply{}, fmt.Errorf("sync: %w", err)
	}
	var reply schemas.SyncReply
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return schemas.SyncReply{}, fmt.Errorf("sync: decode reply: %w", err)
	}
	switch {
	case reply.Nonce != req.Nonce || reply.Node != req.Node:
		err = fmt.Errorf("sync: reply is to another request: %w", ErrUnsigned)
	case !n.ofCluster(reply.ClusterID):
		err = fmt.Errorf("sync: reply %w: %q, not %q", ErrWrongCluster, reply.ClusterID, n.creds.ClusterID)
	}
	if err != nil {
		n.refuse(m, err)
		return schemas.SyncReply{}, err
	}
	return reply, nil
}

// ReportPod tells the health of a pod and returns when the bus keeps it.
func (n *NodeConn) ReportPod(ctx context.Context, h schemas.PodHealth) error {
	return n.report(ctx, n.names.HealthPod(n.creds.Node, h.Namespace, h.Name), h)
}

// ReportNode tells the health of the node and returns when the bus keeps it.
func (n *NodeConn) ReportNode(ctx context.Context, h schemas.NodeHealth) error {
	return n.report(ctx, n.names.HealthNode(n.creds.Node), h)
}

// ReportEvent tells what happened to a pod and returns when the bus keeps it.
func (n *NodeConn) ReportEvent(ctx context.Context, e schemas.PodEvent) error {
	return n.report(ctx, n.names.HealthEvent(n.creds.Node, e.Namespace, e.Pod), e)
}

func (n *NodeConn) report(ctx context.Context, subject string, body any) error {
	m, err := n.send(ctx, subject, body)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if _, err := readAck(subject, m.Data); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// nodeSendTimeout bounds what an agent sends without a deadline of its own.
const nodeSendTimeout = 5 * time.Second

func (n *NodeConn) send(ctx context.Context, subject string, body any) (*nats.Msg, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", subject, err)
	}
	ctx, cancel := context.WithTimeout(ctx, nodeSendTimeout)
	defer cancel()
	m := nats.NewMsg(subject)
	m.Data = data
	if n.creds.ClusterID != "" {
		m.Header.Set(schemas.HeaderCluster, n.creds.ClusterID)
	}
	return n.link.request(ctx, m)
}

// NodeMethod answers one request. An error becomes a refusal: its Status where
// it carries one (apimachinery's APIStatus), else by its kind.
type NodeMethod func(ctx context.Context, header map[string][]string, body []byte) (answer []byte, answerHeader map[string][]string, err error)

// Serve answers requests for one method of this node until Close. Requests run
// at once up to a bound, beyond which they are refused: reading logs has a
// bound of its own, sessions have one, and all other methods share one. Large
// answers take turns, so that reports and other answers need not wait for long.
func (n *NodeConn) Serve(method string, fn NodeMethod) error {
	subject := n.names.Node(n.creds.Node, method)
	lane := n.lanes.of(method)
	_, err := n.link.nc.Subscribe(subject, func(m *nats.Msg) {
		work := func() {
			n.respond(lane, m, guarded(n.log, m.Subject, func() answer {
				body, header, err := fn(n.ctx, m.Header, m.Data)
				if err != nil {
					return answer{status: failure(err)}
				}
				return answer{body: body, header: header}
			}))
		}
		if !lane.requests.try(work) {
			n.respond(lane, m, answer{status: busy()})
		}
	})
	if err != nil {
		return fmt.Errorf("serve %s: %w", subject, err)
	}
	return nil
}

func (n *NodeConn) respond(lane *nodeLane, m *nats.Msg, a answer) {
	if m.Reply == "" {
		return
	}
	out := a.message(m.Reply, n.link.nc.MaxPayload())
	var err error
	if len(out.Data) < largeAnswer {
		err = m.RespondMsg(out)
	} else {
		err = lane.send(n.ctx, n.link.nc, out)
	}
	if err != nil {
		n.log.Debug().Err(err).Str("subject", m.Subject).Msg("answer request")
	}
}
