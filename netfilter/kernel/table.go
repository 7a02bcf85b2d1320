// Package kernel puts rulesets into the kernel's nftables, reads them back and
// notices when somebody else has changed them. It is the only importer of
// google/nftables, and it touches no table but the one that it was opened for.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"gantry.dev/netfilter"
)

// Options say which table to work on.
type Options struct {
	// Table is its name, in family ip.
	Table string
	// NetNS is an open file of the network namespace; 0 means the one of the
	// calling thread. It is needed until Open returns.
	NetNS int
	// NoOwner leaves the owner and persist flags away that keep others off the
	// table, as on kernels before 6.9. For tests.
	NoOwner bool
	Log     zerolog.Logger
}

// Table is one table in the kernel. Its methods are safe for concurrent use.
type Table struct {
	name string
	log  zerolog.Logger

	mu   sync.Mutex
	conn *nftables.Conn
	// generation is the kernel's count of changes when the table was last
	// known to be as it was left; 0 before.
	generation uint32
	owned      bool // the kernel keeps others off, for this connection
	noOwner    bool // the kernel has no such flags
	stats      Stats
}

// Stats count what was told to the kernel.
type Stats struct {
	Applies   uint64
	Bytes     uint64 // of netlink messages
	LastBytes uint64
}

// Open makes the connection; it changes nothing. Close ends it and leaves the
// table in place.
func Open(o Options) (*Table, error) {
	opts := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(enlarge)}
	if o.NetNS != 0 {
		opts = append(opts, nftables.WithNetNSFd(o.NetNS))
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Table{name: o.Table, conn: conn, noOwner: o.NoOwner, log: o.Log}, nil
}

const (
	writeBuffer = 256 << 20 // a limit, not an allocation: 10,000 Services take 7 MB
	readBuffer  = 16 << 20
	dumpBytes   = 32 << 10 // the most that the kernel puts into one message of a dump
)

// enlarge lets one message carry a whole transaction, and makes dumps come in
// large pieces. The kernel sizes these by the largest read that a socket has
// seen, the library reads by the page, and for each piece the kernel walks
// the set from its start: small pieces make reading a large set quadratic.
func enlarge(conn *netlink.Conn) error {
	if err := conn.SetWriteBuffer(writeBuffer); err != nil {
		return fmt.Errorf("enlarge write buffer: %w", err)
	}
	if err := conn.SetReadBuffer(readBuffer); err != nil {
		return fmt.Errorf("enlarge read buffer: %w", err)
	}
	_, err := conn.Send(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN,
			Flags: netlink.Request,
		},
		Data: make([]byte, 4),
	})
	if err != nil {
		return fmt.Errorf("ask for the generation: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach socket: %w", err)
	}
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		_, _, readErr = unix.Recvfrom(int(fd), make([]byte, dumpBytes), 0)
		return !errors.Is(readErr, unix.EAGAIN)
	})
	if err = errors.Join(err, readErr); err != nil {
		return fmt.Errorf("hear the generation: %w", err)
	}
	return nil
}

// Close ends the connection. The table stays and goes on to work; where the
// kernel has the persist flag, whoever opens it next may take it over.
func (k *Table) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.owned = false
	if err := k.conn.CloseLasting(); err != nil {
		return fmt.Errorf("close nftables: %w", err)
	}
	return nil
}

// Stats returns the counts so far.
func (k *Table) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stats
}

// Apply does the whole transaction or nothing. After an error the caller must
// Read before it makes the next transaction: the kernel may hold something
// else than was thought. An empty transaction takes an existing table over
// from an agent that is gone, where the kernel knows owners.
func (k *Table) Apply(ctx context.Context, t netfilter.Transaction) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("apply to table %s: %w", k.name, err)
	}
	if t.Table != "" && t.Table != k.name {
		return fmt.Errorf("apply to table %s: transaction is for table %s", k.name, t.Table)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	claim := !k.noOwner && !k.owned && (t.Create || !t.Drop) && t.Table != ""
	if t.Empty() && !claim {
		return nil
	}
	err := k.apply(t, claim)
	if claim && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		// An older kernel, or a table made under one. Watching and repairing
		// has to do.
		k.log.Info().Str("table", k.name).Msg("kernel does not guard the table against other programs; it is watched and repaired instead")
		k.noOwner = true
		err = k.apply(t, false)
	}
	if err != nil {
		k.generation = 0
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("apply to table %s: it belongs to another running process: %w", k.name, err)
		}
		return fmt.Errorf("apply to table %s: %w", k.name, err)
	}
	return nil
}

