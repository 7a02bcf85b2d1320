package bus

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"gantry.dev/schemas"
)

// objKey identifies an object without the cost of building its key string.
type objKey struct{ resource, namespace, name string }

func (k objKey) String() string { return schemas.ObjectKey(k.resource, k.namespace, k.name) }

// sortKey orders by namespace, then name; the resource keeps apart what shares
// both within an index.
func (k objKey) sortKey() string { return k.namespace + "\x00" + k.name + "\x00" + k.resource }

func keyOf(o schemas.Object) objKey {
	return objKey{schemas.KindOf(o).Resource, o.GetNamespace(), o.GetName()}
}

// step is one message of a bucket, decoded: an object, or a deletion.
type step struct {
	// swept says of a deletion that its marker is all that is left of the key.
	swept bool
	key   objKey
	obj   schemas.Object // nil for a deletion
	seq   uint64
	at    time.Time
	// requests are the writes with an id that the message tells of: its own and earlier ones.
	requests []requested
}

// viewCache is the View and all that follows from its changes.
//
// It has two lanes, one for each bucket, because revisions of two streams
// cannot be compared: objects and events are each in order, and Revision
// speaks of the objects alone.
type viewCache struct {
	fns map[string]IndexFunc

	mu         sync.RWMutex
	objects    lane
	events     lane
	records    map[objKey]record
	byResource map[string]*sortedSet
	indexes    map[string]map[string]*sortedSet
	tombs      tombstones
	changed    map[string]chan struct{} // by resource; closed at the next change
	subs       map[*subscriber]struct{}
	requests   map[objKey][]requested // writes with an id, of objects and of what was deleted
	aging      []aging                // when to look at them again, oldest first
}

type record struct {
	obj schemas.Object
	rev uint64
}

// lane is one bucket's place in its stream. Steps are taken strictly in the
// order of the stream, from wherever they come first: the feed, or the
// acknowledgement of an own write that is next in line.
type lane struct {
	pos     uint64
	loaded  bool
	pending map[uint64]step // own writes that are ahead of pos
	log     changeLog
	waiting map[chan struct{}]uint64 // closed when pos reaches the value
}

func newViewCache(fns map[string]IndexFunc) *viewCache {
	v := &viewCache{
		fns:        fns,
		records:    map[objKey]record{},
		byResource: map[string]*sortedSet{},
		indexes:    map[string]map[string]*sortedSet{},
		tombs:      tombstones{at: map[objKey]tombstone{}},
		changed:    map[string]chan struct{}{},
		subs:       map[*subscriber]struct{}{},
		requests:   map[objKey][]requested{},
	}
	for name := range fns {
		v.indexes[name] = map[string]*sortedSet{}
	}
	for _, l := range []*lane{&v.objects, &v.events} {
		l.pending = map[uint64]step{}
		l.waiting = map[chan struct{}]uint64{}
	}
	return v
}

// lane picks the bucket that a resource is kept in.
func (v *viewCache) lane(resource string) *lane {
	if resource == schemas.Events {
		return &v.events
	}
	return &v.objects
}

// Get implements View.
func (v *viewCache) Get(resource, namespace, name string) schemas.Object {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.records[objKey{resource, namespace, name}].obj
}

// List implements View.
func (v *viewCache) List(resource, namespace string) []schemas.Object {
	v.mu.RLock()
	defer v.mu.RUnlock()
	set := v.byResource[resource]
	if set == nil {
		return nil
	}
	if namespace == "" {
		return set.prefixed("")
	}
	return set.prefixed(namespace + "\x00")
}

// ByIndex implements View.
func (v *viewCache) ByIndex(index, value string) []schemas.Object {
	v.mu.RLock()
	defer v.mu.RUnlock()
	set := v.indexes[index][value]
	if set == nil {
		return nil
	}
	return set.prefixed("")
}

// Tombstone implements View.
func (v *viewCache) Tombstone(resource, namespace, name string) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tombs.revision(objKey{resource, namespace, name}, time.Now()) != 0
}

// Revision implements View.
func (v *viewCache) Revision() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.objects.pos
}

// RevisionOf is the newest revision taken in of the bucket that keeps the
// resource: for events another count than Revision.
func (v *viewCache) RevisionOf(resource string) uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.lane(resource).pos
}

// known is what the view holds of a key: the object, its revision, and the
// revision of its deletion where there is no object.
func (v *viewCache) known(k objKey) (obj schemas.Object, rev, tomb uint64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	r := v.records[k]
	return r.obj, r.rev, v.tombs.revision(k, time.Now())
}

// deliver takes a step from the feed. The feed is complete and in order, so
// what it left out before this step is no longer in the stream.
func (v *viewCache) deliver(s step) {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.lane(s.key.resource)
	if s.seq <= l.pos {
		return
	}
	v.skipTo(l, s.seq)
	delete(l.pending, s.seq)
	v.take(l, s)
	v.drain(l)
}

// written takes a step from the feed without its content where an own write
// has brought that already, and says whether it did.
func (v *viewCache) written(l *lane, seq uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if seq <= l.pos {
		return true
	}
	s, ok := l.pending[seq]
	if !ok {
		return false
	}
	v.skipTo(l, seq)
	delete(l.pending, seq)
	v.take(l, s)
	v.drain(l)
	return true
}

