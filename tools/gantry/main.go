// Command gantry drives a cluster from the command line: a client of the bus
// like any other. Flags, output and exit codes are those that users of kubectl
// know.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

func main() {
	// Most calls end before their heap is worth a collection; those that follow
	// something hold little.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is one call of the program.
type app struct {
	in       io.Reader
	out, err io.Writer

	credentials   string
	config        string
	context       string
	namespace     string
	allNamespaces bool
	timeout       time.Duration
	show          outputOptions

	givenNamespace string          // as it was given, which may be not at all
	chosen         *clusterContext // nil for credentials that come from elsewhere
	chosenErr      error

	conn   *bus.UserConn
	failed bool // something was reported already
}

// errReported ends the program with code 1 without another word.
var errReported = errors.New("reported")

// ended ends the program with a code of its own, without another word.
type ended struct{ code int }

func (e ended) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	a := &app{in: in, out: out, err: stderr}
	root := a.command()
	// A shell that asks is the only one who needs to know: it takes a millisecond.
	if slices.Contains(args, cobra.ShellCompRequestCmd) || slices.Contains(args, cobra.ShellCompNoDescRequestCmd) {
		a.complete(root)
	}
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if a.conn != nil {
		a.conn.Close()
	}
	var with ended
	switch {
	case errors.As(err, &with):
		return with.code
	case err == nil && !a.failed:
		return 0
	case err == nil, errors.Is(err, errReported):
		return 1
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 130 // interrupted
	}
	a.report(err)
	return 1
}

// report writes what went wrong; the program goes on and ends with code 1.
func (a *app) report(err error) {
	a.failed = true
	fmt.Fprintln(a.err, describeError(err))
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "gantry",
		Short:         "gantry drives a Gantry cluster",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return a.settle(c)
		},
	}
	p := root.PersistentFlags()
	p.StringVar(&a.credentials, "credentials", "", "file with the credentials of a user (see gantry config --help for what is used without)")
	p.StringVar(&a.config, "config", "", "file with the contexts (default: $GANTRY_CONFIG, then ~/.config/gantry/config.yaml)")
	p.StringVar(&a.context, "context", "", "context to use instead of the current one")
	p.StringVarP(&a.namespace, "namespace", "n", "", "namespace of the request (default: that of the context, or \"default\")")
	p.DurationVar(&a.timeout, "request-timeout", 0, "how long one request may take; 0 for the default of 35s")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w\nSee '%s --help' for usage", err, c.CommandPath())
	})
	root.AddCommand(
		a.getCommand(), a.describeCommand(), a.logsCommand(),
		a.eventsCommand(), a.imageCommand(), a.waitCommand(), a.kindsCommand(), a.versionCommand(),
		a.configCommand(), a.whoamiCommand(), a.explainCommand(), a.apiVersionsCommand(),
	)
	root.AddCommand(a.writingCommands()...)
	root.AddCommand(a.sessionCommands()...)
	for _, c := range root.Commands() {
		if !c.Runnable() && c.HasSubCommands() {
			onlyParts(c)
		}
	}
	return root
}

// onlyParts makes a command that only groups others refuse words that it does
// not know: left alone it shows its help and ends with 0, which a script takes
// for success.
func onlyParts(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		var names []string
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return fmt.Errorf("%s knows no %q: it has %s", c.CommandPath(), args[0], strings.Join(names, ", "))
	}
}

// allNamespacesFlag adds -A.
func (a *app) allNamespacesFlag(c *cobra.Command) {
	c.Flags().BoolVarP(&a.allNamespaces, "all-namespaces", "A", false, "objects of all namespaces")
}

// scope is the namespace in which objects of a kind are looked for: empty for
// all, and for kinds that have none.
func (a *app) scope(k schemas.Kind) string {
	if !k.Namespaced || a.allNamespaces {
		return ""
	}
	return a.namespace
}
