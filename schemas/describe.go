package schemas

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// String is the level as docs, schemas and `gantry explain` write it.
func (l Level) String() string {
	switch l {
	case Supported:
		return "supported"
	case Ignored:
		return "no effect"
	case System:
		return "system"
	}
	return "refused"
}

// Explanation says what a field is, and what Gantry makes of it.
type Explanation struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	// Refused says why no object of the kind is taken; empty where they are.
	Refused string `json:"refused,omitempty"`
	Field
}

// Field is one field of a kind, or the kind itself (its Name is empty then).
type Field struct {
	Name string `json:"name,omitempty"`
	// Path is the field from the object's root, with [] for the items of lists.
	Path string `json:"path,omitempty"`
	// Type is as people write it: "string", "[]Container", "map[string]Quantity".
	Type        string `json:"type"`
	Description string `json:"description,omitempty"`
	Required    bool   `json:"required,omitempty"`
	Level       Level  `json:"-"`
	// Support is Level in words.
	Support string `json:"support"`
	// Reason says why a field is refused or has no effect, or remarks on it.
	Reason string `json:"reason,omitempty"`
	// Enum is every value that Kubernetes knows, Values what Gantry takes; both
	// are empty where any value will do.
	Enum   []string `json:"enum,omitempty"`
	Values []string `json:"values,omitempty"`
	// OnlyEmpty says of a refused field that it may be there with nothing in it.
	OnlyEmpty bool `json:"onlyEmpty,omitempty"`
	// Fields are those of an object, of a list's items or of a map's values, by name.
	Fields []Field `json:"fields,omitempty"`
}

// Explain describes the kind of a resource or, with a path of names such as
// spec, containers, image, one of its fields. The fields below are one level
// deep, or with recursive all of them. The error names what there is not.
func Explain(resource string, path []string, recursive bool) (Explanation, error) {
	k, ok := KindByResource(resource)
	if !ok {
		return Explanation{}, fmt.Errorf("there is no resource %q", resource)
	}
	e := Explanation{Kind: k.GVK.Kind, APIVersion: k.GVK.GroupVersion().String(), Refused: k.Refused}
	d := describer{rules: rulesOf(resource)}
	at := typedField{t: reflect.TypeOf(k.New()).Elem()}
	for i, name := range path {
		name = strings.TrimSuffix(name, "[]")
		next, ok := d.child(at, name)
		if !ok {
			parent := resource
			if i > 0 {
				parent += "." + strings.Join(path[:i], ".")
			}
			elem := elemOf(at.t)
			if opaque(elem) || elem.Kind() != reflect.Struct {
				return e, fmt.Errorf("%s is of type %s: there is no field %q below it", parent, typeName(at.t), name)
			}
			have := jsonFields(elem)
			return e, fmt.Errorf("%s has no field %q%s; it has %s", parent, name, near(name, have), strings.Join(slices.Sorted(maps.Keys(have)), ", "))
		}
		at = next
	}
	e.Field = d.describe(at)
	depth := 1
	if recursive {
		depth = maxDepth
	}
	e.Fields = d.fields(at, depth)
	return e, nil
}

// describer reads what is known of the fields of one kind.
type describer struct{ rules map[string]*FieldRule }

// typedField is a place in a kind: its type, and the rule that holds there.
type typedField struct {
	name    string
	pattern string // of the value itself: a list's, not its items'
	t       reflect.Type
	owner   reflect.Type // the struct that has the field; nil for the kind
	// above is the rule of a place further up that holds for all below it.
	above *FieldRule
}

// elemOf is the type of what a list, map or pointer holds, at any depth.
func elemOf(t reflect.Type) reflect.Type {
	for !opaque(t) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			t = t.Elem()
			continue
		}
		break
	}
	return t
}

// opaque types have a JSON form of their own.
func opaque(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[resource.Quantity](), reflect.TypeFor[intstr.IntOrString](), reflect.TypeFor[metav1.Time](),
		reflect.TypeFor[metav1.MicroTime](), reflect.TypeFor[metav1.Duration](), reflect.TypeFor[metav1.FieldsV1](),
		reflect.TypeFor[runtime.RawExtension](), reflect.TypeFor[[]byte]():
		return true
	}
	return false
}

