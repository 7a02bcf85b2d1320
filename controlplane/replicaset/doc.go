// Package replicaset keeps the number of pods of each ReplicaSet what it
// should be. The names of the pods are computed from the set, a slot and how
// often the slot was filled, so that to decide twice is to create once.
package replicaset
