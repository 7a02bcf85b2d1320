package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/netfilter"
	"gantry.dev/netfilter/kernel"
)

// These tests let the kernel judge: real packets through real rules, sent by
// the node and by pods.

// cluster is a host with pods on it and Services programmed.
type cluster struct {
	*host
	pods  []*shim
	ips   []netip.Addr
	table *kernel.Table
	prog  *kernel.Programmer
	stop  func()
}

const testTable = "gtest"

func newCluster(t testing.TB, pods int, noOwner bool) *cluster {
	t.Helper()
	c := &cluster{host: newHost(t)}
	for i := range pods {
		s := newShim(t)
		c.pods = append(c.pods, s)
		c.ips = append(c.ips, attach(c.host, types.UID(fmt.Sprint("pod-", i)), s))
		name := fmt.Sprint("pod-", i)
		serve(t, s.do, "tcp", ":8080", name)
		serve(t, s.do, "udp", ":8053", name)
	}
	c.startAgent(noOwner)
	return c
}

func (c *cluster) frame() netfilter.Frame {
	return netfilter.Frame{
		Table:       testTable,
		ServiceCIDR: netip.MustParsePrefix(record.ServiceCIDR),
		PodCIDR:     netip.MustParsePrefix(record.ClusterPodCIDR),
		Gateway:     c.net.Gateway(),
		LocalPods:   netfilter.Addresses(netip.MustParsePrefix(record.PodCIDR), 1024),
	}
}

func (c *cluster) startAgent(noOwner bool) {
	c.t.Helper()
	c.do(func() (err error) {
		c.table, err = kernel.Open(kernel.Options{Table: testTable, NoOwner: noOwner, Log: zerolog.Nop()})
		return err
	})
	c.prog = kernel.NewProgrammer(kernel.ProgrammerOptions{Kernel: c.table, Conntrack: c.net, Interval: 20 * time.Millisecond, Log: zerolog.Nop()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	prog, table := c.prog, c.table
	go func() { defer close(ended); prog.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		_ = table.Close()
	})
	c.t.Cleanup(c.stop)
}

// tell programs these Services and waits.
func (c *cluster) tell(services ...netfilter.Service) {
	c.t.Helper()
	c.prog.Update(netfilter.Input{Frame: c.frame(), Services: services})
	c.wait()
}

func (c *cluster) wait() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.prog.Wait(ctx); err != nil {
		c.t.Fatal(err)
	}
}

const vip = "10.96.0.10"

// web is the Service that the tests ask, with these pods behind it.
func (c *cluster) web(pods ...int) netfilter.Service {
	s := netfilter.Service{Name: "test/web", IPs: []netip.Addr{netip.MustParseAddr(vip)}}
	tcp := netfilter.Port{Protocol: netfilter.TCP, Port: 80}
	udp := netfilter.Port{Protocol: netfilter.UDP, Port: 53}
	for _, i := range pods {
		tcp.Endpoints = append(tcp.Endpoints, netip.AddrPortFrom(c.ips[i], 8080))
		udp.Endpoints = append(udp.Endpoints, netip.AddrPortFrom(c.ips[i], 8053))
	}
	s.Ports = append(s.Ports, tcp, udp)
	return s
}

func (c *cluster) clients() map[string]func(func() error) error {
	return map[string]func(func() error) error{"node": c.from(), "pod-0": c.pods[0].from()}
}

func TestEveryEndpointAnswersNodeAndPods(t *testing.T) {
	c := newCluster(t, 3, false)
	c.tell(c.web(0, 1, 2))
	for name, from := range c.clients() {
		for network, address := range map[string]string{"tcp4": vip + ":80", "udp4": vip + ":53"} {
			seen := map[string]bool{}
			deadline := time.Now().Add(20 * time.Second)
			for len(seen) < 3 && time.Now().Before(deadline) {
				said, err := ask(from, network, address)
				if err != nil {
					t.Fatalf("%s asks %s: %v", name, address, err)
				}
				seen[said] = true
			}
			client := c.ips[0].String()
			if name == "node" {
				client = c.net.Gateway().String()
			}
			for _, server := range []string{"pod-0", "pod-1", "pod-2"} {
				sees := client
				if server == name {
					sees = c.net.Gateway().String() // a pod that reaches itself
				}
				if !seen[server+" sees "+sees] {
					t.Errorf("%s over %s: %q never answered; answers: %v", name, network, server+" sees "+sees, seen)
				}
			}
		}
	}
}

