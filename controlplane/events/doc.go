// Package events writes the v1 Events that people read beside an object. An
// event that is told again is counted, not stored again, and what varies
// without end is summed up.
package events
