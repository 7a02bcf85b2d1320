package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// objectOverhead is what messages add to an object that they carry: the
// envelope of a watch, of a pod record, and headers. An object must fit into
// one message with them.
const objectOverhead = 16 << 10

type store struct {
	conn  *Conn
	view  *viewCache
	limit int // of an object in bytes
}

// OpenStore loads all objects and events and returns once the view is
// complete. The view is fed until ctx ends. Indexes may be nil.
func OpenStore(ctx context.Context, c *Conn, indexes map[string]IndexFunc) (History, error) {
	v := newViewCache(indexes)
	feeds := []*feed{
		{conn: c, bucket: c.names.ObjectsBucket(), lane: &v.objects},
		{conn: c, bucket: c.names.EventsBucket(), lane: &v.events},
	}
	for _, f := range feeds {
		f.view, f.log, f.loaded = v, c.log, make(chan struct{})
		go f.run(ctx)
	}
	for _, f := range feeds {
		select {
		case <-f.loaded:
		case <-ctx.Done():
			return nil, fmt.Errorf("load bucket %s: %w", f.bucket, ctx.Err())
		}
	}
	s := &store{conn: c, view: v, limit: int(c.MaxPayload()) - objectOverhead}
	go s.sweep(ctx)
	return s, nil
}

// View implements Store.
func (s *store) View() View { return s.view }

// Subscribe implements Store.
func (s *store) Subscribe(ctx context.Context, replay bool, fn func(Change)) error {
	s.view.subscribe(ctx, replay, fn)
	return nil
}

// ChangesSince implements Store.
func (s *store) ChangesSince(ctx context.Context, resource string, revision uint64, limit int) ([]Change, uint64, error) {
	return s.view.changesSince(ctx, resource, revision, limit)
}

// Reach implements History.
func (s *store) Reach(ctx context.Context, resource string, revision uint64) error {
	return s.view.awaitFuture(ctx, resource, revision)
}

// ListAt implements History.
func (s *store) ListAt(resource, namespace string, revision uint64, from Place) ([]schemas.Object, error) {
	return s.view.listAt(resource, namespace, revision, from)
}

// Create implements Store.
func (s *store) Create(ctx context.Context, o schemas.Object) (schemas.Object, error) {
	k := keyOf(o)
	existing, _, tomb := s.view.known(k)
	if existing != nil {
		return nil, fmt.Errorf("create %s: %w", k, ErrExists)
	}
	o = o.DeepCopyObject().(schemas.Object)
	if o.GetUID() == "" {
		o.SetUID(newUID())
	}
	if t := o.GetCreationTimestamp(); t.IsZero() {
		o.SetCreationTimestamp(metav1.NewTime(time.Now().UTC().Truncate(time.Second)))
	}
	p, o, err := s.encode(k, o)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", k, err)
	}
	var own []requested
	p.header, own = s.requestHeader(ctx, k, nil)
	// A key that was deleted has a marker as its last message.
	p.expect = tomb
	seq, err := s.conn.put(ctx, p)
	for range 3 {
		if !errors.Is(err, ErrConflict) {
			break
		}
		if p.expect, err = s.vacant(ctx, k, p.subject); err == nil {
			seq, err = s.conn.put(ctx, p)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", k, err)
	}
	return s.written(ctx, k, o, seq, own), nil
}

