//go:build linux

package runtime

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// BenchmarkStart compares the CPU time of a pod's life here, sandbox, overlay
// and cgroups included, with that of `runc run` of the same bundle, in turns.
// RUNC names the peer's binary.
func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	must(b, os.WriteFile(filepath.Join(n.layer, "nothing"), nothing(), 0o755))
	for _, name := range podFiles {
		must(b, os.WriteFile(filepath.Join(n.dir, name), []byte("127.0.0.1 localhost\n"), 0o644))
		must(b, os.WriteFile(filepath.Join(n.layer, "etc", name), nil, 0o644))
	}
	peer := newPeer(b, n)
	var ours, theirs, starts time.Duration
	var wallOurs, wallTheirs time.Duration
	for b.Loop() {
		all, start, wall := n.life(b)
		ours, starts, wallOurs = ours+all, starts+start, wallOurs+wall
		cpu, wall := peer.life(b)
		theirs, wallTheirs = theirs+cpu, wallTheirs+wall
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(b.N) / 1e6 }
	b.ReportMetric(ms(ours), "life-ms")
	b.ReportMetric(ms(starts), "start-ms")
	b.ReportMetric(ms(theirs), "runc-ms")
	b.ReportMetric(ms(wallOurs), "wall-ms")
	b.ReportMetric(ms(wallTheirs), "runc-wall-ms")
	b.ReportMetric(float64(ours)/float64(theirs), "life-ratio")
	b.ReportMetric(float64(starts)/float64(theirs), "start-ratio")
}

// podFiles are those that the agent gives to every container.
var podFiles = []string{"hosts", "hostname", "resolv.conf"}

// life runs one pod whose container ends at once, and removes it.
func (n *node) life(b *testing.B) (all, start, wall time.Duration) {
	begin, cpu := time.Now(), n.cpu(b)
	s := n.sandbox()
	ctx := context.Background()
	_, err := n.rt.EnsureSandbox(ctx, s)
	must(b, err)
	c := n.container(s)
	c.Args = []string{"/nothing"}
	c.TerminationMessagePath = "/dev/termination-log"
	for _, name := range podFiles {
		c.Mounts = append(c.Mounts, Mount{
			Source: filepath.Join(n.dir, name), Destination: "/etc/" + name, Type: "bind",
			Options: []string{"rbind", "rprivate", "rw"},
		})
	}
	must(b, n.rt.Start(ctx, c))
	for uid := range n.rt.Wakes() {
		st, _, err := n.rt.Sandbox(uid)
		must(b, err)
		if uid == s.UID && len(st.Containers) == 1 && st.Containers[0].Phase == PhaseExited {
			break
		}
	}
	wall, start = time.Since(begin), n.cpu(b)-cpu
	must(b, n.rt.RemoveSandbox(ctx, s.UID))
	return n.cpu(b) - cpu, start, wall
}

// cpu is what this process and all below our cgroup have used.
func (n *node) cpu(b testing.TB) time.Duration {
	var ru unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &ru))
	return time.Duration(ru.Utime.Nano()+ru.Stime.Nano()) + cgroupCPU(b, n.root)
}

func cgroupCPU(b testing.TB, root string) time.Duration {
	if isCgroup2(cgroupMount) {
		text, err := os.ReadFile(filepath.Join(cgroupMount, root, "cpu.stat"))
		must(b, err)
		us, err := strconv.Atoi(strings.Fields(string(text))[1])
		must(b, err)
		return time.Duration(us) * time.Microsecond
	}
	text, err := os.ReadFile(filepath.Join(cgroupMount, "cpuacct", root, "cpuacct.usage"))
	must(b, err)
	ns, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(b, err)
	return time.Duration(ns)
}

// peer is runc with a bundle like ours.
type peer struct {
	bin, dir, root string
	config         string // of the bundle, with CGROUP for the path
	n              int
	spawn          *spawner
}

func newPeer(b *testing.B, n *node) *peer {
	p := &peer{bin: os.Getenv("RUNC"), dir: filepath.Join(n.dir, "peer"), root: n.root + "-peer"}
	if p.bin == "" {
		var err error
		if p.bin, err = exec.LookPath("runc"); err != nil {
			b.Skip("no runc to compare with")
		}
	}
	must(b, os.MkdirAll(p.dir, 0o755))
	cg := findCgroups(p.root)
	p.bundle(b)
	var err error
	p.spawn, err = newSpawner(cg)
	must(b, err)
	b.Cleanup(func() {
		p.spawn.close()
		if err := cg.remove(context.Background(), ""); err != nil {
			b.Error(err)
		}
	})
	return p
}

