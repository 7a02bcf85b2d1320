// Command web is the sample program of demonstrations and tests: a small web
// server, and a few subcommands that do one thing that a test wants to see.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

// command is one subcommand: it returns the exit code.
type command struct {
	says string
	run  func(args []string) error
}

var commands map[string]command

func init() {
	commands = map[string]command{
		"serve":       {"serve HTTP, the default: see `web serve -h`", serve},
		"get":         {"get [--retry DURATION] [--count N] URL: print what a URL answers", get},
		"tcp":         {"tcp ADDRESS TEXT: send a line over TCP and print the answer", sendTCP},
		"udp":         {"udp ADDRESS TEXT: send a datagram and print the answer", sendUDP},
		"exit":        {"exit [CODE] [AFTER]: end with a code", exit},
		"sleep":       {"sleep [DURATION]: wait, for ever without one; TERM ends it", sleep},
		"ignore-term": {"ignore-term: wait and ignore TERM", ignoreTerm},
		"env":         {"env: print the environment and what limits the process", printEnv},
		"lines":       {"lines [--count N] [--interval DURATION] [--stderr]: print numbered lines", lines},
		"eat":         {"eat AMOUNT: use so much memory (256Mi) and keep it", eat},
		"burn":        {"burn [DURATION]: use all of a core", burn},
		"cat":         {"cat [FILE...]: print files, or what comes in", cat},
		"terminal":    {"terminal: print the terminal's size whenever it changes, until a line \"end\"", terminal},
		"write":       {"write FILE TEXT: write a file", write},
		"ls":          {"ls DIRECTORY...: list names", list},
	}
}

// exitCode ends the program with a code and no message.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit %d", int(c)) }

func main() {
	name, args := "serve", os.Args[1:]
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	c, ok := commands[name]
	if !ok {
		usage(name)
		os.Exit(2)
	}
	err := c.run(args)
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "web %s: %v\n", name, err)
		os.Exit(1)
	}
}

func usage(name string) {
	fmt.Fprintf(os.Stderr, "web: there is no %q; there are:\n", name)
	for _, c := range commands {
		fmt.Fprintln(os.Stderr, " ", c.says)
	}
}

// flags makes a flag set that ends the program on a mistake.
func flags(name string) *flag.FlagSet { return flag.NewFlagSet("web "+name, flag.ExitOnError) }

// parse lets flags stand before and after other arguments.
func parse(f *flag.FlagSet, args []string) []string {
	var rest []string
	for {
		_ = f.Parse(args) // ExitOnError
		if f.NArg() == 0 {
			return rest
		}
		rest = append(rest, f.Arg(0))
		args = f.Args()[1:]
	}
}

func durationArg(args []string, i int, otherwise time.Duration) (time.Duration, error) {
	if len(args) <= i {
		return otherwise, nil
	}
	return time.ParseDuration(args[i])
}
