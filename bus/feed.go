package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

// staleAfter is the longest loss of the connection after which a feed may go
// on where it was. Markers of deletions stay for tombstoneTTL (events: five
// minutes), and one that is missed would leave an object in the view for good.
const staleAfter = 4 * time.Minute

// feed reads one bucket into the view: first what is there, then what comes.
type feed struct {
	conn   *Conn
	bucket string
	view   *viewCache
	lane   *lane
	loaded chan struct{} // closed after the first load
	log    zerolog.Logger
}

// errStale ends a feed that has to load again.
var errStale = errors.New("connection was lost for too long to go on")

// run feeds the view until ctx ends.
func (f *feed) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.once(ctx)
		if ctx.Err() != nil {
			return
		}
		f.log.Warn().Err(err).Str("bucket", f.bucket).Msg("feed of the view broke, loading again")
		if wait(ctx, 500*time.Millisecond) != nil {
			return
		}
	}
}

// once loads the bucket and follows it until something breaks.
func (f *feed) once(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer f.conn.onReconnect(staleAfter, func() { cancel(errStale) })()

	stream := "KV_" + f.bucket
	info, cons, err := f.open(ctx, stream)
	if err != nil {
		return err
	}
	l := &loading{ctx: ctx, feed: f, seen: map[objKey]bool{}, floor: info.State.LastSeq}
	// Nothing would ever come from an empty bucket to say that it is all.
	if info.State.Msgs == 0 {
		l.finish()
	}
	reading, err := cons.Consume(l.message, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		f.log.Debug().Err(err).Str("bucket", f.bucket).Msg("feed of the view")
	}))
	if err != nil {
		return fmt.Errorf("consume %s: %w", stream, err)
	}
	defer reading.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-reading.Closed():
		return fmt.Errorf("consume %s: closed", stream)
	}
}

// open makes the consumer. The stream's state is read first: whatever it has
// by then is among what the consumer delivers.
func (f *feed) open(ctx context.Context, stream string) (info *jetstream.StreamInfo, cons jetstream.Consumer, err error) {
	err = retryAPI(ctx, func(ctx context.Context) error {
		s, err := f.conn.js.Stream(ctx, stream)
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		info = s.CachedInfo()
		cons, err = f.conn.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{schemas.KVSubject(f.bucket, ">")},
			DeliverPolicy:  jetstream.DeliverLastPerSubjectPolicy,
		})
		if err != nil {
			return fmt.Errorf("follow stream %s: %w", stream, err)
		}
		return nil
	})
	return info, cons, err
}

// loadBatch is how many messages are decoded together while loading.
const loadBatch = 256

// loading is one life of a feed. Messages come one at a time.
type loading struct {
	ctx   context.Context
	feed  *feed
	seen  map[objKey]bool // nil once all that was there has come
	floor uint64
	batch []received
}

// received is one message, and what it says once it is decoded.
type received struct {
	msg  jetstream.Msg
	meta *jetstream.MsgMetadata
	step step
	err  error
}

func (l *loading) message(m jetstream.Msg) {
	f := l.feed
	meta, err := m.Metadata()
	if err != nil {
		f.log.Error().Err(err).Str("subject", m.Subject()).Msg("read feed of the view")
		return
	}
	if l.seen == nil {
		// Most of what comes is our own writing, acknowledged before: decoding it
		// again would be for nothing. While loading, every key must be seen.
		if !f.view.written(f.lane, meta.Sequence.Stream) {
			r := received{msg: m, meta: meta}
			r.decode(f)
			l.take(r)
		}
		return
	}
	l.batch = append(l.batch, received{msg: m, meta: meta})
	if len(l.batch) < loadBatch && meta.NumPending > 0 {
		return
	}
	l.flush()
	if meta.NumPending == 0 {
		l.floor = max(l.floor, meta.Sequence.Stream)
		l.finish()
	}
}

// flush decodes what has come on all processors, which is most of what a start
// takes, and takes it in, in order.
func (l *loading) flush() {
	l.decodeAll()
	for _, r := range l.batch {
		l.take(r)
	}
	clear(l.batch)
	l.batch = l.batch[:0]
}

func (l *loading) decodeAll() {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(l.batch); i = next.Add(1) - 1 {
				l.batch[i].decode(l.feed)
			}
		})
	}
	wg.Wait()
}

func (r *received) decode(f *feed) { r.step, r.err = f.decode(r.msg, r.meta) }

func (l *loading) take(r received) {
	f := l.feed
	if r.err != nil {
		// Somebody wrote by hand what is no object. It is not in the view, and
		// the feed goes on.
		f.log.Error().Err(r.err).Str("subject", r.msg.Subject()).Msg("ignore what is no object")
		f.view.passed(f.lane, r.meta.Sequence.Stream)
		return
	}
	if l.seen != nil && r.step.obj != nil {
		l.seen[r.step.key] = true
	}
	f.view.deliver(r.step)
}

func (l *loading) finish() {
	log := changeLog{start: l.floor}
	// Of events the bus keeps one version, so there is no log to read again.
	if l.feed.lane == &l.feed.view.objects && l.floor > 0 {
		var err error
		if log, err = l.feed.tail(l.ctx, l.floor); err != nil {
			l.feed.log.Warn().Err(err).Msg("watches from before now must list again")
		}
	}
	l.feed.view.finishLoad(l.feed.lane, l.seen, log, l.floor)
	l.seen, l.batch = nil, nil
	select {
	case <-l.feed.loaded:
	default:
		close(l.feed.loaded)
	}
}

func (f *feed) decode(m jetstream.Msg, meta *jetstream.MsgMetadata) (step, error) {
	key, ok := strings.CutPrefix(m.Subject(), schemas.KVSubject(f.bucket, ""))
	if !ok {
		return step{}, fmt.Errorf("subject is not of bucket %s", f.bucket)
	}
	resource, namespace, name, err := schemas.ParseObjectKey(key)
	if err != nil {
		return step{}, err
	}
	kind, ok := schemas.KindByResource(resource)
	if !ok {
		return step{}, fmt.Errorf("resource %q is not known", resource)
	}
	if (resource == schemas.Events) != (f.lane == &f.view.events) {
		return step{}, fmt.Errorf("resource %q does not belong into bucket %s", resource, f.bucket)
	}
	s := step{key: objKey{resource, namespace, name}, seq: meta.Sequence.Stream, at: meta.Timestamp}
	h := m.Headers()
	s.requests = requestedIn(h, s.seq, s.at)
	if op := h.Get(headerOperation); op != "" || h.Get(headerMarker) != "" {
		s.swept = op == opPurge
		return s, nil
	}
	if s.obj, err = decodeObject(kind, m.Data()); err != nil {
		return step{}, fmt.Errorf("decode %s: %w", kind.GVK.Kind, err)
	}
	if keyOf(s.obj) != s.key {
		return step{}, fmt.Errorf("object calls itself %s", keyOf(s.obj))
	}
	stamp(s.obj, s.seq)
	return s, nil
}
