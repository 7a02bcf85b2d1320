package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"gantry.dev/schemas"
)

const (
	// requestHorizon is how long a write is known by its request's id.
	requestHorizon = 5 * time.Minute
	// maxRequests bounds the ids that are known of one object. Further writes
	// within the horizon push the oldest out.
	maxRequests = 64
	// maxCarried bounds the ids that a message carries on from earlier ones. They
	// matter to a view that loads: it sees only the last message of each key.
	maxCarried = 16
	// headerEarlier carries them, one per value: "<sequence> <Unix seconds>
	// <result or -> <id>".
	headerEarlier = "Gantry-Earlier"
)

// Request is what a write says of itself so that its repetition can be told.
type Request struct {
	ID string
	// Result is what the write does, in a word: the answer to a repetition says
	// it again. It may be empty.
	Result string
}

type requestKey struct{}

// WithRequest gives the writes under a context the id of the request that they
// carry out: one write per key.
func WithRequest(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// Written is a write that was found by the id of its request.
type Written struct {
	// Object is as the write stored it, or what it deleted; nil where that is no
	// longer kept.
	Object   schemas.Object
	Deleted  bool
	Result   string
	Revision uint64
}

// requested is one write that had an id.
type requested struct {
	id, result string
	seq        uint64
	at         int64 // Unix seconds
}

func (r requested) String() string {
	result := r.result
	if result == "" {
		result = "-"
	}
	return fmt.Sprintf("%d %d %s %s", r.seq, r.at, result, r.id)
}

// requestedIn reads what a message says of its own request, and of earlier
// ones. What cannot be read is left out: the header is the bus's own.
func requestedIn(h nats.Header, seq uint64, at time.Time) []requested {
	var out []requested
	for _, v := range h.Values(headerEarlier) {
		f := strings.SplitN(v, " ", 4)
		if len(f) != 4 {
			continue
		}
		n, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			continue
		}
		t, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		r := requested{id: f[3], seq: n, at: t}
		if f[2] != "-" {
			r.result = f[2]
		}
		out = append(out, r)
	}
	if id := h.Get(schemas.HeaderRequest); id != "" {
		out = append(out, requested{id: id, result: h.Get(schemas.HeaderResult), seq: seq, at: at.Unix()})
	}
	return out
}

// requestHeader is what a write of the key says of its request, if it has one,
// and of those before it. It returns nil where there is nothing to say.
func (s *store) requestHeader(ctx context.Context, k objKey, h nats.Header) (nats.Header, []requested) {
	var own []requested
	set := func(name string, values ...string) {
		if h == nil {
			h = nats.Header{}
		}
		h[name] = values
	}
	if r, ok := ctx.Value(requestKey{}).(Request); ok && r.ID != "" {
		set(schemas.HeaderRequest, r.ID)
		if r.Result != "" {
			set(schemas.HeaderResult, r.Result)
		}
		own = []requested{{id: r.ID, result: r.Result}}
	}
	earlier := s.view.requestsOf(k)
	if len(earlier) > maxCarried {
		earlier = earlier[len(earlier)-maxCarried:]
	}
	since := time.Now().Add(-requestHorizon).Unix()
	var carried []string
	for _, r := range earlier {
		if r.at >= since {
			carried = append(carried, r.String())
		}
	}
	if carried != nil {
		set(headerEarlier, carried...)
	}
	return h, own
}

// merged puts the writes that a message tells of behind those known before.
// The result shares nothing with known, which readers may hold.
func mergeRequests(known, told []requested, now time.Time) []requested {
	if len(known) > 0 && len(told) > 0 {
		last := known[len(known)-1].seq
		told = slices.DeleteFunc(slices.Clone(told), func(r requested) bool { return r.seq <= last })
	}
	if len(told) == 0 {
		return known
	}
	out := slices.Concat(known, told)
	since := now.Add(-requestHorizon).Unix()
	out = slices.DeleteFunc(out, func(r requested) bool { return r.at < since })
	if n := len(out) - maxRequests; n > 0 {
		out = out[n:]
	}
	return slices.Clip(out)
}

