// Package bus is the one importer of NATS: the embedded server, connections
// and their credentials, the store of API objects with compare-and-swap, a
// cached and indexed view of them, and the messages between the control plane
// and the nodes.
package bus
