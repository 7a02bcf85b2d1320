package plane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/controlplane/admission"
	"gantry.dev/controlplane/deployment"
	"gantry.dev/controlplane/endpoints"
	"gantry.dev/controlplane/events"
	"gantry.dev/controlplane/gc"
	"gantry.dev/controlplane/namespace"
	"gantry.dev/controlplane/nodes"
	"gantry.dev/controlplane/publisher"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/replicaset"
	"gantry.dev/controlplane/scheduler"
	"gantry.dev/schemas"
)

// Options say how to run a control plane.
type Options struct {
	StateDir string
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// Websocket and WebsocketOrigins are those of bus.ServerOptions.
	Websocket        string
	WebsocketOrigins []string
	Names            schemas.Names
	// Nodes get an account and a credentials file.
	Nodes []string
	// PodCIDR and ServiceCIDR hold for a new cluster; an old one keeps its own.
	PodCIDR, ServiceCIDR string
	TLSCert, TLSKey      string
	Log                  zerolog.Logger
	// Now is the clock by which nodes count as silent; nil means time.Now.
	Now func() time.Time
}

// drainTime bounds how long the calls under way may take when the plane stops.
const drainTime = 10 * time.Second

// Plane is a control plane that runs.
type Plane struct {
	options Options
	log     zerolog.Logger
	lock    *os.File
	server  *bus.Server
	conn    *bus.Conn
	store   bus.History
	claims  *reconcile.Claims

	admission *admission.Admission
	recorder  *events.Recorder
	publisher *publisher.Publisher
	nodes     *nodes.Nodes
	scheduler *scheduler.Scheduler
	engine    *reconcile.Engine

	callsMu   sync.Mutex // guards stopping, and calls against late ones
	stopping  bool
	calls     sync.WaitGroup  // of the API, under way
	apiCtx    context.Context // of what is served
	stopAPI   context.CancelFunc
	stopRoles context.CancelFunc
	stopView  context.CancelFunc
	roles     sync.WaitGroup
	failed    chan error // capacity 1: a role ended that should not have
}

// Start brings a control plane up and returns when it serves: the bus first,
// then everything that is stored, then the API, then what nodes are told. The
// context bounds the start alone. On an error nothing is left running.
func Start(ctx context.Context, o Options) (_ *Plane, err error) {
	p := &Plane{options: o, log: o.Log, claims: &reconcile.Claims{}, failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			stopped, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
			defer cancel()
			err = errors.Join(err, p.Stop(stopped))
		}
	}()
	// Before anything is written: the ranges of a new cluster are kept for good.
	if err := o.check(); err != nil {
		return nil, err
	}
	if p.lock, err = lockDir(o.StateDir); err != nil {
		return nil, err
	}
	if err := os.Remove(p.readyPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	if err := p.openBus(ctx); err != nil {
		return nil, err
	}
	if err := p.makeRoles(); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	if err := p.admission.Bootstrap(ctx); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	// Calls are answered from what is stored alone, so they need not wait until
	// all that nodes are told has been compiled; a node's question does.
	if err := p.serve(ctx); err != nil {
		return nil, err
	}
	if err := p.runRoles(ctx); err != nil {
		return nil, err
	}
	if err := p.hearNodes(); err != nil {
		return nil, err
	}
	if err := p.writeCredentials(); err != nil {
		return nil, err
	}
	if err := writeFile(p.readyPath(), fmt.Appendf(nil, "%d\n", os.Getpid())); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	return p, nil
}

func (o Options) check() error {
	if err := nodes.CheckPodCIDR(o.PodCIDR); err != nil {
		return err
	}
	service, err := netip.ParsePrefix(o.ServiceCIDR)
	if err != nil {
		return fmt.Errorf("service CIDR %q: %w", o.ServiceCIDR, err)
	}
	if pods := netip.MustParsePrefix(o.PodCIDR); pods.Overlaps(service) {
		return fmt.Errorf("service CIDR %s and pod CIDR %s overlap", o.ServiceCIDR, o.PodCIDR)
	}
	return nil
}

