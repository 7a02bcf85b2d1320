package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

func attach(h *host, uid types.UID, s *shim) netip.Addr {
	h.t.Helper()
	ip, err := h.net.Attach(h.t.Context(), uid, s.pid())
	if err != nil {
		h.t.Fatal(err)
	}
	return ip
}

func detach(h *host, uid types.UID) {
	h.t.Helper()
	if err := h.net.Detach(h.t.Context(), uid); err != nil {
		h.t.Fatal(err)
	}
}

// serve accepts connections in a namespace and says its name on each.
func serve(t testing.TB, in func(func() error), network, address, name string) {
	t.Helper()
	in(func() error {
		if network == "udp" {
			c, err := net.ListenPacket("udp4", address)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				buf := make([]byte, 1500)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(name+" sees "+from.(*net.UDPAddr).IP.String()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(name + " sees " + c.RemoteAddr().(*net.TCPAddr).IP.String()))
				_ = c.Close()
			}
		}()
		return nil
	})
}

// ask connects from a namespace and returns what the server says.
func ask(in func(func() error) error, network, address string) (string, error) {
	var said string
	err := in(func() error {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, address)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if network == "udp4" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		said = string(buf[:n])
		return err
	})
	return said, err
}

func (h *host) from() func(func() error) error {
	return func(f func() error) error { return enter(h.file, f) }
}
func (s *shim) from() func(func() error) error {
	return func(f func() error) error { return enter(s.file, f) }
}

func TestPodsReachEachOtherAndTheNode(t *testing.T) {
	h := newHost(t)
	a, b := newShim(t), newShim(t)
	ipA, ipB := attach(h, "a", a), attach(h, "b", b)
	if ipA.String() != "10.244.1.2" || ipB.String() != "10.244.1.3" {
		t.Fatalf("addresses %s and %s, want the first two after the gateway", ipA, ipB)
	}
	serve(t, a.do, "tcp", ":80", "a")
	serve(t, b.do, "tcp", ":80", "b")
	serve(t, h.do, "tcp", ":90", "node")
	for _, c := range []struct {
		who  string
		from func(func() error) error
		to   string
		want string
	}{
		{"a to b", a.from(), "10.244.1.3:80", "b sees 10.244.1.2"},
		{"b to a", b.from(), "10.244.1.2:80", "a sees 10.244.1.3"},
		{"a to itself", a.from(), "10.244.1.2:80", "a sees 10.244.1.2"},
		{"a on localhost", a.from(), "127.0.0.1:80", "a sees 127.0.0.1"},
		{"node to a", h.from(), "10.244.1.2:80", "a sees 10.244.1.1"},
		{"a to node", a.from(), "10.244.1.1:90", "node sees 10.244.1.2"},
	} {
		got, err := ask(c.from, "tcp4", c.to)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.who, got, err, c.want)
		}
	}
	if out := runIn(t, a.file, "ip -6 addr show dev eth0"); strings.Contains(out, "fe80") {
		t.Errorf("IPv6 gave eth0 an address:\n%s", out)
	}
}

func TestAttachMayBeRepeated(t *testing.T) {
	h := newHost(t)
	s := newShim(t)
	ip := attach(h, "a", s)
	for i, c := range []struct {
		what string
		harm func()
	}{
		{"nothing happened", func() {}},
		{"agent restarted", func() { h.restart(); h.setup(record) }},
		{"host's end down", func() { h.run("ip link set " + linkName("a") + " down") }},
		{"pod's end emptied", func() { runIn(t, s.file, "ip addr flush dev eth0") }},
		{"link deleted", func() { h.run("ip link del " + linkName("a")) }},
		{"shim replaced", func() { s = newShim(t) }},
		{"shim gone and replaced", func() { s.kill(); s = newShim(t) }},
	} {
		c.harm()
		if again := attach(h, "a", s); again != ip {
			t.Fatalf("%s: address %s became %s", c.what, ip, again)
		}
		l := 8000 + i
		serve(t, s.do, "tcp", fmt.Sprintf(":%d", l), "a")
		if got, err := ask(h.from(), "tcp4", fmt.Sprintf("%s:%d", ip, l)); err != nil || got != "a sees 10.244.1.1" {
			t.Errorf("%s: asking the pod: %q, %v", c.what, got, err)
		}
	}
}

func TestDetachLeavesNothing(t *testing.T) {
	h := newHost(t)
	for _, alive := range []bool{true, false} {
		s := newShim(t)
		uid := types.UID(fmt.Sprintf("pod-%v", alive))
		ip := attach(h, uid, s)
		if !alive {
			s.kill()
		}
		detach(h, uid)
		detach(h, uid)
		if out := h.run("ip route show " + ip.String()); out != "" {
			t.Errorf("alive=%v: route is left at once: %s", alive, out)
		}
		eventually(t, "the link is gone", func() bool {
			return !strings.Contains(h.run("ip -o link show"), linkName(uid))
		})
		if len(h.net.Addresses()) != 0 {
			t.Errorf("alive=%v: addresses left: %v", alive, h.net.Addresses())
		}
	}
}

