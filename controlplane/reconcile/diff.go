package reconcile

import (
	"reflect"
	"slices"
	"time"

	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Op is what a Write does.
type Op string

// What a Write can do.
const (
	// OpCreate stores a new record.
	OpCreate Op = "create"
	// OpUpdate replaces a record, among others with one that is marked for deletion.
	OpUpdate Op = "update"
	// OpStatus replaces a record of which only the status differs.
	OpStatus Op = "status"
	// OpRemove takes a record away.
	OpRemove Op = "remove"
)

// Write is one compare-and-swap: a value that can be printed before it is done.
type Write struct {
	Op  Op
	Key string // ObjectKey
	// Object is what to store; for OpRemove, what is stored now.
	Object schemas.Object
	// Deletes says that this write begins or ends the record's deletion.
	Deletes bool
}

// Diff is what must be written to come from what exists to what should be:
// creations, then updates, then deletions, then statuses, each in the order in
// which the controller named them. It is empty where all is as it should be.
func Diff(out Outcome, now time.Time) []Write {
	own := make(map[string]schemas.Object, len(out.Own))
	for _, o := range out.Own {
		own[schemas.KeyOf(o)] = o
	}
	var creates, updates, deletes, statuses []Write
	wanted := make(map[string]bool, len(out.Want))
	for _, want := range out.Want {
		key := schemas.KeyOf(want)
		wanted[key] = true
		old, exists := own[key]
		if !exists {
			lifecycle.PrepareCreate(want)
			creates = append(creates, Write{Op: OpCreate, Key: key, Object: want})
			continue
		}
		switch w := change(key, old, want); w.Op {
		case OpUpdate:
			updates = append(updates, w)
		case OpStatus:
			statuses = append(statuses, w)
		case OpRemove:
			deletes = append(deletes, w)
		}
	}
	for _, o := range out.Own {
		key := schemas.KeyOf(o)
		if wanted[key] {
			continue
		}
		if w := deletion(key, o, now); w.Op != "" {
			deletes = append(deletes, w)
		}
	}
	return slices.Concat(creates, updates, deletes, statuses)
}

// change is the write that turns old into want, with an empty Op for none.
func change(key string, old, want schemas.Object) Write {
	want.SetUID(old.GetUID())
	want.SetResourceVersion(old.GetResourceVersion())
	want.SetCreationTimestamp(old.GetCreationTimestamp())
	want.SetGeneration(old.GetGeneration())
	if old.GetDeletionTimestamp() != nil && want.GetDeletionTimestamp() == nil {
		// Deletion is never taken back, not even by who derives the whole record.
		want.SetDeletionTimestamp(old.GetDeletionTimestamp())
		want.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
		want.SetFinalizers(old.GetFinalizers())
	}
	if apiequality.Semantic.DeepEqual(old, want) {
		return Write{}
	}
	if lifecycle.Removable(want) && !lifecycle.Removable(old) {
		// Who takes the last finalizer off a record that is being deleted ends
		// it: there is nobody else left who would.
		return Write{Op: OpRemove, Key: key, Object: old, Deletes: true}
	}
	w := Write{Op: OpUpdate, Key: key, Object: want, Deletes: old.GetDeletionTimestamp() == nil && want.GetDeletionTimestamp() != nil}
	if onlyStatus(old, want) {
		w.Op = OpStatus
	} else if generation(want) && !apiequality.Semantic.DeepEqual(field(old, "Spec"), field(want, "Spec")) {
		want.SetGeneration(old.GetGeneration() + 1)
	}
	return w
}

// deletion is the write that begins to delete o, or removes it at once where
// nothing has to happen before. An object that is being deleted already needs none.
func deletion(key string, o schemas.Object, now time.Time) Write {
	marked, remove := lifecycle.MarkDeleted(o, metav1.DeleteOptions{}, now)
	switch {
	case remove:
		return Write{Op: OpRemove, Key: key, Object: o, Deletes: true}
	case apiequality.Semantic.DeepEqual(o, marked):
		return Write{}
	}
	return Write{Op: OpUpdate, Key: key, Object: marked, Deletes: true}
}

// generation says whether records of the type count changes of their spec.
func generation(o schemas.Object) bool {
	switch schemas.KindOf(o).Resource {
	case schemas.Deployments, schemas.ReplicaSets, schemas.Pods:
		return true
	}
	return false
}

func onlyStatus(old, want schemas.Object) bool {
	a, b := reflect.ValueOf(old).Elem(), reflect.ValueOf(want).Elem()
	for i := range a.NumField() {
		if a.Type().Field(i).Name == "Status" {
			continue
		}
		if !apiequality.Semantic.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			return false
		}
	}
	return a.FieldByName("Status").IsValid()
}

func field(o schemas.Object, name string) any {
	return reflect.ValueOf(o).Elem().FieldByName(name).Interface()
}
