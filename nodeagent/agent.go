package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/bus"
	"gantry.dev/netfilter"
	"gantry.dev/nodeagent/feed"
	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/network"
	"gantry.dev/nodeagent/node"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/probe"
	"gantry.dev/nodeagent/report"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/serve"
	"gantry.dev/nodeagent/session"
	"gantry.dev/nodeagent/state"
	"gantry.dev/schemas"
)

const (
	// readyName is the file in the run directory that says that the agent works.
	readyName    = "ready"
	stopPatience = 5 * time.Second
)

// agent is everything wired together.
type agent struct {
	o      options
	log    zerolog.Logger
	facts  node.Facts
	store  *state.Store
	images *image.Store
	rt     *runtime.Runtime
	routes *routing
	net    *network.Network
	pods   *pod.Set
	sink   *sink
	voice  *report.Reporter
	conn   *bus.NodeConn
	feed   *feed.Client
	prober *probe.Prober
	tend   *tender

	sessions *session.Engine
}

// run is the agent's life: it returns when ctx ends or when it cannot go on.
func run(ctx context.Context, o options, creds schemas.NodeCredentials, log zerolog.Logger) (err error) {
	// A context of our own, so that a failure of one part ends the others.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store, loaded, err := state.Open(o.state(), creds.ClusterID, o.node, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	release, err := alone(o.node, aloneLock)
	if err != nil {
		return err
	}
	defer release()
	a := &agent{o: o, log: log, store: store}
	if err := a.open(ctx); err != nil {
		return err
	}
	defer a.close()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	if err := a.start(ctx, &parts, loaded, creds); err != nil {
		return err
	}
	if err := writeReady(o.run()); err != nil {
		return err
	}
	defer func() { _ = os.Remove(filepath.Join(o.run(), readyName)) }()
	log.Info().Str("node", o.node).Int("pods", len(loaded.Pods)).Msg("the agent is ready")

	err = a.feed.Run(ctx)
	if err == nil {
		log.Info().Msg("stopping; containers go on")
	}
	cancel()
	a.pods.Wait()
	patience, done := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer done()
	if err == nil && a.conn.Connected() {
		a.voice.Stopping(patience)
	}
	return err
}

// open opens what is on the machine. It changes nothing of what runs.
func (a *agent) open(ctx context.Context) (err error) {
	machine, err := a.o.machine()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.o.run(), 0o711); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	if a.facts, err = node.Look(machine); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.images, err = image.Open(image.Options{
		Dir: filepath.Join(a.o.state(), "images"), InsecureRegistries: a.o.insecure,
	}, a.log.With().Str("part", "image").Logger())
	if err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	if a.rt, err = runtime.Open(ctx, a.o.runtime(a.log)); err != nil {
		return fmt.Errorf("open runtime: %w", err)
	}
	if a.net, err = openNetwork(a.o, a.log); err != nil {
		return err
	}
	if a.routes, err = openRouting(a.o, a.net, a.log.With().Str("part", "netfilter").Logger()); err != nil {
		return fmt.Errorf("open netfilter: %w", err)
	}
	return nil
}

func (o *options) runtime(log zerolog.Logger) runtime.Options {
	return runtime.Options{
		StateDir: filepath.Join(o.state(), "runtime"), RunDir: filepath.Join(o.run(), "runtime"),
		CgroupRoot: o.cgroup(), Shim: o.shim, Launcher: o.launcher,
		Log: log.With().Str("part", "runtime").Logger(),
	}
}

// close lets go of the machine and stops no container.
func (a *agent) close() {
	if a.sessions != nil {
		a.sessions.Close()
	}
	if a.conn != nil {
		a.conn.Close()
	}
	if a.routes != nil {
		if err := a.routes.close(); err != nil {
			a.log.Error().Err(err).Msg("cannot close netfilter")
		}
	}
	if a.net != nil {
		if err := a.net.Close(); err != nil {
			a.log.Error().Err(err).Msg("cannot close the network")
		}
	}
	if a.rt != nil {
		a.rt.Close()
	}
	if a.images != nil {
		if err := a.images.Close(); err != nil {
			a.log.Error().Err(err).Msg("cannot close the image store")
		}
	}
}

