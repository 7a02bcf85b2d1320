// Package schemas holds the nouns of Gantry: the API kinds (Kubernetes' own
// types), every subject, bucket and key on the bus, the messages between the
// control plane and the nodes, and defaulting and validation of what users
// write. Everything imports it; it imports no other package of this module.
package schemas
