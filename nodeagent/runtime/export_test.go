//go:build linux

package runtime

import "testing"

// ForContract gives the external contract test a node of its own.
func ForContract(t *testing.T) (*Runtime, Sandbox, func(name string, args ...string) Container) {
	n := newNode(t)
	s := n.sandbox()
	return n.rt, s, func(name string, args ...string) Container {
		c := n.container(s, args...)
		c.Name = name
		return c
	}
}
