//go:build linux

package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestHowRunsEnd(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	links := filepath.Join(n.dir, "links")
	must(t, os.MkdirAll(links, 0o755))
	must(t, os.Symlink("/proc", filepath.Join(links, "processes")))
	tests := []struct {
		desc string
		edit func(*Container)
		want ContainerState
		log  string
	}{
		{desc: "exit 0", edit: args("out", "hello"), want: ContainerState{Phase: PhaseExited}, log: "hello\n"},
		{desc: "exit 7", edit: args("exit", "7"), want: ContainerState{Phase: PhaseExited, ExitCode: 7}},
		{desc: "exit 255", edit: args("exit", "255"), want: ContainerState{Phase: PhaseExited, ExitCode: 255}},
		{
			desc: "last line without an end", edit: args("out", "one", "raw", "two"),
			want: ContainerState{Phase: PhaseExited}, log: "one\ntwo\n",
		},
		{
			desc: "out of memory",
			edit: func(c *Container) { c.Args = prog("eat", "100"); c.Resources.MemoryLimit = 32 << 20 },
			want: ContainerState{Phase: PhaseExited, ExitCode: 137, Signal: 9, OOMKilled: true},
		},
		{
			desc: "command that is not there", edit: func(c *Container) { c.Args = []string{"nothing-here"} },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonCommandNotFound},
		},
		{
			desc: "path that is not there", edit: func(c *Container) { c.Args = []string{"/bin/nothing-here"} },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonCommandNotFound},
		},
		{
			desc: "file that is not executable", edit: func(c *Container) { c.Args = []string{"/notexec"} },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonPermissionDenied},
		},
		{
			desc: "directory as command", edit: func(c *Container) { c.Args = []string{"/etc"} },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonPermissionDenied},
		},
		{
			desc: "user who is not there", edit: func(c *Container) { c.User = "bob" },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonInvalidUser},
		},
		{
			desc: "volume that is not there",
			edit: func(c *Container) { c.Mounts = []Mount{{Type: "bind", Source: "/not/there", Destination: "/data"}} },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonInvalidMount},
		},
		{
			desc: "volume over /proc, by a link in the image",
			edit: func(c *Container) {
				c.Layers = append(c.Layers, links)
				c.Mounts = []Mount{{Type: "bind", Source: n.dir, Destination: "/processes/self"}}
			},
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonInvalidMount},
		},
		{
			desc: "layer that is not there", edit: func(c *Container) { c.Layers = []string{"/not/there"} },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonStartError},
		},
		{
			desc: "memory limit below what the start itself needs",
			edit: func(c *Container) { c.Resources.MemoryLimit = 64 << 10 },
			want: ContainerState{Phase: PhaseFailed, Reason: ReasonResourceLimit},
		},
		{
			desc: "termination message",
			edit: func(c *Container) {
				c.Args = prog("write", "/dev/termination-log", "gave up", "exit", "3")
				c.TerminationMessagePath = "/dev/termination-log"
			},
			want: ContainerState{Phase: PhaseExited, ExitCode: 3, Message: "gave up"}, log: "wrote /dev/termination-log\n",
		},
	}
	for i, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			c := n.container(s)
			c.Name, c.Attempt = "main", i
			tt.edit(&c)
			n.start(c)
			got := n.ended(c)
			tt.want.Name, tt.want.Attempt = c.Name, c.Attempt
			if got.Phase == PhaseFailed {
				if got.Message == "" {
					t.Error("no message")
				}
				t.Log(got.Message)
				got.Message = ""
			}
			ignore := cmpopts.IgnoreFields(ContainerState{}, "StartedAt", "FinishedAt")
			if d := cmp.Diff(tt.want, got, ignore); d != "" {
				t.Errorf("-want +got\n%s\n%s", d, n.log(c))
			}
			if log := n.log(c); tt.log != "" && log != tt.log {
				t.Errorf("log %q, want %q", log, tt.log)
			}
			must(t, n.rt.Remove(context.Background(), s.UID, c.Name, c.Attempt))
		})
	}
}

