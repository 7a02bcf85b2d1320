package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"gantry.dev/schemas"
)

const (
	// sweepAfter is when a deletion's history goes. It is older than the change
	// log then, which a server that starts reads from the history.
	sweepAfter = logAge + time.Minute
	sweepEvery = 20 * time.Second
	// tombstoneTTL is how long a deletion's marker stays on the bus. After it
	// nothing remembers the name.
	tombstoneTTL = time.Hour
	// maxTombstones bounds the memory that deletions hold, at about 150 bytes each.
	maxTombstones = 100_000
)

type tombstone struct {
	rev uint64
	at  time.Time
	// swept says that the marker is all that the bus has of the key.
	swept bool
}

// deletionMarker is what takes an object away. Of events, which have no log,
// the marker takes the place of the whole history at once.
func deletionMarker(k objKey) nats.Header {
	if k.resource == schemas.Events {
		return sweptMarker()
	}
	return nats.Header{headerOperation: {opDelete}}
}

// sweptMarker takes the place of a key's whole history: when its time is over
// nothing is left, where an older value would come back to life.
func sweptMarker() nats.Header {
	return nats.Header{headerOperation: {opPurge}, headerRollup: {"sub"}, headerTTL: {tombstoneTTL.String()}}
}

// sweep takes the history of deleted objects off the bus when it is old, until
// ctx ends. Any number of servers may: the marker must still be the key's last
// message.
func (s *store) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		s.sweepOnce(ctx, time.Now().Add(-sweepAfter))
	}
}

// sweepOnce sweeps what was deleted before a time.
func (s *store) sweepOnce(ctx context.Context, before time.Time) {
	for k, rev := range s.view.unswept(before) {
		header, own := s.requestHeader(ctx, k, sweptMarker())
		p := put{subject: s.subject(k), cas: true, expect: rev, header: header}
		seq, err := s.conn.put(ctx, p)
		switch {
		case err == nil:
			st := ownStep(k, nil, seq, own)
			st.swept = true
			s.settleView(ctx, st)
		case ctx.Err() != nil:
			return
		case !errors.Is(err, ErrConflict): // another server did, or the name is used again
			s.conn.log.Warn().Err(err).Stringer("key", k).Msg("take the history of a deleted object off the bus")
			return // the next turn tries again
		}
	}
}

// unswept is the deletions before a time whose history is still there.
func (v *viewCache) unswept(before time.Time) map[objKey]uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := map[objKey]uint64{}
	for k, stone := range v.tombs.at {
		if !stone.swept && stone.at.Before(before) {
			out[k] = stone.rev
		}
	}
	return out
}

// tombstones are the deletions whose markers the bus still keeps.
type tombstones struct {
	at    map[objKey]tombstone
	order []objKey // oldest first; may name keys that are back since
}

func (t *tombstones) add(k objKey, rev uint64, at time.Time, swept bool) {
	t.at[k] = tombstone{rev: rev, at: at, swept: swept}
	t.order = append(t.order, k)
	now := time.Now()
	for len(t.order) > 0 {
		oldest := t.order[0]
		stone, ok := t.at[oldest]
		if ok && now.Sub(stone.at) <= tombstoneTTL && len(t.order) <= maxTombstones {
			return
		}
		// A key that was deleted again has a later entry, which keeps it a
		// little longer than needed where this one is dropped for its number.
		delete(t.at, oldest)
		t.order = t.order[1:]
	}
}

func (t *tombstones) drop(k objKey) { delete(t.at, k) }

// revision is that of the key's deletion, 0 where there is none.
func (t *tombstones) revision(k objKey, now time.Time) uint64 {
	stone, ok := t.at[k]
	if !ok || now.Sub(stone.at) > tombstoneTTL {
		return 0
	}
	return stone.rev
}
