// Package probe asks running containers whether they are ready. One scheduler
// serves all of them: a probe that is not due costs an entry in a heap and no
// goroutine.
package probe
