//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// writeState writes, into a new directory below that of the run, what
// libcontainer has to know of a container in order to join it. It is made from
// the order when it is needed: hardly any container is ever joined. The caller
// removes the directory.
func writeState(dir string, w want.Run) (string, error) {
	s, err := state(dir, w)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, "exec-")
	if err != nil {
		return "", err
	}
	if err = os.Mkdir(filepath.Join(tmp, rundir.ContainerID), 0o700); err == nil {
		err = os.WriteFile(filepath.Join(tmp, rundir.ContainerID, "state.json"), b, 0o600)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return tmp, nil
}

func state(dir string, w want.Run) (*libcontainer.State, error) {
	b, err := os.ReadFile(filepath.Join(dir, rundir.PID))
	if err != nil {
		return nil, err
	}
	n, ok := rundir.ParseInts(b, 3)
	if !ok {
		return nil, fmt.Errorf("parse %s", rundir.PID)
	}
	config, err := configure(filepath.Join(dir, rundir.Root), w)
	if err != nil {
		return nil, err
	}
	// A command keeps the session keyring that it gets from us: the filter, which
	// it is under from the start, would not let it join another.
	config.NoNewKeyring = true
	cg, err := manager.New(config.Cgroups)
	if err != nil {
		return nil, err
	}
	s := &libcontainer.State{
		BaseState: libcontainer.BaseState{
			ID: rundir.ContainerID, Config: *config,
			InitProcessPid: int(n[0]), InitProcessStartTime: uint64(n[1]), Created: time.Unix(0, n[2]).UTC(),
		},
		CgroupPaths:    cg.GetPaths(),
		NamespacePaths: map[configs.NamespaceType]string{},
	}
	for _, kind := range configs.NamespaceTypes() {
		if configs.IsNamespaceSupported(kind) {
			ns := configs.Namespace{Type: kind}
			s.NamespacePaths[kind] = ns.GetPath(s.InitProcessPid)
		}
	}
	return s, nil
}
