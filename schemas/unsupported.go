package schemas

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Unsupported walks the fields that an object sets and compares them with the
// table of fields: what Gantry does not do is an error with the field's path
// and the reason, what has no effect is a warning. It takes defaulted objects
// and others alike.
func Unsupported(o Object) (refused field.ErrorList, warnings []string) {
	w := fieldWalk{rules: rulesOf(KindOf(o).Resource)}
	w.walk(reflect.ValueOf(o).Elem(), nil, "")
	switch o := o.(type) {
	case *corev1.Pod:
		w.podSpec(&o.Spec, field.NewPath("spec"))
	case *corev1.Service:
		w.service(o)
	default:
		if t := PodTemplateOf(o); t != nil {
			w.podSpec(&t.Spec, podTemplatePath(o).Child("spec"))
		}
	}
	return w.refused, w.warnings
}

// podSpec refuses what depends on two fields at once.
func (w *fieldWalk) podSpec(s *corev1.PodSpec, at *field.Path) {
	if s.HostNetwork {
		return
	}
	for i, c := range s.Containers {
		for j, p := range c.Ports {
			if p.HostPort != 0 {
				w.refuse(at.Child("containers").Index(i).Child("ports").Index(j).Child("hostPort"),
					"host ports are not built yet except with hostNetwork; use a Service")
			}
		}
	}
}

func (w *fieldWalk) service(s *corev1.Service) {
	at := field.NewPath("spec")
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		w.refuse(at.Child("clusterIP"), `headless Services ("None") are not built yet; leave it empty to be given an address`)
	}
	if len(s.Spec.Selector) == 0 && (s.Spec.Type == "" || s.Spec.Type == corev1.ServiceTypeClusterIP) {
		w.refuse(at.Child("selector"), "Services without a selector are not built yet; select the pods that answer")
	}
}

// ruleIndexes are the tables by resource, each made when it is first asked for.
var ruleIndexes sync.Map // resource -> map[string]*FieldRule

// rulesOf is the table of a resource by path, with the paths that lead to a
// rule: these have nil. It is shared and must not be changed.
func rulesOf(resource string) map[string]*FieldRule {
	if m, ok := ruleIndexes.Load(resource); ok {
		return m.(map[string]*FieldRule)
	}
	rules := FieldRules(resource)
	m := make(map[string]*FieldRule, 2*len(rules))
	for i := range rules {
		r := &rules[i]
		m[r.Path] = r
		for p := parentPath(r.Path); p != ""; p = parentPath(p) {
			if _, ok := m[p]; !ok {
				m[p] = nil // a way to rules below, nothing by itself
			}
		}
	}
	first, _ := ruleIndexes.LoadOrStore(resource, m)
	return first.(map[string]*FieldRule)
}

// parentPath drops the last step of a pattern: a name or a [].
func parentPath(p string) string {
	if rest, ok := strings.CutSuffix(p, "[]"); ok {
		return rest
	}
	i := strings.LastIndexByte(p, '.')
	if i < 0 {
		return ""
	}
	return p[:i]
}

type fieldWalk struct {
	rules    map[string]*FieldRule
	refused  field.ErrorList
	warnings []string
}

func (w *fieldWalk) refuse(at *field.Path, reason string) {
	if reason == "" {
		reason = "this field is not built yet"
	}
	w.refused = append(w.refused, field.Forbidden(at, "not supported by Gantry: "+reason+"; see docs/supported-fields.md"))
}

// walk visits a value whose own pattern leads to rules further down.
func (w *fieldWalk) walk(v reflect.Value, at *field.Path, pattern string) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			w.walk(v.Elem(), at, pattern)
		}
	case reflect.Slice:
		for i := range v.Len() {
			w.visit(v.Index(i), at.Index(i), pattern+"[]")
		}
	case reflect.Map:
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			w.visit(v.MapIndex(k), at.Key(k.String()), pattern+"."+k.String())
		}
	case reflect.Struct:
		t := v.Type()
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" || !f.IsExported() {
				continue
			}
			if f.Anonymous && name == "" {
				w.walk(v.Field(i), at, pattern)
				continue
			}
			w.visit(v.Field(i), child(at, name), childPattern(pattern, name))
		}
	}
}

func child(at *field.Path, name string) *field.Path {
	if at == nil {
		return field.NewPath(name)
	}
	return at.Child(name)
}

func childPattern(pattern, name string) string {
	if pattern == "" {
		return name
	}
	return pattern + "." + name
}

func (w *fieldWalk) visit(v reflect.Value, at *field.Path, pattern string) {
	if !isSet(v) {
		return
	}
	rule, leads := w.rules[pattern]
	if !leads {
		// Below a refused parent that lists exceptions, the parent's reason serves.
		w.refuse(at, w.reasonAbove(pattern))
		return
	}
	if rule == nil {
		w.walk(v, at, pattern)
		return
	}
	switch rule.Level {
	case Supported:
		w.allow(v, at, rule)
	case Ignored:
		w.warnings = append(w.warnings, fmt.Sprintf("%s has no effect: %s", at, rule.Note))
	case Refused:
		switch {
		case rule.EmptyOK && empty(v):
		case v.Kind() == reflect.Map && w.hasBelow(pattern):
			w.walk(v, at, pattern)
		default:
			w.refuse(at, rule.Note)
		}
	}
}

func (w *fieldWalk) reasonAbove(pattern string) string {
	for p := parentPath(pattern); p != ""; p = parentPath(p) {
		if r := w.rules[p]; r != nil {
			return r.Note
		}
	}
	return ""
}

func (w *fieldWalk) hasBelow(pattern string) bool {
	for p := range w.rules {
		if strings.HasPrefix(p, pattern+".") {
			return true
		}
	}
	return false
}

func (w *fieldWalk) allow(v reflect.Value, at *field.Path, rule *FieldRule) {
	if len(rule.Values) == 0 {
		return
	}
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	got := fmt.Sprint(v.Interface())
	for _, ok := range rule.Values {
		if got == ok {
			return
		}
	}
	reason := rule.Note
	if reason == "" {
		reason = "other values are not built yet"
	}
	w.refuse(at, fmt.Sprintf("%q: %s (supported: %s)", got, reason, strings.Join(rule.Values, ", ")))
}

// isSet says that a manifest gave the field: a pointer that is there counts
// even where it points to a zero, an empty list does not.
func isSet(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return !v.IsNil()
	case reflect.Slice, reflect.Map:
		return v.Len() > 0
	}
	return !v.IsZero()
}

// empty says that a value holds nothing at all, at any depth.
func empty(v reflect.Value) bool {
	data, err := json.Marshal(v.Interface())
	return err == nil && (string(data) == "{}" || string(data) == "null" || string(data) == "[]")
}
