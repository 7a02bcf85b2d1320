//go:build linux

// Command gantry-launcher starts one container, or one command inside one, and
// leaves. It is the only part of ours that links libcontainer, which runs the
// calling binary again as the container's first process: that is why it is
// small and does nothing else.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/sirupsen/logrus"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		guard()
		calm()
		libcontainer.Init() // does not return
	}
}

func main() {
	verb := ""
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	switch verb {
	case "run":
		// Standard error is the container's: what goes wrong goes to a file.
		said := listen()
		calm()
		if err := run(); err != nil {
			os.Exit(fail(err, said))
		}
	case "exec":
		execute()
	default:
		fmt.Fprintln(os.Stderr, "gantry-launcher is started by the node agent: run | exec DIR")
		os.Exit(2)
	}
}

// failure is an error with the reason under which users know it.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func because(reason string, err error) error {
	return &failure{reason: reason, err: err}
}

// fail writes why nothing runs, whole or not at all.
func fail(err error, said *strings.Builder) int {
	reason, message := explain(err)
	if said.Len() > 0 {
		message += " (" + strings.TrimSpace(said.String()) + ")"
	}
	body := fmt.Sprintf("%s\n%d\n%s", reason, time.Now().UnixNano(), message)
	if err := writeFile(rundir.Failing, []byte(body)); err != nil {
		return 3
	}
	return 1
}

// explain finds the reason. libcontainer's errors come as text from another
// process, so text is all there is to look at.
func explain(err error) (reason, message string) {
	message = err.Error()
	var f *failure
	if errors.As(err, &f) {
		return f.reason, message
	}
	switch {
	case strings.Contains(message, "executable file not found"),
		strings.Contains(message, "exec: \"") && strings.Contains(message, "no such file or directory"),
		strings.Contains(message, "error during container init: stat ") && strings.Contains(message, "no such file or directory"):
		return want.CommandNotFound, message
	case strings.Contains(message, "exec: \"") && strings.Contains(message, "permission denied"),
		strings.Contains(message, "exec: \"") && strings.Contains(message, "is a directory"):
		return want.PermissionDenied, message
	case strings.Contains(message, "unable to set memory limit"),
		strings.Contains(message, "OOM-killed"):
		return want.ResourceLimit, message
	case strings.Contains(message, "error mounting"):
		return want.InvalidMount, message
	}
	return want.StartError, message
}

// listen collects what libcontainer logs: warnings often tell more than the
// error that follows them.
func listen() *strings.Builder {
	var said strings.Builder
	logrus.SetOutput(&said)
	logrus.SetLevel(logrus.WarnLevel)
	logrus.SetFormatter(plain{})
	return &said
}

type plain struct{}

func (plain) Format(e *logrus.Entry) ([]byte, error) {
	return []byte(e.Message + "\n"), nil
}

func readWant(path string) (want.Run, error) {
	var w want.Run
	b, err := os.ReadFile(path)
	if err != nil {
		return w, err
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return w, fmt.Errorf("parse %s: %w", path, err)
	}
	return w, nil
}

func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
