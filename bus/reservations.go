package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"gantry.dev/schemas"
)

// Held is a thing that was given out, and to whom.
type Held struct {
	schemas.Reservation
	Value string
	Since time.Time // when it was given, by the server's clock
}

// Reserve takes a value for r. It fails with ErrExists, and says who holds it,
// where that is another; repeating it for the same holder succeeds.
func (c *Conn) Reserve(ctx context.Context, kind, value string, r schemas.Reservation) (Held, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return Held{}, fmt.Errorf("reserve %s %s: %w", kind, value, err)
	}
	p := put{subject: c.reservationSubject(kind, value), body: body, cas: true}
	// Twice over: the first loss may be to a value that was being given back.
	for range 3 {
		if _, err = c.put(ctx, p); err == nil {
			return Held{Reservation: r, Value: value, Since: time.Now()}, nil
		}
		if !errors.Is(err, ErrConflict) {
			break
		}
		held, last, lookErr := c.reservation(ctx, kind, value)
		switch {
		case lookErr != nil:
			return Held{}, fmt.Errorf("reserve %s %s: %w", kind, value, lookErr)
		case held.UID == "":
			p.expect = last
			continue
		case held.Reservation == r:
			return held, nil
		}
		return held, fmt.Errorf("reserve %s %s: held by %s: %w", kind, value, held.Key, ErrExists)
	}
	return Held{}, fmt.Errorf("reserve %s %s: %w", kind, value, err)
}

// Release gives a value back if r holds it; otherwise it does nothing.
func (c *Conn) Release(ctx context.Context, kind, value string, r schemas.Reservation) error {
	held, last, err := c.reservation(ctx, kind, value)
	if err == nil && held.Reservation == r && held.UID != "" {
		p := put{subject: c.reservationSubject(kind, value), cas: true, expect: last, header: nats.Header{
			headerOperation: {opPurge}, headerRollup: {"sub"}, headerTTL: {tombstoneTTL.String()},
		}}
		_, err = c.put(ctx, p)
	}
	// Who came first with a release leaves nothing to do.
	if err != nil && !errors.Is(err, ErrConflict) {
		return fmt.Errorf("release %s %s: %w", kind, value, err)
	}
	return nil
}

// Reserved lists what is held of one kind, in no order.
func (c *Conn) Reserved(ctx context.Context, kind string) ([]Held, error) {
	bucket := "KV_" + c.names.ReservationsBucket()
	prefix := c.reservationSubject(kind, "")
	var values []string
	err := retryAPI(ctx, func(ctx context.Context) error {
		stream, err := c.js.Stream(ctx, bucket)
		if err != nil {
			return err
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(prefix+">"))
		if err != nil {
			return err
		}
		values = values[:0]
		for subject := range info.State.Subjects {
			// ParseObjectKey undoes the escapes of a key's last part.
			_, _, value, err := schemas.ParseObjectKey(kind + "._." + strings.TrimPrefix(subject, prefix))
			if err != nil {
				return err
			}
			values = append(values, value)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list reservations of %s: %w", kind, err)
	}
	var out []Held
	for _, v := range values {
		held, _, err := c.reservation(ctx, kind, v)
		if err != nil {
			return nil, fmt.Errorf("list reservations of %s: %w", kind, err)
		}
		if held.UID != "" {
			out = append(out, held)
		}
	}
	return out, nil
}

func (c *Conn) reservationSubject(kind, value string) string {
	return schemas.KVSubject(c.names.ReservationsBucket(), schemas.ReservationKey(kind, value))
}

// reservation reads who holds a value and the sequence that says so; the UID
// is empty where nobody does.
func (c *Conn) reservation(ctx context.Context, kind, value string) (Held, uint64, error) {
	m, err := c.lastMessage(ctx, "KV_"+c.names.ReservationsBucket(), c.reservationSubject(kind, value))
	if errors.Is(err, ErrNotFound) {
		return Held{}, 0, nil
	}
	if err != nil {
		return Held{}, 0, err
	}
	if m.Header.Get(headerOperation) != "" || m.Header.Get(headerMarker) != "" {
		return Held{}, m.Sequence, nil
	}
	held := Held{Value: value, Since: m.Time}
	if err := json.Unmarshal(m.Data, &held.Reservation); err != nil {
		return Held{}, 0, fmt.Errorf("read reservation %s %s: %w", kind, value, err)
	}
	return held, m.Sequence, nil
}
