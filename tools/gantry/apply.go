package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// atOnce bounds the requests that are under way.
const atOnce = 16

type applyOptions struct {
	files      files
	serverSide bool
	force      bool
	selector   string
	prune      bool
	w          writing
}

func (a *app) applyCommand() *cobra.Command {
	var o applyOptions
	c := &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|-",
		Short: "Create what manifests describe, or bring it in line with them",
		Example: `  gantry apply -f web.yaml
  gantry apply -R -f manifests/
  gantry apply --server-side --field-manager=deployer -f web.yaml
  cat web.yaml | gantry apply --dry-run=server -o yaml -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runApply(cmd.Context(), &o) },
	}
	f := c.Flags()
	o.files.flags(c)
	a.writeFlags(c, &o.w)
	o.w.validateFlag(c)
	f.BoolVar(&o.serverSide, "server-side", false, "let the server merge by who owns which field, and tell of conflicts")
	f.BoolVar(&o.force, "force-conflicts", false, "with --server-side: take fields over that others own")
	f.StringVarP(&o.selector, "selector", "l", "", "only the objects of the files that have these labels")
	f.BoolVar(&o.prune, "prune", false, "refused: delete what went out of the files by name")
	if err := f.MarkHidden("prune"); err != nil {
		panic(err) // the flag was added the line before
	}
	return c
}

func (o *applyOptions) check() error {
	switch {
	case o.prune:
		return errors.New("--prune is not built: what it deletes depends on labels and lists outside the files; delete what you took out with: gantry delete -f FILE, or gantry delete KIND -l SELECTOR")
	case !o.files.given():
		return errors.New("must specify one of -f and -")
	case o.force && !o.serverSide:
		return errors.New("--force-conflicts only works with --server-side")
	case o.serverSide && o.w.dryRun == dryClient:
		return errors.New("--dry-run=client does not work with --server-side: only the server knows who owns which field; use --dry-run=server")
	case o.serverSide && o.w.manager == "":
		return errors.New("--server-side needs a --field-manager that is not empty")
	}
	return nil
}

func (a *app) runApply(ctx context.Context, o *applyOptions) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	ms, err := a.manifests(&o.files)
	if err != nil {
		return err
	}
	if ms, err = withLabels(ms, o.selector); err != nil {
		return err
	}
	if len(ms) == 0 && !a.failed {
		return errors.New("no objects passed to apply")
	}
	return a.writeAll(ctx, &o.w, "applying", ms, func(ctx context.Context, m manifest) (bus.Reply, string, error) {
		if o.serverSide {
			reply, err := a.applyServerSide(ctx, &o.w, m, o.force)
			return reply, "serverside-applied", err
		}
		return a.applyMerged(ctx, &o.w, m)
	})
}

// withLabels keeps the manifests that a selector matches.
func withLabels(ms []manifest, selector string) ([]manifest, error) {
	if selector == "" {
		return ms, nil
	}
	s, err := labels.Parse(selector)
	if err != nil {
		return nil, fmt.Errorf("--selector %q: %w", selector, err)
	}
	var out []manifest
	for _, m := range ms {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(m.json, &o); err != nil {
			return nil, fmt.Errorf("error parsing %s: %w", m.file, err)
		}
		if s.Matches(labels.Set(o.Labels)) {
			out = append(out, m)
		}
	}
	return out, nil
}

func (a *app) applyServerSide(ctx context.Context, w *writing, m manifest, force bool) (bus.Reply, error) {
	header, err := w.header(schemas.PatchApply, force)
	if err != nil {
		return bus.Reply{}, err
	}
	return a.ask(ctx, schemas.VerbPatch, m.kind.Resource, m.namespace, m.name, header, m.json)
}

// applyMerged lets the server merge what was applied last, what is applied
// now, and what is there.
func (a *app) applyMerged(ctx context.Context, w *writing, m manifest) (bus.Reply, string, error) {
	if w.dryRun == dryClient {
		_, err := a.ask(ctx, schemas.VerbGet, m.kind.Resource, m.namespace, m.name, nil, nil)
		switch {
		case apierrors.IsNotFound(err):
			return bus.Reply{Body: m.json}, "created", nil
		case err != nil:
			return bus.Reply{}, "", err
		}
		return bus.Reply{Body: m.json}, "configured", nil
	}
	header, err := w.header("", false)
	if err != nil {
		return bus.Reply{}, "", err
	}
	reply, err := a.ask(ctx, schemas.VerbApply, m.kind.Resource, m.namespace, m.name, header, m.json)
	return reply, first(reply.Header[schemas.HeaderResult], "configured"), err
}

// sender does with a manifest what a command is for, and words it.
type sender func(ctx context.Context, m manifest) (reply bus.Reply, how string, err error)

// writeAll sends manifests batch by batch and prints the answers. Objects are
// printed together at the end, as one List where there are several.
func (a *app) writeAll(ctx context.Context, w *writing, doing string, ms []manifest, send sender) error {
	if err := a.connect(ctx); err != nil {
		return err
	}
	var rows []row
	for _, batch := range batches(ms) {
		done, err := a.writeBatch(ctx, w, doing, batch, send)
		if err != nil {
			return err
		}
		rows = append(rows, done...)
	}
	switch {
	case w.show == nil, len(rows) == 0:
		return nil
	case len(rows) == 1:
		return w.show.object(a.out, rows[0].kind, rows[0].raw)
	}
	return w.show.list(a.out, rows)
}

// writeBatch sends a batch at once and prints the answers in its order, each
// as soon as those before it are there.
func (a *app) writeBatch(ctx context.Context, w *writing, doing string, batch []manifest, send sender) ([]row, error) {
	type answer struct {
		reply bus.Reply
		how   string
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
				reply, how, err := send(ctx, m)
				answers[i] <- answer{reply, how, err}
			})
		}
	})
	var rows []row
	for i, m := range batch {
		got := <-answers[i]
		if got.err != nil {
			a.reportWrite(m.what(doing), got.err)
			continue
		}
		a.warn(got.reply)
		o, err := decode(m.kind, got.reply.Body)
		if err != nil {
			return nil, err
		}
		if w.show != nil {
			rows = append(rows, row{m.kind, got.reply.Body})
			continue
		}
		if err := a.said(w, m.kind, orText(o.GetName(), o.GetGenerateName()), got.how, nil); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// reportWrite reports a write that was refused. Conflicts about who owns a
// field get the ways out besides.
func (a *app) reportWrite(doing string, err error) {
	if !isFieldConflict(err) {
		a.report(refused{doing, err})
		return
	}
	a.failed = true
	fmt.Fprintf(a.err, `error: %v
Somebody else wrote these fields and owns them. Choose one of these ways:
* The fields are to be as this manifest says, and yours from now on:
  repeat the command with --force-conflicts.
* They are not your business: take them out of the manifest.
* Their owner's value is what you want as well: write that value into the
  manifest, and both of you own the field.
`, err)
	if strings.Contains(err.Error(), strconv.Quote(beforeFirstApply)) {
		fmt.Fprintf(a.err, "%q is everybody who wrote before the first apply --server-side: it may have been you.\n", beforeFirstApply)
	}
}

// beforeFirstApply owns what was there before anybody's fields were told apart.
const beforeFirstApply = "before-first-apply"

func isFieldConflict(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	for _, c := range status.Status().Details.Causes {
		if c.Type == metav1.CauseTypeFieldManagerConflict {
			return true
		}
	}
	return false
}

func first(values []string, otherwise string) string {
	if len(values) > 0 {
		return values[0]
	}
	return otherwise
}
