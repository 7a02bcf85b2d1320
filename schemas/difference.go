package schemas

import (
	"reflect"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
)

// FirstDifference is the path of the first field in which two values of one
// type differ, or empty where they mean the same (nil and empty lists do).
func FirstDifference(a, b any) string {
	return strings.TrimPrefix(differ(reflect.ValueOf(a), reflect.ValueOf(b), ""), ".")
}

func differ(a, b reflect.Value, path string) string {
	if equality.Semantic.DeepEqual(a.Interface(), b.Interface()) {
		return ""
	}
	switch a.Kind() {
	case reflect.Pointer:
		if !a.IsNil() && !b.IsNil() {
			return differ(a.Elem(), b.Elem(), path)
		}
	case reflect.Slice:
		if a.Len() == b.Len() {
			for i := range a.Len() {
				if d := differ(a.Index(i), b.Index(i), path+"["+strconv.Itoa(i)+"]"); d != "" {
					return d
				}
			}
		}
	case reflect.Struct:
		if reflect.PointerTo(a.Type()).Implements(unmarshaler) {
			return path
		}
		for i := range a.NumField() {
			f := a.Type().Field(i)
			if !f.IsExported() {
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			at := path
			if name != "" {
				at += "." + name
			}
			if d := differ(a.Field(i), b.Field(i), at); d != "" {
				return d
			}
		}
	}
	return path
}
