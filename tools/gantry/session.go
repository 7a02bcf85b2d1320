package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// sessionCommands are those that carry bytes between here and a pod, and top,
// which asks the nodes as they do.
func (a *app) sessionCommands() []*cobra.Command {
	return []*cobra.Command{a.execCommand(), a.attachCommand(), a.portForwardCommand(), a.cpCommand(), a.topCommand()}
}

// sessionPod finds the pod that POD or KIND/NAME means.
func (a *app) sessionPod(ctx context.Context, arg string) (*corev1.Pod, error) {
	t, err := sessionTarget(arg)
	if err != nil {
		return nil, err
	}
	return a.podBehind(ctx, t)
}

func sessionTarget(arg string) (target, error) {
	if !strings.Contains(arg, "/") {
		k, err := kindOf(schemas.Pods)
		return target{k, arg}, err
	}
	pairs, err := parsePairs([]string{arg})
	if err != nil {
		return target{}, err
	}
	switch k := pairs[0].kind; k.Resource {
	case schemas.Pods, schemas.Deployments, schemas.ReplicaSets, schemas.Services:
		return pairs[0], nil
	default:
		return target{}, fmt.Errorf("%s has no pods: name a pod, a deployment, a replicaset or a service", label(k, pairs[0].name))
	}
}

// chooseContainer is the container of a pod that a session is about. Where
// several could be meant, it says which one was taken.
func (a *app) chooseContainer(pod *corev1.Pod, asked string, quiet bool) string {
	if asked != "" {
		return asked
	}
	var names []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
		if c.Name == pod.Annotations[defaultContainer] {
			return c.Name
		}
	}
	if len(names) > 1 && !quiet {
		fmt.Fprintf(a.err, "Defaulted container %q out of: %s\n", names[0], strings.Join(names, ", "))
	}
	if len(names) == 0 {
		return "" // the server says what is wrong
	}
	return names[0]
}

// terminal is the user's own, where the input is one.
type terminal struct {
	file *os.File
	was  *term.State // nil: not raw
}

func (a *app) terminal() (*terminal, bool) {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, false
	}
	return &terminal{file: f}, true
}

// size is 0x0 where it is not known.
func (t *terminal) size() (columns, rows uint16) {
	if t == nil {
		return 0, 0
	}
	c, r, err := term.GetSize(int(t.file.Fd()))
	if err != nil || c <= 0 || r <= 0 || c > 1<<16-1 || r > 1<<16-1 {
		return 0, 0
	}
	return uint16(c), uint16(r)
}

// raw hands every key on, Ctrl-C among them, until restore.
func (t *terminal) raw() error {
	was, err := term.MakeRaw(int(t.file.Fd()))
	if err != nil {
		return fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	t.was = was
	return nil
}

func (t *terminal) restore() {
	if t.was != nil {
		_ = term.Restore(int(t.file.Fd()), t.was)
		t.was = nil
	}
}

// follow passes changes of the terminal's size on until ctx ends.
func (t *terminal) follow(ctx context.Context, s *bus.Session) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		// Once at the beginning: it may have changed while the session was opened.
		if c, r := t.size(); c > 0 {
			if err := s.Resize(ctx, c, r); err != nil {
				return // the session has ended, and says so elsewhere
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// streaming is how exec and attach connect the user with a container.
type streaming struct{ stdin, tty bool }

// stream opens a session and carries it until it ends. The user's terminal, if
// the session has one, is raw meanwhile.
func (a *app) stream(ctx context.Context, o streaming, open func(columns, rows uint16) (*bus.Session, error)) (bus.Piece, error) {
	var t *terminal
	if o.tty {
		if own, ok := a.terminal(); ok && o.stdin {
			t = own
		} else if o.stdin {
			fmt.Fprintln(a.err, "Unable to use a TTY - input is not a terminal or the right kind of file")
		}
	}
	s, err := open(t.size())
	if err != nil {
		return bus.Piece{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if t != nil {
		if err := t.raw(); err != nil {
			return bus.Piece{}, errors.Join(err, s.Close())
		}
		defer t.restore()
		go t.follow(ctx, s)
	}
	streams := bus.Streams{Out: a.out, Err: a.err}
	if o.stdin {
		streams.In = a.in
	}
	return s.Pump(ctx, streams)
}

// lostSession words the end of a session that nobody wanted.
func lostSession(err error) error {
	if errors.Is(err, bus.ErrSessionLost) {
		return fmt.Errorf("lost connection to pod: %w", err)
	}
	return err
}
