// Package scheduler decides on which node each pod runs, as a pure function of
// a snapshot, and binds it there with one compare-and-swap. It is the only
// writer of a pod's spec.nodeName and of its PodScheduled condition.
package scheduler
