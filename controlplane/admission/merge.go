package admission

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
)

// An apply merges three readings of an object: original, what the last apply
// said; modified, what this one says; current, what is stored. What modified
// says holds; what original said and modified does not is taken out; the rest
// of current (defaults, status, other writers' fields) stays. Lists merge by
// the keys that Kubernetes' types declare in their struct tags.
//
// It is written here rather than taken from apimachinery's strategicpatch
// because that goes by way of a patch with directives that is never sent, and
// takes ports of one number and two protocols for one.

// mergeApply returns the merged object; t is the Go type of the kind. None of
// the three is changed.
func mergeApply(original, modified, current map[string]any, t reflect.Type) map[string]any {
	out := maps.Clone(current)
	if out == nil {
		out = map[string]any{}
	}
	for key := range original {
		if _, kept := modified[key]; !kept {
			delete(out, key)
		}
	}
	for key, value := range modified {
		f := fieldOf(t, key)
		switch v := value.(type) {
		case nil:
			delete(out, key)
		case map[string]any:
			was, _ := current[key].(map[string]any)
			if f.retainKeys {
				was = restrict(was, v)
			}
			before, _ := original[key].(map[string]any)
			out[key] = mergeApply(before, v, was, f.t)
		case []any:
			was, _ := current[key].([]any)
			before, _ := original[key].([]any)
			switch {
			case f.mergeKey != "":
				out[key] = mergeObjects(before, v, was, f)
			case f.merge:
				out[key] = mergeScalars(before, v, was)
			default:
				out[key] = v
			}
		default:
			out[key] = v
		}
	}
	return out
}

// mergeObjects merges a list whose items are told apart by a key: the items of
// modified in their order, then those that only others put there.
func mergeObjects(original, modified, current []any, f fieldInfo) []any {
	was, before := map[string]map[string]any{}, map[string]map[string]any{}
	for _, item := range current {
		if m, ok := item.(map[string]any); ok {
			was[f.identity(m)] = m
		}
	}
	for _, item := range original {
		if m, ok := item.(map[string]any); ok {
			before[f.identity(m)] = m
		}
	}
	out := make([]any, 0, len(modified))
	said := map[string]bool{}
	for _, item := range modified {
		m, ok := item.(map[string]any)
		if !ok {
			out = append(out, item)
			continue
		}
		id := f.identity(m)
		said[id] = true
		old := was[id]
		if f.retainKeys {
			old = restrict(old, m)
		}
		out = append(out, mergeApply(before[id], m, old, f.t))
	}
	for _, item := range current {
		m, ok := item.(map[string]any)
		if !ok {
			continue
		}
		id := f.identity(m)
		if _, mine := before[id]; !mine && !said[id] {
			out = append(out, m)
		}
	}
	return out
}

func mergeScalars(original, modified, current []any) []any {
	before, said := map[string]bool{}, map[string]bool{}
	for _, v := range original {
		before[fmt.Sprint(v)] = true
	}
	out := append([]any{}, modified...)
	for _, v := range modified {
		said[fmt.Sprint(v)] = true
	}
	for _, v := range current {
		if s := fmt.Sprint(v); !said[s] && !before[s] {
			out = append(out, v)
		}
	}
	return out
}

// restrict drops from m what like does not have: the fields of a union that
// the manifest no longer chooses.
func restrict(m, like map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		if _, ok := like[k]; ok {
			out[k] = v
		}
	}
	return out
}

// fieldInfo is what a struct field's tags say of merging.
type fieldInfo struct {
	t          reflect.Type // of the value, or of a list's items; nil where unknown
	mergeKey   string
	merge      bool
	retainKeys bool
	protocol   bool // items are told apart by their protocol, too
}

// identity tells one item of a list from another.
func (f fieldInfo) identity(item map[string]any) string {
	id := fmt.Sprint(item[f.mergeKey])
	if !f.protocol {
		return id
	}
	p, ok := item["protocol"].(string)
	if !ok || p == "" {
		p = "TCP"
	}
	return id + "/" + p
}

func fieldOf(t reflect.Type, name string) fieldInfo {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return fieldInfo{}
	}
	switch t.Kind() {
	case reflect.Map:
		return fieldInfo{t: t.Elem()}
	case reflect.Struct:
	default:
		return fieldInfo{}
	}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && tag == "" {
			if info := fieldOf(f.Type, name); info.t != nil {
				return info
			}
			continue
		}
		if tag != name {
			continue
		}
		info := fieldInfo{t: f.Type, mergeKey: f.Tag.Get("patchMergeKey")}
		for s := range strings.SplitSeq(f.Tag.Get("patchStrategy"), ",") {
			info.merge = info.merge || s == "merge"
			info.retainKeys = info.retainKeys || s == "retainKeys"
		}
		for info.t.Kind() == reflect.Pointer {
			info.t = info.t.Elem()
		}
		if info.t.Kind() == reflect.Slice {
			info.t = info.t.Elem()
			if info.t.Kind() == reflect.Struct {
				_, info.protocol = info.t.FieldByName("Protocol")
			}
		}
		return info
	}
	return fieldInfo{}
}

// mergePatch applies a JSON merge patch (RFC 7386). Neither is changed.
func mergePatch(current, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	c, _ := current.(map[string]any)
	out := maps.Clone(c)
	if out == nil {
		out = map[string]any{}
	}
	for key, v := range p {
		if v == nil {
			delete(out, key)
			continue
		}
		out[key] = mergePatch(out[key], v)
	}
	return out
}
