// Package e2e holds the end-to-end tests: real daemons, real containers, a
// real registry and the real kernel, in a network namespace of their own.
// They need root and the binaries in bin/ (`task build`).
package e2e
