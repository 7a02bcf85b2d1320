// Fuzz runs every fuzz target of the module for a while, one after the other.
// What it finds lies in testdata/fuzz beside the target afterwards, and every
// later run of the tests tries it again.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: fuzz [DURATION [TARGET]]

DURATION is how long each target runs, 3s unless said; TARGET is a regular
expression that chooses among them, such as FuzzAdmission`

// workers are the processes of one target: the machine has other work.
const workers = "2"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	each, chosen := 3*time.Second, regexp.MustCompile("")
	if len(args) > 2 {
		return errors.New(usage)
	}
	var err error
	if len(args) > 0 {
		if each, err = time.ParseDuration(args[0]); err != nil || each <= 0 {
			return fmt.Errorf("%q is no duration such as 30s\n%s", args[0], usage)
		}
	}
	if len(args) > 1 {
		if chosen, err = regexp.Compile(args[1]); err != nil {
			return fmt.Errorf("%q: %w\n%s", args[1], err, usage)
		}
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	packages, err := fuzzed(root)
	if err != nil {
		return err
	}
	// Relinked for each target they would take longer than they run.
	programs, err := os.MkdirTemp("", "gantry-fuzz-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(programs) }()
	var failed []string
	ran := 0
	for _, pkg := range packages {
		targets, err := targetsOf(pkg, chosen)
		if err != nil {
			return err
		}
		if len(targets) == 0 {
			continue
		}
		program := filepath.Join(programs, strings.ReplaceAll(pkg, "/", "_"))
		build := exec.CommandContext(ctx, "go", "test", "-c", "-fuzz=.", "-tags", "seccomp", "-o", program, "./"+pkg)
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		for _, target := range targets {
			ran++
			t := fuzzRun{root: root, pkg: pkg, program: program, target: target, each: each}
			tried, err := t.run(ctx)
			if !tried && err == nil {
				// To try what is kept took all of the time.
				t.each *= 5
				_, err = t.run(ctx)
			}
			if err != nil {
				failed = append(failed, pkg+" "+target)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	switch {
	case ran == 0:
		return fmt.Errorf("no target matches %s", chosen)
	case len(failed) > 0:
		return fmt.Errorf("%d of %d failed: %s", len(failed), ran, strings.Join(failed, ", "))
	}
	return nil
}

// fuzzed are the directories below root that hold fuzz targets.
func fuzzed(root string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil || !strings.HasSuffix(path, "_test.go") || slices.Contains(dirs, dir) {
			return err
		}
		text, err := os.ReadFile(path)
		if declared.Match(text) {
			dirs = append(dirs, dir)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for fuzz targets: %w", err)
	}
	return dirs, nil
}

var declared = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

func targetsOf(pkg string, chosen *regexp.Regexp) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(pkg, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, m := range declared.FindAllSubmatch(text, -1) {
			if name := string(m[1]); chosen.MatchString(name) {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

// fuzzRun is one target.
type fuzzRun struct {
	root, pkg, program, target string
	each                       time.Duration
}

var progress = regexp.MustCompile(`execs: ([1-9]\d*) .*\(total: (\d+)\)`)

// run says whether anything new was tried.
func (r fuzzRun) run(ctx context.Context) (tried bool, err error) {
	start := time.Now()
	// The engine ends by itself, but for an input that never does.
	ctx, cancel := context.WithTimeout(ctx, r.each+2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.program, "-test.run", "^$", "-test.fuzz", "^"+r.target+"$", "-test.fuzztime", r.each.String(),
		// To make what is new as small as can be would take all of the time.
		"-test.fuzzminimizetime", "10x", "-test.parallel", workers,
		"-test.fuzzcachedir", filepath.Join(r.root, ".cache", "fuzz", r.pkg))
	cmd.Dir = filepath.Join(r.root, r.pkg)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	execs, known := "no", "-"
	if all := progress.FindAllSubmatch(out, -1); len(all) > 0 {
		execs, known = string(all[len(all)-1][1]), string(all[len(all)-1][2])
	}
	word := "ok  "
	if err != nil {
		word = "FAIL"
	}
	fmt.Printf("%s %-40s %8s inputs, %s kept, %.1fs\n", word, r.pkg+" "+r.target, execs, known, time.Since(start).Seconds())
	if err != nil {
		fmt.Println(string(bytes.TrimSpace(out)))
	}
	return execs != "no", err
}
