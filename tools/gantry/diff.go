package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

type diffOptions struct {
	files         files
	serverSide    bool
	force         bool
	prune         bool
	selector      string
	managedFields bool
	w             writing
}

// diffFailed is the code of a diff that could not be made; 1 says that there
// are differences.
const diffFailed = 2

func (a *app) diffCommand() *cobra.Command {
	var o diffOptions
	c := &cobra.Command{
		Use:   "diff -f FILE|DIRECTORY|-",
		Short: "Show what an apply would change",
		Long: `Show what an apply would change: the server carries the apply out in every
respect but storing it. The exit code is 0 where nothing differs, 1 where
something does, and above 1 for an error.

$GANTRY_EXTERNAL_DIFF (or $KUBECTL_EXTERNAL_DIFF) is the program that compares
the two directories, with its arguments; it is "diff -u -N" if not set.`,
		Example: `  gantry diff -f web.yaml
  GANTRY_EXTERNAL_DIFF='git diff --no-index --color=always' gantry diff -f web.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.runDiff(cmd.Context(), &o)
			if with := (ended{}); err != nil && !errors.As(err, &with) {
				a.report(err)
				return ended{diffFailed}
			}
			return err
		},
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		a.report(fmt.Errorf("%w\nSee '%s --help' for usage", err, c.CommandPath()))
		return ended{diffFailed}
	})
	f := c.Flags()
	o.files.flags(c)
	f.BoolVar(&o.serverSide, "server-side", false, "what apply --server-side would change")
	f.BoolVar(&o.force, "force-conflicts", false, "with --server-side: take fields over that others own")
	f.StringVar(&o.w.manager, "field-manager", fieldManager, "name under which apply would write")
	f.StringVarP(&o.selector, "selector", "l", "", "only the objects of the files that have these labels")
	f.BoolVar(&o.managedFields, "show-managed-fields", false, "compare metadata.managedFields as well")
	f.BoolVar(&o.prune, "prune", false, "refused, as apply --prune is")
	if err := f.MarkHidden("prune"); err != nil {
		panic(err) // the flag was added the line before
	}
	return c
}

func (a *app) runDiff(ctx context.Context, o *diffOptions) error {
	o.w.dryRun = dryServer
	apply := applyOptions{files: o.files, serverSide: o.serverSide, force: o.force, prune: o.prune, w: o.w}
	if err := apply.check(); err != nil {
		return err
	}
	program, err := externalDiff()
	if err != nil {
		return err
	}
	ms, err := a.manifests(&o.files)
	if err != nil {
		return err
	}
	if ms, err = withLabels(ms, o.selector); err != nil {
		return err
	}
	if err := a.connect(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gantry-diff-")
	if err != nil {
		return fmt.Errorf("make a directory for the two versions: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, side := range []string{"LIVE", "MERGED"} {
		if err := os.Mkdir(filepath.Join(dir, side), 0o700); err != nil {
			return fmt.Errorf("make a directory for the two versions: %w", err)
		}
	}
	for _, m := range ms {
		if err := a.writeSides(ctx, o, m, dir); err != nil {
			a.reportWrite(m.what("applying"), err)
		}
	}
	err = a.compare(ctx, program, dir)
	if a.failed {
		return ended{diffFailed} // what could be compared was shown
	}
	return err
}

// externalDiff is the program that compares, and its first arguments. Nothing
// passes through a shell.
func externalDiff() ([]string, error) {
	program := []string{"diff", "-u", "-N"}
	for _, name := range []string{"KUBECTL_EXTERNAL_DIFF", "GANTRY_EXTERNAL_DIFF"} {
		if words := strings.Fields(os.Getenv(name)); len(words) > 0 {
			program = words
		}
	}
	if _, err := exec.LookPath(program[0]); err != nil {
		return nil, fmt.Errorf("cannot compare: %w; install it, or name another program in $GANTRY_EXTERNAL_DIFF", err)
	}
	return program, nil
}

// writeSides writes an object as it is, and as applying a manifest would leave
// it. What there is none of has no file.
func (a *app) writeSides(ctx context.Context, o *diffOptions, m manifest, dir string) error {
	live, err := a.ask(ctx, schemas.VerbGet, m.kind.Resource, m.namespace, m.name, nil, nil)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	var merged bus.Reply
	if o.serverSide {
		merged, err = a.applyServerSide(ctx, &o.w, m, o.force)
	} else {
		merged, _, err = a.applyMerged(ctx, &o.w, m)
	}
	if err != nil {
		return err
	}
	a.warn(merged)
	file := strings.Join([]string{strings.ReplaceAll(m.kind.GVK.GroupVersion().String(), "/", "."), m.kind.GVK.Kind, m.namespace, m.name}, ".")
	for side, raw := range map[string][]byte{"LIVE": live.Body, "MERGED": merged.Body} {
		if raw == nil {
			continue
		}
		text, err := o.text(raw)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, side, file), text, 0o600); err != nil {
			return fmt.Errorf("write %s for comparison: %w", m.name, err)
		}
	}
	return nil
}

// text is an object as it is compared. A rehearsal has no version of its own,
// and its time is no difference either.
func (o *diffOptions) text(raw []byte) ([]byte, error) {
	u, err := loose(raw)
	if err != nil {
		return nil, err
	}
	if !o.managedFields {
		u.SetManagedFields(nil)
	}
	u.SetResourceVersion("")
	// What was applied last is the manifest once more.
	annotations := u.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	u.SetAnnotations(annotations)
	return yaml.Marshal(u.Object)
}

func (a *app) compare(ctx context.Context, program []string, dir string) error {
	args := append(program[1:len(program):len(program)], filepath.Join(dir, "LIVE"), filepath.Join(dir, "MERGED"))
	cmd := exec.CommandContext(ctx, program[0], args...)
	cmd.Stdout, cmd.Stderr = a.out, a.err
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return ended{1}
	}
	return fmt.Errorf("failed to run %s: %w", strings.Join(program, " "), err)
}
