package schemas

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// jsonSchemas are those that were asked for, by resource.
var jsonSchemas sync.Map // resource -> []byte

// JSONSchema describes what admission takes for a resource, as JSON Schema
// (draft 2020-12): types, required fields and enumerations as Kubernetes
// documents them, and what Gantry refuses of them, with the reason. What a
// schema cannot say (rules between two fields, names, ranges) is left to
// Validate. A null, which the decoder takes for a field that was not given, is
// described for times alone: tools write it there. The answer is shared and must not be changed; it fails where there
// is no such resource.
func JSONSchema(resource string) ([]byte, error) {
	if s, ok := jsonSchemas.Load(resource); ok {
		return s.([]byte), nil
	}
	k, ok := KindByResource(resource)
	if !ok {
		return nil, fmt.Errorf("there is no resource %q", resource)
	}
	b := schemaBuilder{d: describer{rules: rulesOf(resource)}, defs: map[string]any{}, names: map[string]string{}}
	data, err := json.Marshal(b.kind(k))
	if err != nil {
		return nil, fmt.Errorf("the schema of %s: %w", resource, err)
	}
	first, _ := jsonSchemas.LoadOrStore(resource, data)
	return first.([]byte), nil
}

// object is one JSON object of a schema.
type object = map[string]any

type schemaBuilder struct {
	d    describer
	defs object
	// names are those of defs by what they say, so that each is written once.
	names map[string]string
}

// mode says how the fields below a place are treated.
type mode int

const (
	// byTable looks each field up.
	byTable mode = iota
	// whole takes everything that the type has.
	whole
	// bySystem is whole, but requires nothing: users need not write it.
	bySystem
)

func (b *schemaBuilder) kind(k Kind) object {
	t := reflect.TypeOf(k.New()).Elem()
	s := b.structOf(typedField{t: t}, byTable)
	gvk := object{"group": k.GVK.Group, "version": k.GVK.Version, "kind": k.GVK.Kind}
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = k.GVK.Kind + " (" + k.GVK.GroupVersion().String() + ")"
	s["x-kubernetes-group-version-kind"] = []any{gvk}
	if k.Refused != "" {
		s["x-gantry-support"] = Refused.String()
		s["x-gantry-reason"] = k.Refused
		s["description"] = fmt.Sprintf("%s Gantry takes no %s yet: %s.", s["description"], k.GVK.Kind, k.Refused)
	}
	properties := s["properties"].(object)
	properties["apiVersion"].(object)["const"] = k.GVK.GroupVersion().String()
	properties["kind"].(object)["const"] = k.GVK.Kind
	required, _ := s["required"].([]string)
	for _, name := range []string{"apiVersion", "kind", "metadata"} {
		if !slices.Contains(required, name) {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	s["required"] = required
	s["$defs"] = b.defs
	return s
}

// structOf is the schema of a struct's own fields, to be named by define.
func (b *schemaBuilder) structOf(at typedField, m mode) object {
	t := elemOf(at.t)
	known := jsonFields(t)
	properties := make(object, len(known))
	var required []string
	for _, name := range slices.Sorted(maps.Keys(known)) {
		c, _ := b.d.child(at, name)
		p, needed := b.property(c, m)
		properties[name] = p
		if needed && m != bySystem {
			required = append(required, name)
		}
	}
	s := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	if doc := docOf(t)[""]; doc != "" {
		s["description"] = doc
	}
	return s
}

// property is a field's schema, and whether it has to be given.
func (b *schemaBuilder) property(at typedField, m mode) (object, bool) {
	f := b.d.describe(at)
	var s object
	if m == byTable {
		switch rule := b.d.rule(at); {
		case rule == nil || rule.Level == Supported && strings.HasSuffix(rule.Path, "[]"):
			s = b.value(at, at.t, byTable)
		case rule.Level == Refused:
			s = b.refused(at, rule)
		case rule.Level == System:
			s = b.value(at, at.t, bySystem)
			s["readOnly"] = true
		default:
			s = b.value(at, at.t, whole)
		}
		if rule := b.d.rule(at); rule != nil {
			limit(s, at.t, rule)
			if rule.Level != Supported {
				s["x-gantry-support"] = rule.Level.String()
			}
			if f.Reason != "" {
				s["x-gantry-reason"] = f.Reason
			}
		}
	} else {
		s = b.value(at, at.t, m)
	}
	b.annotate(s, at, f, m)
	return s, f.Required && (m != byTable || f.Level != Refused)
}

// annotate adds what is known of the field rather than of its type.
func (b *schemaBuilder) annotate(s object, at typedField, f Field, m mode) {
	doc := f.Description
	if m == byTable && f.Level == Refused && f.Reason != "" {
		doc = strings.TrimSpace("Not supported by Gantry: " + f.Reason + ". " + doc)
	}
	if doc != "" {
		s["description"] = doc
	}
	facts := factsOf(at.owner).Fields[at.name]
	set := func(key string, value any, given bool) {
		if given {
			s[key] = value
		}
	}
	set("default", facts.Default, facts.Default != nil && s["not"] == nil)
	set("x-kubernetes-list-type", facts.ListType, facts.ListType != "")
	set("x-kubernetes-list-map-keys", facts.ListMapKeys, len(facts.ListMapKeys) > 0)
	set("x-kubernetes-map-type", facts.MapType, facts.MapType != "")
	if field, ok := jsonFields(at.owner)[at.name]; ok {
		strategy, key := field.Tag.Get("patchStrategy"), field.Tag.Get("patchMergeKey")
		set("x-kubernetes-patch-strategy", strategy, strategy != "")
		set("x-kubernetes-patch-merge-key", key, key != "")
	}
}

// limit leaves a field the values that are supported.
func limit(s object, t reflect.Type, rule *FieldRule) {
	if len(rule.Values) == 0 {
		return
	}
	optional := t.Kind() != reflect.Pointer
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		if t.Kind() == reflect.Slice {
			s, optional = s["items"].(object), false
		}
		t = t.Elem()
	}
	var values []any
	for _, v := range rule.Values {
		switch t.Kind() {
		case reflect.Bool:
			values = append(values, v == "true")
		case reflect.Int32, reflect.Int64:
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				values = append(values, n)
			}
		default:
			values = append(values, v)
		}
	}
	// What is empty was not given, but where a pointer or an item tells.
	if optional && t.Kind() == reflect.String && !slices.Contains(rule.Values, "") {
		values = append(values, "")
	}
	s["enum"] = values
}

