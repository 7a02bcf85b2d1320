package schemas

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// explain walks a JSON document beside the Go type that it did not fit and
// names every misfit by its full path. The decoder itself stops at the first
// wrong type and gives no path for values that decode themselves, such as
// quantities; it runs only after the decoder has refused.
func explain(raw []byte, t reflect.Type, at lines) []Problem {
	w := misfits{}
	w.value(raw, t, "", at)
	return w.found
}

type misfits struct {
	found []Problem
}

func (w *misfits) add(path string, at lines, format string, args ...any) {
	w.found = append(w.found, Problem{Path: strings.TrimPrefix(path, "."), Line: at.line(), Detail: fmt.Sprintf(format, args...)})
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func (w *misfits) value(raw []byte, t reflect.Type, path string, at lines) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		if t == reflect.TypeFor[resource.Quantity]() {
			if json.Unmarshal(raw, new(resource.Quantity)) != nil {
				w.add(path, at, "invalid value %s: want a quantity such as 2, 500m or 64Mi", short(raw))
			}
			return
		}
		if err := json.Unmarshal(raw, reflect.New(t).Interface()); err != nil {
			w.add(path, at, "invalid value %s: %s", short(raw), strings.TrimPrefix(err.Error(), "json: "))
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		w.object(raw, t, path, at)
	case reflect.Map:
		members, ok := w.members(raw, path, at, "an object")
		if !ok {
			return
		}
		for _, m := range members {
			w.value(m.value, t.Elem(), path+"["+m.name+"]", at.child(m.name, 0))
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			w.leaf(raw, t, path, at, "a base64 string")
			return
		}
		var items []json.RawMessage
		if raw[0] != '[' || json.Unmarshal(raw, &items) != nil {
			w.add(path, at, "want a list, got %s", kindOfJSON(raw))
			return
		}
		for i, item := range items {
			w.value(item, t.Elem(), path+"["+strconv.Itoa(i)+"]", at.child("", i))
		}
	case reflect.Bool:
		w.leaf(raw, t, path, at, "true or false")
	case reflect.String:
		w.leaf(raw, t, path, at, "a string")
	case reflect.Interface:
	default:
		w.leaf(raw, t, path, at, "a whole number ("+t.Kind().String()+")")
	}
}

func (w *misfits) leaf(raw []byte, t reflect.Type, path string, at lines, want string) {
	if json.Unmarshal(raw, reflect.New(t).Interface()) == nil {
		return
	}
	hint := ""
	if t.Kind() == reflect.String && raw[0] != '{' && raw[0] != '[' {
		hint = "; put it in quotes"
	}
	w.add(path, at, "want %s, got %s%s", want, kindOfJSON(raw), hint)
}

func (w *misfits) object(raw []byte, t reflect.Type, path string, at lines) {
	members, ok := w.members(raw, path, at, "an object")
	if !ok {
		return
	}
	fields := jsonFields(t)
	for _, m := range members {
		f, ok := fields[m.name]
		here := at.child(m.name, 0)
		if !ok {
			w.add(path+"."+m.name, here, "unknown field%s", near(m.name, fields))
			continue
		}
		w.value(m.value, f.Type, path+"."+m.name, here)
	}
}

type member struct {
	name  string
	value json.RawMessage
}

// members reads an object's members in order and reports those that are there twice.
func (w *misfits) members(raw []byte, path string, at lines, want string) ([]member, bool) {
	if raw[0] != '{' {
		w.add(path, at, "want %s, got %s", want, kindOfJSON(raw))
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, false
	}
	var out []member
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, false
		}
		name, _ := tok.(string)
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, false
		}
		if seen[name] {
			w.add(path+"."+name, at.child(name, 0), "given twice")
		}
		seen[name] = true
		out = append(out, member{name, v})
	}
	return out, true
}

// jsonFields maps JSON names to the fields of a struct, embedded ones included.
func jsonFields(t reflect.Type) map[string]reflect.StructField {
	out := map[string]reflect.StructField{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			for n, g := range jsonFields(f.Type) {
				out[n] = g
			}
			continue
		}
		if name == "-" || name == "" || !f.IsExported() {
			continue
		}
		out[name] = f
	}
	return out
}

// near suggests the field that was probably meant.
func near(name string, fields map[string]reflect.StructField) string {
	best, bestDistance := "", 3
	names := make([]string, 0, len(fields))
	for n := range fields {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if strings.EqualFold(n, name) {
			return fmt.Sprintf("; did you mean %q?", n)
		}
		if d := distance(n, name, bestDistance); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	if best == "" || len(name) < 4 {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance is the edit distance of two names, or limit where it is no less.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(prev[j]+cost, prev[j+1]+1, next[j]+1)
		}
		prev = next
	}
	return min(prev[len(b)], limit)
}

func kindOfJSON(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "the string " + short(raw)
	case 't', 'f':
		return string(raw)
	}
	return "the number " + short(raw)
}

func short(raw []byte) string {
	if len(raw) > 60 {
		return string(raw[:57]) + "..."
	}
	return string(raw)
}
