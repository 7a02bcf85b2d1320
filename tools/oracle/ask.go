package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// uid is what every object of a case gets, as the server gives one before it
// validates. The test that compares gives the same.
const uid = "00000000-0000-4000-8000-000000000001"

// strict decodes as the server does for fieldValidation=Strict.
var strict = serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

// ask runs one manifest, an update of old where old is not nil, through the
// defaulting and validation of a resource.
func ask(resource string, manifest, old []byte) (result, error) {
	s, ok := strategies[resource]
	if !ok {
		return result{}, fmt.Errorf("no strategy for %q", resource)
	}
	versioned, gvk, err := strict.Decode(manifest, nil, nil)
	if err != nil {
		return result{Errors: []fault{{Type: "Decode", Detail: err.Error()}}}, nil
	}
	obj, err := internal(versioned)
	if err != nil {
		return result{Errors: []fault{{Type: "Decode", Detail: err.Error()}}}, nil
	}
	r := result{}
	if r.Object, err = external(obj, *gvk); err != nil {
		return r, err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return r, err
	}
	ctx := genericapirequest.WithNamespace(context.Background(), m.GetNamespace())
	ctx = genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{
		IsResourceRequest: true, APIGroup: gvk.Group, APIVersion: gvk.Version, Resource: resource, Namespace: m.GetNamespace(), Name: m.GetName(),
	})
	var errs field.ErrorList
	if old == nil {
		m.SetUID(uid)
		s.PrepareForCreate(ctx, obj)
		errs = rest.ValidateCreate(ctx, obj, s)
	} else {
		errs, err = askUpdate(ctx, s, obj, old)
		if err != nil {
			return r, err
		}
	}
	prepared, err := external(obj, *gvk)
	if err != nil {
		return r, err
	}
	if !same(withoutServerFields(prepared), withoutServerFields(r.Object)) {
		r.Prepared = withoutServerFields(prepared)
	}
	for _, e := range errs {
		// The server checks metadata twice; what it finds twice is one fault.
		if f := (fault{string(e.Type), e.Field, e.Detail}); !slices.Contains(r.Errors, f) {
			r.Errors = append(r.Errors, f)
		}
	}
	sort.SliceStable(r.Errors, func(i, j int) bool {
		a, b := r.Errors[i], r.Errors[j]
		return fmt.Sprint(a.Field, "\x00", a.Type, "\x00", a.Detail) < fmt.Sprint(b.Field, "\x00", b.Type, "\x00", b.Detail)
	})
	if len(r.Errors) > 0 {
		r.Object, r.Prepared = nil, nil
	}
	return r, nil
}

func askUpdate(ctx context.Context, s strategy, obj runtime.Object, oldManifest []byte) (field.ErrorList, error) {
	versioned, _, err := strict.Decode(oldManifest, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("the old object: %w", err)
	}
	old, err := internal(versioned)
	if err != nil {
		return nil, fmt.Errorf("the old object: %w", err)
	}
	o, err := meta.Accessor(old)
	if err != nil {
		return nil, err
	}
	o.SetUID(uid)
	o.SetResourceVersion("1")
	o.SetGeneration(1)
	n, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	if n.GetUID() == "" {
		n.SetUID(uid)
	}
	n.SetResourceVersion("1")
	n.SetGeneration(1)
	s.PrepareForUpdate(ctx, obj, old)
	if t := o.GetDeletionTimestamp(); t != nil {
		n.SetDeletionTimestamp(t)
		n.SetDeletionGracePeriodSeconds(o.GetDeletionGracePeriodSeconds())
	}
	if t := o.GetCreationTimestamp(); !t.IsZero() {
		n.SetCreationTimestamp(t)
	}
	return rest.ValidateUpdate(ctx, obj, old, s), nil
}

// internal fills in the defaults of an object's version, and converts it.
func internal(versioned runtime.Object) (runtime.Object, error) {
	legacyscheme.Scheme.Default(versioned)
	return legacyscheme.Scheme.ConvertToVersion(versioned, runtime.InternalGroupVersioner)
}

// external is an internal object as JSON values of a version.
func external(obj runtime.Object, gvk schema.GroupVersionKind) (map[string]any, error) {
	v, err := legacyscheme.Scheme.ConvertToVersion(obj.DeepCopyObject(), gvk.GroupVersion())
	if err != nil {
		return nil, err
	}
	v.GetObjectKind().SetGroupVersionKind(gvk)
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return out, d.Decode(&out)
}

// withoutServerFields is a shallow copy without what the server alone writes.
func withoutServerFields(o any) map[string]any {
	out := map[string]any{}
	for k, v := range o.(map[string]any) {
		if k != "status" && k != "metadata" {
			out[k] = v
		}
	}
	return out
}

func same(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
