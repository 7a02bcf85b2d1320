// Package ringtest tells stories about the whole ring: a real control plane
// with its embedded bus, and nodes that speak the real protocol but only
// pretend to run containers.
package ringtest
