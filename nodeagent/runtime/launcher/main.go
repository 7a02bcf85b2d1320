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
	"runtime"
	"strings"

	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/sirupsen/logrus"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

func init() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case "init":
		guardJoined()
		calm()
		libcontainer.Init() // does not return
	case "run":
		// Here and not in main: until then Go stays on the process's first thread,
		// which is the one that is to become the command.
		runtime.LockOSThread()
		logged = listen()
		calm()
		os.Exit(fail(rundir.FDSync, run()))
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "exec" {
		execute()
		return
	}
	fmt.Fprintln(os.Stderr, "gantry-launcher is started by the node agent: run | exec DIR")
	os.Exit(2)
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

// explain finds the reason.
func explain(err error) (reason, message string) {
	var f *failure
	if errors.As(err, &f) {
		return f.reason, err.Error()
	}
	return want.Reason(err.Error()), err.Error()
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