// passed tells that the feed has gone by a message that is not an object.
func (v *viewCache) passed(l *lane, seq uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if seq <= l.pos {
		return
	}
	v.skipTo(l, seq)
	l.reach(seq)
	v.drain(l)
}

// offer takes an acknowledged own write. It is applied at once where it is
// next in line and otherwise when what is before it has come, so that no
// reader ever sees revisions out of order.
func (v *viewCache) offer(s step) {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.lane(s.key.resource)
	if s.seq <= l.pos {
		return
	}
	l.pending[s.seq] = s
	v.drain(l)
}

func (v *viewCache) drain(l *lane) {
	for {
		s, ok := l.pending[l.pos+1]
		if !ok {
			return
		}
		delete(l.pending, s.seq)
		v.take(l, s)
	}
}

// skipTo applies own writes before seq that the feed will never show, because
// newer ones have pushed them out of the stream.
func (v *viewCache) skipTo(l *lane, seq uint64) {
	var before []uint64
	for p := range l.pending {
		if p < seq {
			before = append(before, p)
		}
	}
	slices.Sort(before)
	for _, p := range before {
		s := l.pending[p]
		delete(l.pending, p)
		v.take(l, s)
	}
}

func (l *lane) reach(seq uint64) {
	l.pos = seq
	for ch, at := range l.waiting {
		if at <= seq {
			close(ch)
			delete(l.waiting, ch)
		}
	}
}

// take applies one step; the caller holds the lock.
func (v *viewCache) take(l *lane, s step) {
	old := v.records[s.key].obj
	v.store(s.key, old, s.obj, s.seq)
	v.noteRequests(s)
	if l == &v.objects {
		if s.obj == nil {
			v.tombs.add(s.key, s.seq, s.at, s.swept)
		} else {
			v.tombs.drop(s.key)
		}
	}
	if l.loaded && (old != nil || s.obj != nil) {
		c := Change{Resource: s.key.resource, Old: old, New: s.obj, Revision: s.seq}
		l.log.add(c, time.Now())
		v.publish(c)
	}
	l.reach(s.seq)
}

// store puts an object into the tables, or takes it out where it is nil.
func (v *viewCache) store(k objKey, old, obj schemas.Object, seq uint64) {
	sk := k.sortKey()
	set := v.byResource[k.resource]
	if set == nil {
		set = &sortedSet{}
		v.byResource[k.resource] = set
	}
	if obj == nil {
		delete(v.records, k)
		set.remove(sk)
	} else {
		v.records[k] = record{obj: obj, rev: seq}
		set.put(sk, obj)
	}
	for name, fn := range v.fns {
		v.reindex(v.indexes[name], fn, sk, old, obj)
	}
}

func (v *viewCache) reindex(index map[string]*sortedSet, fn IndexFunc, sk string, old, obj schemas.Object) {
	var had, has []string
	if old != nil {
		had = fn(old)
	}
	if obj != nil {
		has = fn(obj)
	}
	for _, value := range had {
		if slices.Contains(has, value) {
			continue
		}
		if set := index[value]; set != nil {
			if set.remove(sk); set.len() == 0 {
				delete(index, value)
			}
		}
	}
	for _, value := range has {
		set := index[value]
		if set == nil {
			set = &sortedSet{}
			index[value] = set
		}
		set.put(sk, obj)
	}
}

// publish wakes those who wait for changes and queues it for subscribers.
func (v *viewCache) publish(c Change) {
	for _, resource := range []string{c.Resource, ""} {
		if ch, ok := v.changed[resource]; ok && (resource != "" || c.Resource != schemas.Events) {
			close(ch)
			delete(v.changed, resource)
		}
	}
	for s := range v.subs {
		s.push(c)
	}
}

// finishLoad ends a load: seen holds what the bucket has, pos is where it was.
// What the view holds beyond that was deleted while nobody listened. log is
// what the bucket says of the changes up to pos.
func (v *viewCache) finishLoad(l *lane, seen map[objKey]bool, log changeLog, pos uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	// What is there is the view's own where both have it, so that it is there once.
	for i, e := range log.entries {
		if e.New != nil {
			if r := v.records[keyOf(e.New)]; r.rev == e.Revision {
				log.entries[i].New = r.obj
			}
		}
	}
	// Steps that came in after pos are in the view already, and not in the log.
	if l.pos > pos {
		log = changeLog{start: l.pos}
	}
	pos = max(pos, l.pos)
	for k, r := range v.records {
		if v.lane(k.resource) != l || seen[k] || r.rev > pos {
			continue
		}
		v.store(k, r.obj, nil, 0)
		v.publish(Change{Resource: k.resource, Old: r.obj, Revision: pos})
	}
	l.log = log
	l.loaded = true
	v.skipTo(l, pos+1)
	l.reach(pos)
	v.drain(l)
}

// reached returns a channel that is closed once the lane is at seq.
func (v *viewCache) reached(l *lane, seq uint64) chan struct{} {
	ch := make(chan struct{})
	v.mu.Lock()
	defer v.mu.Unlock()
	if l.pos >= seq {
		close(ch)
	} else {
		l.waiting[ch] = seq
	}
	return ch
}

// stamp gives an object what is not stored in it.
func stamp(o schemas.Object, revision uint64) {
	o.SetResourceVersion(strconv.FormatUint(revision, 10))
	o.GetObjectKind().SetGroupVersionKind(schemas.KindOf(o).GVK)
}
