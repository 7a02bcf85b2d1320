package reconcile

import (
	"slices"
	"time"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// Controller makes one kind of fact true. Wakes and Reconcile are pure: they
// read nothing but their arguments and change none of them.
type Controller struct {
	// Name is one word; it is the source of the controller's events.
	Name string
	// Reads lists the resources whose changes Wakes is asked about; "*" is all.
	Reads []string
	// Writes lists what this controller alone writes, each as a claim (see Claims).
	Writes []string
	// Wakes says which keys a change concerns. The view already holds the
	// change and may hold later ones.
	Wakes func(change bus.Change, view bus.View) []string
	// Reconcile says what should be for one key.
	Reconcile func(key string, view bus.View, now time.Time) Outcome
}

// Outcome is what should be. The zero Outcome asks for nothing.
type Outcome struct {
	// Own are the existing records that this outcome answers for, exactly as
	// the view gave them. What is in Own and not in Want is to be deleted.
	Own []schemas.Object
	// Want are the records that should be: for those in Own a changed copy (or
	// the same), for others a new record. The controller gives them away.
	Want []schemas.Object
	// Events are told to people when the write that they speak of has happened.
	Events []Event
	// RequeueAfter asks for the key again after that time, even if nothing
	// changes. Zero does not ask.
	RequeueAfter time.Duration
}

// Keep adds records that exist and should stay as they are, or as changed.
func (o *Outcome) Keep(own, want schemas.Object) {
	o.Own = append(o.Own, own)
	o.Want = append(o.Want, want)
}

// Drop takes back what the outcome wanted of a record that exists, if
// anything: it is to be deleted.
func (o *Outcome) Drop(own schemas.Object) {
	key := schemas.KeyOf(own)
	o.Want = slices.DeleteFunc(o.Want, func(w schemas.Object) bool { return w.GetUID() == own.GetUID() && schemas.KeyOf(w) == key })
	if !slices.ContainsFunc(o.Own, func(w schemas.Object) bool { return w.GetUID() == own.GetUID() && schemas.KeyOf(w) == key }) {
		o.Own = append(o.Own, own)
	}
}

// Requeue lowers RequeueAfter to d where d is sooner; d of zero or less means
// at once.
func (o *Outcome) Requeue(d time.Duration) {
	d = max(d, time.Millisecond)
	if o.RequeueAfter == 0 || d < o.RequeueAfter {
		o.RequeueAfter = d
	}
}

// Event is something that a person who looks at an object wants to know.
type Event struct {
	// Involved is the object that the event is about.
	Involved schemas.Object
	Type     string // corev1.EventTypeNormal or EventTypeWarning
	Reason   string // one CamelCase word
	Message  string
	// After is the ObjectKey of the record whose write makes this true. The
	// event is told only if that write was done by this pass, so that a pass
	// which is repeated tells nothing twice. Empty stands for any write.
	After string
}

// Key is the key of most controllers: namespace/name of one object.
func Key(namespace, name string) string { return namespace + "/" + name }
