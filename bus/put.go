package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers by which NATS KV marks deletions, and JetStream conditions.
const (
	headerOperation = "KV-Operation"
	opDelete        = "DEL"
	opPurge         = "PURGE"
	headerRollup    = "Nats-Rollup"
	headerTTL       = "Nats-TTL"
	headerMarker    = "Nats-Marker-Reason" // set by the server where a value expired
	headerExpect    = "Nats-Expected-Last-Subject-Sequence"
)

const codeWrongSequence = 10071

const (
	putTimeout  = 3 * time.Second  // for one attempt to store a message
	putPatience = 30 * time.Second // for all, where the caller sets no deadline
)

// put is one message for a stream.
type put struct {
	subject string
	body    []byte
	header  nats.Header
	// cas stores only if the subject's last message has the sequence expect
	// (0: there is none).
	cas    bool
	expect uint64
}

func (p put) message() *nats.Msg {
	m := nats.NewMsg(p.subject)
	m.Data = p.body
	for k, v := range p.header {
		m.Header[k] = v
	}
	if p.cas {
		m.Header.Set(headerExpect, strconv.FormatUint(p.expect, 10))
	}
	return m
}

// pubAck is how JetStream answers a publish.
type pubAck struct {
	Stream   string              `json:"stream"`
	Sequence uint64              `json:"seq"`
	Error    *jetstream.APIError `json:"error"`
}

// put stores a message and returns its sequence once the stream has it safe.
//
// An attempt without an answer may have been stored. It is repeated, which the
// condition makes harmless, and a conflict then means either another writer or
// ourselves: the message that is there decides.
func (c *Conn) put(ctx context.Context, p put) (uint64, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, putPatience)
		defer cancel()
	}
	var repeated bool
	for {
		seq, err := c.putOnce(ctx, p)
		switch {
		case err == nil:
			return seq, nil
		case errors.Is(err, ErrConflict) && repeated:
			return c.settle(ctx, p, err)
		case !unanswered(err) || ctx.Err() != nil:
			return 0, err
		}
		c.log.Warn().Err(err).Str("subject", p.subject).Msg("bus did not acknowledge, trying again")
		repeated = true
		if werr := wait(ctx, 100*time.Millisecond); werr != nil {
			return 0, err
		}
	}
}

func (c *Conn) putOnce(ctx context.Context, p put) (uint64, error) {
	try, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	reply, err := c.link.request(try, p.message())
	if err != nil {
		return 0, err
	}
	return readAck(p.subject, reply.Data)
}

func readAck(subject string, data []byte) (uint64, error) {
	var ack pubAck
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("store %s: read acknowledgement: %w", subject, err)
	}
	if ack.Error == nil {
		if ack.Stream == "" {
			return 0, fmt.Errorf("store %s: the answer is not JetStream's", subject)
		}
		return ack.Sequence, nil
	}
	if ack.Error.ErrorCode == codeWrongSequence || ack.Error.ErrorCode == 10164 {
		return 0, fmt.Errorf("store %s: %w", subject, ErrConflict)
	}
	return 0, fmt.Errorf("store %s: %w", subject, ack.Error)
}

// settle finds out whether a message that conflicts after a lost
// acknowledgement is our own.
func (c *Conn) settle(ctx context.Context, p put, conflict error) (uint64, error) {
	stream, err := c.streamOf(p.subject)
	if err != nil {
		return 0, err
	}
	m, err := c.lastMessage(ctx, stream, p.subject)
	if err != nil {
		return 0, err
	}
	if m.Sequence > p.expect && bytes.Equal(m.Data, p.body) && m.Header.Get(headerOperation) == p.header.Get(headerOperation) {
		return m.Sequence, nil
	}
	return 0, conflict
}
