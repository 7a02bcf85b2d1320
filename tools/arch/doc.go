// Package arch holds the rules of the architecture as tests. It has no code of
// its own.
package arch