// refused takes only what counts as not given.
func (b *schemaBuilder) refused(at typedField, rule *FieldRule) object {
	t := at.t
	pointer := t.Kind() == reflect.Pointer
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Map:
		// Single keys may have rules of their own.
		properties := object{}
		for path, r := range b.d.rules {
			if key, ok := strings.CutPrefix(path, at.pattern+"."); ok && r != nil {
				p := b.value(at, t.Elem(), whole)
				if r.Level != Supported {
					p["x-gantry-support"], p["x-gantry-reason"] = r.Level.String(), r.Note
				}
				properties[key] = p
			}
		}
		return object{"type": "object", "properties": properties, "additionalProperties": false}
	case rule.EmptyOK || t.Kind() == reflect.Struct && !opaque(t) && !pointer:
		return object{"type": "object", "maxProperties": 0}
	case pointer || opaque(t):
		return object{"not": object{}}
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "maxItems": 0}
	}
	return object{"enum": []any{reflect.Zero(t).Interface()}}
}

// value is the schema of a type; at says where, for what is by the table.
func (b *schemaBuilder) value(at typedField, t reflect.Type, m mode) object {
	optional := false
	for t.Kind() == reflect.Pointer {
		t, optional = t.Elem(), true
	}
	if opaque(t) {
		return opaqueSchema(t)
	}
	switch t.Kind() {
	case reflect.Struct:
		return object{"$ref": "#/$defs/" + b.define(at, t, m)}
	case reflect.Slice:
		return object{"type": "array", "items": b.value(at, t.Elem(), m)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": b.value(at, t.Elem(), m)}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int32:
		return object{"type": "integer", "format": "int32", "minimum": math.MinInt32, "maximum": math.MaxInt32}
	case reflect.Int64, reflect.Int:
		return object{"type": "integer", "format": "int64"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number", "format": "double"}
	}
	s := object{"type": "string"}
	if enum := factsOf(t).Enum; len(enum) > 0 {
		values := slices.Clone(enum)
		if !optional && !slices.Contains(values, "") {
			values = append(values, "") // as if it were not given
		}
		s["enum"] = values
	}
	return s
}

// define names the schema of a struct and returns the name: the type's own, or
// with a number where the table tells two places of one type apart.
func (b *schemaBuilder) define(at typedField, t reflect.Type, m mode) string {
	s := b.structOf(typedField{name: at.name, pattern: at.pattern, t: at.t, owner: at.owner, above: at.above}, m)
	text, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("schemas: %s: %v", t, err))
	}
	base := definitionName(t)
	key := base + "\x00" + string(text)
	if name, ok := b.names[key]; ok {
		return name
	}
	name := base
	for i := 2; b.defs[name] != nil; i++ {
		name = base + "_" + strconv.Itoa(i)
	}
	b.defs[name], b.names[key] = s, name
	return name
}

// quantityPattern is Kubernetes' grammar of quantities.
const quantityPattern = `^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))?$`

// opaqueSchema is the JSON form of a type that has one of its own.
func opaqueSchema(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[resource.Quantity]():
		return object{"anyOf": []any{object{"type": "string", "pattern": quantityPattern}, object{"type": "number"}}, "x-kubernetes-int-or-string": true}
	case reflect.TypeFor[intstr.IntOrString]():
		return object{"anyOf": []any{object{"type": "integer"}, object{"type": "string"}}, "format": "int-or-string", "x-kubernetes-int-or-string": true}
	// Kubernetes' own tools write null for a time that is not set.
	case reflect.TypeFor[metav1.Time]():
		return object{"type": []string{"string", "null"}, "format": "date-time"}
	case reflect.TypeFor[metav1.MicroTime]():
		return object{"type": []string{"string", "null"}, "format": "date-time", "pattern": `\.[0-9]{6}(Z|[+-])`}
	case reflect.TypeFor[metav1.Duration]():
		return object{"type": "string"}
	case reflect.TypeFor[[]byte]():
		return object{"type": "string", "format": "byte", "contentEncoding": "base64"}
	case reflect.TypeFor[runtime.RawExtension]():
		return object{"x-kubernetes-preserve-unknown-fields": true}
	}
	return object{"type": "object"}
}
