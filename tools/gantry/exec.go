package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

type execOptions struct {
	streaming
	container string
	quiet     bool
}

func (a *app) execCommand() *cobra.Command {
	var o execOptions
	c := &cobra.Command{
		Use:   "exec (POD | KIND/NAME) [-c CONTAINER] [-it] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a container",
		Long: `Run a command in a container, and end with its exit code. What comes in is given
to the command with -i; -t gives it a terminal.`,
		Example: `  gantry exec web-1 -- date
  gantry exec -it deployment/web -- sh
  tar c files | gantry exec -i web-1 -c app -- tar x -C /tmp`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			switch {
			case len(args) == 0 || dash == 0:
				return errors.New("pod or type/name must be specified")
			case dash < 0 && len(args) > 1:
				return errors.New("exec [POD] [COMMAND] is not supported: use exec [POD] -- [COMMAND]")
			case dash < 0 || dash == len(args):
				return errors.New("you must specify at least one command for the container")
			case dash > 1:
				return fmt.Errorf("one pod is expected before --, not %q", args[:dash])
			}
			return a.runExec(cmd.Context(), o, args[0], args[1:])
		},
	}
	streamFlags(c, &o.streaming, &o.container, &o.quiet)
	return c
}

func streamFlags(c *cobra.Command, s *streaming, container *string, quiet *bool) {
	f := c.Flags()
	f.BoolVarP(&s.stdin, "stdin", "i", false, "pass what comes in on")
	f.BoolVarP(&s.tty, "tty", "t", false, "use a terminal")
	f.StringVarP(container, "container", "c", "", "which container; otherwise the one that the annotation "+defaultContainer+" names, or the first")
	f.BoolVarP(quiet, "quiet", "q", false, "say nothing of its own")
}

func (a *app) runExec(ctx context.Context, o execOptions, arg string, command []string) error {
	pod, err := a.sessionPod(ctx, arg)
	if err != nil {
		return err
	}
	req := schemas.ExecRequest{
		UID: pod.UID, Container: a.chooseContainer(pod, o.container, o.quiet), Command: command, Stdin: o.stdin, TTY: o.tty,
	}
	last, err := a.stream(ctx, o.streaming, func(columns, rows uint16) (*bus.Session, error) {
		req.Columns, req.Rows = columns, rows
		return a.conn.Exec(ctx, pod.Namespace, pod.Name, req)
	})
	if err != nil {
		return lostSession(err)
	}
	if last.ExitCode != nil && *last.ExitCode != 0 {
		if !o.quiet {
			fmt.Fprintf(a.err, "command terminated with exit code %d\n", *last.ExitCode)
		}
		return ended{*last.ExitCode}
	}
	return nil
}

func (a *app) attachCommand() *cobra.Command {
	var o execOptions
	c := &cobra.Command{
		Use:   "attach (POD | KIND/NAME) [-c CONTAINER] [-it]",
		Short: "Join the streams of a container that runs",
		Long: `Show what a container writes from now on. With -i what comes in is given to it,
which needs a container with stdin: true, and with -t the user's terminal is its
own, which needs one with tty: true.`,
		Example: `  gantry attach web-1
  gantry attach -it deployment/shell`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("pod or type/name must be specified")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.runAttach(cmd.Context(), o, args[0]) },
	}
	streamFlags(c, &o.streaming, &o.container, &o.quiet)
	return c
}

func (a *app) runAttach(ctx context.Context, o execOptions, arg string) error {
	pod, err := a.sessionPod(ctx, arg)
	if err != nil {
		return err
	}
	name := a.chooseContainer(pod, o.container, o.quiet)
	if o.tty && !hasTerminal(pod, name) {
		if !o.quiet {
			fmt.Fprintf(a.err, "Unable to use a TTY - container %s did not allocate one\n", name)
		}
		o.tty = false
	}
	if o.tty && o.stdin && !o.quiet {
		fmt.Fprintln(a.err, "If you don't see a command prompt, try pressing enter.")
	}
	_, err = a.stream(ctx, o.streaming, func(columns, rows uint16) (*bus.Session, error) {
		return a.conn.Attach(ctx, pod.Namespace, pod.Name, schemas.AttachRequest{
			UID: pod.UID, Container: name, Stdin: o.stdin, Columns: columns, Rows: rows,
		})
	})
	return lostSession(err)
}

func hasTerminal(pod *corev1.Pod, container string) bool {
	for _, c := range pod.Spec.Containers {
		if c.Name == container {
			return c.TTY
		}
	}
	return false
}
