package bus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

// apiTimeout bounds one JetStream API call: after faults some were seen to
// hang for a minute while a second attempt was answered at once.
const apiTimeout = 3 * time.Second

// OpenOptions say where the bus of the control plane is.
type OpenOptions struct {
	Names schemas.Names
	// Server is the embedded server to use, within the process.
	Server *Server
	// Credentials and SignerSeed (an nkey account seed) are used without Server,
	// to reach a NATS system that runs elsewhere.
	Credentials *schemas.UserCredentials
	SignerSeed  string
	// PodCIDR and ServiceCIDR are written into the cluster's record when it is
	// made, and ignored afterwards: Cluster tells what holds.
	PodCIDR, ServiceCIDR string
	// Replicas of the streams; 0 means 1.
	Replicas int
	Log      zerolog.Logger
}

// Conn is the control plane's connection to the bus, with all buckets and
// streams in place.
type Conn struct {
	link    *link
	js      jetstream.JetStream
	names   schemas.Names
	signer  signer
	cluster schemas.ClusterRecord
	log     zerolog.Logger

	mu        sync.Mutex
	downSince time.Time // zero while connected
	reconnect map[*reconnectHook]struct{}
}

// Open connects, makes or updates the buckets and streams, and makes the
// cluster's record where there is none. It may be repeated at will.
func Open(ctx context.Context, o OpenOptions) (*Conn, error) {
	d, signing, err := openIdentity(o)
	if err != nil {
		return nil, fmt.Errorf("open bus: %w", err)
	}
	c := &Conn{names: o.Names, signer: signing, log: o.Log, reconnect: map[*reconnectHook]struct{}{}}
	d.onDisconnect, d.onReconnect = c.disconnected, c.reconnected
	if c.link, err = dial(ctx, d); err != nil {
		return nil, fmt.Errorf("open bus: %w", err)
	}
	if err := c.setUp(ctx, o); err != nil {
		c.link.nc.Close()
		return nil, fmt.Errorf("open bus: %w", err)
	}
	if o.Server != nil {
		o.Server.setClusterID(c.cluster.ID)
	}
	return c, nil
}

func openIdentity(o OpenOptions) (dialOptions, signer, error) {
	d := dialOptions{name: "gantry control plane", log: o.Log}
	if o.Server != nil {
		d.server, d.key = o.Server, o.Server.control
		return d, o.Server.signer, nil
	}
	if o.Credentials == nil {
		return d, signer{}, errors.New("neither a server nor credentials given")
	}
	var err error
	if d.key, err = nkeys.FromSeed(trimSeed([]byte(o.Credentials.Seed))); err != nil {
		return d, signer{}, fmt.Errorf("read credentials: %w", err)
	}
	d.urls, d.ca = o.Credentials.URLs, o.Credentials.CA
	key, err := nkeys.FromSeed(trimSeed([]byte(o.SignerSeed)))
	if err != nil {
		return d, signer{}, fmt.Errorf("read signing key: %w", err)
	}
	signing, err := newSigner(key)
	return d, signing, err
}

func (c *Conn) setUp(ctx context.Context, o OpenOptions) (err error) {
	c.js, err = jetstream.New(c.link.nc, jetstream.WithDefaultTimeout(apiTimeout), jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return err
	}
	for _, cfg := range streamConfigs(o.Names, max(o.Replicas, 1)) {
		if err := c.ensureStream(ctx, cfg); err != nil {
			return fmt.Errorf("set up stream %s: %w", cfg.Name, err)
		}
	}
	return c.ensureCluster(ctx, o)
}

func (c *Conn) disconnected(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.downSince.IsZero() {
		c.downSince = time.Now()
	}
	if err != nil {
		c.log.Warn().Err(err).Msg("connection to the bus lost")
	}
}

func (c *Conn) reconnected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	down := time.Since(c.downSince)
	if c.downSince.IsZero() {
		return
	}
	c.downSince = time.Time{}
	c.log.Info().Dur("after", down).Msg("connected to the bus again")
	for h := range c.reconnect {
		if down >= h.after {
			h.fn()
		}
	}
}

type reconnectHook struct {
	after time.Duration
	fn    func()
}

