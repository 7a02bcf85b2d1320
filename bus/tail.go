package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"gantry.dev/schemas"
)

// A server that starts has the change log of the one before it: it reads the
// last minutes of the stream again. What makes that possible is that nothing of
// these minutes is taken out of it: the stream keeps many versions of each key,
// and a deletion leaves the history alone until it is older than the log (see
// sweep). Each message names the one of its key before it, as the condition
// under which it was stored.

const (
	// maxTail bounds what a start reads again: what came before it is listed anew.
	maxTail = 4096
	// tailReads is how many earlier versions are asked for at once.
	tailReads = 32
)

// tail reads the changes up to a revision that the stream still has without a
// gap, at most those of logAge, and maxTail. After start, all of them are there.
func (f *feed) tail(ctx context.Context, upTo uint64) (log changeLog, err error) {
	log.start = upTo
	stream, err := f.conn.js.Stream(ctx, "KV_"+f.bucket)
	if err != nil {
		return log, fmt.Errorf("read the end of bucket %s: %w", f.bucket, err)
	}
	messages, err := f.since(ctx, stream, time.Now().Add(-logAge), upTo)
	if err != nil {
		return log, fmt.Errorf("read the end of bucket %s: %w", f.bucket, err)
	}
	batch := loading{feed: f, batch: messages}
	batch.decodeAll()
	known := map[uint64]schemas.Object{} // what each message of the tail left; nil for a marker
	for _, r := range messages {
		known[r.meta.Sequence.Stream] = r.step.obj // nil as well where it was no object
	}
	olds, err := f.before(ctx, stream, messages, known)
	if err != nil {
		return log, fmt.Errorf("read the end of bucket %s: %w", f.bucket, err)
	}
	var last uint64
	forget := func(start uint64) { log.entries, log.start = nil, start }
	for i, r := range messages {
		seq := r.meta.Sequence.Stream
		if seq > upTo {
			break
		}
		if last == 0 || seq != last+1 {
			forget(seq - 1)
		}
		last = seq
		if r.err != nil { // no object: it never was in a view
			continue
		}
		switch old := olds[i]; {
		case !old.known:
			forget(seq)
		case old.obj != nil || r.step.obj != nil:
			log.entries = append(log.entries, logged{
				Change: Change{Resource: r.step.key.resource, Old: old.obj, New: r.step.obj, Revision: seq}, at: r.meta.Timestamp,
			})
		}
	}
	if last < upTo {
		forget(upTo) // the newest messages are no longer there
	}
	return log, nil
}

// since reads the messages from a time on up to a revision, but no more than
// maxTail.
func (f *feed) since(ctx context.Context, stream jetstream.Stream, from time.Time, upTo uint64) ([]received, error) {
	start := jetstream.OrderedConsumerConfig{FilterSubjects: []string{schemas.KVSubject(f.bucket, ">")}}
	start.DeliverPolicy, start.OptStartTime = jetstream.DeliverByStartTimePolicy, &from
	cons, err := stream.OrderedConsumer(ctx, start)
	if err != nil {
		return nil, err
	}
	info := cons.CachedInfo()
	if info.NumPending > maxTail {
		start.DeliverPolicy, start.OptStartTime, start.OptStartSeq = jetstream.DeliverByStartSequencePolicy, nil, upTo-maxTail+1
		if cons, err = stream.OrderedConsumer(ctx, start); err != nil {
			return nil, err
		}
		info = cons.CachedInfo()
	}
	var out []received
	for want := info.NumPending; want > 0; {
		got, err := cons.Fetch(int(min(want, loadBatch)), jetstream.FetchMaxWait(putTimeout))
		if err != nil {
			return nil, err
		}
		n := 0
		for m := range got.Messages() {
			n++
			meta, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			out = append(out, received{msg: m, meta: meta})
			if meta.Sequence.Stream >= upTo || meta.NumPending == 0 {
				return out, nil
			}
		}
		if err := got.Error(); err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, errors.New("the bus gives no more of what it said to have")
		}
		want -= uint64(n)
	}
	return out, nil
}

// previous is what a key held before a message; known is false where nobody
// knows any more.
type previous struct {
	obj   schemas.Object
	known bool
}

// before is what the key of each message held before it.
func (f *feed) before(ctx context.Context, stream jetstream.Stream, messages []received, known map[uint64]schemas.Object) ([]previous, error) {
	out := make([]previous, len(messages))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(tailReads)
	for i, r := range messages {
		expect, err := strconv.ParseUint(r.msg.Headers().Get(headerExpect), 10, 64)
		if err != nil || r.err != nil {
			continue // not stored by us, or no object
		}
		if o, ok := known[expect]; ok || expect == 0 {
			out[i] = previous{o, true}
			continue
		}
		g.Go(func() (err error) {
			out[i], err = f.version(ctx, stream, r.step.key.resource, expect)
			return err
		})
	}
	return out, g.Wait()
}

// version reads one message of the stream.
func (f *feed) version(ctx context.Context, stream jetstream.Stream, resource string, seq uint64) (previous, error) {
	kind, ok := schemas.KindByResource(resource)
	if !ok {
		return previous{}, nil
	}
	var m *jetstream.RawStreamMsg
	err := retryAPI(ctx, func(ctx context.Context) (err error) {
		m, err = stream.GetMsg(ctx, seq)
		return err
	})
	switch {
	case isNoMessage(err):
		return previous{}, nil
	case err != nil:
		return previous{}, err
	case m.Header.Get(headerOperation) != "" || m.Header.Get(headerMarker) != "":
		return previous{nil, true}, nil
	}
	o, err := decodeObject(kind, m.Data)
	if err != nil {
		return previous{}, nil // it was no object: nobody saw it
	}
	stamp(o, m.Sequence)
	return previous{o, true}, nil
}