func (k *Table) apply(t netfilter.Transaction, claim bool) error {
	bytes := k.queue(k.conn, t, claim)
	if err := k.conn.Flush(); err != nil {
		return err
	}
	switch {
	case claim:
		k.owned = true
	case t.Drop && !t.Create:
		k.owned = false
	}
	k.stats.Applies++
	k.stats.Bytes += bytes
	k.stats.LastBytes = bytes
	// Each transaction of anybody adds one. Where more was added, somebody
	// else came between and Changed has to look.
	if g, err := k.conn.GetGen(); err == nil && (g.ID == k.generation+1 || k.generation == 0 && t.Create) {
		k.generation = g.ID
	}
	return nil
}

// queue puts the transaction into the connection's batch and returns how many
// bytes it takes on the wire.
func (k *Table) queue(conn *nftables.Conn, t netfilter.Transaction, claim bool) uint64 {
	table := &nftables.Table{Name: k.name, Family: nftables.TableFamilyIPv4}
	if t.Drop || t.Create || claim {
		k.queueFrame(conn, table, t, claim)
	}
	bytes := uint64(2 * messageBytes) // batch begin and end
	if t.Drop || t.Create || claim {
		bytes += k.frameBytes(t, claim)
	}
	// Deletions first: a slot that changes is deleted and added again under
	// the same key.
	for _, add := range []bool{false, true} {
		lists := map[int][]nftables.SetElement{}
		for _, c := range t.Slots {
			for i := range c.Slots {
				have, want, changed := c.Slot(i)
				if !changed {
					continue
				}
				if add && want.IsValid() {
					lists[c.Slots] = append(lists[c.Slots], nftables.SetElement{Key: slotKey(c.Target, i), Val: slotData(want)})
				}
				if !add && have.IsValid() {
					lists[c.Slots] = append(lists[c.Slots], nftables.SetElement{Key: slotKey(c.Target, i)})
				}
			}
		}
		for _, n := range netfilter.Classes() {
			bytes += queueElements(conn, slotMap(table, n), lists[n], add)
		}
		pods := t.HairpinDel
		if add {
			pods = t.HairpinAdd
		}
		var elements []nftables.SetElement
		for _, a := range pods {
			elements = append(elements, nftables.SetElement{Key: pairKey(a)})
		}
		bytes += queueElements(conn, pairSet(table), elements, add)
	}
	return bytes
}

// queueFrame puts the constant part into the batch: the table itself, its
// chains, and its empty maps and sets.
func (k *Table) queueFrame(conn *nftables.Conn, table *nftables.Table, t netfilter.Transaction, claim bool) {
	if t.Drop {
		conn.DelTable(table)
	}
	if claim {
		owned := *table
		owned.Flags = nftables.TableFlagOwner | nftables.TableFlagPersist
		conn.AddTable(&owned)
	} else if t.Create {
		conn.AddTable(table)
	}
	if !t.Create {
		return
	}
	for _, n := range netfilter.Classes() {
		// AddSet fails only for what it cannot encode, and Flush reports that.
		_ = conn.AddSet(slotMap(table, n), nil)
	}
	_ = conn.AddSet(pairSet(table), nil)
	accept := nftables.ChainPolicyAccept
	for _, c := range t.Chains {
		chain := &nftables.Chain{Name: c.Name, Table: table}
		if c.Hook != "" {
			chain.Type = nftables.ChainType(c.Type)
			chain.Hooknum = hooks[c.Hook]
			chain.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
			chain.Policy = &accept
		}
		conn.AddChain(chain)
		for _, r := range c.Rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: encode(r)})
		}
	}
}