func (p *peer) life(b *testing.B) (cpu, wall time.Duration) {
	p.n++
	id := fmt.Sprintf("peer-%d", p.n)
	config := strings.Replace(p.config, "CGROUP", p.root+"/"+id, 1)
	must(b, os.WriteFile(filepath.Join(p.dir, "config.json"), []byte(config), 0o644))
	begin, before := time.Now(), cgroupCPU(b, p.root)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(b, err)
	defer func() { _ = null.Close() }()
	pid, err := p.spawn.start(p.bin, []string{p.bin, "--root", p.dir + "/state", "run", "--bundle", p.dir, id}, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), null.Fd(), 2}, Sys: &syscall.SysProcAttr{},
	})
	must(b, err)
	var ws unix.WaitStatus
	_, err = unix.Wait4(pid, &ws, 0, nil)
	must(b, err)
	if ws.ExitStatus() != 0 {
		b.Fatalf("peer ended with %d", ws.ExitStatus())
	}
	return cgroupCPU(b, p.root) - before, time.Since(begin)
}

func (p *peer) bundle(b *testing.B) {
	caps := []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	spec := specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: filepath.Join(filepath.Dir(p.dir), "layer")},
		Hostname: "web-0",
		Process: &specs.Process{
			Args: []string{"/nothing"}, Env: []string{"PATH=/"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "CGROUP",
			Namespaces: []specs.LinuxNamespace{
				{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	profile, err := seccomp.GetDefaultProfile(&spec)
	must(b, err)
	spec.Linux.Seccomp = profile
	text, err := json.Marshal(spec)
	must(b, err)
	p.config = string(text)
}

// nothing is a program that does nothing, so that both sides are compared and
// not what they start: exit(0) behind the smallest header that Linux takes.
func nothing() []byte {
	var b []byte
	u16 := func(v ...uint16) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint16(b, x)
		}
	}
	u32 := func(v ...uint32) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint32(b, x)
		}
	}
	u64 := func(v ...uint64) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint64(b, x)
		}
	}
	code, machine := []byte{0x6a, 60, 0x58, 0x31, 0xff, 0x0f, 0x05}, uint16(62) // push 60; pop rax; xor edi, edi; syscall
	if goruntime.GOARCH == "arm64" {
		// mov x0, 0; mov x8, 93; svc 0
		code, machine = []byte{0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4}, 183
	}
	const base, header, program = 0x400000, 64, 56
	size := uint64(header + program + len(code))
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	u16(2, machine)
	u32(1)
	u64(base+header+program, header, 0)
	u32(0)
	u16(header, program, 1, 0, 0, 0)
	u32(1, 5)
	u64(0, base, base, size, size, 0x1000)
	return append(b, code...)
}

// BenchmarkParallel starts pods eight at a time and tells how many per second.
func BenchmarkParallel(b *testing.B) {
	n := newNode(b)
	ctx := context.Background()
	const width, each = 8, 25
	for b.Loop() {
		begin := time.Now()
		var wg sync.WaitGroup
		waiting := sync.Map{}
		go func() {
			for uid := range n.rt.Wakes() {
				if ch, ok := waiting.Load(uid); ok {
					select {
					case ch.(chan struct{}) <- struct{}{}:
					default:
					}
				}
			}
		}()
		var pods sync.Map
		for range width {
			wg.Go(func() {
				for range each {
					s := n.sandbox()
					ch := make(chan struct{}, 1)
					waiting.Store(s.UID, ch)
					pods.Store(s.UID, s)
					_, err := n.rt.EnsureSandbox(ctx, s)
					if err == nil {
						err = n.rt.Start(ctx, n.container(s, "sleep", "0"))
					}
					if err != nil {
						b.Error(err)
						return
					}
					for range ch {
						st, _, err := n.rt.Sandbox(s.UID)
						if err != nil {
							b.Error(err)
							return
						}
						if len(st.Containers) == 1 && st.Containers[0].Phase == PhaseRunning {
							break
						}
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(width*each)/time.Since(begin).Seconds(), "pods/s")
		all, err := n.rt.Sandboxes()
		must(b, err)
		b.ReportMetric(shimMemory(b, all), "shim-PSS-KiB")
		begin = time.Now()
		for range width {
			wg.Go(func() {
				pods.Range(func(uid, s any) bool {
					if _, mine := pods.LoadAndDelete(uid); mine {
						if err := n.rt.RemoveSandbox(ctx, s.(Sandbox).UID); err != nil {
							b.Error(err)
						}
					}
					return true
				})
			})
		}
		wg.Wait()
		b.ReportMetric(float64(width*each)/time.Since(begin).Seconds(), "removed/s")
	}
	goruntime.KeepAlive(n)
}

// shimMemory is the mean PSS of the shims in KiB.
func shimMemory(b *testing.B, all []SandboxState) float64 {
	total := 0
	for _, s := range all {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.PID))
		must(b, err)
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[0] == "Pss:" {
				kib, err := strconv.Atoi(f[1])
				must(b, err)
				total += kib
			}
		}
	}
	return float64(total) / float64(len(all))
}