func TestWhatAContainerSees(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	upper := filepath.Join(n.dir, "upper")
	must(t, os.MkdirAll(filepath.Join(upper, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(upper, "etc/motd"), []byte("from the upper layer\n"), 0o644))
	data := filepath.Join(n.dir, "data")
	must(t, os.MkdirAll(data, 0o755))
	must(t, os.WriteFile(filepath.Join(data, "f"), []byte("from the volume\n"), 0o644))
	outer := filepath.Join(n.dir, "outer")
	must(t, os.MkdirAll(filepath.Join(outer, "in"), 0o755))
	must(t, os.WriteFile(filepath.Join(outer, "f"), []byte("from the outer volume\n"), 0o644))
	slack, err := os.ReadFile("/proc/self/timerslack_ns")
	must(t, err)
	links := filepath.Join(n.dir, "links")
	must(t, os.MkdirAll(filepath.Join(links, "elsewhere", "new"), 0o755))
	must(t, os.Symlink("/elsewhere/new", filepath.Join(links, "out")))
	must(t, os.Symlink("../../../../../../../../tmp", filepath.Join(links, "up")))
	tests := []struct {
		desc string
		edit func(*Container)
		want []string
		not  []string
	}{
		{desc: "root by default", edit: args("id"), want: []string{"id 0 0 "}},
		{desc: "user by name, with groups", edit: user("alice", "id"), want: []string{"id 1000 1000 [50]"}},
		{desc: "user by number", edit: user("1234:5678", "id"), want: []string{"id 1234 5678 "}},
		{desc: "user and group by name", edit: user("alice:staff", "id"), want: []string{"id 1000 50 "}},
		{
			desc: "additional groups",
			edit: func(c *Container) { c.Args = prog("id"); c.AdditionalGroups = []int64{77} },
			want: []string{"77]"},
		},
		{desc: "made working directory", edit: func(c *Container) { c.Args = prog("cwd"); c.Cwd = "/new/dir" }, want: []string{"cwd /new/dir\n"}},
		{desc: "environment", edit: args("env", "NAME", "env", "HOME"), want: []string{"env main\nenv /root\n"}},
		{desc: "command looked up in the given PATH", edit: func(c *Container) {
			c.Args = []string{"testprog", "out", "found"}
			c.Env = []string{"PATH=/"}
		}, want: []string{"found\n"}},
		{desc: "host name", edit: args("hostname"), want: []string{"hostname web-0\n"}},
		{desc: "its own processes only", edit: args("cat", "/proc/1/cmdline"), want: []string{"/testprog"}},
		{desc: "writable root", edit: args("write", "/x", "y"), want: []string{"wrote /x"}},
		{desc: "read-only root", edit: func(c *Container) {
			c.Args = prog("write", "/x", "y", "write", "/dev/shm/x", "y")
			c.ReadonlyRootfs = true
		}, want: []string{"read-only file system", "wrote /dev/shm/x"}},
		{desc: "layers over each other", edit: func(c *Container) {
			c.Args = prog("cat", "/etc/motd")
			c.Layers = append(c.Layers, upper)
		}, want: []string{"from the upper layer"}},
		{desc: "more layers than fit one page", edit: func(c *Container) {
			c.Args = prog("cat", "/etc/motd", "out", "all there")
			for i := range 120 {
				d := filepath.Join(n.dir, "many", strings.Repeat("l", 60)+fmt.Sprint(i))
				must(t, os.MkdirAll(d, 0o755))
				c.Layers = append(c.Layers, d)
			}
			c.Layers = append(c.Layers, upper)
		}, want: []string{"from the upper layer", "all there"}},
		{desc: "volume", edit: func(c *Container) {
			c.Args = prog("cat", "/data/f", "write", "/data/g", "y")
			c.Mounts = []Mount{{Type: "bind", Source: data, Destination: "/data", Options: []string{"rbind", "ro"}}}
		}, want: []string{"from the volume", "read-only file system"}},
		{desc: "volume in a volume, writable in read-only", edit: func(c *Container) {
			c.Args = prog("cat", "/data/f", "write", "/data/in/g", "y", "write", "/data/h", "y")
			c.Mounts = []Mount{
				{Type: "bind", Source: outer, Destination: "/data", Options: []string{"rbind", "ro"}},
				{Type: "bind", Source: data, Destination: "/data/in", Options: []string{"rbind", "rw"}},
			}
		}, want: []string{"from the outer volume", "wrote /data/in/g", "write: open /data/h: read-only file system"}},
		{desc: "volume where the image has links that lead out", edit: func(c *Container) {
			c.Args = prog("cat", "/out/there/f", "cat", "/elsewhere/new/there/f", "cat", "/up/f", "out", "end")
			c.Layers = append(c.Layers, links)
			c.Mounts = []Mount{
				{Type: "bind", Source: data, Destination: "/out/there"},
				{Type: "bind", Source: data, Destination: "/up"},
			}
		}, want: []string{"from the volume", "end"}, not: []string{"no such file"}},
		{desc: "volume in /dev", edit: func(c *Container) {
			c.Args = prog("cat", "/dev/own/dir/f", "cat", "/dev/file", "ls", "/dev")
			c.Mounts = []Mount{
				{Type: "bind", Source: data, Destination: "/dev/own/dir"},
				{Type: "bind", Source: filepath.Join(outer, "f"), Destination: "/dev/file", Options: []string{"bind", "ro"}},
			}
		}, want: []string{"from the volume", "from the outer volume", "entry null"}},
		{desc: "volume over one that is made late", edit: func(c *Container) {
			c.Args = prog("cat", "/late/in/f")
			c.Mounts = []Mount{
				{Type: "tmpfs", Source: "tmpfs", Destination: "/late"},
				{Type: "bind", Source: data, Destination: "/late/in"},
			}
		}, want: []string{"from the volume"}},
		{desc: "flags of a volume", edit: func(c *Container) {
			c.Args = prog("mounts")
			c.Mounts = []Mount{{Type: "bind", Source: data, Destination: "/data", Options: []string{"rbind", "nosuid", "noexec", "nodev", "noatime", "rprivate"}}}
		}, want: []string{" /data ", " rw,nosuid,nodev,noexec,noatime"}},
		{desc: "tmpfs", edit: func(c *Container) {
			c.Args = prog("write", "/scratch/a", "y", "mounts")
			c.Mounts = []Mount{{Type: "tmpfs", Source: "tmpfs", Destination: "/scratch", Options: []string{"nosuid", "size=1m"}}}
		}, want: []string{"wrote /scratch/a", "size=1024k"}},
		{desc: "seccomp", edit: args("unshare", "keyctl", "status", "Seccomp"), want: []string{
			"unshare: operation not permitted", "keyctl: operation not permitted", "Seccomp 2",
		}},
		{desc: "a system call newer than the profile", edit: args("newcall"), want: []string{"newcall: function not implemented"}},
		{desc: "one filter, and no descriptor of ours", edit: args("status", "Seccomp_filters", "fds"), want: []string{
			"Seccomp_filters 1\n", "fd 0 /dev/null\n", "fd 1 pipe:", "fd 2 pipe:",
		}, not: []string{"socket:", "memfd"}},
		{desc: "seccomp with no_new_privs, not root", edit: func(c *Container) {
			c.Args = prog("keyctl", "status", "Seccomp", "status", "NoNewPrivs", "status", "CapEff")
			c.User, c.NoNewPrivileges = "alice", true
		}, want: []string{"keyctl: operation not permitted", "Seccomp 2", "NoNewPrivs 1", "CapEff 0000000000000000"}},
		{desc: "no seccomp", edit: func(c *Container) { c.Args = prog("status", "Seccomp"); c.Seccomp = "Unconfined" }, want: []string{"Seccomp 0"}},
		{desc: "default capabilities", edit: args("status", "CapEff", "status", "CapBnd", "status", "NoNewPrivs"), want: []string{
			"CapEff 00000000a80425fb", "CapBnd 00000000a80425fb", "NoNewPrivs 0",
		}},
		{desc: "capabilities dropped and added", edit: func(c *Container) {
			c.Args = prog("status", "CapEff")
			c.CapDrop, c.CapAdd = []string{"ALL"}, []string{"NET_ADMIN", "CAP_CHOWN"}
		}, want: []string{"CapEff 0000000000001001"}},
		{desc: "masked and read-only paths", edit: args("cat", "/proc/kcore", "write", "/proc/sys/kernel/hostname", "x", "write", "/sys/x", "y", "out", "end"),
			want: []string{"write: open /proc/sys/kernel/hostname: read-only file system", "write: open /sys/x", "end"}, not: []string{"ELF"}},
		{desc: "devices", edit: args("ls", "/dev"), want: []string{"entry null", "entry urandom", "entry pts", "entry shm"}, not: []string{"entry vda", "entry kmsg"}},
		{desc: "pids limit", edit: func(c *Container) {
			c.Args = prog("forks", "60")
			c.Resources.PidsLimit = 30
		}, want: []string{"forked "}, not: []string{"forked 60"}},
		{desc: "privileged", edit: func(c *Container) {
			c.Args = prog("status", "Seccomp", "write", "/proc/sys/kernel/hostname", "web-0")
			c.Privileged = true
		}, want: []string{"Seccomp 0", "wrote /proc/sys/kernel/hostname"}},
		{desc: "raised oom_score_adj", edit: func(c *Container) {
			c.Args = prog("cat", "/proc/self/oom_score_adj")
			c.OOMScoreAdj = new(int)
			*c.OOMScoreAdj = 900
		}, want: []string{"900"}},
		{desc: "lowered oom_score_adj does not fail without the right to it", edit: func(c *Container) {
			c.Args = prog("out", "runs")
			c.OOMScoreAdj = new(int)
			*c.OOMScoreAdj = -997
		}, want: []string{"runs"}},
		{desc: "timers as exact as ours", edit: args("cat", "/proc/self/timerslack_ns"), want: []string{string(slack)}},
		{desc: "its cgroup", edit: args("ls", "/sys/fs/cgroup"), want: []string{"entry "}},
	}
	for i, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			n := &node{t: t, dir: n.dir, rt: n.rt, layer: n.layer}
			c := n.container(s)
			c.Attempt = i
			tt.edit(&c)
			got := n.says(c)
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is not in\n%s", w, got)
				}
			}
			for _, w := range tt.not {
				if strings.Contains(got, w) {
					t.Errorf("%q is in\n%s", w, got)
				}
			}
		})
	}
}

