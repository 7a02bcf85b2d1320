package bus

import (
	"context"
	"errors"

	"gantry.dev/schemas"
)

// Errors of Store. They are matched with errors.Is; what is returned wraps
// them and names the key.
var (
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("already exists")
	ErrConflict  = errors.New("changed since it was read")
	ErrTooLarge  = errors.New("larger than the bus takes")
	ErrForbidden = errors.New("forbidden")
	ErrTooOld    = errors.New("revision is no longer kept")
)

// View is a consistent reading of all API objects, kept in memory. What it
// returns is shared: callers copy (DeepCopyObject) before they change it.
// All methods are safe for concurrent use. Every object carries its
// resourceVersion and its TypeMeta.
type View interface {
	// Get returns nil where there is no such object.
	Get(resource, namespace, name string) schemas.Object
	// List returns the objects of one resource ordered by namespace and name;
	// an empty namespace means all. The slice is the caller's.
	List(resource, namespace string) []schemas.Object
	// ByIndex returns the objects whose index has the value (see IndexFunc),
	// ordered by namespace and name.
	ByIndex(index, value string) []schemas.Object
	// Tombstone says that the key held an object which was deleted not long
	// ago (the bus still keeps its marker). Names that are derived must skip it.
	Tombstone(resource, namespace, name string) bool
	// Revision is the newest revision of the objects bucket that the view has
	// taken in. Events live in a stream of their own and count apart from it:
	// see RevisionOf.
	Revision() uint64
}

// RevisionOf is the newest revision that the view has taken in of the bucket
// that keeps the resource: Revision for all but events. A list of the resource
// followed by ChangesSince this revision, read before the list, misses nothing.
func RevisionOf(v View, resource string) uint64 {
	if r, ok := v.(interface{ RevisionOf(string) uint64 }); ok {
		return r.RevisionOf(resource)
	}
	return v.Revision()
}

// IndexFunc says under which values an object is found in an index. It must be
// pure.
type IndexFunc func(schemas.Object) []string

// Change is one step of the view. Old is nil for a creation, New for a deletion.
type Change struct {
	Resource string
	Old, New schemas.Object
	Revision uint64
}

// Object returns New, or Old for a deletion.
func (c Change) Object() schemas.Object {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// Place is where an object stands in a list; the zero value is its beginning.
type Place struct{ Namespace, Name string }

// History is a Store that knows what lately was.
type History interface {
	Store
	// Reach returns when the view has taken in a revision of the resource's
	// bucket, ErrTooOld where it does not come within seconds.
	Reach(ctx context.Context, resource string, revision uint64) error
	// ListAt is View.List as it was at a revision that the view has reached, from
	// a place on; ErrTooOld where the log no longer reaches back.
	ListAt(resource, namespace string, revision uint64, from Place) ([]schemas.Object, error)
	// WrittenBy finds the write of a key that a request with this id made within
	// the last five minutes (see WithRequest). With ask it reads the bus, where
	// the view may lag behind another server's write.
	WrittenBy(ctx context.Context, resource, namespace, name, id string, ask bool) (written Written, found bool, err error)
}

// Store reads and writes API objects. Writes are acknowledged after fsync and
// are visible in the store's own View when they return.
type Store interface {
	View() View
	// Create stores a new object (ErrExists where the key is taken) and returns
	// it with its resourceVersion. A missing UID and creationTimestamp are filled in.
	Create(ctx context.Context, o schemas.Object) (schemas.Object, error)
	// Update replaces the object whose resourceVersion o carries (ErrConflict
	// where it has moved on, ErrNotFound where it is gone). An update that
	// changes nothing writes nothing and returns the stored object.
	Update(ctx context.Context, o schemas.Object) (schemas.Object, error)
	// Delete removes the object if it still has o's resourceVersion. Finalizers
	// and grace are the caller's to respect.
	Delete(ctx context.Context, o schemas.Object) error
	// Subscribe calls fn for every change after the current state, in order,
	// one at a time, until ctx ends; it returns then, and not before. With
	// replay, the current objects come first as creations. fn must not block
	// for long and must not write. Changes of events come among those of the
	// objects; each kind is in order, but their revisions do not compare.
	Subscribe(ctx context.Context, replay bool, fn func(Change)) error
	// ChangesSince returns up to limit changes of one resource ("" for all)
	// after a revision, and the revision reached; ErrTooOld where the log no
	// longer reaches back. With none, it waits until ctx ends and returns none.
	// All resources ("") leaves out events, whose revisions are another count:
	// they are asked for by name.
	ChangesSince(ctx context.Context, resource string, revision uint64, limit int) ([]Change, uint64, error)
}
