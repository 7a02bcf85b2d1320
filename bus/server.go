package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

const (
	defaultMaxPayload = 1 << 20
	maxMemoryStore    = 1 << 30 // what is compiled from the objects; a limit, not a reservation
	maxFileStore      = 8 << 30
	startTimeout      = 60 * time.Second // recovering a large store after a crash
	nodeResponseTime  = 2 * time.Minute
)

// ServerOptions say how to run the embedded server.
type ServerOptions struct {
	// StateDir keeps the streams and the keys. One server at a time may use it.
	StateDir string
	// Listen is host:port; port 0 takes a free one. Empty means no listener:
	// only this process can connect.
	Listen string
	// Websocket is host:port of a listener for websocket clients, under the
	// rules of Listen; empty means none. A browser may use it only from a page of
	// one of WebsocketOrigins ("https://console.example"); clients that are no
	// browsers send no origin.
	Websocket        string
	WebsocketOrigins []string
	Names            schemas.Names
	// Nodes are known from the start; AddNode adds others.
	Nodes []string
	// TLSCert, TLSKey and TLSCA are PEM files. Without the first two the server
	// listens on loopback only; the third is given to clients that must trust it.
	TLSCert, TLSKey, TLSCA string
	// MaxPayload is the largest message in bytes; 0 means 1 MiB.
	MaxPayload int32
	Log        zerolog.Logger
}

// Server is the embedded NATS server with JetStream on disk.
type Server struct {
	opts    ServerOptions
	ns      *server.Server
	gate    *gate
	keys    keyring
	signer  signer
	control nkeys.KeyPair
	admin   nkeys.KeyPair
	account *server.Account // the control plane's
	sys     *nats.Conn
	ca      string
	lock    *os.File
	broken  chan error
	log     zerolog.Logger

	mu        sync.Mutex
	nodes     map[string]nodeUser
	clusterID string
	onGone    []func(node string)
}

type nodeUser struct {
	key     nkeys.KeyPair
	public  string
	account *server.Account
}

// StartServer starts the server and returns when it serves. The directory may
// be new, or left by a server that was stopped in any way. The context bounds
// the start alone.
func StartServer(ctx context.Context, o ServerOptions) (*Server, error) {
	if o.StateDir == "" {
		return nil, errors.New("start bus server: no state directory given")
	}
	so, ca, err := natsOptions(o)
	if err != nil {
		return nil, fmt.Errorf("start bus server: %w", err)
	}
	s := &Server{opts: o, gate: newGate(), log: o.Log, ca: ca, broken: make(chan error, 1), nodes: map[string]nodeUser{}}
	if s.lock, err = lockDir(o.StateDir); err != nil {
		return nil, fmt.Errorf("start bus server: %w", err)
	}
	if err := s.run(ctx, so); err != nil {
		_ = s.lock.Close() // nothing was written through it
		return nil, fmt.Errorf("start bus server: %w", err)
	}
	return s, nil
}

// lockDir keeps a second server off the directory. The kernel lets go of the
// lock with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // never written to
		return nil, fmt.Errorf("lock state directory %s: is another server using it? %w", dir, err)
	}
	return f, nil
}

func (s *Server) run(ctx context.Context, so *server.Options) (err error) {
	if err := s.openKeys(); err != nil {
		return err
	}
	so.CustomClientAuthentication = s.gate
	if s.ns, err = server.NewServer(so); err != nil {
		return err
	}
	fatal := make(chan error, 1)
	s.ns.SetLoggerV2(serverLog{log: s.log, fatal: fatal, broken: s.broken}, false, false, false)
	if err := s.start(ctx, fatal); err != nil {
		s.gate.openOnce()
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
		return err
	}
	return nil
}

