package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// atOnce bounds the requests that are under way.
const atOnce = 16

func (a *app) applyCommand() *cobra.Command {
	return a.writeCommand(schemas.VerbApply, "applying", &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|-",
		Short: "Create what manifests describe, or bring it in line with them",
		Example: `  gantry apply -f web.yaml
  gantry apply -R -f manifests/
  cat web.yaml | gantry apply -f -`,
	})
}

func (a *app) createCommand() *cobra.Command {
	return a.writeCommand(schemas.VerbCreate, "creating", &cobra.Command{
		Use:     "create -f FILE|DIRECTORY|-",
		Short:   "Create what manifests describe; what exists is an error",
		Example: "  gantry create -f web.yaml",
	})
}

func (a *app) writeCommand(verb, doing string, c *cobra.Command) *cobra.Command {
	var f files
	var output string
	c.Args = cobra.NoArgs
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(f.names) == 0 {
			return errors.New("must specify one of -f and -")
		}
		show, err := a.printerFor(output)
		if err != nil {
			return err
		}
		ms, err := a.manifests(&f)
		if err != nil {
			return err
		}
		if err := a.connect(cmd.Context()); err != nil {
			return err
		}
		for _, batch := range batches(ms) {
			if err := a.write(cmd.Context(), verb, doing, batch, show); err != nil {
				return err
			}
		}
		return nil
	}
	f.flags(c)
	c.Flags().StringVarP(&output, "output", "o", "", "json, yaml, name or jsonpath=...: print the objects instead of what was done")
	return c
}

// write sends a batch at once and prints the answers in its order, each as
// soon as those before it are there.
func (a *app) write(ctx context.Context, verb, doing string, batch []manifest, show *printer) error {
	type answer struct {
		reply bus.Reply
		err   error
	}
	answers := make([]chan answer, len(batch))
	for i := range answers {
		answers[i] = make(chan answer, 1)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, atOnce)
	wg.Go(func() {
		for i, m := range batch {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				reply, err := a.conn.Request(ctx, verb, m.kind.Resource, m.namespace, m.name, m.json)
				answers[i] <- answer{reply, err}
			})
		}
	})
	for i, m := range batch {
		got := <-answers[i]
		if got.err != nil {
			a.report(refused{m.what(doing), got.err})
			continue
		}
		for _, w := range got.reply.Header[schemas.HeaderWarning] {
			fmt.Fprintf(a.err, "Warning: %s\n", w)
		}
		o, err := decode(m.kind, got.reply.Body)
		if err != nil {
			return err
		}
		if show != nil {
			if err := show.object(a.out, m.kind, got.reply.Body); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(a.out, "%s %s\n", label(m.kind, o.GetName()), first(got.reply.Header[schemas.HeaderResult], "configured"))
	}
	return nil
}

func first(values []string, otherwise string) string {
	if len(values) > 0 {
		return values[0]
	}
	return otherwise
}
