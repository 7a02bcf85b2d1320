package admission

import (
	_ "embed" // the types of fields
	"fmt"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"gantry.dev/schemas"
)

// Who manages which field is kept by Kubernetes' own library. It begins with
// an object's first server-side apply: objects that nobody applies that way
// carry no sets of fields, and their writes cost nothing here.

//go:generate go run ./fieldtypes -out fieldtypes.yaml

// fieldTypes says of every field of our kinds how it merges: which lists are
// sets or maps and by what keys, which maps and lists are one value.
//
//go:embed fieldtypes.yaml
var fieldTypes string

// parser reads fieldTypes when the first object is applied. It takes a tenth
// of a second and some MiB, which most clusters never spend.
var parser = sync.OnceValues(func() (*typed.Parser, error) { return typed.NewParser(typed.YAMLObject(fieldTypes)) })

// managers are the field managers of each kind and subresource, made when first
// needed. The zero value is ready; it is safe for concurrent use.
type managers struct{ made sync.Map }

func (m *managers) of(kind schemas.Kind, subresource string) (*managedfields.FieldManager, error) {
	key := kind.Resource + "/" + subresource
	if have, ok := m.made.Load(key); ok {
		return have.(*managedfields.FieldManager), nil
	}
	p, err := parser()
	if err != nil {
		return nil, fmt.Errorf("read the types of fields: %w", err)
	}
	gv := kind.GVK.GroupVersion()
	made, err := managedfields.NewDefaultFieldManager(fieldConverter{p}, oneVersion{}, oneVersion{}, oneVersion{}, kind.GVK, gv, subresource,
		map[fieldpath.APIVersion]fieldpath.Filter{fieldpath.APIVersion(gv.String()): fieldpath.NewExcludeSetFilter(resetFields(subresource))})
	if err != nil {
		return nil, fmt.Errorf("manage the fields of %s: %w", kind.Resource, err)
	}
	have, _ := m.made.LoadOrStore(key, made)
	return have.(*managedfields.FieldManager), nil
}

// resetFields are those that a write of the object, or of its status, leaves
// as they are whatever it says: nobody comes to manage them by it.
func resetFields(subresource string) *fieldpath.Set {
	if subresource == schemas.SubStatus {
		return fieldpath.NewSet(fieldpath.MakePathOrDie("spec"), fieldpath.MakePathOrDie("data"), fieldpath.MakePathOrDie("metadata"))
	}
	return fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
}

// track brings up to date who manages the fields of an object that is to take
// old's place. Where nobody has applied it, there is nothing to keep. It may
// return another object.
func (a *Admission) track(w write, updated, old schemas.Object) (schemas.Object, error) {
	switch {
	case w.applied:
		sameFields(updated, old)
		return updated, nil
	case len(old.GetManagedFields()) == 0:
		updated.SetManagedFields(nil)
		return updated, nil
	}
	fields, err := a.managers.of(w.kind, w.call.Subresource)
	if err != nil {
		return nil, err
	}
	live := old.DeepCopyObject()
	out, ok := fields.UpdateNoErrors(live, updated, w.manager).(schemas.Object)
	if !ok {
		return nil, fmt.Errorf("manage the fields of %s %s: the library returned another type", w.kind.Singular, old.GetName())
	}
	sameFields(out, old)
	return out, nil
}

// sameFields takes old's account of who manages what where an update changes
// nothing but the times in it: it shall be seen to change nothing.
func sameFields(updated, old schemas.Object) {
	now, before := updated.GetManagedFields(), old.GetManagedFields()
	if len(now) != len(before) {
		return
	}
	for i := range now {
		n, b := now[i], before[i]
		n.Time, b.Time = nil, nil
		if !equality.Semantic.DeepEqual(n, b) {
			return
		}
	}
	updated.SetManagedFields(before)
	if !equality.Semantic.DeepEqual(updated, old) {
		updated.SetManagedFields(now)
	}
}

// fieldConverter finds the type of an object's fields by its kind.
type fieldConverter struct{ parser *typed.Parser }

// typeName is what fieldTypes calls a kind.
func typeName(gvk schema.GroupVersionKind) string {
	group, _, _ := strings.Cut(gvk.Group, ".")
	if group == "" {
		group = "core"
	}
	return "io.k8s.api." + group + "." + gvk.Version + "." + gvk.Kind
}

// ObjectToTyped implements managedfields.TypeConverter.
func (c fieldConverter) ObjectToTyped(o runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	gvk := o.GetObjectKind().GroupVersionKind()
	t := c.parser.Type(typeName(gvk))
	if !t.IsValid() {
		return nil, fmt.Errorf("the types of the fields of %s are not known", gvk)
	}
	if u, ok := o.(*unstructured.Unstructured); ok {
		return t.FromUnstructured(u.UnstructuredContent(), opts...)
	}
	return t.FromStructured(o, opts...)
}

// TypedToObject implements managedfields.TypeConverter.
func (c fieldConverter) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	m, ok := v.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("want an object, got %T", v.AsValue().Unstructured())
	}
	return &unstructured.Unstructured{Object: m}, nil
}

// oneVersion is what the library wants to know of versions: each of our kinds
// has one, and defaults are filled in afterwards.
type oneVersion struct{}

// Convert implements runtime.ObjectConvertor.
func (oneVersion) Convert(_, _, _ any) error { return fmt.Errorf("every kind has one version") }

// ConvertToVersion implements runtime.ObjectConvertor.
func (oneVersion) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

// ConvertFieldLabel implements runtime.ObjectConvertor.
func (oneVersion) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// Default implements runtime.ObjectDefaulter.
func (oneVersion) Default(runtime.Object) {}

// New implements runtime.ObjectCreater.
func (oneVersion) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	kind, ok := schemas.KindByGVK(gvk.GroupVersion().String(), gvk.Kind)
	if !ok {
		return nil, fmt.Errorf("no kind %s", gvk)
	}
	o := kind.New()
	o.GetObjectKind().SetGroupVersionKind(gvk)
	return o, nil
}