func TestSignals(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	ctx := context.Background()
	c := n.container(s, "term", "exit", "5")
	if err := n.rt.Signal(ctx, s.UID, c.Name, 0, syscall.SIGTERM); !errors.Is(err, ErrNotRunning) {
		t.Errorf("signal before the start: %v", err)
	}
	n.start(c)
	n.logged(c, "ready")
	must(t, n.rt.Signal(ctx, s.UID, c.Name, 0, syscall.SIGTERM))
	if st := n.ended(c); st.ExitCode != 5 || st.Signal != 0 {
		t.Errorf("after TERM: %+v", st)
	}
	must(t, n.rt.Signal(ctx, s.UID, c.Name, 0, syscall.SIGTERM)) // ended: nothing to do

	c.Attempt, c.Args = 1, prog("sleep", "0")
	n.start(c)
	n.running(c)
	if err := n.rt.Remove(ctx, s.UID, c.Name, 1); !errors.Is(err, ErrRunning) {
		t.Errorf("remove of a running container: %v", err)
	}
	must(t, n.rt.Signal(ctx, s.UID, c.Name, 1, syscall.SIGKILL))
	if st := n.ended(c); st.ExitCode != 137 || st.Signal != 9 || st.OOMKilled {
		t.Errorf("after KILL: %+v", st)
	}
}

