// Package follow keeps a role's own picture of some resources: what is there,
// the moment when that is complete, and every change from then on.
package follow

import (
	"context"
	"fmt"
	"slices"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// Run calls fn for every object of the resources that there is and then for
// every change, in order and one at a time, until ctx ends; it then returns
// nil. It calls loaded once, from the same goroutine, when each object that
// was there at the start has been told: nothing may be concluded from the
// absence of an object before. fn and loaded must not write.
func Run(ctx context.Context, store bus.Store, resources []string, loaded func(), fn func(bus.Change)) error {
	t := tracker{view: store.View(), resources: resources, loaded: loaded}
	if len(t.list()) == 0 {
		// No call would ever come to say so.
		t.done = true
		loaded()
	}
	err := store.Subscribe(ctx, true, func(c bus.Change) {
		if !slices.Contains(resources, c.Resource) {
			t.see("")
			return
		}
		fn(c)
		t.see(schemas.KeyOf(c.Object()))
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("follow changes: %w", err)
	}
	<-ctx.Done()
	return nil
}

// tracker finds out when the replay is over. What the view lists once the
// first call has come was there when the replay was taken or has changed
// since; either way it will be told, so the replay is over when all of it was.
type tracker struct {
	view      bus.View
	resources []string
	loaded    func()
	missing   map[string]bool // nil before the first call
	done      bool
}

func (t *tracker) list() map[string]bool {
	keys := map[string]bool{}
	for _, r := range t.resources {
		for _, o := range t.view.List(r, "") {
			keys[schemas.KeyOf(o)] = true
		}
	}
	return keys
}

func (t *tracker) see(key string) {
	if t.done {
		return
	}
	if t.missing == nil {
		t.missing = t.list()
	}
	delete(t.missing, key)
	if len(t.missing) == 0 {
		t.done, t.missing = true, nil
		t.loaded()
	}
}