// onReconnect calls fn when a connection that was lost for at least that long
// is back. The function returned ends that. fn must not block.
func (c *Conn) onReconnect(after time.Duration, fn func()) (stop func()) {
	h := &reconnectHook{after: after, fn: fn}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reconnect[h] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.reconnect, h)
	}
}

// Cluster is the record of the cluster that this bus belongs to.
func (c *Conn) Cluster() schemas.ClusterRecord { return c.cluster }

// Names are those that Open was given.
func (c *Conn) Names() schemas.Names { return c.names }

// MaxPayload is the largest message in bytes that the bus takes.
func (c *Conn) MaxPayload() int64 { return c.link.nc.MaxPayload() }

// Close ends the connection; what waits on it fails.
func (c *Conn) Close() { c.link.nc.Close() }

const (
	gib = 1 << 30
	mib = 1 << 20
)

// streamConfigs is every stream on the bus. Buckets are streams by the
// conventions of NATS KV, made directly for the settings that its own API does
// not offer.
func streamConfigs(n schemas.Names, replicas int) []jetstream.StreamConfig {
	bucket := func(name, description string, cfg jetstream.StreamConfig) jetstream.StreamConfig {
		cfg.Name = "KV_" + name
		cfg.Description = description
		cfg.Subjects = []string{schemas.KVSubject(name, ">")}
		cfg.AllowDirect = true
		cfg.AllowRollup = true
		cfg.DenyDelete = true
		cfg.AllowMsgTTL = true // markers of deletions go away by themselves
		cfg.MaxConsumers = -1
		cfg.Replicas = replicas
		return cfg
	}
	// Events are for people and gone after an hour: where the power fails, those
	// of the last moment may be lost. In turn the start of a pod waits for half as
	// many syncs. A replicated stream is synced by its log, and refuses the mode.
	unsynced := jetstream.DefaultPersistMode
	if replicas == 1 {
		unsynced = jetstream.AsyncPersistMode
	}
	return []jetstream.StreamConfig{
		// A full bucket of objects refuses new ones; it never drops old ones. The
		// versions are what a server that starts reads its change log from: a lease
		// that is renewed every two seconds leaves half a minute of it.
		bucket(n.ObjectsBucket(), "API objects", jetstream.StreamConfig{
			Storage: jetstream.FileStorage, MaxMsgsPerSubject: 16, MaxBytes: 6 * gib, Discard: jetstream.DiscardNew,
		}),
		// A marker where an event has expired is what removes it from views.
		bucket(n.EventsBucket(), "v1 Events, for an hour", jetstream.StreamConfig{
			Storage: jetstream.FileStorage, MaxMsgsPerSubject: 1, MaxBytes: 256 * mib, Discard: jetstream.DiscardOld,
			MaxAge: time.Hour, SubjectDeleteMarkerTTL: 5 * time.Minute, PersistMode: unsynced,
		}),
		bucket(n.DesiredBucket(), "what each node must run, compiled from the objects", jetstream.StreamConfig{
			Storage: jetstream.MemoryStorage, MaxMsgsPerSubject: 1, MaxBytes: 512 * mib, Discard: jetstream.DiscardNew,
		}),
		bucket(n.RoutesBucket(), "what every node must route, compiled from the objects", jetstream.StreamConfig{
			Storage: jetstream.MemoryStorage, MaxMsgsPerSubject: 1, MaxBytes: 128 * mib, Discard: jetstream.DiscardNew,
		}),
		bucket(n.ReservationsBucket(), "what is given out once", jetstream.StreamConfig{
			Storage: jetstream.FileStorage, MaxMsgsPerSubject: 1, MaxBytes: 64 * mib, Discard: jetstream.DiscardNew,
		}),
		bucket(n.ClusterBucket(), "the cluster itself", jetstream.StreamConfig{
			Storage: jetstream.FileStorage, MaxMsgsPerSubject: 8, MaxBytes: 4 * mib, Discard: jetstream.DiscardNew,
		}),
		{
			Name: n.HealthStream(), Description: "what the nodes report", Subjects: []string{n.HealthAll()},
			Storage: jetstream.MemoryStorage, MaxMsgsPerSubject: 8, MaxBytes: 256 * mib, Discard: jetstream.DiscardOld,
			// Reports are taken in as they come, and nodes repeat themselves to every
			// new control plane: what stays is for people who look, and memory.
			MaxAge:    10 * time.Minute,
			DenyPurge: true, DenyDelete: true, AllowDirect: true, MaxConsumers: -1, Replicas: replicas,
		},
	}
}

