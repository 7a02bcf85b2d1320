package bus

import "time"

const (
	// tombstoneTTL is how long a deletion's marker stays on the bus. After it
	// nothing remembers the name.
	tombstoneTTL = time.Hour
	// maxTombstones bounds the memory that deletions hold, at about 150 bytes each.
	maxTombstones = 100_000
)

type tombstone struct {
	rev uint64
	at  time.Time
}

// tombstones are the deletions whose markers the bus still keeps.
type tombstones struct {
	at    map[objKey]tombstone
	order []objKey // oldest first; may name keys that are back since
}

func (t *tombstones) add(k objKey, rev uint64, at time.Time) {
	t.at[k] = tombstone{rev: rev, at: at}
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
