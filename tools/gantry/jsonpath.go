package main

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/jsonpath"

	"gantry.dev/schemas"
)

func groupResource(k schemas.Kind) schema.GroupResource {
	return schema.GroupResource{Group: k.GVK.Group, Resource: k.Resource}
}

// fieldFinder compiles a JSONPath that finds values in a decoded object; what
// is missing is no error.
func fieldFinder(path string) (func(map[string]any) ([]any, error), error) {
	p := jsonpath.New("field").AllowMissingKeys(true)
	if err := p.Parse(relaxed(path)); err != nil {
		return nil, fmt.Errorf("error parsing jsonpath %s: %w", path, err)
	}
	return func(o map[string]any) ([]any, error) {
		found, err := p.FindResults(o)
		if err != nil {
			return nil, fmt.Errorf("jsonpath %s: %w", path, err)
		}
		var out []any
		for _, values := range found {
			for _, v := range values {
				if v.IsValid() && v.CanInterface() {
					out = append(out, v.Interface())
				}
			}
		}
		return out, nil
	}, nil
}
