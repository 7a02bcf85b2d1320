package main

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// aloneLock is an abstract name: "@" stands for the leading NUL byte.
const aloneLock = "@gantry-nodeagent"

// errNotAlone says that another agent works on the same machine.
var errNotAlone = errors.New("another node agent runs on this machine")

// alone makes sure that no other agent works in this network namespace,
// whatever directories it has: the two would take each other's links and rules
// for leftovers. The lock is a socket's name, which the kernel keeps for each
// network namespace and gives back when the process ends, however it does.
func alone(node, lock string) (release func(), err error) {
	l, err := net.Listen("unix", lock)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("start agent of node %s: %w", node, errNotAlone)
	}
	if err != nil {
		return nil, fmt.Errorf("start agent of node %s: %w", node, err)
	}
	return func() { _ = l.Close() }, nil // nobody ever connects to it
}
