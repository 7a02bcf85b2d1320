// Package plane puts the control plane together: the embedded bus, the roles
// that write to it, and the API. It decides the order in which they begin and
// end, and nothing else.
package plane
