package schemas

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is any API object: one of the Kubernetes types that Kinds lists.
type Object interface {
	metav1.Object
	runtime.Object
}

// Resources of the kinds that Gantry has.
const (
	Namespaces     = "namespaces"
	Nodes          = "nodes"
	Pods           = "pods"
	Services       = "services"
	Events         = "events"
	Deployments    = "deployments"
	ReplicaSets    = "replicasets"
	EndpointSlices = "endpointslices"
)

// Kind says what Gantry knows of one API kind.
type Kind struct {
	GVK        schema.GroupVersionKind
	Resource   string // plural, the first token of its keys
	Singular   string
	Short      []string // kubectl's short names
	Namespaced bool
	// New returns an empty object of the kind.
	New func() Object
	// SystemOnly kinds are written by Gantry alone; users may read and delete them.
	SystemOnly bool
}

// Kinds is every kind that admission accepts; any other is refused by name.
var Kinds = []Kind{
	{GVK: corev1.SchemeGroupVersion.WithKind("Namespace"), Resource: Namespaces, Singular: "namespace", Short: []string{"ns"}, New: func() Object { return &corev1.Namespace{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Node"), Resource: Nodes, Singular: "node", Short: []string{"no"}, SystemOnly: true, New: func() Object { return &corev1.Node{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Resource: Pods, Singular: "pod", Short: []string{"po"}, Namespaced: true, New: func() Object { return &corev1.Pod{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Service"), Resource: Services, Singular: "service", Short: []string{"svc"}, Namespaced: true, New: func() Object { return &corev1.Service{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Event"), Resource: Events, Singular: "event", Short: []string{"ev"}, Namespaced: true, SystemOnly: true, New: func() Object { return &corev1.Event{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("Deployment"), Resource: Deployments, Singular: "deployment", Short: []string{"deploy"}, Namespaced: true, New: func() Object { return &appsv1.Deployment{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), Resource: ReplicaSets, Singular: "replicaset", Short: []string{"rs"}, Namespaced: true, New: func() Object { return &appsv1.ReplicaSet{} }},
	{GVK: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), Resource: EndpointSlices, Singular: "endpointslice", Namespaced: true, SystemOnly: true, New: func() Object { return &discoveryv1.EndpointSlice{} }},
}

// KindByResource finds a kind by its plural.
func KindByResource(resource string) (Kind, bool) {
	for _, k := range Kinds {
		if k.Resource == resource {
			return k, true
		}
	}
	return Kind{}, false
}

// KindByGVK finds a kind by the apiVersion and kind of a manifest.
func KindByGVK(apiVersion, kind string) (Kind, bool) {
	for _, k := range Kinds {
		if k.GVK.Kind == kind && k.GVK.GroupVersion().String() == apiVersion {
			return k, true
		}
	}
	return Kind{}, false
}

// KindByAlias finds a kind by what a person types: plural, singular, short
// name or the kind itself, in lower case.
func KindByAlias(alias string) (Kind, bool) {
	for _, k := range Kinds {
		if alias == k.Resource || alias == k.Singular || alias == k.GVK.Kind ||
			alias == k.Resource+"."+k.GVK.Group {
			return k, true
		}
		for _, s := range k.Short {
			if alias == s {
				return k, true
			}
		}
	}
	return Kind{}, false
}

// KindOf finds the kind of a typed object by its Go type, whatever its
// TypeMeta says. It panics on a type that Kinds does not list: that is a bug,
// not input.
func KindOf(o Object) Kind {
	switch o.(type) {
	case *corev1.Namespace:
		return mustKind(Namespaces)
	case *corev1.Node:
		return mustKind(Nodes)
	case *corev1.Pod:
		return mustKind(Pods)
	case *corev1.Service:
		return mustKind(Services)
	case *corev1.Event:
		return mustKind(Events)
	case *appsv1.Deployment:
		return mustKind(Deployments)
	case *appsv1.ReplicaSet:
		return mustKind(ReplicaSets)
	case *discoveryv1.EndpointSlice:
		return mustKind(EndpointSlices)
	}
	panic("schemas: no kind for this type")
}

func mustKind(resource string) Kind {
	k, ok := KindByResource(resource)
	if !ok {
		panic("schemas: no kind " + resource)
	}
	return k
}

// KeyOf is the ObjectKey of a typed object.
func KeyOf(o Object) string {
	return ObjectKey(KindOf(o).Resource, o.GetNamespace(), o.GetName())
}
