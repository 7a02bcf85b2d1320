package schemas

import (
	"reflect"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIResourceList is the list of all resources, in the form of Kubernetes'
// discovery with one field more.
type APIResourceList struct {
	metav1.TypeMeta `json:",inline"`
	Resources       []APIResource `json:"resources"`
}

// APIResource is one resource or subresource.
type APIResource struct {
	metav1.APIResource `json:",inline"`
	// Refused says why nothing but the schema is served yet; Verbs is empty then.
	Refused string `json:"refused,omitempty"`
	// Doc is one sentence about the kind.
	Doc string `json:"doc,omitempty"`
}

// APIResources lists every resource that Gantry knows with what can be done with
// it: those that are served, and those that are refused with the reason. The
// verbs are those of the bus. The list is shared and must not be changed.
var APIResources = sync.OnceValue(func() APIResourceList {
	out := APIResourceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}}
	for _, k := range Kinds {
		r := APIResource{Refused: k.Refused, Doc: firstSentence(docOf(reflect.TypeOf(k.New()).Elem())[""])}
		r.APIResource = metav1.APIResource{Name: k.Resource, SingularName: k.Singular, Namespaced: k.Namespaced,
			Group: k.GVK.Group, Version: k.GVK.Version, Kind: k.GVK.Kind, ShortNames: k.Short, Verbs: verbsOf(k)}
		out.Resources = append(out.Resources, r)
		if k.Refused == "" {
			out.Resources = append(out.Resources, subresourcesOf(k)...)
		}
	}
	return out
})

// verbsOf are the verbs that users may call on a kind's objects.
func verbsOf(k Kind) metav1.Verbs {
	verbs := metav1.Verbs{}
	if k.Refused != "" {
		return verbs
	}
	read := metav1.Verbs{VerbGet, VerbList, VerbWatch}
	remove := metav1.Verbs{VerbDelete, VerbDeleteCollection}
	switch {
	case k.Resource == Nodes:
		// The agent makes them; people label, cordon and remove them.
		return append(append(read, VerbUpdate, VerbPatch), remove...)
	case k.SystemOnly:
		return append(read, remove...)
	}
	verbs = append(append(metav1.Verbs{VerbCreate, VerbApply, VerbUpdate, VerbPatch}, read...), remove...)
	if k.Resource == Pods {
		verbs = append(verbs, VerbLog, VerbExec, VerbAttach, VerbPortForward, VerbCopy, VerbSend, VerbRecv)
	}
	return verbs
}

func subresourcesOf(k Kind) []APIResource {
	var out []APIResource
	add := func(name, group, version, kind string, verbs ...string) {
		out = append(out, APIResource{APIResource: metav1.APIResource{Name: k.Resource + "/" + name, Namespaced: k.Namespaced,
			Group: group, Version: version, Kind: kind, Verbs: verbs}})
	}
	if hasStatus(k) {
		verbs := []string{VerbGet}
		if !k.SystemOnly {
			verbs = append(verbs, VerbUpdate, VerbPatch)
		}
		add(SubStatus, k.GVK.Group, k.GVK.Version, k.GVK.Kind, verbs...)
	}
	if hasScale(k) {
		add(SubScale, "autoscaling", "v1", "Scale", VerbGet, VerbUpdate, VerbPatch)
	}
	switch k.Resource {
	case Pods:
		add(SubBinding, "", "v1", "Binding", VerbCreate)
		add(SubEviction, "policy", "v1", "Eviction", VerbCreate)
		add(SubMetrics, "metrics.k8s.io", "v1beta1", "PodMetrics", VerbGet, VerbList)
	case Nodes:
		add(SubMetrics, "metrics.k8s.io", "v1beta1", "NodeMetrics", VerbGet, VerbList)
	}
	return out
}

func hasStatus(k Kind) bool {
	_, ok := jsonFields(reflect.TypeOf(k.New()).Elem())["status"]
	return ok
}

// hasScale says that a kind has a number of replicas that people set.
func hasScale(k Kind) bool {
	switch k.Resource {
	case Deployments, ReplicaSets, StatefulSets, ReplicationControllers:
		return true
	}
	return false
}

func firstSentence(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	if i := strings.Index(text, ". "); i >= 0 {
		return text[:i+1]
	}
	return text
}
