package admission

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func slicesSort(lists ...[]string) {
	for _, l := range lists {
		slices.Sort(l)
	}
}

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