// vacant returns the sequence of a key's last message if that leaves the key
// free, and ErrExists otherwise. It asks the bus: the view may lag behind.
func (s *store) vacant(ctx context.Context, k objKey, subject string) (uint64, error) {
	m, err := s.conn.lastMessage(ctx, "KV_"+s.bucket(k), subject)
	switch {
	case errors.Is(err, ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case m.Header.Get(headerOperation) == "" && m.Header.Get(headerMarker) == "":
		return 0, ErrExists
	}
	return m.Sequence, nil
}

// Update implements Store.
func (s *store) Update(ctx context.Context, o schemas.Object) (schemas.Object, error) {
	k := keyOf(o)
	rev, err := s.current(k, o)
	if err != nil {
		return nil, fmt.Errorf("update %s: %w", k, err)
	}
	p, o, err := s.encode(k, o.DeepCopyObject().(schemas.Object))
	if err != nil {
		return nil, fmt.Errorf("update %s: %w", k, err)
	}
	stamp(o, rev)
	if old := s.view.Get(k.resource, k.namespace, k.name); old != nil && equality.Semantic.DeepEqual(old, o) {
		return o, nil
	}
	p.expect = rev
	var own []requested
	p.header, own = s.requestHeader(ctx, k, nil)
	seq, err := s.conn.put(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("update %s: %w", k, s.gone(ctx, k, p.subject, err))
	}
	return s.written(ctx, k, o, seq, own), nil
}

// Delete implements Store.
func (s *store) Delete(ctx context.Context, o schemas.Object) error {
	k := keyOf(o)
	rev, err := s.current(k, o)
	if err != nil {
		return fmt.Errorf("delete %s: %w", k, err)
	}
	header, own := s.requestHeader(ctx, k, deletionMarker(k))
	p := put{subject: s.subject(k), cas: true, expect: rev, header: header}
	seq, err := s.conn.put(ctx, p)
	if err != nil {
		return fmt.Errorf("delete %s: %w", k, s.gone(ctx, k, p.subject, err))
	}
	s.settleView(ctx, ownStep(k, nil, seq, own))
	return nil
}

// current reads o's resourceVersion and refuses early what the view knows to
// have moved on. A revision that the view does not know yet is left to the bus.
func (s *store) current(k objKey, o schemas.Object) (uint64, error) {
	rev, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil || rev == 0 {
		return 0, fmt.Errorf("resourceVersion %q is not a revision", o.GetResourceVersion())
	}
	obj, known, _ := s.view.known(k)
	switch {
	case obj == nil && rev <= s.view.RevisionOf(k.resource):
		return 0, ErrNotFound
	case obj != nil && rev < known:
		return 0, ErrConflict
	}
	return rev, nil
}

// gone turns a conflict into ErrNotFound where the key holds nothing any more.
func (s *store) gone(ctx context.Context, k objKey, subject string, err error) error {
	if !errors.Is(err, ErrConflict) {
		return err
	}
	if _, verr := s.vacant(ctx, k, subject); verr == nil {
		return ErrNotFound
	}
	return err
}

// encode makes the message of an object: a whole manifest, without the
// resourceVersion, which is the message's own sequence. It returns the object
// as a reader will decode it (times in whole seconds, quantities in canonical
// form), so that the view does not depend on whose write it is, and an update
// that only loses in writing is seen to change nothing.
func (s *store) encode(k objKey, o schemas.Object) (put, schemas.Object, error) {
	kind := schemas.KindOf(o)
	o.GetObjectKind().SetGroupVersionKind(kind.GVK)
	o.SetResourceVersion("")
	body, err := json.Marshal(o)
	if err != nil {
		return put{}, nil, fmt.Errorf("encode: %w", err)
	}
	if len(body) > s.limit {
		return put{}, nil, fmt.Errorf("%d bytes are %w: the limit of an object is %d bytes", len(body), ErrTooLarge, s.limit)
	}
	read, err := decodeObject(kind, body)
	if err != nil {
		return put{}, nil, fmt.Errorf("decode what was encoded: %w", err)
	}
	return put{subject: s.subject(k), body: body, cas: true}, read, nil
}

// written makes an acknowledged object part of the view and returns a copy.
func (s *store) written(ctx context.Context, k objKey, o schemas.Object, seq uint64, requests []requested) schemas.Object {
	stamp(o, seq)
	own := o.DeepCopyObject().(schemas.Object)
	s.settleView(ctx, ownStep(k, o, seq, requests))
	return own
}

// ownStep is the step of an acknowledged write.
func ownStep(k objKey, o schemas.Object, seq uint64, requests []requested) step {
	now := time.Now()
	for i := range requests {
		requests[i].seq, requests[i].at = seq, now.Unix()
	}
	return step{key: k, obj: o, seq: seq, at: now, requests: requests}
}

// settleView returns when the view shows the step. The write is safe already,
// so the end of ctx only ends the waiting.
func (s *store) settleView(ctx context.Context, st step) {
	s.view.offer(st)
	select {
	case <-s.view.reached(s.view.lane(st.key.resource), st.seq):
	case <-ctx.Done():
	}
}

func (s *store) bucket(k objKey) string {
	if k.resource == schemas.Events {
		return s.conn.names.EventsBucket()
	}
	return s.conn.names.ObjectsBucket()
}

func (s *store) subject(k objKey) string {
	return schemas.KVSubject(s.bucket(k), k.String())
}

// newUID is a random UUID (version 4).
func newUID() types.UID { return types.UID(uuid.NewString()) }
