// Package imagetest makes images, also hostile ones, and serves them from a
// registry that fails on demand. Only tests use it.
package imagetest
