// Package nodes turns what node agents report into Node objects and pod
// statuses, says which nodes live, and lets go of pods that are gone. It is the
// only writer of Node objects and of a pod's status.
package nodes
