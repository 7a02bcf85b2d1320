package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// memory is a bus.History without a bus: it keeps each object as the JSON that
// the bus would, and is new in no time. It knows one revision: the newest.
type memory struct {
	t       testing.TB
	mu      sync.Mutex
	bodies  map[string][]byte
	objects map[string]schemas.Object
	at      uint64
	changes []bus.Change
}

func newMemory(t testing.TB) *memory {
	return &memory{t: t, bodies: map[string][]byte{}, objects: map[string]schemas.Object{}}
}

// put stores an object as the bus does: what readers see is what was encoded.
func (m *memory) put(o schemas.Object) (schemas.Object, error) {
	o = o.DeepCopyObject().(schemas.Object)
	kind, key := schemas.KindOf(o), schemas.KeyOf(o)
	o.GetObjectKind().SetGroupVersionKind(kind.GVK)
	o.SetResourceVersion("")
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(body) > 1<<20-16<<10 {
		return nil, fmt.Errorf("%d bytes: %w", len(body), bus.ErrTooLarge)
	}
	read := kind.New()
	if err := json.Unmarshal(body, read); err != nil {
		return nil, fmt.Errorf("decode what was encoded: %w", err)
	}
	if got := schemas.KeyOf(read); got != key {
		return nil, fmt.Errorf("%s became %s when it was stored", key, got)
	}
	if _, _, _, err := schemas.ParseObjectKey(key); err != nil {
		return nil, err
	}
	m.at++
	read.SetResourceVersion(strconv.FormatUint(m.at, 10))
	m.changes = append(m.changes, bus.Change{Resource: kind.Resource, Old: m.objects[key], New: read, Revision: m.at})
	m.bodies[key], m.objects[key] = body, read
	return read.DeepCopyObject().(schemas.Object), nil
}

func (m *memory) Create(_ context.Context, o schemas.Object) (schemas.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects[schemas.KeyOf(o)] != nil {
		return nil, bus.ErrExists
	}
	if o.GetUID() == "" {
		o.SetUID("00000000-0000-4000-8000-000000000000")
	}
	o.SetCreationTimestamp(metav1.NewTime(time.Unix(1_700_000_000, 0)))
	return m.put(o)
}

func (m *memory) current(o schemas.Object) error {
	have := m.objects[schemas.KeyOf(o)]
	switch {
	case have == nil:
		return bus.ErrNotFound
	case have.GetResourceVersion() != o.GetResourceVersion():
		return bus.ErrConflict
	}
	return nil
}

func (m *memory) Update(_ context.Context, o schemas.Object) (schemas.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.current(o); err != nil {
		return nil, err
	}
	return m.put(o)
}

func (m *memory) Delete(_ context.Context, o schemas.Object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.current(o); err != nil {
		return err
	}
	key := schemas.KeyOf(o)
	m.at++
	m.changes = append(m.changes, bus.Change{Resource: schemas.KindOf(o).Resource, Old: m.objects[key], Revision: m.at})
	delete(m.objects, key)
	delete(m.bodies, key)
	return nil
}

func (m *memory) Subscribe(context.Context, bool, func(bus.Change)) error {
	return errors.New("nothing subscribes to admission's store")
}

// ChangesSince waits for nothing: nobody else writes.
func (m *memory) ChangesSince(_ context.Context, resource string, revision uint64, limit int) ([]bus.Change, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if revision > m.at {
		return nil, 0, bus.ErrTooOld
	}
	var out []bus.Change
	for _, c := range m.changes {
		if c.Revision > revision && c.Resource == resource && len(out) < limit {
			out = append(out, c)
		}
	}
	return out, m.at, nil
}

func (m *memory) Reach(_ context.Context, _ string, revision uint64) error {
	if revision > m.Revision() {
		return bus.ErrTooOld
	}
	return nil
}

func (m *memory) ListAt(resource, namespace string, revision uint64, from bus.Place) ([]schemas.Object, error) {
	if revision != m.Revision() {
		return nil, bus.ErrTooOld
	}
	return slices.DeleteFunc(m.List(resource, namespace), func(o schemas.Object) bool {
		return o.GetNamespace() < from.Namespace || o.GetNamespace() == from.Namespace && o.GetName() < from.Name
	}), nil
}

func (m *memory) WrittenBy(context.Context, string, string, string, string, bool) (bus.Written, bool, error) {
	return bus.Written{}, false, nil
}

func (m *memory) View() bus.View { return m }

func (m *memory) Get(resource, namespace, name string) schemas.Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[schemas.ObjectKey(resource, namespace, name)]
}

func (m *memory) List(resource, namespace string) []schemas.Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []schemas.Object
	for key, o := range m.objects {
		if strings.HasPrefix(key, resource+".") && (namespace == "" || o.GetNamespace() == namespace) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b schemas.Object) int {
		return strings.Compare(a.GetNamespace()+"\x00"+a.GetName(), b.GetNamespace()+"\x00"+b.GetName())
	})
	return out
}

func (m *memory) ByIndex(string, string) []schemas.Object { return nil }

func (m *memory) Tombstone(string, string, string) bool { return false }

func (m *memory) Revision() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}

// given keeps what was given out once.
type given map[string]bus.Held

func (g given) Reserve(_ context.Context, kind, value string, r schemas.Reservation) (bus.Held, error) {
	held, ok := g[kind+value]
	if ok && held.Reservation != r {
		return held, bus.ErrExists
	}
	g[kind+value] = bus.Held{Value: value, Reservation: r}
	return g[kind+value], nil
}

func (g given) Release(_ context.Context, kind, value string, r schemas.Reservation) error {
	if g[kind+value].Reservation == r {
		delete(g, kind+value)
	}
	return nil
}

func (g given) Reserved(context.Context, string) ([]bus.Held, error) {
	var out []bus.Held
	for _, held := range g {
		out = append(out, held)
	}
	return out, nil
}

// inMemory is an Admission on a memory, with a node that is never connected.
func inMemory(t testing.TB) (*Admission, *memory) {
	m := newMemory(t)
	away := apierrors.NewServiceUnavailable("no node is connected")
	a := New(Options{
		Store: m, Reservations: given{}, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/29"), Log: zerolog.Nop(),
		Now: func() time.Time { return time.Unix(1_700_000_000, 0) },
		Logs: func(context.Context, string, schemas.LogRequest) ([]byte, map[string][]string, error) {
			return nil, nil, away
		},
		Ask: func(context.Context, string, string, map[string][]string, []byte) ([]byte, map[string][]string, error) {
			return nil, nil, away
		},
	})
	if err := a.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a, m
}

// isAway says that a refusal is inMemory's node's.
func isAway(s *metav1.Status) bool { return s.Code == http.StatusServiceUnavailable }
