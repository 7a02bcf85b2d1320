package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// Results of a write.
const (
	created    = "created"
	configured = "configured"
	unchanged  = "unchanged"
)

// attempts is how often a write that carries no resourceVersion is computed
// again after another writer came first, and more often while there is time.
const attempts = 30

// manifest reads a body that holds an object and brings it together with the
// subject that it came on.
func manifest(kind schemas.Kind, call schemas.Call, body []byte) (schemas.Document, error) {
	if len(body) > schemas.MaxObjectBytes {
		return schemas.Document{}, tooLarge(kind, call.Name, fmt.Sprintf("the manifest has %d bytes", len(body)))
	}
	docs := schemas.DecodeAll(body)
	if len(docs) != 1 {
		return schemas.Document{}, apierrors.NewBadRequest(fmt.Sprintf("want one object, got %d: send each in a call of its own", len(docs)))
	}
	d := docs[0]
	if d.Err != nil {
		return d, decodeError(kind, d.Err)
	}
	if got := schemas.KindOf(d.Object); got.Resource != kind.Resource {
		return d, apierrors.NewBadRequest(fmt.Sprintf("the manifest is a %s, but the subject names %s", got.GVK.Kind, kind.Resource))
	}
	o := d.Object
	if call.Name != "" {
		if name := o.GetName(); name != "" && name != call.Name {
			return d, apierrors.NewBadRequest(fmt.Sprintf("metadata.name is %q, but the subject names %q", name, call.Name))
		}
		o.SetName(call.Name)
	}
	if !kind.Namespaced {
		return d, nil
	}
	if call.Namespace != "" {
		if ns := o.GetNamespace(); ns != "" && ns != call.Namespace {
			return d, apierrors.NewBadRequest(fmt.Sprintf("metadata.namespace is %q, but the subject names %q", ns, call.Namespace))
		}
		o.SetNamespace(call.Namespace)
	}
	if o.GetNamespace() == "" {
		return d, apierrors.NewBadRequest("metadata.namespace is empty, and so is the subject's; name one of them")
	}
	return d, nil
}

// systemOnly refuses users' writes to the kinds that Gantry writes alone.
func systemOnly(kind schemas.Kind, verb, name string) error {
	if !kind.SystemOnly {
		return nil
	}
	hint := ""
	if kind.Resource == schemas.Nodes {
		hint = "; a node is made by its agent when it connects, and patch changes its labels, annotations and spec.unschedulable"
	}
	return forbidden(kind, name, "%s of %s: Gantry alone writes them%s", verb, kind.Resource, hint)
}

// nameOf is what to call an object that may have no name yet.
func nameOf(o schemas.Object) string {
	if o.GetName() == "" {
		return o.GetGenerateName()
	}
	return o.GetName()
}

// fits refuses an object that would not pass through the bus.
func fits(kind schemas.Kind, o schemas.Object) error {
	data, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", kind.Singular, o.GetName(), err)
	}
	if len(data) > schemas.MaxObjectBytes {
		return tooLarge(kind, nameOf(o), fmt.Sprintf("it has %d bytes", len(data)))
	}
	return nil
}

// sameUID refuses a manifest that speaks of an earlier object of the same name.
func sameUID(kind schemas.Kind, o metav1.Object, old schemas.Object) error {
	if uid := o.GetUID(); uid != "" && uid != old.GetUID() {
		return apierrors.NewConflict(groupResource(kind), old.GetName(),
			fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", uid, old.GetUID()))
	}
	return nil
}

func toMap(o schemas.Object) (map[string]any, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.GetName(), err)
	}
	var m map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &m); err != nil {
		return nil, fmt.Errorf("decode %s: %w", o.GetName(), err)
	}
	return m, nil
}

// fromMap reads a merged object as strictly as a manifest.
func fromMap(kind schemas.Kind, m map[string]any) (schemas.Object, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode merged object: %w", err)
	}
	return fromJSON(kind, data)
}

// fromJSON reads what a merge or patch made as strictly as a manifest.
func fromJSON(kind schemas.Kind, data []byte) (schemas.Object, error) {
	o, err := schemas.Decode(data)
	if err != nil {
		return nil, decodeError(kind, err)
	}
	if got := schemas.KindOf(o); got.Resource != kind.Resource {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("kind cannot be changed to %s", got.GVK.Kind))
	}
	return o, nil
}

// again says whether a write that lost may be tried once more: many clients of
// one object must not make one of them starve.
func again(ctx context.Context, try int) bool {
	const forTheAnswer = 2 * time.Second
	if try < attempts {
		return true
	}
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) > forTheAnswer
}

// pause lets the view catch up with the writer that came first.
func pause(ctx context.Context, try int) error {
	most := min(time.Millisecond<<min(try, 8), 100*time.Millisecond)
	t := time.NewTimer(most/2 + rand.N(most/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
