package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"gantry.dev/schemas"
)

// A server that starts has the change log of the one before it: it reads the
// last minutes of the stream again. What makes that possible is that nothing of
// these minutes is taken out of it: the stream keeps many versions of each key,
// and a deletion leaves the history alone until it is older than the log (see
// sweep). Each message names the one of its key before it, as the condition
// under which it was stored.

// tail reads the changes up to a revision that the stream still has without a
// gap, at most those of logAge. After start, all of them are there.
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
	var last uint64
	forget := func(start uint64) { log.entries, log.start = nil, start }
	for _, r := range messages {
		seq := r.meta.Sequence.Stream
		if seq > upTo {
			break
		}
		if last == 0 || seq != last+1 {
			forget(seq - 1)
		}
		last = seq
		if r.err != nil { // no object: it never was in a view
			known[seq] = nil
			continue
		}
		known[seq] = r.step.obj
		old, ok, err := f.before(ctx, stream, r, known)
		if err != nil {
			return log, fmt.Errorf("read the end of bucket %s: %w", f.bucket, err)
		}
		switch {
		case !ok:
			forget(seq)
		case old != nil || r.step.obj != nil:
			log.entries = append(log.entries, logged{
				Change: Change{Resource: r.step.key.resource, Old: old, New: r.step.obj, Revision: seq}, at: r.meta.Timestamp,
			})
		}
	}
	if last < upTo {
		forget(upTo) // the newest messages are no longer there
	}
	return log, nil
}

// since reads the messages from a time on up to a revision, but no more than a
// log holds.
func (f *feed) since(ctx context.Context, stream jetstream.Stream, from time.Time, upTo uint64) ([]received, error) {
	start := jetstream.OrderedConsumerConfig{FilterSubjects: []string{schemas.KVSubject(f.bucket, ">")}}
	start.DeliverPolicy, start.OptStartTime = jetstream.DeliverByStartTimePolicy, &from
	cons, err := stream.OrderedConsumer(ctx, start)
	if err != nil {
		return nil, err
	}
	info := cons.CachedInfo()
	if info.NumPending > maxLogged {
		start.DeliverPolicy, start.OptStartTime, start.OptStartSeq = jetstream.DeliverByStartSequencePolicy, nil, upTo-maxLogged+1
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

// before is what a message's key held before it; ok is false where that is no
// longer known.
func (f *feed) before(ctx context.Context, stream jetstream.Stream, r received, known map[uint64]schemas.Object) (old schemas.Object, ok bool, err error) {
	expect, parseErr := strconv.ParseUint(r.msg.Headers().Get(headerExpect), 10, 64)
	if parseErr != nil {
		return nil, false, nil // not stored by us
	}
	if expect == 0 {
		return nil, true, nil
	}
	if o, ok := known[expect]; ok {
		return o, true, nil
	}
	var m *jetstream.RawStreamMsg
	err = retryAPI(ctx, func(ctx context.Context) error {
		m, err = stream.GetMsg(ctx, expect)
		return err
	})
	switch {
	case isNoMessage(err):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case m.Header.Get(headerOperation) != "" || m.Header.Get(headerMarker) != "":
		return nil, true, nil
	}
	kind, ok := schemas.KindByResource(r.step.key.resource)
	if !ok {
		return nil, false, nil
	}
	if old, err = decodeObject(kind, m.Data); err != nil {
		return nil, false, nil // it was no object: nobody saw it
	}
	stamp(old, m.Sequence)
	return old, true, nil
}
