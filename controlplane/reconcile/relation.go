package reconcile

import (
	"maps"
	"slices"

	"gantry.dev/bus"
	"gantry.dev/schemas"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Names of the indexes that the controllers look things up in.
const (
	// IndexOwner finds dependents by the UID of any of their owners.
	IndexOwner = "owner"
	// IndexLabel finds pods and endpoint slices by LabelValue.
	IndexLabel = "label"
	// IndexOrphan finds pods and replica sets that nothing controls, by LabelValue.
	IndexOrphan = "orphan"
	// IndexSelector finds Services by the LabelValue of one pair of their
	// selector; every pod that a Service selects has that pair.
	IndexSelector = "selector"
)

// Indexes are those that the store must be opened with for the controllers.
func Indexes() map[string]bus.IndexFunc {
	return map[string]bus.IndexFunc{
		IndexOwner:    indexOwner,
		IndexLabel:    indexLabel,
		IndexOrphan:   indexOrphan,
		IndexSelector: indexSelector,
	}
}

// LabelValue is what IndexLabel, IndexOrphan and IndexSelector are asked for.
func LabelValue(resource, namespace, key, value string) string {
	return resource + "/" + namespace + "/" + key + "=" + value
}

func indexOwner(o schemas.Object) []string {
	refs := o.GetOwnerReferences()
	if len(refs) == 0 {
		return nil
	}
	out := make([]string, 0, len(refs))
	for _, r := range refs {
		if !slices.Contains(out, string(r.UID)) {
			out = append(out, string(r.UID))
		}
	}
	return out
}

func indexLabel(o schemas.Object) []string {
	switch r := schemas.KindOf(o).Resource; r {
	case schemas.Pods, schemas.EndpointSlices:
		return labelValues(r, o)
	}
	return nil
}

func indexOrphan(o schemas.Object) []string {
	switch r := schemas.KindOf(o).Resource; r {
	case schemas.Pods, schemas.ReplicaSets:
		if metav1.GetControllerOfNoCopy(o) == nil {
			return labelValues(r, o)
		}
	}
	return nil
}

func indexSelector(o schemas.Object) []string {
	s, ok := o.(*corev1.Service)
	if !ok || len(s.Spec.Selector) == 0 {
		return nil
	}
	// One pair is enough to find it, so the first in order stands for all.
	key := slices.Min(slices.Collect(maps.Keys(s.Spec.Selector)))
	return []string{LabelValue(schemas.Services, s.Namespace, key, s.Spec.Selector[key])}
}

func labelValues(resource string, o schemas.Object) []string {
	out := make([]string, 0, len(o.GetLabels()))
	for k, v := range o.GetLabels() {
		out = append(out, LabelValue(resource, o.GetNamespace(), k, v))
	}
	return out
}

// Dependents are the records of one resource that name owner as their
// controller, ordered by name.
func Dependents(view bus.View, resource string, owner types.UID) []schemas.Object {
	all := view.ByIndex(IndexOwner, string(owner))
	return slices.DeleteFunc(all, func(o schemas.Object) bool {
		ref := metav1.GetControllerOfNoCopy(o)
		return ref == nil || ref.UID != owner || schemas.KindOf(o).Resource != resource
	})
}

// Orphans are the records of one resource in a namespace that nothing controls
// and that match, ordered by name. Only for a selector that demands no exact
// label does it look through the whole namespace.
func Orphans(view bus.View, resource, namespace string, selector labels.Selector) []schemas.Object {
	key, value, ok := exactPair(selector)
	var found []schemas.Object
	if ok {
		found = view.ByIndex(IndexOrphan, LabelValue(resource, namespace, key, value))
	} else {
		found = view.List(resource, namespace)
	}
	return slices.DeleteFunc(found, func(o schemas.Object) bool {
		return metav1.GetControllerOfNoCopy(o) != nil || !selector.Matches(labels.Set(o.GetLabels()))
	})
}

// exactPair is a label that everything which the selector matches must have.
// Where several are demanded, the template hash is the rarest.
func exactPair(selector labels.Selector) (key, value string, ok bool) {
	reqs, selectable := selector.Requirements()
	if !selectable {
		return "", "", false
	}
	for _, r := range reqs {
		v, exact := selector.RequiresExactMatch(r.Key())
		if exact && (!ok || r.Key() == "pod-template-hash") {
			key, value, ok = r.Key(), v, true
		}
	}
	return key, value, ok
}

// ControllerKey is the Key of the object that controls o, if that is of the
// given kind; empty otherwise.
func ControllerKey(o schemas.Object, kind string) string {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil || ref.Kind != kind {
		return ""
	}
	return Key(o.GetNamespace(), ref.Name)
}

// WithoutOwner is a copy of the references without those to one owner.
func WithoutOwner(refs []metav1.OwnerReference, owner types.UID) []metav1.OwnerReference {
	var out []metav1.OwnerReference
	for _, r := range refs {
		if r.UID != owner {
			out = append(out, r)
		}
	}
	return out
}
