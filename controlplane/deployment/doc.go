// Package deployment turns each Deployment into ReplicaSets, one for each
// template that it had, and moves the pods from the old ones to the newest at
// the pace that its strategy allows.
package deployment
