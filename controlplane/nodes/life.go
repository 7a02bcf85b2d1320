package nodes

import (
	"fmt"
	"time"
)

// Signs of life. A node asks for its state every heartbeat; a machine that
// dies says nothing, an agent that dies closes its connection.
const (
	heartbeat = 10 * time.Second
	// silence is how long a node may say nothing before it counts as lost, as
	// in Kubernetes.
	silence = 40 * time.Second
	// returnTime is how long an agent whose connection closed may take to come
	// back: a restart is no loss.
	returnTime = 10 * time.Second
	// holdTime is how long a name stays with an instance that is silent but
	// whose connection has not been seen to close.
	holdTime = heartbeat * 5 / 2
)

// life is what is known of one node's agent. Only its own methods change it.
type life struct {
	instance string // who holds the name; empty while nobody does
	host     string
	seen     time.Time // the last sign of life of the holder
	closed   time.Time // when the last connection closed; zero while one is open
}

// alive tells whether the node counts as there.
func (l *life) alive(now time.Time) bool {
	if now.Sub(l.seen) >= silence {
		return false
	}
	return l.closed.IsZero() || now.Sub(l.closed) < returnTime
}

// admit takes a sign of life, or says why it does not count: the name is held
// by another instance that was alive a moment ago.
func (l *life) admit(instance, host string, now time.Time) error {
	if l.instance != "" && instance != l.instance && l.closed.IsZero() && now.Sub(l.seen) < holdTime {
		return fmt.Errorf("the name is held by instance %s on host %s, last heard of %s ago",
			l.instance, l.host, now.Sub(l.seen).Round(time.Second))
	}
	l.instance, l.host, l.seen, l.closed = instance, host, now, time.Time{}
	return nil
}

// holds tells whether a report of this instance counts. Reports that do not
// name an instance cannot be told apart and count.
func (l *life) holds(instance string) bool {
	return instance == "" || l.instance == "" || instance == l.instance
}

// gone notes that the agent's last connection closed.
func (l *life) gone(now time.Time) {
	if l.closed.IsZero() {
		l.closed = now
	}
}

// release lets the name go at once: the holder said that it stops.
func (l *life) release(instance string) {
	if instance == l.instance {
		l.instance = ""
	}
}
