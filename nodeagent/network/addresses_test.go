package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

func openTest(t interface{ Fatal(...any) }, dir, cidr string) *addresses {
	a, err := openAddresses(dir)
	if err != nil {
		t.Fatal(err)
	}
	a.use(netip.MustParsePrefix(cidr))
	return a
}

// nextTick returns once the file system's clock has moved on: what happens
// within one tick of it has no order.
func nextTick(t *testing.T) {
	t.Helper()
	stamp := func() int64 {
		path := filepath.Join(t.TempDir(), "stamp")
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return changeTime(info).UnixNano()
	}
	first := stamp()
	eventually(t, "the clock moves on", func() bool { return stamp() != first })
}

func TestFreedAddressesAreUsedLast(t *testing.T) {
	dir := t.TempDir()
	a := openTest(t, dir, "10.1.1.0/29") // .2 to .6
	take := func(uid types.UID, want string) {
		t.Helper()
		ip, err := a.allocate(uid)
		if err != nil || ip.String() != want {
			t.Fatalf("pod %s got %s, %v; want %s", uid, ip, err, want)
		}
	}
	release := func(uid types.UID) {
		t.Helper()
		if err := a.free(uid); err != nil {
			t.Fatal(err)
		}
	}
	take("a", "10.1.1.2")
	take("b", "10.1.1.3")
	take("a", "10.1.1.2")
	release("b")
	release("b")
	nextTick(t)
	release("a")
	take("c", "10.1.1.4")
	a = openTest(t, dir, "10.1.1.0/29")
	take("c", "10.1.1.4")
	take("d", "10.1.1.5")
	take("e", "10.1.1.6")
	take("f", "10.1.1.3") // freed before .2
	take("g", "10.1.1.2")
	if _, err := a.allocate("h"); err == nil {
		t.Fatal("more pods than addresses")
	}
	release("d")
	take("h", "10.1.1.5")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5 {
		t.Errorf("%d files for 5 addresses: %v, %v", len(entries), entries, err)
	}
}

func TestHalfWrittenClaimsAreForgotten(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"claim-x": "x", "10.1.1.2": "", "10.1.1.3": "y"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := openTest(t, dir, "10.1.1.0/29")
	if got := a.all(); len(got) != 1 || got["y"].String() != "10.1.1.3" {
		t.Errorf("pods with addresses: %v, want y alone", got)
	}
	if ip, err := a.allocate("x"); err != nil || ip.String() != "10.1.1.4" {
		t.Errorf("x got %s, %v", ip, err)
	}
}

// Whatever the history, and with a restart anywhere in it, no two pods have
// one address and no pod changes its own.
func TestNoAddressIsGivenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "gtest-addresses-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		a := openTest(t, dir, "10.1.1.0/28")
		model := map[types.UID]netip.Addr{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			uid := types.UID(fmt.Sprint("pod-", rapid.IntRange(0, 20).Draw(t, "pod")))
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				a = openTest(t, dir, "10.1.1.0/28")
			case 1:
				if err := a.free(uid); err != nil {
					t.Fatal(err)
				}
				delete(model, uid)
			default:
				ip, err := a.allocate(uid)
				if err != nil {
					if len(model) < 13 {
						t.Fatalf("%d pods: %v", len(model), err)
					}
					continue
				}
				if had, ok := model[uid]; ok && had != ip {
					t.Fatalf("pod %s moved from %s to %s", uid, had, ip)
				}
				model[uid] = ip
			}
			owner := map[netip.Addr]types.UID{}
			for uid, ip := range a.all() {
				if other, taken := owner[ip]; taken || model[uid] != ip {
					t.Fatalf("%s has %s, as has %q; it should have %s", uid, ip, other, model[uid])
				}
				owner[ip] = uid
			}
			if len(owner) != len(model) {
				t.Fatalf("%d pods have addresses, want %d", len(owner), len(model))
			}
		}
	})
}