func natsOptions(o ServerOptions) (*server.Options, string, error) {
	so := &server.Options{
		ServerName:             "gantry",
		NoSigs:                 true,
		NoLog:                  true,
		JetStream:              true,
		StoreDir:               o.StateDir, // the server adds /jetstream
		SyncAlways:             true,
		JetStreamMaxMemory:     maxMemoryStore,
		JetStreamMaxStore:      maxFileStore,
		DisableJetStreamBanner: true,
		MaxPayload:             o.MaxPayload,
		AlwaysEnableNonce:      true,
		SystemAccount:          systemAccount,
		Accounts:               []*server.Account{server.NewAccount(systemAccount), server.NewAccount(controlAccount)},
		// A machine that vanished is noticed within half a minute.
		PingInterval: 10 * time.Second,
		MaxPingsOut:  2,
		// Remembered for monitoring alone; the default is ten thousand.
		MaxClosedClients: 100,
	}
	if so.MaxPayload == 0 {
		so.MaxPayload = defaultMaxPayload
	}
	ca, err := useTLS(so, o)
	if err != nil {
		return nil, "", err
	}
	if o.Listen == "" {
		if o.Websocket != "" {
			return nil, "", fmt.Errorf("listen for websockets on %q: websockets need Listen, too", o.Websocket)
		}
		so.DontListen = true
		return so, ca, nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, "", fmt.Errorf("listen on %q: %w", o.Listen, err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if so.Port, err = strconv.Atoi(port); err != nil {
		return nil, "", fmt.Errorf("listen on %q: port is not a number", o.Listen)
	}
	if so.Port == 0 {
		so.Port = server.RANDOM_PORT
	}
	so.Host = host
	if so.TLSConfig == nil && !isLoopback(host) {
		return nil, "", fmt.Errorf("listen on %q: refused beyond loopback without TLS; give a certificate and key, or listen on 127.0.0.1", o.Listen)
	}
	if err := useWebsocket(so, o); err != nil {
		return nil, "", err
	}
	return so, ca, nil
}

// useWebsocket adds the listener for websockets where one is asked for.
func useWebsocket(so *server.Options, o ServerOptions) error {
	if o.Websocket == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(o.Websocket)
	if err != nil {
		return fmt.Errorf("listen for websockets on %q: %w", o.Websocket, err)
	}
	ws := &so.Websocket
	if ws.Port, err = strconv.Atoi(port); err != nil {
		return fmt.Errorf("listen for websockets on %q: port is not a number", o.Websocket)
	}
	if ws.Port == 0 {
		ws.Port = server.RANDOM_PORT
	}
	if ws.Host = host; host == "" {
		ws.Host = "127.0.0.1"
	}
	// With neither, the server would let every page that a browser shows speak
	// with it.
	ws.AllowedOrigins, ws.SameOrigin = o.WebsocketOrigins, len(o.WebsocketOrigins) == 0
	ws.TLSConfig, ws.NoTLS = so.TLSConfig, so.TLSConfig == nil
	if ws.NoTLS && !isLoopback(ws.Host) {
		return fmt.Errorf("listen for websockets on %q: refused beyond loopback without TLS; give a certificate and key, or listen on 127.0.0.1", o.Websocket)
	}
	return nil
}

func useTLS(so *server.Options, o ServerOptions) (ca string, err error) {
	if (o.TLSCert == "") != (o.TLSKey == "") {
		return "", errors.New("TLS needs both a certificate and its key")
	}
	if o.TLSCA != "" {
		pem, err := os.ReadFile(o.TLSCA)
		if err != nil {
			return "", fmt.Errorf("read TLS CA: %w", err)
		}
		ca = string(pem)
	}
	if o.TLSCert == "" {
		return ca, nil
	}
	so.TLS = true
	so.TLSTimeout = 5
	so.TLSConfig, err = server.GenTLSConfig(&server.TLSConfigOpts{CertFile: o.TLSCert, KeyFile: o.TLSKey})
	if err != nil {
		return "", fmt.Errorf("read TLS certificate: %w", err)
	}
	return ca, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func (s *Server) openKeys() (err error) {
	if s.keys, err = openKeyring(filepath.Join(s.opts.StateDir, "keys")); err != nil {
		return err
	}
	signing, err := s.keys.pair("signer", nkeys.CreateAccount)
	if err != nil {
		return err
	}
	if s.signer, err = newSigner(signing); err != nil {
		return err
	}
	if s.control, err = s.keys.pair("control", nkeys.CreateUser); err != nil {
		return err
	}
	s.admin, err = s.keys.pair("admin", nkeys.CreateUser)
	return err
}

func (s *Server) start(ctx context.Context, fatal <-chan error) error {
	s.ns.Start()
	if err := s.awaitReady(ctx, fatal); err != nil {
		return err
	}
	// The server's own word, not the option that was passed: without fsync an
	// acknowledged write can be lost.
	if cfg := s.ns.JetStreamConfig(); cfg == nil || !cfg.SyncAlways {
		return errors.New("JetStream does not sync every write; refusing to serve")
	}
	var err error
	if s.account, err = s.ns.LookupAccount(controlAccount); err != nil {
		return fmt.Errorf("find account %s: %w", controlAccount, err)
	}
	if err := s.account.EnableJetStream(nil, nil); err != nil {
		return fmt.Errorf("recover streams: %w", err)
	}
	if err := exportControl(s.account, s.opts.Names); err != nil {
		return err
	}
	sysKey, err := nkeys.CreateUser() // lives as long as the process: nobody else needs it
	if err != nil {
		return fmt.Errorf("draw key: %w", err)
	}
	if err := s.admitStatic(sysKey); err != nil {
		return err
	}
	for _, node := range s.opts.Nodes {
		if err := s.admitNode(node); err != nil {
			return err
		}
	}
	s.gate.openOnce()
	return s.watchDisconnects(ctx, sysKey)
}

func (s *Server) awaitReady(ctx context.Context, fatal <-chan error) error {
	deadline := time.Now().Add(startTimeout)
	for !s.ns.ReadyForConnections(50 * time.Millisecond) {
		select {
		case err := <-fatal:
			return err
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("server is not ready after %v", startTimeout)
		}
	}
	return nil
}

func (s *Server) admitStatic(sysKey nkeys.KeyPair) error {
	sys := s.ns.SystemAccount()
	for _, p := range []struct {
		key nkeys.KeyPair
		principal
	}{
		{s.control, principal{name: "control", account: s.account}},
		{s.admin, principal{name: "admin", account: s.account, perms: adminPermissions(s.opts.Names)}},
		{sysKey, principal{name: "sys", account: sys}},
	} {
		public, err := p.key.PublicKey()
		if err != nil {
			return fmt.Errorf("read key of %s: %w", p.name, err)
		}
		s.gate.admit(public, p.principal)
	}
	return nil
}

// URLs is where clients connect; empty without a listener.
func (s *Server) URLs() []string {
	if s.opts.Listen == "" {
		return nil
	}
	return []string{s.ns.ClientURL()}
}

// WebsocketURLs is where websocket clients connect; empty without such a listener.
func (s *Server) WebsocketURLs() []string {
	if s.opts.Websocket == "" {
		return nil
	}
	return []string{s.ns.WebsocketURL()}
}

// AddNode makes a node known and returns its credentials. Adding a node again
// returns the same ones. No connection is disturbed.
func (s *Server) AddNode(node string) (schemas.NodeCredentials, error) {
	if err := s.admitNode(node); err != nil {
		return schemas.NodeCredentials{}, err
	}
	return s.NodeCredentials(node)
}

func (s *Server) admitNode(node string) error {
	token := schemas.NodeToken(node)
	if node == "" || strings.ContainsAny(token, ".*> \t/\\") {
		return fmt.Errorf("add node %q: not a node name", node)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.nodes[node]; ok {
		return nil
	}
	key, err := s.keys.pair("node-"+token, nkeys.CreateUser)
	if err != nil {
		return fmt.Errorf("add node %q: %w", node, err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return fmt.Errorf("add node %q: %w", node, err)
	}
	// An account outlives the removal of its node (the server has no way to
	// drop one), tied up as before: adding the node again only needs a new key.
	acc, err := s.ns.LookupAccount(nodeAccount + token)
	if err != nil {
		if acc, err = s.ns.RegisterAccount(nodeAccount + token); err != nil {
			return fmt.Errorf("add node %q: %w", node, err)
		}
		if err := importNode(s.account, acc, s.opts.Names, node); err != nil {
			return fmt.Errorf("add node %q: %w", node, err)
		}
	}
	s.nodes[node] = nodeUser{key: key, public: public, account: acc}
	s.gate.admit(public, principal{
		name: "node:" + node, account: acc, perms: nodePermissions(s.opts.Names, node), maxConns: maxNodeConns,
	})
	return nil
}

// RemoveNode revokes a node's credentials for good and closes its connections.
// A node that is not known is not an error.
func (s *Server) RemoveNode(node string) error {
	s.mu.Lock()
	n, ok := s.nodes[node]
	delete(s.nodes, node)
	s.mu.Unlock()
	if ok {
		s.gate.revoke(n.public)
	}
	if err := s.keys.forget("node-" + schemas.NodeToken(node)); err != nil {
		return fmt.Errorf("remove node %q: %w", node, err)
	}
	if !ok {
		return nil
	}
	conns, err := s.ns.Connz(&server.ConnzOptions{Account: n.account.GetName(), Username: true})
	if err != nil {
		return fmt.Errorf("remove node %q: list its connections: %w", node, err)
	}
	for _, c := range conns.Conns {
		// It may have gone by itself meanwhile.
		if err := s.ns.DisconnectClientByID(c.Cid); err != nil {
			s.log.Debug().Err(err).Str("node", node).Msg("disconnect removed node")
		}
	}
	return nil
}

// OnNodeDisconnect calls fn whenever a node's last connection has closed. fn
// must not block for long.
func (s *Server) OnNodeDisconnect(fn func(node string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onGone = append(s.onGone, fn)
}

func (s *Server) watchDisconnects(ctx context.Context, sysKey nkeys.KeyPair) error {
	l, err := dial(ctx, dialOptions{name: "gantry system", server: s, key: sysKey, log: s.log})
	if err != nil {
		return fmt.Errorf("connect to system account: %w", err)
	}
	s.sys = l.nc
	_, err = s.sys.Subscribe("$SYS.ACCOUNT.*.DISCONNECT", s.disconnected)
	if err != nil {
		return fmt.Errorf("watch connections: %w", err)
	}
	return s.sys.FlushWithContext(flushContext(ctx))
}

func (s *Server) disconnected(m *nats.Msg) {
	var event struct {
		Client struct {
			Account string `json:"acc"`
		} `json:"client"`
	}
	if err := json.Unmarshal(m.Data, &event); err != nil {
		s.log.Warn().Err(err).Msg("read disconnect event")
		return
	}
	token, ok := strings.CutPrefix(event.Client.Account, nodeAccount)
	if !ok {
		return
	}
	s.lost(schemas.NodeFromToken(token), lostLooks)
}

const (
	lostLooks = 20
	lostEvery = 50 * time.Millisecond
)

// lost tells that a node has no connection left. The server says that one has
// closed before it counts one less, so another look follows, some times: a node
// that has connected again meanwhile is not lost.
func (s *Server) lost(node string, looks int) {
	if s.NodeConnections(node) > 0 {
		if looks > 0 && s.ns.Running() {
			time.AfterFunc(lostEvery, func() { s.lost(node, looks-1) })
		}
		return
	}
	s.mu.Lock()
	fns := append([]func(string){}, s.onGone...)
	s.mu.Unlock()
	for _, fn := range fns {
		fn(node)
	}
}

// NodeConnections counts a node's open connections.
func (s *Server) NodeConnections(node string) int {
	acc, err := s.ns.LookupAccount(nodeAccount + schemas.NodeToken(node))
	if err != nil {
		return 0
	}
	return acc.NumLocalConnections()
}

func (s *Server) setClusterID(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clusterID = id
}

// Failed tells, at most once, of a write that the disk refused: it is full, or
// broken. From then on the server stores nothing and answers no write; only a
// new one does.
func (s *Server) Failed() <-chan error { return s.broken }

// Shutdown stops the server and waits until its files are closed, at most
// until ctx ends. Clients see a closed connection and reconnect.
func (s *Server) Shutdown(ctx context.Context) error {
	s.sys.Close()
	s.ns.Shutdown()
	done := make(chan struct{})
	go func() {
		s.ns.WaitForShutdown()
		close(done)
	}()
	select {
	case <-done:
		return s.lock.Close()
	case <-ctx.Done():
		return fmt.Errorf("shut bus server down: %w", ctx.Err())
	}
}
