package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"gantry.dev/tools/cluster"
)

// TestSessionsEndWithTheAgent: kill -9 of the agent takes commands with it and
// leaves containers, their input and their terminals alone.
func TestSessionsEndWithTheAgent(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("shell", `"args":["terminal"],"stdin":true,"tty":true`, ""))
	before := l.pod("shell", "is ready", ready)
	p := newPTY(t)
	p.size(t, 80, 24)
	_, attached := l.inTerminal(p, "attach", "-it", "shell")
	l.says(attached, "If you don't see a command prompt")
	p.types(t, "before\r")
	l.says(attached, `heard "before"`)
	command, out := l.start(nil, "exec", "shell", "--", "web", "sleep", "54321s")
	l.says(out, "sleeping")

	if err := l.Kill(l.ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.eventually("the command has ended", func() error {
		if text, err := exec.Command("pgrep", "-f", "^web sleep 54321s").Output(); err == nil {
			return fmt.Errorf("still there: %s", text)
		}
		return nil
	})
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err == nil || !strings.Contains(out.String(), "the node agent was started anew") {
		t.Errorf("exec ended with %v:\n%s", err, out.String())
	}
	p = newPTY(t)
	p.size(t, 90, 30)
	attach, attached := l.inTerminal(p, "attach", "-it", "shell")
	l.says(attached, "If you don't see a command prompt")
	p.types(t, "after\r")
	l.says(attached, `heard "after"`)
	l.says(attached, "terminal 90x30")
	now := l.pod("shell", "runs", ready)
	if container(now, "c").RestartCount != 0 || container(now, "c").ContainerID != container(before, "c").ContainerID {
		t.Errorf("the container is another one: %+v", container(now, "c"))
	}
	if log := l.must(l.gantry("", "logs", "shell")); !strings.Contains(log, `heard "before"`) || !strings.Contains(log, `heard "after"`) {
		t.Errorf("its log lacks what was said:\n%s", log)
	}
	if err := attach.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// byteCount counts the bytes that it throws away.
type byteCount struct{ n atomic.Int64 }

func (c *byteCount) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// TestFloodsDelayNobody: while a command says as much as the bus takes and many
// read a long log, pods start and are reported as ever.
func TestFloodsDelayNobody(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("web", "", ""))
	l.apply(onePod("talks", `"args":["lines","--count","200000"]`, `"restartPolicy":"Never"`))
	l.pod("web", "is ready", ready)
	ctx, cancel := context.WithCancel(l.ctx)
	var floods sync.WaitGroup
	defer floods.Wait()
	defer cancel()
	flood := func(count *byteCount, args ...string) {
		floods.Go(func() {
			for ctx.Err() == nil {
				cmd := exec.CommandContext(ctx, filepath.Join(l.bin, "gantry"), append([]string{"--credentials", l.Credentials()}, args...)...)
				cmd.Stdout = count
				if err := cmd.Run(); err != nil && ctx.Err() == nil {
					t.Errorf("gantry %s: %v", strings.Join(args, " "), err)
					return
				}
			}
		})
	}
	said, read := &byteCount{}, &byteCount{}
	flood(said, "exec", "web", "--", "web", "cat", "/dev/zero")
	for range 4 {
		flood(read, "logs", "talks")
	}
	more := func(by int64) {
		t.Helper()
		from := said.n.Load()
		l.eventually("the flood goes on", func() error {
			if got := said.n.Load() - from; got < by {
				return fmt.Errorf("%d bytes came", got)
			}
			return nil
		})
	}
	more(10 << 20)
	for i := range 3 {
		name := fmt.Sprint("beside-", i)
		l.apply(onePod(name, "", ""))
		l.pod(name, "is ready", ready)
		l.must(l.gantry("", "exec", name, "--", "web", "exit"))
		more(10 << 20)
	}
	if read.n.Load() == 0 {
		t.Error("nothing of the log was read")
	}
}

// TestReadersThatDoNotRead: each of them costs a buffer and no more.
func TestReadersThatDoNotRead(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("web", "", ""))
	l.pod("web", "is ready", ready)
	memory := func() int {
		t.Helper()
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.PID(cluster.NodeAgent)))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "VmRSS:")
		var kib int
		if _, err := fmt.Sscan(rest, &kib); err != nil {
			t.Fatal(err)
		}
		return kib
	}
	l.must(l.gantry("", "exec", "web", "--", "web", "exit")) // what the first session takes
	before := memory()
	const readers = 10
	for range readers {
		cmd := exec.Command(filepath.Join(l.bin, "gantry"), "--credentials", l.Credentials(), "exec", "web", "--", "web", "cat", "/dev/zero")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		})
		if _, err := io.ReadFull(out, make([]byte, 1<<20)); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	// All of them have got something and now wait; others are served.
	l.must(l.gantry("", "exec", "web", "--", "web", "exit"))
	if grown := memory() - before; grown > readers<<12 {
		t.Errorf("the agent takes %d KiB more for %d readers", grown, readers)
	}
}