func slotMap(t *nftables.Table, slots int) *nftables.Set {
	return &nftables.Set{Table: t, Name: netfilter.MapName(slots), IsMap: true, Concatenation: true,
		KeyType: keyType, DataType: dataType}
}

func pairSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: netfilter.HairpinSet(), Concatenation: true, KeyType: pairType}
}

// elementsPerMessage keeps a message's element list below the 64 KiB that a
// netlink attribute can hold.
const elementsPerMessage = 1024

func queueElements(conn *nftables.Conn, set *nftables.Set, elements []nftables.SetElement, add bool) uint64 {
	var bytes uint64
	for len(elements) > 0 {
		n := min(len(elements), elementsPerMessage)
		// These fail only for what cannot be encoded, and Flush reports that.
		if add {
			_ = conn.SetAddElements(set, elements[:n])
		} else {
			_ = conn.SetDeleteElements(set, elements[:n])
		}
		bytes += elementBytes(set, elements[:n])
		elements = elements[n:]
	}
	return bytes
}

// Remove deletes the table. One that is not there is none.
func (k *Table) Remove() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conn.DelTable(&nftables.Table{Name: k.name, Family: nftables.TableFamilyIPv4})
	err := k.conn.Flush()
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s: %w", k.name, err)
	}
	k.owned, k.generation = false, 0
	return nil
}

// Changed says that somebody else may have changed the table since the last
// Apply or Read. It costs one question to the kernel; only where others are
// not kept off the table does a change of any other table count too.
func (k *Table) Changed() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	g, err := k.conn.GetGen()
	if err != nil {
		return false, fmt.Errorf("ask for the generation of nftables: %w", err)
	}
	if g.ID == k.generation {
		return false, nil
	}
	if !k.owned {
		return true, nil
	}
	table, err := k.table()
	if err != nil {
		return false, err
	}
	if table == nil || !k.isOwner(table) {
		k.owned = false
		return true, nil
	}
	k.generation = g.ID
	return false, nil
}

// table is nil where there is none.
func (k *Table) table() (*nftables.Table, error) {
	table, err := k.conn.ListTableOfFamily(k.name, nftables.TableFamilyIPv4)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", k.name, err)
	}
	return table, nil
}

func (k *Table) isOwner(t *nftables.Table) bool {
	port, err := k.conn.GetPortID()
	return err == nil && t.Flags&nftables.TableFlagOwner != 0 && t.Owner == port
}

// Sizes of netlink messages. The library does not say what it sends, and the
// cost of a change is promised in bytes; a test compares with what it encodes.
const messageBytes = 16 + 4 // header, family and version

func attributeBytes(payload int) uint64 { return uint64(4 + (payload+3)&^3) }

func elementBytes(set *nftables.Set, elements []nftables.SetElement) uint64 {
	list := uint64(0)
	for _, e := range elements {
		element := attributeBytes(int(attributeBytes(len(e.Key))))
		if len(e.Val) > 0 {
			element += attributeBytes(int(attributeBytes(len(e.Val))))
		}
		list += attributeBytes(int(element))
	}
	return messageBytes + attributeBytes(len(set.Name)+1) + attributeBytes(len(binaryutil.BigEndian.PutUint32(0))) +
		attributeBytes(len(set.Table.Name)+1) + attributeBytes(int(list))
}

// frameBytes encodes the constant part once more, into nothing: that happens
// once in a table's life.
func (k *Table) frameBytes(t netfilter.Transaction, claim bool) uint64 {
	var bytes uint64
	conn, err := nftables.New(nftables.WithTestDial(func(messages []netlink.Message) ([]netlink.Message, error) {
		for _, m := range messages {
			bytes += uint64(16 + len(m.Data))
		}
		return nil, nil
	}))
	if err != nil {
		return 0
	}
	k.queueFrame(conn, &nftables.Table{Name: k.name, Family: nftables.TableFamilyIPv4}, t, claim)
	_ = conn.Flush() // what cannot be encoded fails in the real one too
	if bytes < 2*messageBytes {
		return 0
	}
	return bytes - 2*messageBytes // begin and end are counted by the caller
}
