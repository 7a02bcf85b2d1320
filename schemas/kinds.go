package schemas

import (
	"fmt"
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
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
	Namespaces               = "namespaces"
	Nodes                    = "nodes"
	Pods                     = "pods"
	Services                 = "services"
	ConfigMaps               = "configmaps"
	Secrets                  = "secrets"
	ServiceAccounts          = "serviceaccounts"
	Events                   = "events"
	ResourceQuotas           = "resourcequotas"
	LimitRanges              = "limitranges"
	PersistentVolumes        = "persistentvolumes"
	PersistentVolumeClaims   = "persistentvolumeclaims"
	PodTemplates             = "podtemplates"
	ReplicationControllers   = "replicationcontrollers"
	Deployments              = "deployments"
	ReplicaSets              = "replicasets"
	StatefulSets             = "statefulsets"
	DaemonSets               = "daemonsets"
	ControllerRevisions      = "controllerrevisions"
	Jobs                     = "jobs"
	CronJobs                 = "cronjobs"
	EndpointSlices           = "endpointslices"
	NetworkPolicies          = "networkpolicies"
	PodDisruptionBudgets     = "poddisruptionbudgets"
	HorizontalPodAutoscalers = "horizontalpodautoscalers"
	Roles                    = "roles"
	ClusterRoles             = "clusterroles"
	RoleBindings             = "rolebindings"
	ClusterRoleBindings      = "clusterrolebindings"
	PriorityClasses          = "priorityclasses"
	StorageClasses           = "storageclasses"
	Leases                   = "leases"
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
	// Refused says why admission takes no object of the kind: nothing acts on it
	// yet. It is the kind's one switch: empty, the kind is served.
	Refused string
}

