package main

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
)

// sortRows orders by a JSONPath of one value; those that lack it come first.
// Numbers count as numbers and quantities as quantities.
func sortRows(rows []row, path string) error {
	if path == "" || len(rows) == 0 {
		return nil
	}
	find, err := fieldFinder(path)
	if err != nil {
		return err
	}
	type keyed struct {
		row row
		key any
	}
	all := make([]keyed, len(rows))
	found := false
	for i, r := range rows {
		o, err := loose(r.raw)
		if err != nil {
			return err
		}
		values, err := find(o.Object)
		if err != nil {
			return err
		}
		all[i].row = r
		if len(values) > 0 {
			all[i].key, found = values[0], true
		}
	}
	if !found {
		return fmt.Errorf("couldn't find any field with path %q in the list of objects", relaxed(path))
	}
	slices.SortStableFunc(all, func(x, y keyed) int { return compareValues(x.key, y.key) })
	for i := range all {
		rows[i] = all[i].row
	}
	return nil
}

func compareValues(x, y any) int {
	if x == nil || y == nil {
		return cmp.Compare(b2i(x != nil), b2i(y != nil))
	}
	if a, ok := number(x); ok {
		if b, ok := number(y); ok {
			return cmp.Compare(a, b)
		}
	}
	a, b := fmt.Sprint(x), fmt.Sprint(y)
	p, perr := resource.ParseQuantity(a)
	q, qerr := resource.ParseQuantity(b)
	if perr == nil && qerr == nil {
		return p.Cmp(q)
	}
	return cmp.Compare(a, b)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}
