// Command bench measures Gantry on this machine, next to its peers where they
// can be run: both sides interleaved in one run, so that a noisy machine
// spoils both alike. It judges nothing: goals stand beside the figures.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"gantry.dev/tools/cluster"
)

// goals.tsv names every metric with its unit and goal; a benchmark that is not
// in it is refused, so that names stay the same over time.
//
//go:embed goals.tsv
var goalsTSV string

// Goal is one line of goals.tsv.
type Goal struct {
	Metric, Unit, What, Goal, Issue string
}

func goals() map[string]Goal {
	all := map[string]Goal{}
	for line := range strings.SplitSeq(strings.TrimSpace(goalsTSV), "\n") {
		f := strings.Split(strings.TrimPrefix(line, "# "), "\t")
		if len(f) == 5 && f[0] != "metric" {
			all[f[0]] = Goal{f[0], f[1], f[2], f[3], f[4]}
		}
	}
	return all
}

// Sample is one metric as measured: the value to quote is the median of its
// runs unless the benchmark says otherwise.
type Sample struct {
	Metric string  `json:"metric"`
	Unit   string  `json:"unit"`
	Value  float64 `json:"value"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Runs   int     `json:"runs"`
	// PeerValue is the other side in the same unit as Ours, and Peer how it was run.
	Ours      float64 `json:"our_value,omitempty"`
	PeerValue float64 `json:"peer_value,omitempty"`
	PeerUnit  string  `json:"peer_unit,omitempty"`
	Peer      string  `json:"peer,omitempty"`
	Goal      string  `json:"goal,omitempty"`
	Note      string  `json:"note,omitempty"`
}

// Benchmark measures one or more metrics.
type Benchmark struct {
	Metrics []string
	Run     func(ctx context.Context, e *Env) ([]Sample, error)
}

var benchmarks = []Benchmark{
	{[]string{"pod.start.cpu_ratio"}, podStartCPU},
	{[]string{"pod.apply_to_running"}, applyToRunning},
	{[]string{"pods100.per_s"}, pods100},
	{[]string{"node.idle.pss", "node.idle.cpu", "pod.idle.pss", "pod.idle.processes"}, idle},
	{[]string{"service.change.growth"}, serviceChange},
	{apiMetrics(), api},
	{[]string{"store.pods100k.rss", "store.restart100k.time"}, store},
}

func main() {
	only := flag.String("only", "", "measure only the metrics that match this `regexp`")
	asJSON := flag.Bool("json", false, "print one JSON object per line instead of a table")
	asMarkdown := flag.Bool("markdown", false, "print the table of docs/benchmarks.md")
	bin := flag.String("bin", "bin", "directory of the binaries")
	flag.Parse()
	if err := cluster.InOwnNetwork(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	write := printTable
	switch {
	case *asJSON:
		write = printJSON
	case *asMarkdown:
		write = printMarkdown
	}
	if err := run(ctx, *bin, *only, os.Stdout, write); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, only string, out io.Writer, write func(io.Writer, []Sample) error) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("--only %q: %w", only, err)
	}
	known := goals()
	env, err := newEnv(bin)
	if err != nil {
		return err
	}
	var (
		all  []Sample
		errs []error
	)
	for _, b := range benchmarks {
		if !slices.ContainsFunc(b.Metrics, pattern.MatchString) {
			continue
		}
		for _, m := range b.Metrics {
			if _, ok := known[m]; !ok {
				return fmt.Errorf("metric %s is not in goals.tsv", m)
			}
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "measuring %s ...\n", strings.Join(b.Metrics, ", "))
		samples, err := b.Run(ctx, env)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.Metrics[0], err))
			fmt.Fprintf(os.Stderr, "  failed after %.1f s: %v\n", time.Since(start).Seconds(), err)
			continue
		}
		fmt.Fprintf(os.Stderr, "  took %.1f s\n", time.Since(start).Seconds())
		for _, s := range samples {
			s.Unit, s.Goal = known[s.Metric].Unit, known[s.Metric].Goal
			if pattern.MatchString(s.Metric) {
				all = append(all, s)
			}
		}
	}
	if len(all) == 0 && len(errs) == 0 {
		return fmt.Errorf("--only %q matches no metric", only)
	}
	if err := write(out, all); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func printJSON(out io.Writer, all []Sample) error {
	enc := json.NewEncoder(out)
	for _, s := range all {
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	return nil
}

func printMarkdown(out io.Writer, all []Sample) error {
	fmt.Fprintln(out, "| metric | unit | median | min | max | runs | goal | how |\n|---|---|---|---|---|---|---|---|")
	for _, s := range all {
		how := s.Note
		if s.Peer != "" && s.PeerValue != 0 {
			how = fmt.Sprintf("%.4g %s against %.4g: %s; %s", s.Ours, s.PeerUnit, s.PeerValue, s.Peer, s.Note)
		}
		_, err := fmt.Fprintf(out, "| %s | %s | %.4g | %.4g | %.4g | %d | %s | %s |\n",
			s.Metric, s.Unit, s.Value, s.Min, s.Max, s.Runs, s.Goal, strings.TrimSuffix(how, "; "))
		if err != nil {
			return err
		}
	}
	return nil
}

func printTable(out io.Writer, all []Sample) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "METRIC\tUNIT\tVALUE\tMIN\tMAX\tRUNS\tGOAL\tOURS\tPEER\tHOW")
	for _, s := range all {
		ours, peer := "", ""
		if s.Peer != "" && s.PeerValue != 0 {
			ours, peer = fmt.Sprintf("%.4g %s", s.Ours, s.PeerUnit), fmt.Sprintf("%.4g %s", s.PeerValue, s.PeerUnit)
		}
		how := s.Peer
		if s.Note != "" {
			how = strings.TrimPrefix(how+"; "+s.Note, "; ")
		}
		fmt.Fprintf(w, "%s\t%s\t%.4g\t%.4g\t%.4g\t%d\t%s\t%s\t%s\t%s\n", s.Metric, s.Unit, s.Value, s.Min, s.Max, s.Runs, s.Goal, ours, peer, how)
	}
	return w.Flush()
}

// summary fills value (median), min, max and runs.
func summary(metric string, values []float64) Sample {
	v := slices.Sorted(slices.Values(values))
	s := Sample{Metric: metric, Runs: len(v)}
	if len(v) > 0 {
		s.Value, s.Min, s.Max = median(v), v[0], v[len(v)-1]
	}
	return s
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return 0
	}
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}
