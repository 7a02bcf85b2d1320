package bus

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"gantry.dev/schemas"
)

const (
	// maxLogged and logAge bound the memory of the change log: old versions of
	// objects live on in it. Who lags behind by more lists again.
	maxLogged = 16384
	logAge    = 5 * time.Minute
	// futureWait is how long a revision that is not known yet may be another
	// server's newer one before it counts as one that was lost.
	futureWait = 3 * time.Second
)

// changeLog is the newest changes of one lane in order.
type changeLog struct {
	start   uint64 // revisions after this one are all here
	entries []logged
}

type logged struct {
	Change
	at time.Time
}

func (l *changeLog) add(c Change, now time.Time) {
	l.entries = append(l.entries, logged{c, now})
	drop := max(0, len(l.entries)-maxLogged)
	for drop < len(l.entries)-1 && now.Sub(l.entries[drop].at) > logAge {
		drop++
	}
	if drop == 0 {
		return
	}
	l.start = l.entries[drop-1].Revision
	clear(l.entries[:drop])
	l.entries = l.entries[drop:]
}

// after returns up to limit changes of the resource after the revision.
func (l *changeLog) after(resource string, revision uint64, limit int) []Change {
	from := sort.Search(len(l.entries), func(i int) bool { return l.entries[i].Revision > revision })
	var out []Change
	for _, e := range l.entries[from:] {
		if resource != "" && e.Resource != resource {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, e.Change)
	}
	return out
}

// at finds the change that one revision made.
func (l *changeLog) at(revision uint64) (Change, bool) {
	i := sort.Search(len(l.entries), func(i int) bool { return l.entries[i].Revision >= revision })
	if i == len(l.entries) || l.entries[i].Revision != revision {
		return Change{}, false
	}
	return l.entries[i].Change, true
}

// listAt is a list as it was at a revision, from a place on: what there is now,
// with the changes since then taken back. Both are in order, so it is one walk;
// a list of many pages takes it once for each.
func (v *viewCache) listAt(resource, namespace string, revision uint64, from Place) ([]schemas.Object, error) {
	prefix, begin := "", ""
	if namespace != "" {
		prefix = namespace + "\x00"
	}
	if from != (Place{}) {
		begin = from.Namespace + "\x00" + from.Name
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	l := v.lane(resource)
	if revision < l.log.start {
		return nil, fmt.Errorf("list at %d: %w: the log starts at %d", revision, ErrTooOld, l.log.start)
	}
	was := map[string]schemas.Object{} // nil where there was none
	var changed []string
	for _, c := range l.log.after(resource, revision, maxLogged+1) {
		k := keyOf(c.Object()).sortKey()
		if _, known := was[k]; !known && strings.HasPrefix(k, prefix) && k >= begin {
			was[k] = c.Old
			changed = append(changed, k)
		}
	}
	slices.Sort(changed)
	var out []schemas.Object
	take := func(o schemas.Object) {
		if o != nil {
			out = append(out, o)
		}
	}
	if set := v.byResource[resource]; set != nil {
		out = make([]schemas.Object, 0, set.n)
		set.walk(prefix, begin, func(it sortedItem) {
			for len(changed) > 0 && changed[0] < it.key {
				take(was[changed[0]])
				changed = changed[1:]
			}
			if len(changed) > 0 && changed[0] == it.key {
				take(was[it.key])
				changed = changed[1:]
				return
			}
			out = append(out, it.obj)
		})
	}
	for _, k := range changed {
		take(was[k])
	}
	return out, nil
}

// changesSince implements Store.ChangesSince.
func (v *viewCache) changesSince(ctx context.Context, resource string, revision uint64, limit int) ([]Change, uint64, error) {
	if limit <= 0 {
		limit = maxLogged
	}
	if err := v.awaitFuture(ctx, resource, revision); err != nil {
		return nil, revision, err
	}
	for {
		changes, reached, wake, err := v.look(resource, revision, limit)
		if err != nil || len(changes) > 0 {
			return changes, reached, err
		}
		revision = reached
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, reached, nil
		}
	}
}

// look reads the log once. Without changes it returns what to wait for.
func (v *viewCache) look(resource string, revision uint64, limit int) ([]Change, uint64, <-chan struct{}, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.lane(resource)
	if revision < l.log.start {
		return nil, revision, nil, fmt.Errorf("changes since %d: %w: the log starts at %d", revision, ErrTooOld, l.log.start)
	}
	changes := l.log.after(resource, revision, limit)
	switch {
	case len(changes) == limit:
		return changes, changes[limit-1].Revision, nil, nil
	case len(changes) > 0:
		return changes, l.pos, nil, nil
	}
	wake, ok := v.changed[resource]
	if !ok {
		wake = make(chan struct{})
		v.changed[resource] = wake
	}
	return nil, max(revision, l.pos), wake, nil
}

// awaitFuture waits a little for a revision that this view has not reached. One
// that never comes was lost with the data it came from.
func (v *viewCache) awaitFuture(ctx context.Context, resource string, revision uint64) error {
	ahead := v.reached(v.lane(resource), revision)
	select {
	case <-ahead:
		return nil
	default:
	}
	timer := time.NewTimer(futureWait)
	defer timer.Stop()
	select {
	case <-ahead:
		return nil
	case <-ctx.Done(): // not "nothing new": a chain of short waits would never learn
	case <-timer.C:
	}
	v.mu.Lock()
	delete(v.lane(resource).waiting, ahead)
	v.mu.Unlock()
	return fmt.Errorf("changes since %d: %w: the newest is %d", revision, ErrTooOld, v.RevisionOf(resource))
}

// subscriber queues changes for one Subscribe. The queue is not bounded: a
// change that is dropped would be a state never acted upon, and its length is
// bounded by what is written while fn runs.
type subscriber struct {
	mu    sync.Mutex
	queue []Change
	wake  chan struct{}
}

func (s *subscriber) push(c Change) {
	s.mu.Lock()
	s.queue = append(s.queue, c)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) pop() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// subscribe implements Store.Subscribe.
func (v *viewCache) subscribe(ctx context.Context, replay bool, fn func(Change)) {
	s := &subscriber{wake: make(chan struct{}, 1)}
	v.mu.Lock()
	if replay {
		s.queue = v.creations()
	}
	v.subs[s] = struct{}{}
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		delete(v.subs, s)
		v.mu.Unlock()
	}()
	for ctx.Err() == nil {
		batch := s.pop()
		for _, c := range batch {
			if ctx.Err() != nil {
				return
			}
			fn(c)
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
		}
	}
}

// creations is the current state as changes, kinds in the order of Kinds.
func (v *viewCache) creations() []Change {
	out := make([]Change, 0, len(v.records))
	for _, kind := range schemas.Kinds {
		set := v.byResource[kind.Resource]
		if set == nil {
			continue
		}
		for _, o := range set.prefixed("") {
			out = append(out, Change{Resource: kind.Resource, New: o, Revision: v.records[keyOf(o)].rev})
		}
	}
	return slices.Clip(out)
}
