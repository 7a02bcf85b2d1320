//go:build linux

package runtime

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func (n *node) attach(c Container, a Attachment) *connected {
	n.t.Helper()
	s, err := n.rt.Attach(c.PodUID, c.Name, c.Attempt, a)
	return connect(n.t, s, err)
}

// leave is what the session does when its client is gone.
func (c *connected) leave() {
	c.t.Helper()
	c.s.Stop()
	if c.s.Stdin != nil {
		must(c.t, c.s.Stdin.Close())
	}
	c.readers.Wait()
	_, _ = c.s.Wait() // it was left
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	c := n.container(n.pod(), "out", "before", "err", "before", "echo", "exit", "3")
	c.Stdin, c.User = true, "alice"
	n.start(c)
	n.logged(c, "before\nbefore\n")
	first := n.attach(c, Attachment{Stdin: true})
	first.write("hello\n")
	first.hears("hello\n")
	first.write("no end of line")
	first.hears("hello\nno end of line")
	second := n.attach(c, Attachment{Stdin: true})
	first.leave()
	n.reopen() // the agent is started anew: the input stays open
	third := n.attach(c, Attachment{Stdin: true})
	third.write(", now\n")
	third.hears(", now\n")
	second.leave()
	third.leave()
	if got, want := n.log(c), "before\nbefore\nhello\nno end of line\n, now\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
	if st := n.running(c); st.Phase != PhaseRunning {
		t.Errorf("%+v", st)
	}
	last := n.attach(c, Attachment{})
	must(t, n.rt.Signal(t.Context(), c.PodUID, c.Name, c.Attempt, 9))
	if code, _, _, err := last.end(); code != 137 || err != nil {
		t.Errorf("end: %d, %v", code, err)
	}
}