// ensureStream makes a stream or brings it up to date. Purging is denied to
// the health stream for good by the server itself, and rollup by default.
func (c *Conn) ensureStream(ctx context.Context, cfg jetstream.StreamConfig) error {
	return retryAPI(ctx, func(ctx context.Context) error {
		// How a stream is synced is settled when it is made; one of an earlier
		// version stays as it is.
		have, err := c.js.Stream(ctx, cfg.Name)
		switch {
		case err == nil:
			cfg.PersistMode = have.CachedInfo().Config.PersistMode
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return err
		}
		_, err = c.js.CreateOrUpdateStream(ctx, cfg)
		return err
	})
}

// retryAPI gives each attempt apiTimeout and repeats those that were not
// answered until ctx ends, at most five times.
func retryAPI(ctx context.Context, call func(context.Context) error) (err error) {
	for attempt := range 5 {
		if attempt > 0 {
			if werr := wait(ctx, time.Duration(attempt)*200*time.Millisecond); werr != nil {
				return err
			}
		}
		try, cancel := context.WithTimeout(ctx, apiTimeout)
		err = call(try)
		cancel()
		if err == nil || !unanswered(err) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// unanswered tells errors that leave open whether the call was carried out.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, ErrNoAnswer) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrConnectionReconnecting)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ensureCluster reads the cluster's record or writes the first one. The id is
// kept with the objects, not with the keys: a bus whose data was wiped is a
// new cluster, and nodes that know the old one refuse it.
func (c *Conn) ensureCluster(ctx context.Context, o OpenOptions) error {
	subject := schemas.KVSubject(c.names.ClusterBucket(), schemas.ClusterKey)
	stream := "KV_" + c.names.ClusterBucket()
	for range 3 {
		m, err := c.lastMessage(ctx, stream, subject)
		if err == nil {
			return c.adoptCluster(m.Data)
		}
		if !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("read cluster record: %w", err)
		}
		body, err := json.Marshal(schemas.ClusterRecord{
			ID: randomID(), Signer: c.signer.public, PodCIDR: o.PodCIDR, ServiceCIDR: o.ServiceCIDR,
		})
		if err != nil {
			return fmt.Errorf("write cluster record: %w", err)
		}
		// Another control plane may write it first: then theirs is read.
		if _, err := c.put(ctx, put{subject: subject, body: body, expect: 0, cas: true}); err != nil && !errors.Is(err, ErrConflict) {
			return fmt.Errorf("write cluster record: %w", err)
		}
	}
	return errors.New("write cluster record: it keeps changing")
}

func (c *Conn) adoptCluster(body []byte) error {
	if err := json.Unmarshal(body, &c.cluster); err != nil {
		return fmt.Errorf("read cluster record: %w", err)
	}
	if c.cluster.Signer != c.signer.public {
		return fmt.Errorf("this cluster is signed by key %s, not by ours (%s): nodes would refuse what we say; restore the signing key", c.cluster.Signer, c.signer.public)
	}
	return nil
}

// lastMessage is the newest message on a subject, ErrNotFound where none is kept.
func (c *Conn) lastMessage(ctx context.Context, stream, subject string) (*jetstream.RawStreamMsg, error) {
	var m *jetstream.RawStreamMsg
	err := retryAPI(ctx, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		m, err = s.GetLastMsgForSubject(ctx, subject)
		return err
	})
	if isNoMessage(err) {
		return nil, fmt.Errorf("%s: %w", subject, ErrNotFound)
	}
	return m, err
}

func isNoMessage(err error) bool { return errors.Is(err, jetstream.ErrMsgNotFound) }

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return hex.EncodeToString(b[:])
}

// streamOf names the stream that keeps a subject.
func (c *Conn) streamOf(subject string) (string, error) {
	if rest, ok := strings.CutPrefix(subject, "$KV."); ok {
		bucket, _, _ := strings.Cut(rest, ".")
		return "KV_" + bucket, nil
	}
	return "", fmt.Errorf("no bucket keeps %s", subject)
}