func TestSyncReleasesWhatNobodyKnows(t *testing.T) {
	h := newHost(t)
	var shims []*shim
	for i := range 4 {
		s := newShim(t)
		shims = append(shims, s)
		attach(h, types.UID(fmt.Sprint("pod-", i)), s)
	}
	// A link whose address is already given back, as after a crash between.
	if err := h.net.addresses.free("pod-3"); err != nil {
		t.Fatal(err)
	}
	// A link of somebody else is not ours, whatever its name.
	h.run("ip link add gysomebody type bridge")
	if err := h.net.Sync(t.Context(), []types.UID{"pod-1"}); err != nil {
		t.Fatal(err)
	}
	out := h.run("ip -o link show")
	for i := range shims {
		if has := strings.Contains(out, linkName(types.UID(fmt.Sprint("pod-", i)))); has != (i == 1) {
			t.Errorf("link of pod-%d is there: %v\n%s", i, has, out)
		}
	}
	if !strings.Contains(out, "gysomebody") || !strings.Contains(out, "gantry0") {
		t.Errorf("Sync removed a link that it should not:\n%s", out)
	}
	if got := h.net.Addresses(); len(got) != 1 || !got["pod-1"].IsValid() {
		t.Errorf("addresses after Sync: %v, want pod-1's", got)
	}
}

func TestTeardownRemovesAllThatIsOurs(t *testing.T) {
	h := newHost(t)
	before := h.run("ip -o link show") // with the bridge, which is ours too
	attach(h, "a", newShim(t))
	if err := h.net.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := h.run("ip -o link show"); strings.Contains(out, "gy") || strings.Contains(out, "gantry0") {
		t.Errorf("links left:\n%s\nbefore:\n%s", out, before)
	}
	if out := h.run("ip route show"); out != "" {
		t.Errorf("routes left:\n%s", out)
	}
	if err := h.net.Teardown(t.Context()); err != nil {
		t.Errorf("second Teardown: %v", err)
	}
	left, err := os.ReadDir(h.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("state left: %v, %v", left, err)
	}
}

func TestSetupFollowsTheRecord(t *testing.T) {
	h := newHost(t)
	h.setup(record)
	moved := schemas.NetworkRecord{PodCIDR: "10.7.4.0/24", ClusterPodCIDR: "10.7.0.0/16", ServiceCIDR: "10.8.0.0/16"}
	h.setup(moved)
	if out := h.run("ip -4 -o addr show dev gantry0"); strings.Contains(out, "10.244") || !strings.Contains(out, "10.7.4.1/32") {
		t.Errorf("addresses of the bridge:\n%s", out)
	}
	if out := h.run("ip route show"); strings.Contains(out, "10.96") || !strings.Contains(out, "10.8.0.0/16 dev gantry0") {
		t.Errorf("routes:\n%s", out)
	}
	if ip := attach(h, "a", newShim(t)); ip.String() != "10.7.4.2" {
		t.Errorf("address %s is not of the new range", ip)
	}
	h.run("ip link del gantry0")
	h.run("ip link add gantry0 type bridge")
	err := enter(h.file, func() error { return h.net.Setup(t.Context(), record) })
	if err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("Setup on somebody else's link: %v", err)
	}
}

func TestAttachRefuses(t *testing.T) {
	h := newHost(t)
	if _, err := h.net.Attach(t.Context(), "a", 1<<22+1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that is not there: %v", err)
	}
	h.do(func() error {
		n, err := New(Options{StateDir: t.TempDir(), Log: zerolog.Nop()})
		if err != nil {
			return err
		}
		defer func() { _ = n.Close() }()
		if _, err := n.Attach(t.Context(), "a", os.Getpid()); err == nil || !strings.Contains(err.Error(), "not set up") {
			t.Errorf("before Setup: %v", err)
		}
		return nil
	})
	// An agent in the namespace of a process must not take it for a pod.
	s := newShim(t)
	s.do(func() error {
		n, err := New(Options{StateDir: t.TempDir(), Log: zerolog.Nop()})
		if err != nil {
			return err
		}
		defer func() { _ = n.Close() }()
		if err := n.Setup(t.Context(), record); err != nil {
			return err
		}
		if _, err := n.Attach(t.Context(), "a", s.pid()); err == nil || !strings.Contains(err.Error(), "no network namespace of its own") {
			t.Errorf("the agent's own namespace: %v", err)
		}
		if len(n.Addresses()) != 0 {
			t.Errorf("a refused pod has an address: %v", n.Addresses())
		}
		return nil
	})
}

func TestMissingNamesTheUplink(t *testing.T) {
	h := newHost(t)
	h.run("ip link add uplink type bridge")
	h.run("ip addr add 192.0.2.2/24 dev uplink")
	h.run("ip link set uplink up")
	h.run("ip route add default via 192.0.2.1")
	h.do(func() error {
		got := h.net.Missing()
		if len(got) != 1 || !strings.Contains(got[0], "net.ipv4.conf.uplink.forwarding") {
			t.Errorf("Missing() = %q, want the uplink's forwarding", got)
		}
		return nil
	})
}

func BenchmarkAttach(b *testing.B) {
	h := newHost(b)
	var shims []*shim
	for range b.N {
		shims = append(shims, newShim(b))
	}
	b.ResetTimer()
	for i, s := range shims {
		if _, err := h.net.Attach(b.Context(), types.UID(fmt.Sprint("pod-", i)), s.pid()); err != nil {
			b.Fatal(err)
		}
	}
}
