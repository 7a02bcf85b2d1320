// Package reconciletest holds a bus.Store in memory that fails where it is
// told to, and a world that runs controllers over it step by step on a clock
// of its own. Stories and properties about controllers are told with them.
package reconciletest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"gantry.dev/bus"
	"gantry.dev/schemas"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ErrCrash is what a write ends with that a Fault cut off.
var ErrCrash = errors.New("crashed")

// Fault says how a write ends.
type Fault int

// Ways for a write to end.
const (
	// None lets it through.
	None Fault = iota
	// CrashBefore ends it with ErrCrash, without effect.
	CrashBefore
	// CrashAfter ends it with ErrCrash after it took effect.
	CrashAfter
	// Conflict ends it with bus.ErrConflict, without effect.
	Conflict
)

// Store is a bus.Store in memory. Its Fault may be set while nobody writes.
type Store struct {
	// Fault is asked before each write, counted from 1; nil is never.
	Fault func(write int) Fault
	// Now gives creation times; nil is time.Now.
	Now func() time.Time

	mu          sync.RWMutex
	objects     map[string]schemas.Object
	tombstones  map[string]bool
	indexFuncs  map[string]bus.IndexFunc
	index       map[string]map[string]map[string]bool // index, value, keys
	log         []bus.Change
	revision    uint64
	births      map[string]int
	writes      int
	subscribers map[int]func(bus.Change)
	nextSub     int
}

// NewStore makes an empty store with indexes.
func NewStore(indexes ...map[string]bus.IndexFunc) *Store {
	s := &Store{
		objects:     map[string]schemas.Object{},
		tombstones:  map[string]bool{},
		births:      map[string]int{},
		indexFuncs:  map[string]bus.IndexFunc{},
		index:       map[string]map[string]map[string]bool{},
		subscribers: map[int]func(bus.Change){},
	}
	for _, m := range indexes {
		for name, fn := range m {
			s.indexFuncs[name] = fn
			s.index[name] = map[string]map[string]bool{}
		}
	}
	return s
}

// Writes counts the writes that took effect.
func (s *Store) Writes() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.log)
}

// View is always the newest state.
func (s *Store) View() bus.View { return view{s} }

// Create implements bus.Store.
func (s *Store) Create(_ context.Context, o schemas.Object) (schemas.Object, error) {
	key := schemas.KeyOf(o)
	var out schemas.Object
	err := s.write(key, func() error {
		if s.objects[key] != nil {
			return bus.ErrExists
		}
		out = copyOf(o)
		if out.GetUID() == "" {
			// Of the key alone, so that runs which write in another order end alike.
			s.births[key]++
			out.SetUID(types.UID(fmt.Sprintf("%s-%d", key, s.births[key])))
		}
		if ts := out.GetCreationTimestamp(); ts.IsZero() {
			out.SetCreationTimestamp(metav1.NewTime(s.now().Truncate(time.Second)))
		}
		s.commit(key, nil, out)
		return nil
	})
	return out, err
}

// Update implements bus.Store.
func (s *Store) Update(_ context.Context, o schemas.Object) (schemas.Object, error) {
	key := schemas.KeyOf(o)
	var out schemas.Object
	err := s.write(key, func() error {
		old := s.objects[key]
		if err := unmoved(old, o); err != nil {
			return err
		}
		if out = old; apiequality.Semantic.DeepEqual(old, o) {
			return nil
		}
		out = copyOf(o)
		s.commit(key, old, out)
		return nil
	})
	return out, err
}

// Delete implements bus.Store.
func (s *Store) Delete(_ context.Context, o schemas.Object) error {
	key := schemas.KeyOf(o)
	return s.write(key, func() error {
		old := s.objects[key]
		if err := unmoved(old, o); err != nil {
			return err
		}
		s.commit(key, old, nil)
		return nil
	})
}

