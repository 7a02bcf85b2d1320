package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/schemas"
)

const (
	// writeAttempt is how long one attempt at a write waits for its answer: a
	// control plane gives up after ten seconds itself.
	writeAttempt = 12 * time.Second
	writePause   = 250 * time.Millisecond
)

// writes says that calls of a verb change objects, once under one request's id.
func writes(verb string) bool {
	switch verb {
	case schemas.VerbApply, schemas.VerbCreate, schemas.VerbUpdate, schemas.VerbPatch, schemas.VerbDelete, schemas.VerbDeleteCollection:
		return true
	}
	return false
}

// errLost ends an attempt whose connection broke under it.
var errLost = errors.New("the connection was lost")

// write asks until there is an answer, or ctx ends. All attempts carry one id,
// so what an unanswered one has done is done.
func (u *UserConn) write(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	id := m.Header.Get(schemas.HeaderRequest)
	if id == "" {
		id = uuid.NewString()
		m.Header.Set(schemas.HeaderRequest, id)
	}
	var sent bool // an attempt may have reached a control plane
	for {
		try, cancel := context.WithTimeout(ctx, writeAttempt)
		reply, err := u.attempt(try, m)
		cancel()
		var refused error
		if err == nil {
			// A server that stops, or one whose store did not answer in time.
			if refused = refusal(reply); !apierrors.IsServiceUnavailable(refused) && !apierrors.IsTimeout(refused) {
				return reply, nil
			}
		} else if errors.Is(err, ErrNoAnswer) && !sent || !errors.Is(err, errLost) && !unanswered(err) {
			return nil, err
		}
		sent = true
		if ctx.Err() == nil && wait(ctx, writePause) == nil {
			continue
		}
		if refused != nil {
			return reply, nil
		}
		return nil, fmt.Errorf("%w: the write may have happened; to repeat it with header %s: %s is safe, it then happens once", err, schemas.HeaderRequest, id)
	}
}

// attempt asks once, and does not wait for what a broken connection has lost.
func (u *UserConn) attempt(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	broken := u.link.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer u.link.nc.RemoveStatusListener(broken)
	go func() {
		select {
		case _, told := <-broken:
			if told {
				lose(errLost)
			}
		case <-ctx.Done():
		}
	}()
	reply, err := u.link.request(ctx, m)
	if err != nil && errors.Is(context.Cause(ctx), errLost) {
		return nil, fmt.Errorf("request %s: %w", m.Subject, errLost)
	}
	return reply, err
}
