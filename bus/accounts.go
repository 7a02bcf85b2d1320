package bus

import (
	"encoding/base64"
	"fmt"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"gantry.dev/schemas"
)

// Names of the accounts in the embedded server.
const (
	controlAccount = "CONTROL"
	systemAccount  = "SYS"
	nodeAccount    = "NODE_" // followed by the node's token
)

// maxNodeConns is how many connections one node's credentials may hold: the
// agent's own, the one that it just lost and that the server has not noticed,
// and two for a second agent started by mistake, which has to get through to
// be told that the name is taken.
const maxNodeConns = 4

// principal is who a key belongs to.
type principal struct {
	name     string
	account  *server.Account
	perms    *server.Permissions // nil allows all within the account
	maxConns int                 // 0 is no limit
}

// gate authenticates clients by their nkey.
//
// It stands in for the server's own table of users: that table changes only by
// a reload, which walks every account and client, where adding a node here is
// one entry in a map and touches no connection.
type gate struct {
	ready    chan struct{} // closed once accounts and streams are served
	openOnce func()

	mu    sync.Mutex
	byKey map[string]principal
}

func newGate() *gate {
	ready := make(chan struct{})
	return &gate{
		ready:    ready,
		openOnce: sync.OnceFunc(func() { close(ready) }),
		byKey:    map[string]principal{},
	}
}

func (g *gate) admit(public string, p principal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.byKey[public] = p
}

func (g *gate) revoke(public string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.byKey, public)
}

// Check implements server.Authentication.
func (g *gate) Check(c server.ClientAuthentication) bool {
	// A client that comes while the server still starts waits rather than being
	// refused, which it would take for a wrong key.
	<-g.ready
	opts := c.GetOpts()
	if opts.Nkey == "" || opts.Sig == "" || c.Kind() != server.CLIENT {
		return false
	}
	public, err := nkeys.FromPublicKey(opts.Nkey)
	if err != nil {
		return false
	}
	sig, err := base64.RawURLEncoding.DecodeString(opts.Sig)
	if err != nil {
		if sig, err = base64.StdEncoding.DecodeString(opts.Sig); err != nil {
			return false
		}
	}
	if err := public.Verify(c.GetNonce(), sig); err != nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p, ok := g.byKey[opts.Nkey]
	if !ok {
		return false
	}
	// Registered under the same lock, so that the count is exact.
	if p.maxConns > 0 && p.account.NumLocalConnections() >= p.maxConns {
		return false
	}
	c.RegisterUser(&server.User{Username: p.name, Account: p.account, Permissions: p.perms})
	return true
}

// adminPermissions keep a person at the nats command from writing by accident
// what has one writer: the buckets, the reports of nodes, the streams
// themselves. Reading, and all of the API, stays open. It is a guard rail, not
// a wall: an administrator who is meant to repair the bus by hand uses the
// control key.
func adminPermissions(names schemas.Names) *server.Permissions {
	deny := []string{
		"$KV.>",
		names.HealthAll(),
		names.SyncAll(),
	}
	for _, op := range []string{"CREATE", "UPDATE", "DELETE", "PURGE", "RESTORE", "MSG.DELETE"} {
		deny = append(deny, "$JS.API.STREAM."+op+".>")
	}
	return &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{">"}, Deny: deny}}
}

// nodePermissions repeat within the node's account what its imports allow.
// The imports alone would keep everything else from leaving the account, but
// silently; with these a wrong publish is refused at once and by name.
func nodePermissions(names schemas.Names, node string) *server.Permissions {
	return &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{
			names.Sync(node), names.HealthOfNode(node),
		}},
		Subscribe: &server.SubjectPermission{Allow: []string{
			names.DesiredSubjects(node), names.RoutesSubjects(), names.NodeMethods(node), "_INBOX.>",
		}},
		Response: &server.ResponsePermission{MaxMsgs: 1, Expires: nodeResponseTime},
	}
}

// exportControl publishes what node accounts may import. Exports are open to
// all accounts of this server: only this package makes accounts and imports.
func exportControl(control *server.Account, names schemas.Names) error {
	streams := []string{schemas.KVSubject(names.DesiredBucket(), ">"), names.RoutesSubjects()}
	for _, subject := range streams {
		if err := control.AddStreamExport(subject, nil); err != nil {
			return fmt.Errorf("export stream %s: %w", subject, err)
		}
	}
	for _, subject := range []string{names.SyncAll(), names.HealthAll()} {
		if err := control.AddServiceExport(subject, nil); err != nil {
			return fmt.Errorf("export service %s: %w", subject, err)
		}
	}
	return nil
}

// importNode ties a node's account to the control plane's by a few subjects:
// hear its own desired state and the routes, ask, report, and answer.
//
// The responses of node.<node>.> are single messages: a streamed response
// would keep its entry in the server for two minutes after the last message.
func importNode(control, acc *server.Account, names schemas.Names, node string) error {
	for _, subject := range []string{names.DesiredSubjects(node), names.RoutesSubjects()} {
		if err := acc.AddStreamImport(control, subject, ""); err != nil {
			return fmt.Errorf("import stream %s: %w", subject, err)
		}
	}
	for _, subject := range []string{names.Sync(node), names.HealthOfNode(node)} {
		if err := acc.AddServiceImport(control, subject, subject); err != nil {
			return fmt.Errorf("import service %s: %w", subject, err)
		}
	}
	methods := names.NodeMethods(node)
	if err := acc.AddServiceExport(methods, []*server.Account{control}); err != nil {
		return fmt.Errorf("export service %s: %w", methods, err)
	}
	if err := control.AddServiceImport(acc, methods, methods); err != nil {
		return fmt.Errorf("import service %s: %w", methods, err)
	}
	return nil
}
