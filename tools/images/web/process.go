package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func exit(args []string) error {
	after, err := durationArg(args, 1, 0)
	if err != nil {
		return err
	}
	time.Sleep(after)
	if len(args) == 0 {
		return nil
	}
	code, err := strconv.Atoi(args[0])
	if err != nil || code < 0 || code > 255 {
		return fmt.Errorf("%q is not an exit code", args[0])
	}
	return exitCode(code)
}

func sleep(args []string) error {
	d, err := durationArg(args, 0, 0)
	if err != nil {
		return err
	}
	fmt.Println("sleeping") // a log's first line tells when a program began
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	var over <-chan time.Time // nil: never
	if d > 0 {
		over = time.After(d)
	}
	select {
	case <-end:
	case <-over:
	}
	return nil
}

func ignoreTerm([]string) error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("TERM is ignored")
	over := make(chan os.Signal, 1)
	signal.Notify(over, syscall.SIGINT)
	<-over
	return nil
}

// printEnv tells what a process sees of itself, one fact per line.
func printEnv([]string) error {
	for _, e := range os.Environ() {
		fmt.Println(e)
	}
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	fmt.Printf("uid=%d\ngid=%d\ngroups=%v\ncwd=%s\nhostname=%s\npid=%d\nargs=%q\n", os.Getuid(), os.Getgid(), groups, cwd, host, os.Getpid(), os.Args)
	return printStatus()
}

// printStatus prints /proc/self/status as name=value.
func printStatus() error {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	in := bufio.NewScanner(f)
	for in.Scan() {
		name, value, ok := strings.Cut(in.Text(), ":")
		if ok {
			fmt.Printf("%s=%s\n", name, strings.TrimSpace(value))
		}
	}
	return in.Err()
}

func lines(args []string) error {
	f := flags("lines")
	count := f.Int("count", 0, "how many; 0 never ends")
	interval := f.Duration("interval", 0, "time between two")
	toStderr := f.Bool("stderr", false, "every other line to standard error")
	text := f.String("text", "line", "what each line says before its number")
	if rest := parse(f, args); len(rest) > 0 {
		return fmt.Errorf("unexpected %q", rest)
	}
	for i := 1; *count == 0 || i <= *count; i++ {
		out := os.Stdout
		if *toStderr && i%2 == 0 {
			out = os.Stderr
		}
		if _, err := fmt.Fprintf(out, "%s %d\n", *text, i); err != nil {
			return err
		}
		if i != *count {
			time.Sleep(*interval)
		}
	}
	return nil
}

func eat(args []string) error {
	if len(args) != 1 {
		return errors.New("AMOUNT is needed")
	}
	n, err := amount(args[0])
	if err != nil {
		return err
	}
	const page = 4096
	var kept [][]byte
	for eaten := int64(0); eaten < n; eaten += 1 << 20 {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += page {
			block[i] = 1 // only what is written counts
		}
		kept = append(kept, block)
	}
	fmt.Printf("%d MiB eaten\n", len(kept))
	if err := sleep(nil); err != nil {
		return err
	}
	fmt.Println(len(kept), "blocks were kept")
	return nil
}

func amount(s string) (int64, error) {
	unit := int64(1)
	for suffix, u := range map[string]int64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = n, u
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not an amount such as 64Mi", s)
	}
	return n * unit, nil
}

func burn(args []string) error {
	d, err := durationArg(args, 0, 0)
	if err != nil {
		return err
	}
	var stop <-chan time.Time
	if d > 0 {
		stop = time.After(d)
	}
	spin(stop)
	return nil
}

// spin keeps a core busy until stop; for ever where stop is nil.
func spin(stop <-chan time.Time) {
	for n := uint64(1); ; n = n*6364136223846793005 + 1 {
		if n%(1<<20) != 1 {
			continue
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

func cat(args []string) error {
	if len(args) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func write(args []string) error {
	if len(args) != 2 {
		return errors.New("FILE and TEXT are needed")
	}
	return os.WriteFile(args[0], []byte(args[1]+"\n"), 0o644)
}

func list(args []string) error {
	for _, dir := range args {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	}
	return nil
}