func TestServiceWithoutEndpointsRefusesAtOnce(t *testing.T) {
	c := newCluster(t, 1, false)
	c.tell(c.web())
	for name, from := range c.clients() {
		for _, address := range []string{vip + ":80", "10.96.200.200:443"} {
			if _, err := ask(from, "tcp4", address); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s asks %s by TCP: %v, want connection refused", name, address, err)
			}
			// A packet that the node's own kernel refuses to send fails at once
			// with EPERM; the ICMP answer follows.
			if _, err := ask(from, "udp4", address); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) {
				t.Errorf("%s asks %s by UDP: %v, want connection refused", name, address, err)
			}
		}
	}
}

func TestUpdatesUnderLoadFailNoConnection(t *testing.T) {
	c := newCluster(t, 3, false)
	c.tell(c.web(0))
	var stop atomic.Bool
	var asked, failed atomic.Int64
	var wg sync.WaitGroup
	for name, from := range c.clients() {
		wg.Go(func() {
			for !stop.Load() {
				asked.Add(1)
				if _, err := ask(from, "tcp4", vip+":80"); err != nil {
					failed.Add(1)
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	sets := [][]int{{0, 1}, {1}, {0, 1, 2}, {2}, {2, 0}, {0}}
	for i := 0; i < 60 || asked.Load() < 200; i++ {
		c.prog.Set(c.web(sets[i%len(sets)]...))
		c.wait()
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d connections during updates, %d failed", asked.Load(), failed.Load())
}

func TestOpenConnectionOutlivesItsEndpointsRemoval(t *testing.T) {
	c := newCluster(t, 2, false)
	var accepted net.Conn
	got := make(chan struct{})
	c.pods[1].do(func() error {
		l, err := net.Listen("tcp4", ":9000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			accepted, _ = l.Accept()
			close(got)
		}()
		return nil
	})
	s := c.web(1)
	s.Ports[0].Endpoints = []netip.AddrPort{netip.AddrPortFrom(c.ips[1], 9000)}
	c.tell(s)
	var conn net.Conn
	c.do(func() (err error) { conn, err = net.DialTimeout("tcp4", vip+":80", 5*time.Second); return err })
	defer func() { _ = conn.Close() }()
	<-got
	defer func() { _ = accepted.Close() }()
	c.tell(c.web())
	if _, err := conn.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if err := accepted.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := accepted.Read(buf); err != nil || string(buf[:n]) != "still here" {
		t.Errorf("after the endpoint's removal: %q, %v", buf[:n], err)
	}
}

// A client that keeps one UDP socket must be led to the endpoint that is there.
func TestUDPFlowsFollowTheEndpoints(t *testing.T) {
	c := newCluster(t, 3, false)
	c.tell(c.web(1))
	for name, from := range c.clients() {
		c.tell(c.web(1))
		var conn net.Conn
		if err := from(func() (err error) { conn, err = net.Dial("udp4", vip+":53"); return err }); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		exchange := func() string {
			buf := make([]byte, 64)
			for range 50 {
				if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write([]byte("?")); err != nil {
					continue // a refusal told late
				}
				if n, err := conn.Read(buf); err == nil {
					said, _, _ := strings.Cut(string(buf[:n]), " ")
					return said
				}
			}
			return "nobody"
		}
		if got := exchange(); got != "pod-1" {
			t.Fatalf("%s: at first %s answers", name, got)
		}
		c.tell(c.web(2))
		if got := exchange(); got != "pod-2" {
			t.Errorf("%s: after the change %s answers, want pod-2", name, got)
		}
		// The table vanishes together with a change that nobody could tell.
		c.run("nft list table ip " + testTable)
		c.stop()
		c.run("nft delete table ip " + testTable)
		if _, err := conn.Write([]byte("into the void")); err != nil {
			t.Logf("%s: write without rules: %v", name, err)
		}
		c.startAgent(false)
		c.tell(c.web(1))
		if got := exchange(); got != "pod-1" {
			t.Errorf("%s: after the table was gone %s answers, want pod-1", name, got)
		}
	}
}

func TestForeignFlushIsRepaired(t *testing.T) {
	c := newCluster(t, 2, true)
	c.tell(c.web(1))
	for _, harm := range []string{
		"nft delete table ip gtest",
		"nft flush ruleset",
		"nft flush table ip gtest",
		"nft flush map ip gtest endpoints1",
		"nft flush chain ip gtest services",
		"nft add rule ip gtest filter-output tcp dport 80 drop",
		"nft add chain ip gtest stranger",
	} {
		c.run(harm)
		eventually(t, "repair after "+harm, func() bool {
			said, err := ask(c.from(), "tcp4", vip+":80")
			return err == nil && strings.HasPrefix(said, "pod-1") && !strings.Contains(c.run("nft list ruleset"), "stranger")
		})
	}
}

func TestOwnedTableSurvivesAForeignFlush(t *testing.T) {
	c := newCluster(t, 1, false)
	c.tell(c.web(0))
	c.run("nft add table ip other")
	before := c.table.Stats().Applies
	for range 20 {
		c.run("nft flush ruleset")
		if _, err := ask(c.from(), "tcp4", vip+":80"); err != nil {
			t.Fatalf("after a foreign flush: %v", err)
		}
	}
	if out := c.run("nft list tables"); strings.Contains(out, "other") || !strings.Contains(out, testTable) {
		t.Errorf("tables after the flush:\n%s", out)
	}
	if after := c.table.Stats().Applies; after != before {
		t.Errorf("%d transactions to repair what was not broken", after-before)
	}
}

// Rules stay in force between two lives of the agent, and the next one takes
// them over, changing only what has changed.
func TestRestartAdoptsTheTable(t *testing.T) {
	c := newCluster(t, 2, false)
	var many []netfilter.Service
	for i := range 200 {
		s := c.web(0, 1)
		s.Name = fmt.Sprint("test/other-", i)
		s.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})}
		many = append(many, s)
	}
	c.tell(append(many, c.web(0))...)
	first := c.table.Stats().Bytes
	c.stop()
	if _, err := ask(c.from(), "tcp4", vip+":80"); err != nil {
		t.Fatalf("while no agent runs: %v", err)
	}
	c.startAgent(false)
	c.tell(append(many, c.web(1))...)
	if said, err := ask(c.from(), "tcp4", vip+":80"); err != nil || !strings.HasPrefix(said, "pod-1") {
		t.Errorf("after the restart: %q, %v", said, err)
	}
	if again := c.table.Stats().Bytes; again*20 > first {
		t.Errorf("the new agent sent %d bytes to take over what took %d", again, first)
	}
	c.run("nft flush ruleset")
	if out := c.run("nft list tables"); !strings.Contains(out, testTable) {
		t.Errorf("the new agent does not own the table: a flush removed it")
	}
}

func TestFiveThousandServices(t *testing.T) {
	c := newCluster(t, 2, false)
	all := []netfilter.Service{c.web(0, 1)}
	for i := range 5000 {
		s := c.web(0, 1, i%2)
		s.Name = fmt.Sprint("test/other-", i)
		s.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(1 + i>>8), byte(i)})}
		all = append(all, s)
	}
	c.tell(all...)
	for _, address := range []string{vip, "10.96.1.0", "10.96.20.135"} {
		for name, from := range c.clients() {
			if _, err := ask(from, "tcp4", address+":80"); err != nil {
				t.Errorf("%s asks %s: %v", name, address, err)
			}
		}
	}
	c.tell()
	if _, err := ask(c.from(), "tcp4", "10.96.20.135:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after all Services are removed: %v, want connection refused", err)
	}
}

// What leaves the cluster takes the node's address; what stays does not.
func TestPodTrafficToOutsideIsMasqueraded(t *testing.T) {
	c := newCluster(t, 1, false)
	c.tell(c.web(0))
	outside := newShim(t)
	c.run(fmt.Sprintf("ip link add uplink type veth peer name eth0 netns %d", outside.pid()))
	c.run("ip addr add 192.0.2.1/24 dev uplink")
	c.run("ip link set uplink up")
	c.run("ip route add default via 192.0.2.2")
	runIn(t, outside.file, "ip addr add 192.0.2.2/24 dev eth0")
	runIn(t, outside.file, "ip link set eth0 up")
	serve(t, outside.do, "tcp", ":80", "outside")
	c.do(func() error {
		if w := c.net.Missing(); len(w) != 1 {
			t.Errorf("Missing() = %q, want the uplink's forwarding", w)
		}
		return nil
	})
	c.run("sysctl -q -w net.ipv4.conf.uplink.forwarding=1")
	if said, err := ask(c.pods[0].from(), "tcp4", "192.0.2.2:80"); err != nil || said != "outside sees 192.0.2.1" {
		t.Errorf("pod asks outside: %q, %v", said, err)
	}
}