// typeName is a type as people write it.
func typeName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[[]byte]():
		return "base64"
	case t == reflect.TypeFor[runtime.RawExtension]():
		return "Object"
	case opaque(t):
		return t.Name()
	}
	switch t.Kind() {
	case reflect.Slice:
		return "[]" + typeName(t.Elem())
	case reflect.Map:
		return "map[string]" + typeName(t.Elem())
	case reflect.Struct:
		return t.Name()
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Float32, reflect.Float64:
		return "number"
	}
	return "integer"
}

// itemPattern is where the fields of a value's elements are: behind a [] for
// each list, and the value's own place for what is no list.
func itemPattern(pattern string, t reflect.Type) string {
	for !opaque(t) {
		switch t.Kind() {
		case reflect.Slice:
			pattern += "[]"
		case reflect.Pointer, reflect.Map:
		default:
			return pattern
		}
		t = t.Elem()
	}
	return pattern
}

// child is a field of a place, through lists and maps.
func (d describer) child(at typedField, name string) (typedField, bool) {
	elem := elemOf(at.t)
	if opaque(elem) || elem.Kind() != reflect.Struct {
		return typedField{}, false
	}
	f, ok := jsonFields(elem)[name]
	if !ok {
		return typedField{}, false
	}
	above := at.above
	if r := d.rules[at.pattern]; r != nil {
		above = r
	}
	return typedField{name: name, pattern: childPattern(itemPattern(at.pattern, at.t), name), t: f.Type, owner: elem, above: above}, true
}

// rule is what holds for a place: its own row of the table, or the nearest one
// above it. Nil leads to rows further down.
func (d describer) rule(at typedField) *FieldRule {
	if r := d.rules[at.pattern]; r != nil {
		return r
	}
	if items := itemPattern(at.pattern, at.t); d.rules[items] != nil {
		return d.rules[items]
	}
	if at.above != nil {
		// What is refused with exceptions, or limited to values, says so at its own
		// row; below it there is nothing to choose.
		r := *at.above
		r.Values, r.EmptyOK = nil, false
		return &r
	}
	if _, leads := d.rules[at.pattern]; leads || at.pattern == "" {
		return nil
	}
	return &FieldRule{Path: at.pattern}
}

func (d describer) describe(at typedField) Field {
	f := Field{Name: at.name, Path: at.pattern, Type: typeName(at.t), Level: Supported}
	if r := d.rule(at); r != nil {
		f.Level, f.Reason, f.Values, f.OnlyEmpty = r.Level, r.Note, r.Values, r.EmptyOK
		if r.Level == Refused && r.Note == "" {
			f.Reason = "this field is not built yet"
		}
	}
	f.Support = f.Level.String()
	if at.owner == nil {
		f.Description = docOf(at.t)[""]
		return f
	}
	f.Description = docOf(fieldOwner(at.owner, at.name))[at.name]
	facts := factsOf(at.owner)
	f.Required = slices.Contains(facts.Required, at.name)
	f.Enum = factsOf(elemOf(at.t)).Enum
	return f
}

// fields are those below a place, depth levels deep.
func (d describer) fields(at typedField, depth int) []Field {
	if depth == 0 {
		return nil
	}
	elem := elemOf(at.t)
	if opaque(elem) || elem.Kind() != reflect.Struct {
		return nil
	}
	var out []Field
	for _, name := range slices.Sorted(maps.Keys(jsonFields(elem))) {
		c, _ := d.child(at, name)
		f := d.describe(c)
		f.Fields = d.fields(c, depth-1)
		out = append(out, f)
	}
	return out
}

// docOf is what Kubernetes' own types say of themselves: the type's text under
// the empty name, a field's under its own.
func docOf(t reflect.Type) map[string]string {
	if d, ok := reflect.Zero(t).Interface().(interface{ SwaggerDoc() map[string]string }); ok {
		return d.SwaggerDoc()
	}
	return nil
}

// fieldOwner is the struct that declares a field: itself, or one that it embeds.
func fieldOwner(t reflect.Type, name string) reflect.Type {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && tag == "" {
			if _, has := jsonFields(f.Type)[name]; has {
				return fieldOwner(f.Type, name)
			}
		}
	}
	return t
}
