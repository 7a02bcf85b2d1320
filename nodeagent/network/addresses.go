package network

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// addresses gives out the pod addresses of the node. The files are the truth:
// <address> holds the UID of the pod that has it, free-<address> marks one
// that was given back, so that it is used again last. A file appears with its
// content or not at all. Nothing is synced to disk: what a power cut can take
// away, it takes together with all pods.
type addresses struct {
	dir string

	mu    sync.Mutex
	cidr  netip.Prefix // zero before it is known
	byUID map[types.UID]netip.Addr
	taken map[netip.Addr]types.UID
	freed []netip.Addr // longest ago first
	next  netip.Addr   // where the search for one never used goes on
}

const freeMark = "free-"

func openAddresses(dir string) (*addresses, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open address directory: %w", err)
	}
	a := &addresses{dir: dir, byUID: map[types.UID]netip.Addr{}, taken: map[netip.Addr]types.UID{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read address directory: %w", err)
	}
	freedAt := map[netip.Addr]time.Time{}
	for _, e := range entries {
		name, free := strings.CutPrefix(e.Name(), freeMark)
		ip, err := netip.ParseAddr(name)
		if err != nil {
			// A claim that was being written when the agent died.
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove leftover in address directory: %w", err)
			}
			continue
		}
		if free {
			info, err := e.Info()
			if err != nil {
				return nil, fmt.Errorf("read freed address %s: %w", ip, err)
			}
			freedAt[ip] = changeTime(info)
			continue
		}
		uid, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read address %s: %w", ip, err)
		}
		// A power cut can leave a file empty; it belongs to nobody then.
		if len(uid) == 0 {
			freedAt[ip] = time.Now()
			if err := a.markFree(ip); err != nil {
				return nil, err
			}
			continue
		}
		a.byUID[types.UID(uid)] = ip
		a.taken[ip] = types.UID(uid)
	}
	for ip := range freedAt {
		if _, taken := a.taken[ip]; !taken {
			a.freed = append(a.freed, ip)
		}
	}
	slices.SortFunc(a.freed, func(x, y netip.Addr) int {
		return cmp.Or(freedAt[x].Compare(freedAt[y]), x.Compare(y))
	})
	return a, nil
}

// changeTime is when the file got its name, which its modification time is not.
func changeTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}

// use sets the range to give out from. Addresses outside it stay with the pods
// that have them.
func (a *addresses) use(cidr netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cidr != cidr {
		a.cidr, a.next = cidr, gateway(cidr).Next()
	}
}

// gateway is the address of the node itself in the range of its pods.
func gateway(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// allocate returns the address of the pod, a new one where it has none.
func (a *addresses) allocate(uid types.UID) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ip, ok := a.byUID[uid]; ok {
		return ip, nil
	}
	if !a.cidr.IsValid() {
		return netip.Addr{}, errors.New("the pod range of this node is not known yet")
	}
	claim := filepath.Join(a.dir, "claim-"+string(uid))
	if err := os.WriteFile(claim, []byte(uid), 0o644); err != nil {
		return netip.Addr{}, fmt.Errorf("write claim for an address: %w", err)
	}
	ip, err := a.take(claim)
	if err = errors.Join(err, os.Remove(claim)); err != nil {
		return netip.Addr{}, err
	}
	a.byUID[uid], a.taken[ip] = ip, uid
	return ip, nil
}

// take links the claim to the first address that nobody has.
func (a *addresses) take(claim string) (netip.Addr, error) {
	for ; a.usable(a.next); a.next = a.next.Next() {
		ip := a.next
		if _, taken := a.taken[ip]; taken || slices.Contains(a.freed, ip) {
			continue
		}
		err := os.Link(claim, filepath.Join(a.dir, ip.String()))
		if err == nil {
			a.next = ip.Next()
			return ip, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return netip.Addr{}, fmt.Errorf("claim address %s: %w", ip, err)
		}
	}
	for i, ip := range a.freed {
		if !a.usable(ip) {
			continue // of a range that the node had before
		}
		if err := os.Link(claim, filepath.Join(a.dir, ip.String())); err != nil {
			return netip.Addr{}, fmt.Errorf("claim address %s: %w", ip, err)
		}
		a.freed = slices.Delete(a.freed, i, i+1)
		if err := os.Remove(filepath.Join(a.dir, freeMark+ip.String())); err != nil {
			return netip.Addr{}, fmt.Errorf("unmark address %s: %w", ip, err)
		}
		return ip, nil
	}
	return netip.Addr{}, fmt.Errorf("no address left in %s: pods have %d", a.cidr, len(a.taken))
}

// usable leaves out the range's own address, the gateway, and the last one,
// which some programs take for a broadcast.
func (a *addresses) usable(ip netip.Addr) bool {
	return a.cidr.Contains(ip) && ip.Compare(gateway(a.cidr)) > 0 && a.cidr.Contains(ip.Next())
}

// lookup says which address a pod has.
func (a *addresses) lookup(uid types.UID) (netip.Addr, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ip, ok := a.byUID[uid]
	return ip, ok
}

// free takes the pod's address back; a pod without one is none.
func (a *addresses) free(uid types.UID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ip, ok := a.byUID[uid]
	if !ok {
		return nil
	}
	if err := a.markFree(ip); err != nil {
		return err
	}
	delete(a.byUID, uid)
	delete(a.taken, ip)
	a.freed = append(a.freed, ip)
	return nil
}

func (a *addresses) markFree(ip netip.Addr) error {
	name := ip.String()
	if err := os.Rename(filepath.Join(a.dir, name), filepath.Join(a.dir, freeMark+name)); err != nil {
		return fmt.Errorf("free address %s: %w", ip, err)
	}
	return nil
}

// all returns a copy.
func (a *addresses) all() map[types.UID]netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[types.UID]netip.Addr, len(a.byUID))
	for uid, ip := range a.byUID {
		out[uid] = ip
	}
	return out
}
