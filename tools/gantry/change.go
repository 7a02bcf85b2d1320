package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// object names one object that there should be.
type object struct {
	kind            schemas.Kind
	namespace, name string // namespace is empty for cluster-scoped kinds
	// sub is a subresource, empty for the object itself.
	sub string
}

func (o object) resource() string {
	if o.sub == "" {
		return o.kind.Resource
	}
	return o.kind.Resource + "/" + o.sub
}

func (o object) String() string { return label(o.kind, o.name) }

// tree reads JSON and keeps whole numbers whole.
func tree(raw []byte) (map[string]any, error) {
	var m map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &m); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	return m, nil
}

// tries bounds how often a change is computed again after another writer came first.
const tries = 10

// change reads an object, lets edit alter it, and sends the difference. The
// patch holds for the version that was read alone, so nobody's change is lost:
// where somebody came first, all of it begins again. With a version, the object
// must still be that one. It returns the object afterwards, and whether it is
// another one than before.
func (a *app) change(ctx context.Context, w *writing, o object, version string, edit func(*unstructured.Unstructured) error) (raw []byte, changed bool, err error) {
	for try := range tries {
		reply, err := a.request(ctx, schemas.VerbGet, o.resource(), o.namespace, o.name, nil)
		if err != nil {
			return nil, false, err
		}
		before, err := tree(reply.Body)
		if err != nil {
			return nil, false, err
		}
		after := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(before)}
		if err := edit(after); err != nil {
			return nil, false, err
		}
		patch := mergeDiff(before, after.Object)
		if len(patch) == 0 && version == "" {
			return reply.Body, false, nil
		}
		changed := len(patch) > 0
		if w.dryRun == dryClient {
			raw, err := json.Marshal(after)
			return raw, changed, err
		}
		meta, ok := patch["metadata"].(map[string]any)
		if !ok {
			meta = map[string]any{}
		}
		if meta["resourceVersion"] = version; version == "" {
			meta["resourceVersion"] = after.GetResourceVersion()
		}
		patch["metadata"] = meta
		body, err := json.Marshal(patch)
		if err != nil {
			return nil, false, fmt.Errorf("encode patch of %s: %w", o, err)
		}
		header, err := w.header(schemas.PatchMerge, false)
		if err != nil {
			return nil, false, err
		}
		reply, err = a.requestWith(ctx, schemas.VerbPatch, o.resource(), o.namespace, o.name, header, body)
		if err == nil {
			return reply.Body, changed, nil
		}
		if version != "" || !apierrors.IsConflict(err) || try == tries-1 {
			return nil, false, err
		}
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-time.After(10 * time.Millisecond << try):
		}
	}
	panic("unreachable")
}

// mergeDiff is the merge patch (RFC 7386) that makes to of from; it is empty
// where they are the same. Lists are replaced as a whole.
func mergeDiff(from, to map[string]any) map[string]any {
	patch := map[string]any{}
	for key, was := range from {
		is, there := to[key]
		if !there {
			patch[key] = nil
			continue
		}
		wasMap, ok1 := was.(map[string]any)
		isMap, ok2 := is.(map[string]any)
		if ok1 && ok2 {
			if inner := mergeDiff(wasMap, isMap); len(inner) > 0 {
				patch[key] = inner
			}
			continue
		}
		if !reflect.DeepEqual(was, is) {
			patch[key] = is
		}
	}
	for key, is := range to {
		if _, there := from[key]; !there {
			patch[key] = is
		}
	}
	return patch
}

// mergePatch is what a merge patch makes of a document; neither is altered.
func mergePatch(doc, patch map[string]any) map[string]any {
	out := make(map[string]any, len(doc)+len(patch))
	for key, value := range doc {
		out[key] = value
	}
	for key, value := range patch {
		inner, isMap := value.(map[string]any)
		switch {
		case value == nil:
			delete(out, key)
		case isMap:
			old, _ := out[key].(map[string]any)
			out[key] = mergePatch(old, inner)
		default:
			out[key] = value
		}
	}
	return out
}

// prettyJSON is JSON for people.
func prettyJSON(raw []byte) ([]byte, error) {
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "    "); err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