// Kinds is every kind that Gantry knows. Those that are Refused are decoded,
// defaulted and validated like the others, and then refused by name.
var Kinds = []Kind{
	{GVK: corev1.SchemeGroupVersion.WithKind("Namespace"), Resource: Namespaces, Singular: "namespace", Short: []string{"ns"}, New: func() Object { return &corev1.Namespace{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Node"), Resource: Nodes, Singular: "node", Short: []string{"no"}, SystemOnly: true, New: func() Object { return &corev1.Node{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Resource: Pods, Singular: "pod", Short: []string{"po"}, Namespaced: true, New: func() Object { return &corev1.Pod{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Service"), Resource: Services, Singular: "service", Short: []string{"svc"}, Namespaced: true, New: func() Object { return &corev1.Service{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("ConfigMap"), Resource: ConfigMaps, Singular: "configmap", Short: []string{"cm"}, Namespaced: true, New: func() Object { return &corev1.ConfigMap{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Secret"), Resource: Secrets, Singular: "secret", Namespaced: true, Refused: "nothing keeps Secrets encrypted yet, and no pod can use one", New: func() Object { return &corev1.Secret{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("ServiceAccount"), Resource: ServiceAccounts, Singular: "serviceaccount", Short: []string{"sa"}, Namespaced: true, Refused: "pods get no identity yet", New: func() Object { return &corev1.ServiceAccount{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("Event"), Resource: Events, Singular: "event", Short: []string{"ev"}, Namespaced: true, SystemOnly: true, New: func() Object { return &corev1.Event{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("ResourceQuota"), Resource: ResourceQuotas, Singular: "resourcequota", Short: []string{"quota"}, Namespaced: true, Refused: "quotas are not enforced yet", New: func() Object { return &corev1.ResourceQuota{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("LimitRange"), Resource: LimitRanges, Singular: "limitrange", Short: []string{"limits"}, Namespaced: true, Refused: "limit ranges are not enforced yet", New: func() Object { return &corev1.LimitRange{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("PersistentVolume"), Resource: PersistentVolumes, Singular: "persistentvolume", Short: []string{"pv"}, Refused: "volumes are not built yet", New: func() Object { return &corev1.PersistentVolume{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"), Resource: PersistentVolumeClaims, Singular: "persistentvolumeclaim", Short: []string{"pvc"}, Namespaced: true, Refused: "volumes are not built yet", New: func() Object { return &corev1.PersistentVolumeClaim{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("PodTemplate"), Resource: PodTemplates, Singular: "podtemplate", Namespaced: true, New: func() Object { return &corev1.PodTemplate{} }},
	{GVK: corev1.SchemeGroupVersion.WithKind("ReplicationController"), Resource: ReplicationControllers, Singular: "replicationcontroller", Short: []string{"rc"}, Namespaced: true, Refused: "its controller is not built yet; use a Deployment", New: func() Object { return &corev1.ReplicationController{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("Deployment"), Resource: Deployments, Singular: "deployment", Short: []string{"deploy"}, Namespaced: true, New: func() Object { return &appsv1.Deployment{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), Resource: ReplicaSets, Singular: "replicaset", Short: []string{"rs"}, Namespaced: true, New: func() Object { return &appsv1.ReplicaSet{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("StatefulSet"), Resource: StatefulSets, Singular: "statefulset", Short: []string{"sts"}, Namespaced: true, Refused: "its controller is not built yet", New: func() Object { return &appsv1.StatefulSet{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("DaemonSet"), Resource: DaemonSets, Singular: "daemonset", Short: []string{"ds"}, Namespaced: true, Refused: "its controller is not built yet", New: func() Object { return &appsv1.DaemonSet{} }},
	{GVK: appsv1.SchemeGroupVersion.WithKind("ControllerRevision"), Resource: ControllerRevisions, Singular: "controllerrevision", Namespaced: true, New: func() Object { return &appsv1.ControllerRevision{} }},
	{GVK: batchv1.SchemeGroupVersion.WithKind("Job"), Resource: Jobs, Singular: "job", Namespaced: true, Refused: "its controller is not built yet", New: func() Object { return &batchv1.Job{} }},
	{GVK: batchv1.SchemeGroupVersion.WithKind("CronJob"), Resource: CronJobs, Singular: "cronjob", Short: []string{"cj"}, Namespaced: true, Refused: "its controller is not built yet", New: func() Object { return &batchv1.CronJob{} }},
	{GVK: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), Resource: EndpointSlices, Singular: "endpointslice", Namespaced: true, SystemOnly: true, New: func() Object { return &discoveryv1.EndpointSlice{} }},
	{GVK: networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"), Resource: NetworkPolicies, Singular: "networkpolicy", Short: []string{"netpol"}, Namespaced: true, Refused: "network policies are not enforced yet", New: func() Object { return &networkingv1.NetworkPolicy{} }},
	{GVK: policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), Resource: PodDisruptionBudgets, Singular: "poddisruptionbudget", Short: []string{"pdb"}, Namespaced: true, Refused: "disruption budgets are not enforced yet", New: func() Object { return &policyv1.PodDisruptionBudget{} }},
	{GVK: autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"), Resource: HorizontalPodAutoscalers, Singular: "horizontalpodautoscaler", Short: []string{"hpa"}, Namespaced: true, Refused: "its controller is not built yet", New: func() Object { return &autoscalingv2.HorizontalPodAutoscaler{} }},
	{GVK: rbacv1.SchemeGroupVersion.WithKind("Role"), Resource: Roles, Singular: "role", Namespaced: true, Refused: "roles grant nothing yet", New: func() Object { return &rbacv1.Role{} }},
	{GVK: rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), Resource: ClusterRoles, Singular: "clusterrole", Refused: "roles grant nothing yet", New: func() Object { return &rbacv1.ClusterRole{} }},
	{GVK: rbacv1.SchemeGroupVersion.WithKind("RoleBinding"), Resource: RoleBindings, Singular: "rolebinding", Namespaced: true, Refused: "roles grant nothing yet", New: func() Object { return &rbacv1.RoleBinding{} }},
	{GVK: rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"), Resource: ClusterRoleBindings, Singular: "clusterrolebinding", Refused: "roles grant nothing yet", New: func() Object { return &rbacv1.ClusterRoleBinding{} }},
	{GVK: schedulingv1.SchemeGroupVersion.WithKind("PriorityClass"), Resource: PriorityClasses, Singular: "priorityclass", Short: []string{"pc"}, Refused: "the scheduler knows no priorities yet", New: func() Object { return &schedulingv1.PriorityClass{} }},
	{GVK: storagev1.SchemeGroupVersion.WithKind("StorageClass"), Resource: StorageClasses, Singular: "storageclass", Short: []string{"sc"}, Refused: "volumes are not built yet", New: func() Object { return &storagev1.StorageClass{} }},
	{GVK: coordinationv1.SchemeGroupVersion.WithKind("Lease"), Resource: Leases, Singular: "lease", Namespaced: true, New: func() Object { return &coordinationv1.Lease{} }},
}

// KindByResource finds a kind by its plural.
func KindByResource(resource string) (Kind, bool) {
	k, ok := kindByResource[resource]
	return k, ok
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

// kindByType finds a kind by the Go type of its objects.
var kindByType = func() map[reflect.Type]Kind {
	out := make(map[reflect.Type]Kind, len(Kinds))
	for _, k := range Kinds {
		out[reflect.TypeOf(k.New())] = k
	}
	return out
}()

// kindByResource finds a kind by its plural.
var kindByResource = func() map[string]Kind {
	out := make(map[string]Kind, len(Kinds))
	for _, k := range Kinds {
		out[k.Resource] = k
	}
	return out
}()

// KindOf finds the kind of a typed object by its Go type, whatever its
// TypeMeta says. It panics on a type that Kinds does not list: that is a bug,
// not input.
func KindOf(o Object) Kind {
	k, ok := kindByType[reflect.TypeOf(o)]
	if !ok {
		panic(fmt.Sprintf("schemas: no kind for %T", o))
	}
	return k
}

// KeyOf is the ObjectKey of a typed object.
func KeyOf(o Object) string {
	return ObjectKey(KindOf(o).Resource, o.GetNamespace(), o.GetName())
}