func TestAttachErrors(t *testing.T) {
	n := newNode(t)
	c := n.sleeper(nil)
	if _, err := n.rt.Attach(c.PodUID, c.Name, c.Attempt, Attachment{Stdin: true}); !errors.Is(err, ErrNoInput) {
		t.Errorf("container without input: %v", err)
	}
	if _, err := n.rt.Attach(c.PodUID, c.Name, 7, Attachment{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("run that is not there: %v", err)
	}
	n.attach(c, Attachment{}).leave()
}

func TestInputWithoutAnyone(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	for _, tty := range []bool{false, true} {
		c := n.container(s, "out", "up", "echo")
		c.Name, c.Stdin, c.TTY = map[bool]string{false: "pipe", true: "tty"}[tty], true, tty
		n.start(c)
		n.logged(c, "up")
		if st := n.running(c); st.Phase != PhaseRunning {
			t.Errorf("%+v", st)
		}
	}
	if got := n.says(n.container(s, "echo")); got != "end of input\n" {
		t.Errorf("without input: %q", got)
	}
}

func TestInputForOne(t *testing.T) {
	n := newNode(t)
	s := n.pod()
	ends := map[string]func(c *connected){
		"client-leaves": (*connected).leave,
		// What is left of an agent that was killed: its descriptors are closed, and
		// nothing else.
		"agent-dies": func(c *connected) {
			must(t, c.s.Stdin.(*input).file.Close())
			c.s.Stop()
			n.reopen()
		},
	}
	for name, end := range ends {
		for _, tty := range []bool{false, true} {
			t.Run(name+map[bool]string{false: "", true: "-tty"}[tty], func(t *testing.T) {
				c := n.container(s, "out", "up", "echo", "exit", "4")
				c.Name = name + map[bool]string{false: "", true: "-tty"}[tty]
				c.Stdin, c.StdinOnce, c.TTY = true, true, tty
				n.start(c)
				n.logged(c, "up")
				n.attach(c, Attachment{}).leave() // without input: does not count
				x := n.attach(c, Attachment{Stdin: true})
				x.write("hello\n")
				x.hears("hello")
				end(x)
				if st := n.ended(c); st.ExitCode != 4 {
					t.Errorf("%+v", st)
				}
				if got := n.log(c); !strings.Contains(got, "end of input") {
					t.Errorf("log %q", got)
				}
			})
		}
	}
}

func TestInputThatIsClosed(t *testing.T) {
	n := newNode(t)
	c := n.container(n.pod(), "echo", "sleep", "0")
	c.Stdin, c.StdinOnce = true, true
	n.start(c)
	n.running(c)
	n.attach(c, Attachment{Stdin: true}).leave()
	n.logged(c, "end of input")
	if _, err := n.rt.Attach(c.PodUID, c.Name, c.Attempt, Attachment{Stdin: true}); !errors.Is(err, ErrInputClosed) {
		t.Errorf("attach again: %v", err)
	}
}

func TestTerminalOfAContainer(t *testing.T) {
	n := newNode(t)
	for _, user := range []string{"", "alice"} {
		c := n.container(n.pod(), "tty", "winch", "raw", "$ ", "echo", "exit", "5")
		c.Stdin, c.TTY, c.User = true, true, user
		n.start(c)
		n.logged(c, "watching")
		x := n.attach(c, Attachment{Stdin: true, Columns: 100, Rows: 30})
		x.hears("size 100 30\r\n")
		must(t, x.s.Resize(132, 43))
		x.hears("size 132 43\r\n")
		x.write("h")
		x.hears("h") // echoed at once
		x.write("i\n")
		x.hears("hi\r\nhi\r\n")
		x.leave()
		n.reopen()
		x = n.attach(c, Attachment{Stdin: true})
		must(t, x.s.Resize(80, 24))
		x.hears("size 80 24\r\n")
		x.write("again\n\x04")
		if code, out, _, err := x.end(); code != 5 || err != nil || !strings.HasSuffix(out, "again\r\nagain\r\nend of input\r\n") {
			t.Errorf("%d, %v, %q", code, err, out)
		}
		// A piece ends wherever the terminal was read, in the middle of a line's end, too.
		got := strings.NewReplacer("\r\n", "\r\n", "\n", "").Replace(n.log(c))
		if !strings.HasPrefix(got, "tty 0 0 0\r\ntty 1 0 0\r\ntty 2 0 0\r\nwatching\r\n$ ") {
			t.Errorf("log %q", got)
		}
	}
}

func TestTerminalWithoutInput(t *testing.T) {
	n := newNode(t)
	c := n.container(n.pod(), "tty", "status", "Seccomp", "exit", "0")
	c.TTY = true
	if got, want := n.says(c), "tty 0 0 0\r\ntty 1 0 0\r\ntty 2 0 0\r\nSeccomp 2\r\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

// What is typed faster than the container reads is kept and not lost, and the
// shim goes on with its other work.
func TestMuchInputForATerminal(t *testing.T) {
	n := newNode(t)
	c := n.container(n.pod(), "out", "up", "sleep", "0")
	c.Stdin, c.TTY = true, true
	n.start(c)
	n.logged(c, "up")
	x := n.attach(c, Attachment{Stdin: true})
	wrote := make(chan error, 1)
	go func() {
		_, err := io.WriteString(x.s.Stdin, strings.Repeat("0123456789abcde\n", 16<<10))
		wrote <- err
	}()
	other := n.container(n.sandboxOf(c), "out", "beside")
	other.Name = "other"
	if got := n.says(other); got != "beside\n" {
		t.Errorf("beside: %q", got)
	}
	x.s.Stop()
	if err := <-wrote; err == nil {
		t.Error("a container that does not read took 256 KiB of input")
	}
}

func (n *node) sandboxOf(c Container) Sandbox {
	n.t.Helper()
	st, found, err := n.rt.Sandbox(c.PodUID)
	must(n.t, err)
	if !found {
		n.t.Fatal("no sandbox")
	}
	return st.Sandbox
}

// A container is never slowed down by who reads along, and nothing is lost.
func TestSlowReaderOfAContainer(t *testing.T) {
	n := newNode(t)
	c := n.container(n.pod(), "echo", "flood", "3000000", "out", "", "exit", "6")
	c.Stdin, c.StdinOnce = true, true
	n.start(c)
	n.running(c)
	s, err := n.rt.Attach(c.PodUID, c.Name, c.Attempt, Attachment{Stdin: true})
	must(t, err)
	defer s.Stop()
	must(t, s.Stdin.Close())
	n.ended(c)
	go func() { _, _ = io.Copy(io.Discard, s.Stderr) }()
	out, err := io.ReadAll(s.Stdout)
	if want := len("end of input\n") + 3000000 + 1; len(out) != want || err != nil {
		t.Errorf("%d bytes, want %d: %v", len(out), want, err)
	}
	if code, err := s.Wait(); err != nil || *code != 6 {
		t.Errorf("%v, %v", code, err)
	}
}
