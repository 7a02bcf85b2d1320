// Package publisher compiles what each node must run and what every node must
// route out of the API objects, tells it as feeds of numbered records, and
// answers nodes that ask for all of it again. It is the only writer of the
// desired and routes buckets.
package publisher
