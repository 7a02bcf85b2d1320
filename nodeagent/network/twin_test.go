package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"

	"gantry.dev/netfilter"
)

// Random Services, changed at random: after each change the dumb twin says what
// may become of a packet, and real packets must meet just that.
func TestTwinAndKernelAgree(t *testing.T) {
	c := newCluster(t, 3, false)
	// The kernel limits how many ICMP errors it sends, to one receiver and in all.
	c.run("sysctl -q -w net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=100000")
	for seed := range uint64(3) {
		random := rand.New(rand.NewPCG(seed, 1))
		services := map[string]netfilter.Service{}
		c.tell()
		for step := range 8 {
			name := fmt.Sprint("test/s", random.IntN(4))
			if random.IntN(4) == 0 {
				delete(services, name)
				c.prog.Remove(name)
			} else {
				s := c.randomService(random, name)
				services[name] = s
				c.prog.Set(s)
			}
			c.wait()
			in := netfilter.Input{Frame: c.frame()}
			for _, s := range services {
				in.Services = append(in.Services, s)
			}
			rules := netfilter.Compile(in)
			for ip := byte(1); ip <= 3; ip++ {
				for _, f := range []netfilter.Frontend{
					{IP: netip.AddrFrom4([4]byte{10, 96, 0, ip}), Protocol: netfilter.TCP, Port: 80},
					{IP: netip.AddrFrom4([4]byte{10, 96, 0, ip}), Protocol: netfilter.UDP, Port: 53},
				} {
					c.compare(fmt.Sprintf("seed %d step %d", seed, step), rules, f)
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d; the rules:\n%s", seed, step, netfilter.Print(rules))
			}
		}
	}
}

func (c *cluster) randomService(random *rand.Rand, name string) netfilter.Service {
	s := netfilter.Service{Name: name, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + random.IntN(3))})}}
	for _, p := range []netfilter.Port{{Protocol: netfilter.TCP, Port: 80}, {Protocol: netfilter.UDP, Port: 53}} {
		target := map[netfilter.Protocol]uint16{netfilter.TCP: 8080, netfilter.UDP: 8053}[p.Protocol]
		for _, ip := range c.ips {
			if random.IntN(2) == 0 {
				p.Endpoints = append(p.Endpoints, netip.AddrPortFrom(ip, target))
			}
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

// compare asks a frontend from the node and from each pod.
func (c *cluster) compare(when string, rules netfilter.Ruleset, f netfilter.Frontend) {
	c.t.Helper()
	network := map[netfilter.Protocol]string{netfilter.TCP: "tcp4", netfilter.UDP: "udp4"}[f.Protocol]
	ask4 := func(who string, source netip.Addr, from func(func() error) error, local bool) {
		allowed := map[string]bool{}
		for r := range 64 {
			v := netfilter.Decide(rules, netfilter.Packet{Protocol: f.Protocol, Local: local,
				From: netip.AddrPortFrom(source, 40000), To: netip.AddrPortFrom(f.IP, f.Port)}, r)
			if v.Refused != 0 {
				allowed["refused"] = true
				continue
			}
			for i, ip := range c.ips {
				if ip == v.To.Addr() {
					allowed[fmt.Sprintf("pod-%d sees %s", i, v.From)] = true
				}
			}
		}
		for range 3 {
			said, err := ask(from, network, netip.AddrPortFrom(f.IP, f.Port).String())
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPERM) {
				said, err = "refused", nil
			}
			if err != nil || !allowed[said] {
				c.t.Errorf("%s: %s asks %v: %q, %v; the twin allows %v", when, who, f, said, err, allowed)
				return
			}
		}
	}
	ask4("node", c.net.Gateway(), c.from(), true)
	for i, s := range c.pods {
		ask4(fmt.Sprint("pod-", i), c.ips[i], s.from(), false)
	}
}