// start sets everything going. Pods that the disk knows are led before the
// control plane is heard: it may be away for long.
func (a *agent) start(ctx context.Context, parts *sync.WaitGroup, loaded state.Loaded, creds schemas.NodeCredentials) error {
	sandboxes, err := a.rt.Sandboxes()
	if err != nil {
		return fmt.Errorf("look for pods: %w", err)
	}
	own := map[types.UID]pod.Desired{}
	for _, s := range sandboxes {
		own[s.Sandbox.UID] = pod.Desired{UID: s.Sandbox.UID, Namespace: s.Sandbox.Namespace, Name: s.Sandbox.Name}
	}
	known := slices.Concat(slices.Collect(maps.Keys(own)), slices.Collect(maps.Keys(loaded.Pods)), slices.Collect(maps.Keys(loaded.Records)))
	if err := a.net.Sync(ctx, known); err != nil {
		a.log.Error().Err(err).Msg("cannot release what the network holds of former pods")
	}

	voice := &lateVoice{instance: a.store.Instance}
	a.voice = report.New(a.o.node, voice, a.store, a.store.Meta().Seq, a.log.With().Str("part", "report").Logger())
	a.prober = probe.New(a.exec, func(v probe.Verdict) { a.pods.Verdict(v) })
	a.sink = &sink{
		ctx: ctx, store: a.store, program: a.routes.program, log: a.log, again: a.voice.Again,
		setUp: func(ctx context.Context, r schemas.NetworkRecord) (netfilter.Frame, error) {
			return setUpNetwork(ctx, a.net, a.o.table, r)
		},
		known: map[types.UID]told{}, orphans: map[types.UID]pod.Desired{}, over: map[types.UID]time.Time{},
		routes: map[string]schemas.RouteRecord{},
	}
	a.sessions = session.New(session.Options{Log: a.log.With().Str("part", "session").Logger()})
	a.pods = pod.New(ctx, pod.Config{
		Host: pod.Host{
			Node: a.o.node, IP: a.facts.IP(), MemBytes: a.facts.Memory(), PidsLimit: a.o.pidsLimit,
			EtcDir: filepath.Join(a.o.run(), "etc"),
			PodDir: filepath.Join(a.o.state(), "pods"), LogDir: filepath.Join(a.o.state(), "logs"),
		},
		Runtime: a.rt, Images: images{a.images}, Network: a.net, Prober: a.prober,
		Records: records{a.sink, a.voice, a.sessions}, Report: a.voice.Pod, Event: a.voice.Event,
		PortTaken: node.PortTaken, Log: a.log,
	})
	a.sink.pods = a.pods
	a.tend = newTender(a)

	parts.Go(func() { a.prober.Run(ctx) })
	parts.Go(func() { a.routes.run(ctx) })
	parts.Go(func() { a.wakes(ctx) })
	a.sink.boot(loaded, own)

	id := feed.Identity{Node: a.o.node, ClusterID: a.store.Meta().ClusterID, Instance: a.store.Instance}
	if id.Host, err = os.Hostname(); err != nil {
		a.log.Warn().Err(err).Msg("cannot find the host name")
	}
	// The feed calls the connection and the connection the feed: the connection
	// comes first and is put in before the feed runs.
	link := &lateConn{}
	a.feed = feed.New(id, link, a.sink, a.log.With().Str("part", "feed").Logger())
	a.conn, err = bus.ConnectNode(ctx, creds, bus.NodeHandlers{
		Desired: a.feed.Pod, Network: a.feed.Network, Route: a.feed.Route, Reconnected: a.feed.Sync,
	}, a.log.With().Str("part", "bus").Logger())
	if err != nil {
		return err
	}
	link.conn, voice.conn = a.conn, a.conn
	if err := errors.Join(a.serve(), a.serveSessions()); err != nil {
		return err
	}
	a.tend.look()
	parts.Go(func() { a.voice.Run(ctx) })
	parts.Go(func() { a.tend.run(ctx) })
	return nil
}

// serve answers what the control plane asks.
func (a *agent) serve() error {
	logs := &serve.Logs{Pods: a.pods, Dir: func(uid types.UID) string {
		return filepath.Join(a.o.state(), "logs", string(uid))
	}}
	put, err := serve.NewImages(a.images, filepath.Join(a.o.state(), "uploads"))
	if err != nil {
		return err
	}
	put.Loaded = a.tend.imagesChanged
	return errors.Join(
		a.conn.Serve(schemas.NodeMethodLogs, logs.Answer),
		a.conn.Serve(schemas.NodeMethodImagePut, put.Put),
		a.conn.Serve(schemas.NodeMethodImages, put.List),
	)
}

// wakes passes on that something happened to a pod.
func (a *agent) wakes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case uid, ok := <-a.rt.Wakes():
			if !ok {
				return
			}
			a.pods.Wake(uid)
		}
	}
}

func (a *agent) exec(ctx context.Context, key probe.Key, args []string, timeout time.Duration) (int, []byte, error) {
	res, err := a.rt.Exec(ctx, key.UID, key.Container, key.Attempt, args, timeout)
	return res.ExitCode, res.Output, err
}

// images gives the actors what they need of the store.
type images struct{ *image.Store }

func (i images) Pull(ctx context.Context, ref string) (image.Image, error) {
	return i.Store.Pull(ctx, ref, nil, nil)
}

// records keeps pods' records. Those that are forgotten are reported no more,
// and whoever is connected to them is not any longer.
type records struct {
	*sink
	voice    *report.Reporter
	sessions *session.Engine
}

func (r records) Forget(uid types.UID) error {
	r.sessions.EndPod(string(uid))
	r.voice.Drop(uid)
	return r.sink.Forget(uid)
}

// lateConn and lateVoice are the connection, which is there before either is
// used. Reports carry the instance, so that those of an agent which does not
// hold the node's name can be told apart.
type lateConn struct{ conn *bus.NodeConn }

func (l *lateConn) Sync(ctx context.Context, req schemas.SyncRequest) (schemas.SyncReply, error) {
	return l.conn.Sync(ctx, req)
}

type lateVoice struct {
	conn     *bus.NodeConn
	instance string
}

func (l *lateVoice) ReportPod(ctx context.Context, h schemas.PodHealth) error {
	h.Instance = l.instance
	return l.conn.ReportPod(ctx, h)
}

func (l *lateVoice) ReportNode(ctx context.Context, h schemas.NodeHealth) error {
	return l.conn.ReportNode(ctx, h)
}

func (l *lateVoice) ReportEvent(ctx context.Context, e schemas.PodEvent) error {
	e.Instance = l.instance
	return l.conn.ReportEvent(ctx, e)
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

func writeReady(dir string) error {
	path := filepath.Join(dir, readyName)
	if err := os.WriteFile(path, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