func (p *Plane) openBus(ctx context.Context) (err error) {
	o := p.options
	p.server, err = bus.StartServer(ctx, bus.ServerOptions{
		StateDir: filepath.Join(o.StateDir, "bus"), Listen: o.Listen,
		Websocket: o.Websocket, WebsocketOrigins: o.WebsocketOrigins, Names: o.Names, Nodes: o.Nodes,
		TLSCert: o.TLSCert, TLSKey: o.TLSKey, TLSCA: o.TLSCert, Log: p.role("bus"),
	})
	if err != nil {
		return err
	}
	p.conn, err = bus.Open(ctx, bus.OpenOptions{
		Names: o.Names, Server: p.server, PodCIDR: o.PodCIDR, ServiceCIDR: o.ServiceCIDR, Log: p.role("bus"),
	})
	if err != nil {
		return err
	}
	if c := p.conn.Cluster(); c.PodCIDR != o.PodCIDR || c.ServiceCIDR != o.ServiceCIDR {
		p.log.Warn().Str("podCIDR", c.PodCIDR).Str("serviceCIDR", c.ServiceCIDR).
			Msg("the cluster keeps the ranges that it was made with")
	}
	indexes := map[string]bus.IndexFunc{}
	for _, some := range []map[string]bus.IndexFunc{reconcile.Indexes(), gc.Indexes(), nodes.Indexes()} {
		for name, fn := range some {
			indexes[name] = fn
		}
	}
	// The view outlives the start's context and ends after the roles that read it.
	viewCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.stopView = cancel
	stop := context.AfterFunc(ctx, cancel)
	p.store, err = bus.OpenStore(viewCtx, p.conn, indexes)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return err
}

func (p *Plane) role(name string) zerolog.Logger { return p.log.With().Str("role", name).Logger() }

func (p *Plane) makeRoles() (err error) {
	cluster := p.conn.Cluster()
	serviceCIDR, err := netip.ParsePrefix(cluster.ServiceCIDR)
	if err != nil {
		return fmt.Errorf("service CIDR: %w", err)
	}
	p.recorder = events.New(p.store, p.role("events"))
	p.publisher = publisher.New(p.store, p.conn, cluster, p.role("publisher"))
	p.scheduler = scheduler.New(p.store, p.recorder, p.role("scheduler"))
	if p.nodes, err = nodes.New(p.store, p.recorder, cluster.PodCIDR, p.role("nodes")); err != nil {
		return err
	}
	if p.options.Now != nil {
		p.nodes.Now = p.options.Now
	}
	p.nodes.Connected = func(node string) bool { return p.server.NodeConnections(node) > 0 }
	p.server.OnNodeDisconnect(p.nodes.Disconnected)
	p.admission = admission.New(admission.Options{
		Store: p.store, Reservations: p.conn, ServiceCIDR: serviceCIDR, Logs: p.fetchLogs, Ask: p.conn.NodeRequest, Log: p.role("admission"),
	})
	return p.register()
}

