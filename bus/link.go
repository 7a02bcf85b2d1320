package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
)

// ErrNoAnswer is a request that nobody listens for: the other side is not
// connected.
var ErrNoAnswer = errors.New("nobody answers")

// link is one NATS connection that knows which publishes the server refused.
//
// The server answers a forbidden publish with an asynchronous error and drops
// the message, so a request would end in a timeout and be tried for ever.
// link gives the error to the request that waits on that subject.
type link struct {
	nc  *nats.Conn
	log zerolog.Logger

	mu      sync.Mutex
	waiting map[string]map[*waiter]struct{} // by subject
}

type waiter struct{ cancel context.CancelCauseFunc }

type dialOptions struct {
	name   string
	server *Server // connect within the process
	urls   []string
	ca     string // PEM
	key    nkeys.KeyPair
	log    zerolog.Logger
	// patient keeps trying when the server is not there yet; dial then returns
	// at once.
	patient      bool
	onReconnect  func()
	onDisconnect func(error)
}

func dial(ctx context.Context, o dialOptions) (*link, error) {
	l := &link{log: o.log, waiting: map[string]map[*waiter]struct{}{}}
	public, err := o.key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("connect: read key: %w", err)
	}
	opts := []nats.Option{
		nats.Name(o.name),
		nats.Nkey(public, o.key.Sign),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.IgnoreAuthErrorAbort(), // the key may be made known again
		nats.Timeout(3 * time.Second),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		// What could not be sent is told to the caller rather than kept and sent
		// late: every sender here repeats from the truth.
		nats.ReconnectBufSize(-1),
		nats.RetryOnFailedConnect(o.patient),
		nats.PermissionErrOnSubscribe(true),
		nats.ErrorHandler(l.asyncError),
		nats.ReconnectHandler(func(*nats.Conn) {
			if o.onReconnect != nil {
				o.onReconnect()
			}
		}),
		nats.ConnectHandler(func(*nats.Conn) {
			if o.patient && o.onReconnect != nil {
				o.onReconnect()
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if o.onDisconnect != nil {
				o.onDisconnect(err)
			}
		}),
	}
	if o.ca != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(o.ca)) {
			return nil, errors.New("connect: the CA in the credentials is not a PEM certificate")
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}))
	}
	url := strings.Join(o.urls, ",")
	if o.server != nil {
		opts = append(opts, nats.InProcessServer(o.server.ns))
		url = nats.DefaultURL
	} else if url == "" {
		return nil, errors.New("connect: no server address given")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if l.nc, err = nats.Connect(url, opts...); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", url, err)
	}
	return l, nil
}

// reconnectDelay is how long to wait before the next round of attempts: short
// at first, because a control plane that restarts is back in a moment, then
// longer, because one that refuses the key or is gone for hours need not be
// asked three times a second. Half of it is left to chance, so that nodes that
// lost one server do not all come back at once.
func reconnectDelay(attempts int) time.Duration {
	const first, longest = 200 * time.Millisecond, 5 * time.Second
	d := longest
	if attempts < 6 {
		d = min(first<<max(attempts-1, 0), longest)
	}
	return d/2 + rand.N(d/2+1)
}

var refusedPublish = regexp.MustCompile(`(?i)permissions violation for publish to "([^"]+)"`)

func (l *link) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	m := refusedPublish.FindStringSubmatch(err.Error())
	if m == nil {
		e := l.log.Warn().Err(err)
		if sub != nil {
			e = e.Str("subject", sub.Subject)
		}
		e.Msg("bus connection")
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.waiting[m[1]] {
		w.cancel(fmt.Errorf("publish to %s: %w", m[1], ErrForbidden))
	}
}

// guard ends the context with ErrForbidden if the server refuses to take a
// message on the subject. done must be called.
func (l *link) guard(ctx context.Context, subject string) (guarded context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &waiter{cancel: cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	set := l.waiting[subject]
	if set == nil {
		set = map[*waiter]struct{}{}
		l.waiting[subject] = set
	}
	set[w] = struct{}{}
	return ctx, func() {
		cancel(nil)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(set, w)
		if len(set) == 0 && len(l.waiting[subject]) == 0 {
			delete(l.waiting, subject)
		}
	}
}

// request sends a message and waits for the one answer. Errors wrap
// ErrForbidden, ErrNoAnswer, ErrTooLarge or the context's error.
func (l *link) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	if limit := l.nc.MaxPayload(); limit > 0 && int64(m.Size()-len(m.Subject)-len(m.Reply)) > limit {
		return nil, fmt.Errorf("request %s: %d bytes are %w: the limit is %d", m.Subject, len(m.Data), ErrTooLarge, limit)
	}
	guarded, done := l.guard(ctx, m.Subject)
	defer done()
	reply, err := l.nc.RequestMsgWithContext(guarded, m)
	if err == nil {
		return reply, nil
	}
	if cause := context.Cause(guarded); cause != nil && errors.Is(cause, ErrForbidden) {
		return nil, cause
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		err = ErrNoAnswer
	case errors.Is(err, nats.ErrMaxPayload):
		err = ErrTooLarge
	}
	return nil, fmt.Errorf("request %s: %w", m.Subject, err)
}