func TestContainersOfAPodShareNetworkAndIPC(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	a := n.container(s, "shmput", "42", "listen", "127.0.0.1:80", "sleep", "0")
	a.Name, a.User = "server", "alice" // not root, and yet port 80
	b := n.container(s, "dial", "127.0.0.1:80", "shmget", "ls", "/proc")
	b.Name = "client"
	a.Env = []string{"NAME=server"}
	n.start(a)
	n.start(b)
	if st := n.ended(b); st.ExitCode != 0 {
		t.Fatalf("%+v\n%s\n%s", st, n.log(b), n.log(a))
	}
	if got := n.log(b); !strings.Contains(got, "hello from server\ngot 42\n") {
		t.Error(got)
	}
	// Another pod has a network of its own.
	other := n.pod()
	c := n.container(other, "listen", "127.0.0.1:80", "out", "free")
	n.start(c)
	n.logged(c, "free")
}

func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	s := n.sandbox()
	s.HostNetwork = true
	st, err := n.rt.EnsureSandbox(context.Background(), s)
	must(t, err)
	ours, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", st.PID))
	must(t, err)
	if ours != theirs {
		t.Errorf("network %s, host %s", theirs, ours)
	}
	if got := n.says(n.container(s, "out", "runs")); got != "runs\n" {
		t.Error(got)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	ctx := context.Background()
	c := n.container(s, "out", "up", "sleep", "0")
	c.User = "alice"
	n.start(c)
	n.logged(c, "up")
	res, err := n.rt.Exec(ctx, s.UID, "main", 0, prog("id", "env", "NAME", "hostname", "exit", "4"), 0)
	must(t, err)
	if got := string(res.Output); res.ExitCode != 4 || got != "id 1000 1000 [50]\nenv main\nhostname web-0\n" {
		t.Errorf("exit %d, output %q", res.ExitCode, got)
	}
	res, err = n.rt.Exec(ctx, s.UID, "main", 0, prog("status", "Seccomp", "status", "CapBnd", "long", "20000", "out", "end"), 0)
	must(t, err)
	if got := string(res.Output); len(got) != execBytes || !strings.HasSuffix(got, "x\nend\n") {
		t.Errorf("%d bytes of output, end %q", len(got), got[max(0, len(got)-10):])
	}
	if _, err := n.rt.Exec(ctx, s.UID, "main", 0, prog("sleep", "0"), 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
	if _, err := n.rt.Exec(ctx, s.UID, "main", 0, []string{"nothing-here"}, 0); err == nil || !strings.Contains(err.Error(), ReasonCommandNotFound) {
		t.Errorf("missing command: %v", err)
	}
	if _, err := n.rt.Exec(ctx, s.UID, "main", 1, prog("id"), 0); !errors.Is(err, ErrNotRunning) {
		t.Errorf("missing run: %v", err)
	}
	if st := n.running(c); st.Phase != PhaseRunning {
		t.Errorf("%+v", st)
	}
}

func TestLogFormat(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	c := n.container(s, "out", "a", "sleep", "20", "err", "b", "sleep", "20", "long", "40000", "out", "")
	n.start(c)
	n.ended(c)
	b, err := os.ReadFile(n.rt.LogPath(s, "main", 0))
	must(t, err)
	var kinds []string
	last := time.Time{}
	for line := range strings.Lines(string(b)) {
		p := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		at, err := time.Parse("2006-01-02T15:04:05.000000000Z", p[0])
		if err != nil || len(p[0]) != 30 || at.Before(last) || time.Since(at) > time.Hour {
			t.Errorf("time %q: %v", p[0], err)
		}
		last = at
		kinds = append(kinds, fmt.Sprintf("%s %s %d", p[1], p[2], len(p[3])))
	}
	want := []string{"stdout F 1", "stderr F 1", "stdout P 16384", "stdout P 16384", "stdout F 7232", "stdout F 0"}
	if d := cmp.Diff(want, kinds); d != "" {
		t.Error(d)
	}
}

func prog(a ...string) []string { return append([]string{"/testprog"}, a...) }

func args(a ...string) func(*Container) {
	return func(c *Container) { c.Args = prog(a...) }
}

func user(u string, a ...string) func(*Container) {
	return func(c *Container) { c.Args, c.User = prog(a...), u }
}