func (s *Store) write(key string, do func() error) error {
	s.mu.Lock()
	s.writes++
	fault := None
	if s.Fault != nil {
		fault = s.Fault(s.writes)
	}
	var err error
	before := len(s.log)
	switch fault {
	case CrashBefore:
		err = ErrCrash
	case Conflict:
		err = bus.ErrConflict
	default:
		err = do()
	}
	if fault == CrashAfter {
		err = ErrCrash
	}
	told := slices.Clone(s.log[before:])
	subs := s.subscribersInOrder()
	// Told under the lock, so that every subscriber hears changes in order.
	for _, c := range told {
		for _, fn := range subs {
			fn(c)
		}
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

func (s *Store) commit(key string, old, o schemas.Object) {
	s.revision++
	resource, _, _, err := schemas.ParseObjectKey(key)
	if err != nil {
		panic(err) // a key that KeyOf made
	}
	if old != nil {
		s.reindex(key, old, func(keys map[string]bool) { delete(keys, key) })
	}
	if o == nil {
		delete(s.objects, key)
		s.tombstones[key] = true
	} else {
		o.SetResourceVersion(strconv.FormatUint(s.revision, 10))
		s.objects[key] = o
		delete(s.tombstones, key)
		s.reindex(key, o, func(keys map[string]bool) { keys[key] = true })
	}
	s.log = append(s.log, bus.Change{Resource: resource, Old: old, New: o, Revision: s.revision})
}

func (s *Store) reindex(_ string, o schemas.Object, do func(map[string]bool)) {
	for name, fn := range s.indexFuncs {
		for _, v := range fn(o) {
			if s.index[name][v] == nil {
				s.index[name][v] = map[string]bool{}
			}
			do(s.index[name][v])
		}
	}
}

func (s *Store) subscribersInOrder() []func(bus.Change) {
	ids := make([]int, 0, len(s.subscribers))
	for id := range s.subscribers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	out := make([]func(bus.Change), 0, len(ids))
	for _, id := range ids {
		out = append(out, s.subscribers[id])
	}
	return out
}

// Subscribe implements bus.Store; it returns at once.
func (s *Store) Subscribe(ctx context.Context, replay bool, fn func(bus.Change)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if replay {
		for _, o := range s.sorted(func(schemas.Object) bool { return true }) {
			fn(bus.Change{Resource: schemas.KindOf(o).Resource, New: o, Revision: s.revision})
		}
	}
	id := s.nextSub
	s.nextSub++
	s.subscribers[id] = fn
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, id)
	})
	return nil
}

// ChangesSince implements bus.Store without waiting.
func (s *Store) ChangesSince(_ context.Context, resource string, revision uint64, limit int) ([]bus.Change, uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []bus.Change
	for _, c := range s.log {
		if c.Revision > revision && (resource == "" || c.Resource == resource) && len(out) < limit {
			out = append(out, c)
			revision = c.Revision
		}
	}
	return out, max(revision, s.revision), nil
}

// ForgetTombstones does what the bus does after some time.
func (s *Store) ForgetTombstones() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tombstones = map[string]bool{}
}

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Store) sorted(keep func(schemas.Object) bool) []schemas.Object {
	var out []schemas.Object
	for _, o := range s.objects {
		if keep(o) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, order)
	return out
}

func order(a, b schemas.Object) int {
	return cmp.Or(
		cmp.Compare(schemas.KindOf(a).Resource, schemas.KindOf(b).Resource),
		cmp.Compare(a.GetNamespace(), b.GetNamespace()),
		cmp.Compare(a.GetName(), b.GetName()))
}

func unmoved(old, o schemas.Object) error {
	switch {
	case old == nil:
		return bus.ErrNotFound
	case old.GetResourceVersion() != o.GetResourceVersion(), old.GetUID() != o.GetUID():
		return bus.ErrConflict
	}
	return nil
}

func copyOf(o schemas.Object) schemas.Object {
	c, ok := o.DeepCopyObject().(schemas.Object)
	if !ok {
		panic("a copy is of the same type")
	}
	c.GetObjectKind().SetGroupVersionKind(schemas.KindOf(o).GVK)
	return c
}

type view struct{ s *Store }

func (v view) Get(resource, namespace, name string) schemas.Object {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	return v.s.objects[schemas.ObjectKey(resource, namespace, name)]
}

func (v view) List(resource, namespace string) []schemas.Object {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	return v.s.sorted(func(o schemas.Object) bool {
		return schemas.KindOf(o).Resource == resource && (namespace == "" || o.GetNamespace() == namespace)
	})
}

func (v view) ByIndex(index, value string) []schemas.Object {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	values, ok := v.s.index[index]
	if !ok {
		panic("no index " + index)
	}
	out := make([]schemas.Object, 0, len(values[value]))
	for key := range values[value] {
		out = append(out, v.s.objects[key])
	}
	slices.SortFunc(out, func(a, b schemas.Object) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()),
			order(a, b))
	})
	return out
}

func (v view) Tombstone(resource, namespace, name string) bool {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	return v.s.tombstones[schemas.ObjectKey(resource, namespace, name)]
}

func (v view) Revision() uint64 {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	return v.s.revision
}