// requestsOf is the writes with an id that are known of a key, oldest first.
func (v *viewCache) requestsOf(k objKey) []requested {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.requests[k]
}

// noteRequests takes in what a step tells of requests; the caller holds the lock.
func (v *viewCache) noteRequests(s step) {
	if len(s.requests) == 0 {
		return
	}
	now := time.Now()
	list := mergeRequests(v.requests[s.key], s.requests, now)
	if len(list) == 0 {
		return
	}
	v.requests[s.key] = list
	v.aging = append(v.aging, aging{key: s.key, at: now.Unix()})
	// Each entry is dropped when all that it was made for is beyond the horizon.
	since := now.Add(-requestHorizon).Unix()
	for len(v.aging) > 0 && v.aging[0].at < since {
		k := v.aging[0].key
		if list := v.requests[k]; len(list) > 0 && list[len(list)-1].at < since {
			delete(v.requests, k)
		}
		v.aging = v.aging[1:]
	}
}

// aging is a key whose requests are to be looked at once they are old.
type aging struct {
	key objKey
	at  int64 // Unix seconds
}

// WrittenBy implements History.
func (s *store) WrittenBy(ctx context.Context, resource, namespace, name, id string, ask bool) (Written, bool, error) {
	k := objKey{resource, namespace, name}
	list := s.view.requestsOf(k)
	if ask {
		m, err := s.conn.lastMessage(ctx, "KV_"+s.bucket(k), s.subject(k))
		if errors.Is(err, ErrNotFound) {
			return Written{}, false, nil
		}
		if err != nil {
			return Written{}, false, fmt.Errorf("look for request %s: %w", id, err)
		}
		list = mergeRequests(list, requestedIn(m.Header, m.Sequence, m.Time), time.Now())
	}
	since := time.Now().Add(-requestHorizon).Unix()
	for _, r := range slices.Backward(list) {
		if r.id != id || r.at < since {
			continue
		}
		o, deleted, err := s.at(ctx, k, r.seq)
		return Written{Object: o, Deleted: deleted, Result: r.result, Revision: r.seq}, err == nil, err
	}
	return Written{}, false, nil
}

// at is a key as one message left it: from memory where the view still has it,
// else from the stream. The object is nil where neither keeps it.
func (s *store) at(ctx context.Context, k objKey, seq uint64) (o schemas.Object, deleted bool, err error) {
	if o, deleted, ok := s.view.at(k, seq); ok {
		return o, deleted, nil
	}
	var data []byte
	err = retryAPI(ctx, func(ctx context.Context) error {
		stream, err := s.conn.js.Stream(ctx, "KV_"+s.bucket(k))
		if err != nil {
			return err
		}
		m, err := stream.GetMsg(ctx, seq)
		if err != nil {
			return err
		}
		deleted = m.Header.Get(headerOperation) != ""
		data = m.Data
		return nil
	})
	switch {
	case isNoMessage(err):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("read revision %d of %s: %w", seq, k, err)
	case deleted:
		return nil, true, nil
	}
	kind, ok := schemas.KindByResource(k.resource)
	if !ok {
		return nil, false, fmt.Errorf("read revision %d of %s: resource is not known", seq, k)
	}
	o = kind.New()
	if err := json.Unmarshal(data, o); err != nil {
		return nil, false, fmt.Errorf("read revision %d of %s: %w", seq, k, err)
	}
	stamp(o, seq)
	return o, false, nil
}

// at finds what one revision made of a key; ok is false where the view no
// longer knows.
func (v *viewCache) at(k objKey, seq uint64) (o schemas.Object, deleted, ok bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if r, found := v.records[k]; found && r.rev == seq {
		return r.obj, false, true
	}
	c, found := v.lane(k.resource).log.at(seq)
	if !found || keyOf(c.Object()) != k {
		return nil, false, false
	}
	return c.Object(), c.New == nil, true
}
