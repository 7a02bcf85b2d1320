package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

// nodeLane is a kind of requests to a node: how many are worked on at once, and how
// many large answers may be on their way at once. Lanes share nothing but the
// connection, so what fills one delays the others by a bounded number of bytes.
type nodeLane struct {
	requests *pool
	turns    chan struct{}
}

const (
	// nodeRequests bounds the requests that an agent works on at once and that
	// do not wait for anything to happen.
	nodeRequests = 64
	// nodeLogs bounds the readers of logs, most of which wait.
	nodeLogs = 256
	// nodeSessions bounds the requests about sessions, most of which wait: each
	// session has one that asks for output, and sometimes one that brings input.
	nodeSessions = 512

	// largeAnswer is from where on an answer waits for its turn, in bytes.
	largeAnswer = 16 << 10
	// Large answers under way at once, by lane. With the most that one holds
	// this is what the small messages of the node may have to wait for.
	otherTurns, logTurns, sessionTurns = 1, 2, 4
	// turnPatience is how long a server may take to read a large answer until
	// the next one is sent all the same.
	turnPatience = 10 * time.Second
)

// nodeLanes are those of one node.
type nodeLanes struct{ other, logs, sessions nodeLane }

func newLanes(log zerolog.Logger) nodeLanes {
	open := func(requests, turns int) nodeLane {
		return nodeLane{requests: newPool(requests, log), turns: make(chan struct{}, turns)}
	}
	return nodeLanes{other: open(nodeRequests, otherTurns), logs: open(nodeLogs, logTurns), sessions: open(nodeSessions, sessionTurns)}
}

func (l *nodeLanes) of(method string) *nodeLane {
	switch method {
	case schemas.NodeMethodLogs:
		return &l.logs
	case schemas.NodeMethodExec, schemas.NodeMethodAttach, schemas.NodeMethodPortForward, schemas.NodeMethodCopy,
		schemas.NodeMethodSend, schemas.NodeMethodRecv:
		return &l.sessions
	}
	return &l.other
}

func (l *nodeLanes) wait() {
	for _, one := range []*nodeLane{&l.other, &l.logs, &l.sessions} {
		one.requests.running.Wait()
	}
}

// send publishes a large answer in its turn: those who wait are served in the
// order in which they came. A turn ends when the server has read the answer,
// which it tells by answering a ping that was sent behind it. So no more than
// the answers under way lie in buffers ahead of a report of health, neither in
// the client's nor in the kernel's, however slow the line is.
func (l *nodeLane) send(ctx context.Context, nc *nats.Conn, m *nats.Msg) error {
	select {
	case l.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.turns }()
	if !nc.IsConnected() {
		return nats.ErrDisconnected // who asked does so again
	}
	if err := nc.PublishMsg(m); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	return nc.FlushWithContext(ctx)
}