// register claims what each role writes; a fact that two would write ends the
// start. What users write through admission are the records that nothing of
// ours makes.
func (p *Plane) register() (err error) {
	var errs []error
	for _, role := range []struct {
		name   string
		writes []string
	}{
		{"admission", []string{
			schemas.Namespaces, schemas.Services, schemas.Deployments, schemas.ReplicaSets + "@User", schemas.Pods + "@User",
			schemas.ConfigMaps, schemas.PodTemplates, schemas.Leases, schemas.ControllerRevisions + "@User",
		}},
		{"scheduler", scheduler.Claims()},
		{"nodes", nodes.Claims()},
		{"events", []string{schemas.Events}},
		{"publisher", []string{"bus:desired", "bus:routes"}},
	} {
		errs = append(errs, p.claims.Register(role.name, role.writes...))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	p.engine, err = reconcile.New(p.store, p.role("controllers"), []reconcile.Controller{
		deployment.New(), replicaset.New(), endpoints.New(), namespace.New(), gc.New(),
	}, reconcile.WithClaims(p.claims), reconcile.WithRecorder(p.recorder))
	return err
}

// runRoles starts the roles and returns when what is stored has been compiled
// and the nodes' reports are heard.
func (p *Plane) runRoles(ctx context.Context) error {
	rolesCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.stopRoles = cancel
	run := func(name string, fn func(context.Context) error) {
		p.roles.Go(func() {
			if err := fn(rolesCtx); err != nil || rolesCtx.Err() == nil {
				select {
				case p.failed <- fmt.Errorf("%s ended: %w", name, orUnasked(err)):
				default:
				}
			}
		})
	}
	run("bus", p.watchDisk)
	run("events", p.recorder.Run)
	run("publisher", p.publisher.Run)
	run("nodes", p.nodes.Run)
	for _, ready := range []<-chan struct{}{p.publisher.Loaded(), p.nodes.Ready()} {
		select {
		case <-ready:
		case err := <-p.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("start control plane: %w", ctx.Err())
		}
	}
	run("health", func(ctx context.Context) error { return p.conn.WatchHealth(ctx, p.hear) })
	run("scheduler", p.scheduler.Run)
	run("controllers", p.engine.Run)
	return nil
}

// watchDisk ends when the bus cannot store any more. The control plane ends with
// it: whoever asks is told at once that nobody answers, rather than waiting for
// writes that never come to be, and the next start goes on from what was stored.
func (p *Plane) watchDisk(ctx context.Context) error {
	select {
	case err := <-p.server.Failed():
		return fmt.Errorf("nothing can be stored in %s until there is space and the control plane is started again: %w", p.options.StateDir, err)
	case <-ctx.Done():
		return nil
	}
}

func orUnasked(err error) error {
	if err == nil {
		return errors.New("it returned without being told to")
	}
	return err
}

func (p *Plane) hear(m bus.HealthMsg) {
	switch {
	case m.Pod != nil:
		p.nodes.TakePod(*m.Pod)
	case m.NodeHealth != nil:
		p.nodes.TakeNode(*m.NodeHealth)
	case m.Event != nil:
		p.nodes.TakeEvent(*m.Event)
	}
}

func (p *Plane) serve(ctx context.Context) error {
	p.apiCtx, p.stopAPI = context.WithCancel(context.WithoutCancel(ctx))
	if err := p.conn.ServeAPI(p.apiCtx, admission.Verbs, p.call); err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	return nil
}

// hearNodes answers nodes; who holds which name is known by then.
func (p *Plane) hearNodes() error {
	if err := p.conn.ServeSync(p.apiCtx, p.sync); err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	return nil
}

// begin counts a call, unless the plane stops: those that came before are waited for.
func (p *Plane) begin() bool {
	p.callsMu.Lock()
	defer p.callsMu.Unlock()
	if p.stopping {
		return false
	}
	p.calls.Add(1)
	return true
}

// call answers one call of the API. One that writes is finished even if the
// plane is told to stop meanwhile; one that waits is not.
func (p *Plane) call(ctx context.Context, call schemas.Call, header map[string][]string, body []byte) ([]byte, map[string][]string, *metav1.Status) {
	if !p.begin() {
		s := apierrors.NewServiceUnavailable("the server is stopping; ask again").Status()
		s.Kind, s.APIVersion = "Status", "v1"
		return nil, nil, &s
	}
	defer p.calls.Done()
	if !schemas.Waits(call.Verb) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
	}
	return p.admission.Handle(ctx, call, header, body)
}

// Failed gives the reason why the plane cannot go on, once there is one.
func (p *Plane) Failed() <-chan error { return p.failed }

// Server is the embedded bus.
func (p *Plane) Server() *bus.Server { return p.server }

// Store is the plane's own store of objects.
func (p *Plane) Store() bus.Store { return p.store }

// Scheduler explains what it decides.
func (p *Plane) Scheduler() *scheduler.Scheduler { return p.scheduler }

// Claims is the register of who writes what.
func (p *Plane) Claims() *reconcile.Claims { return p.claims }

// Told counts the records told to nodes since the start.
func (p *Plane) Told() uint64 { return p.publisher.Sent() }

// Quiet tells whether nothing is left to do until something changes.
func (p *Plane) Quiet() bool {
	return p.engine.Quiet() && p.scheduler.Quiet() && p.nodes.Quiet() && p.publisher.Quiet() && p.recorder.Pending() == 0
}

// Stop ends the plane: no new calls, those under way finished, roles stopped,
// the server shut down. It may be called on a plane that started in part.
func (p *Plane) Stop(ctx context.Context) error {
	var errs []error
	if p.lock != nil {
		if err := os.Remove(p.readyPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if p.stopAPI != nil {
		p.callsMu.Lock()
		p.stopping = true
		p.callsMu.Unlock()
		p.stopAPI()
		errs = append(errs, waitFor(ctx, "calls under way", &p.calls))
	}
	if p.stopRoles != nil {
		p.stopRoles()
		errs = append(errs, waitFor(ctx, "roles", &p.roles))
	}
	if p.stopView != nil {
		p.stopView()
	}
	if p.conn != nil {
		p.conn.Close()
	}
	if p.server != nil {
		errs = append(errs, p.server.Shutdown(ctx))
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop control plane: %w", err)
	}
	return nil
}

func waitFor(ctx context.Context, what string, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", what, ctx.Err())
	}
}
