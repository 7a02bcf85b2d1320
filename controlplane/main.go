// Command controlplane runs the control plane of a Gantry cluster: the bus, the
// API, the scheduler, the controllers and what tells the nodes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"gantry.dev/controlplane/plane"
	"gantry.dev/schemas"
)

const (
	startTime = 2 * time.Minute
	stopTime  = 25 * time.Second
)

func main() {
	err := run(os.Args[1:], os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, pflag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

type flags struct {
	plane.Options
	prefix, level, format string
}

func parse(args []string, out io.Writer) (flags, error) {
	var f flags
	set := pflag.NewFlagSet("controlplane", pflag.ContinueOnError)
	set.SetOutput(out)
	set.StringVar(&f.StateDir, "state-dir", "/var/lib/gantry/controlplane", "directory for all that the cluster knows; one control plane at a time may use it")
	set.StringVar(&f.Listen, "listen", "127.0.0.1:4222", "host:port of the bus; beyond loopback it needs TLS")
	set.StringVar(&f.Websocket, "websocket", "", "host:port of a listener for websocket clients, under the rules of --listen; none by default")
	set.StringSliceVar(&f.WebsocketOrigins, "websocket-origin", nil, "origins whose pages may use it from a browser (default: only those of its own host)")
	set.StringVar(&f.prefix, "cluster-prefix", "", "leads every name on the bus, where several clusters share one")
	set.StringArrayVar(&f.Nodes, "node", nil, "name of a node that may join (repeatable); its credentials are written to <state-dir>/credentials/node-NAME.json")
	set.StringVar(&f.PodCIDR, "pod-cidr", "10.42.0.0/16", "addresses of pods; each node takes a /24 (new clusters only)")
	set.StringVar(&f.ServiceCIDR, "service-cidr", "10.96.0.0/16", "addresses of Services (new clusters only)")
	set.StringVar(&f.TLSCert, "tls-cert", "", "PEM certificate of the bus, given to clients to trust")
	set.StringVar(&f.TLSKey, "tls-key", "", "PEM key of the certificate")
	set.StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	set.StringVar(&f.format, "log-format", "console", "console or json")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if set.NArg() > 0 {
		return f, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	if f.prefix != "" && !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(f.prefix) {
		return f, fmt.Errorf("--cluster-prefix %q: want letters, digits and dashes", f.prefix)
	}
	f.Names = schemas.Names{Prefix: f.prefix}
	return f, nil
}

func logger(level, format string, out io.Writer) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil {
		return zerolog.Nop(), fmt.Errorf("--log-level: %w", err)
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	switch format {
	case "json":
	case "console":
		out = zerolog.ConsoleWriter{Out: out, TimeFormat: "2006-01-02T15:04:05.000Z07:00", NoColor: true}
	default:
		return zerolog.Nop(), fmt.Errorf("--log-format %q: want console or json", format)
	}
	return zerolog.New(out).Level(l).With().Timestamp().Logger(), nil
}

func run(args []string, out io.Writer) error {
	f, err := parse(args, out)
	if err != nil {
		return err
	}
	if f.Log, err = logger(f.level, f.format, out); err != nil {
		return err
	}
	defer runtime.KeepAlive(tuneMemory())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	began := time.Now()
	starting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	p, err := plane.Start(starting, f.Options)
	started()
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it was up
		}
		return err
	}
	f.Log.Info().Strs("urls", p.Server().URLs()).Dur("took", time.Since(began)).
		Str("gantry", "gantry --credentials "+p.AdminCredentials()+" get nodes").
		Str("nats", "nats --context "+p.NATSContext()+" kv ls").
		Msg("control plane serves")
	go giveBack(ctx)
	var failed error
	select {
	case <-ctx.Done():
		stop() // a second signal ends the process at once
		f.Log.Info().Msg("stopping")
	case failed = <-p.Failed():
		f.Log.Error().Err(failed).Msg("cannot go on")
	}
	ending, done := context.WithTimeout(context.Background(), stopTime)
	defer done()
	return errors.Join(failed, p.Stop(ending))
}
