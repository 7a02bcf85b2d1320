package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gantry.dev/schemas"
)

// HealthMsg is one report of a node. Exactly one of Pod, NodeHealth and Event
// is set.
type HealthMsg struct {
	Node       string // from the subject, which the server vouches for
	Pod        *schemas.PodHealth
	NodeHealth *schemas.NodeHealth
	Event      *schemas.PodEvent
	Sequence   uint64 // in the health stream
	Received   time.Time
}

// WatchHealth calls fn for the newest report of every pod and node and then
// for all that come, in order, one at a time, until ctx ends; it returns then,
// and not before. After a loss of the connection the newest reports come
// again: PodHealth.Seq and NodeHealth.Seq tell what is not new. A report whose
// node, namespace or name differs from its subject, or that is meant for another
// cluster, is logged and left out.
func (c *Conn) WatchHealth(ctx context.Context, fn func(HealthMsg)) error {
	for ctx.Err() == nil {
		err := c.watchHealthOnce(ctx, fn)
		if ctx.Err() != nil {
			break
		}
		c.log.Info().Err(err).Msg("watch of health starts again")
		if wait(ctx, 200*time.Millisecond) != nil {
			break
		}
	}
	return nil
}

var errReconnected = errors.New("connection was lost")

func (c *Conn) watchHealthOnce(ctx context.Context, fn func(HealthMsg)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The stream is in memory: another server may have begun it anew, with
	// sequences below ours.
	defer c.onReconnect(0, func() { cancel(errReconnected) })()

	var cons jetstream.Consumer
	err := retryAPI(ctx, func(ctx context.Context) (err error) {
		cons, err = c.js.OrderedConsumer(ctx, c.names.HealthStream(), jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{c.names.HealthAll()},
			DeliverPolicy:  jetstream.DeliverLastPerSubjectPolicy,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("follow health: %w", err)
	}
	reading, err := cons.Consume(func(m jetstream.Msg) {
		h, err := c.readHealth(m)
		if err != nil {
			c.log.Warn().Err(err).Str("subject", m.Subject()).Msg("refuse report")
			return
		}
		fn(h)
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		c.log.Debug().Err(err).Msg("follow health")
	}))
	if err != nil {
		return fmt.Errorf("follow health: %w", err)
	}
	defer func() {
		reading.Stop()
		<-reading.Closed() // fn is not called after the return
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-reading.Closed():
		return errors.New("follow health: closed")
	}
}

func (c *Conn) readHealth(m jetstream.Msg) (HealthMsg, error) {
	meta, err := m.Metadata()
	if err != nil {
		return HealthMsg{}, err
	}
	if id := m.Headers().Get(schemas.HeaderCluster); id != "" && id != c.cluster.ID {
		return HealthMsg{}, fmt.Errorf("report %w: %q, not %q", ErrWrongCluster, id, c.cluster.ID)
	}
	h := HealthMsg{Sequence: meta.Sequence.Stream, Received: meta.Timestamp}
	return h, h.decode(c.names, m.Subject(), m.Data())
}

// decode reads a report and compares it with its subject, by making the
// subject again from what the report claims.
func (h *HealthMsg) decode(names schemas.Names, subject string, data []byte) error {
	token, kind, ok := healthTokens(names, subject)
	if !ok {
		return errors.New("subject is not health.<node>.pod|node|event")
	}
	h.Node = schemas.NodeFromToken(token)
	var claimed, says string
	var err error
	switch kind {
	case "pod":
		h.Pod = &schemas.PodHealth{}
		err = json.Unmarshal(data, h.Pod)
		says, claimed = h.Pod.Node, names.HealthPod(h.Pod.Node, h.Pod.Namespace, h.Pod.Name)
	case "node":
		h.NodeHealth = &schemas.NodeHealth{}
		err = json.Unmarshal(data, h.NodeHealth)
		says, claimed = h.NodeHealth.Node, names.HealthNode(h.NodeHealth.Node)
	case "event":
		h.Event = &schemas.PodEvent{}
		err = json.Unmarshal(data, h.Event)
		says, claimed = h.Event.Node, names.HealthEvent(h.Event.Node, h.Event.Namespace, h.Event.Pod)
	default:
		return fmt.Errorf("%q is no kind of report", kind)
	}
	if err != nil {
		return fmt.Errorf("decode report: %w", err)
	}
	if claimed != subject {
		return fmt.Errorf("node %q reports as %q for %s: %w", h.Node, says, claimed, ErrForbidden)
	}
	return nil
}

func healthTokens(names schemas.Names, subject string) (node, kind string, ok bool) {
	rest, ok := strings.CutPrefix(subject, strings.TrimSuffix(names.HealthAll(), ">"))
	if !ok {
		return "", "", false
	}
	node, rest, ok = strings.Cut(rest, ".")
	kind, _, _ = strings.Cut(rest, ".")
	return node, kind, ok
}
