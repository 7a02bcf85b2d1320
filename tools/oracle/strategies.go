package main

import (
	"k8s.io/apiserver/pkg/registry/rest"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/limitrange"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/podtemplate"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
)

// strategy is what the server runs on the objects of one resource.
type strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
}

// strategies of the kinds that Gantry has, by resource.
var strategies = map[string]strategy{
	"configmaps":               configmap.Strategy,
	"secrets":                  secret.Strategy,
	"serviceaccounts":          serviceaccount.Strategy,
	"events":                   event.Strategy,
	"resourcequotas":           resourcequota.Strategy,
	"limitranges":              limitrange.Strategy,
	"persistentvolumes":        persistentvolume.Strategy,
	"persistentvolumeclaims":   persistentvolumeclaim.Strategy,
	"podtemplates":             podtemplate.Strategy,
	"replicationcontrollers":   replicationcontroller.Strategy,
	"namespaces":               namespace.Strategy,
	"nodes":                    node.Strategy,
	"pods":                     pod.Strategy,
	"services":                 service.Strategy,
	"controllerrevisions":      controllerrevision.Strategy,
	"daemonsets":               daemonset.Strategy,
	"deployments":              deployment.Strategy,
	"replicasets":              replicaset.Strategy,
	"statefulsets":             statefulset.Strategy,
	"cronjobs":                 cronjob.Strategy,
	"jobs":                     job.Strategy,
	"endpointslices":           endpointslice.Strategy,
	"networkpolicies":          networkpolicy.Strategy,
	"poddisruptionbudgets":     poddisruptionbudget.Strategy,
	"horizontalpodautoscalers": horizontalpodautoscaler.Strategy,
	"roles":                    role.Strategy,
	"clusterroles":             clusterrole.Strategy,
	"rolebindings":             rolebinding.Strategy,
	"clusterrolebindings":      clusterrolebinding.Strategy,
	"priorityclasses":          priorityclass.Strategy,
	"storageclasses":           storageclass.Strategy,
	"leases":                   lease.Strategy,
}

// kinds are the definitions of the same kinds in the API's description.
var kinds = []string{
	"io.k8s.api.core.v1.Namespace",
	"io.k8s.api.core.v1.Node",
	"io.k8s.api.core.v1.Pod",
	"io.k8s.api.core.v1.Service",
	"io.k8s.api.core.v1.ConfigMap",
	"io.k8s.api.core.v1.Secret",
	"io.k8s.api.core.v1.ServiceAccount",
	"io.k8s.api.core.v1.Event",
	"io.k8s.api.core.v1.ResourceQuota",
	"io.k8s.api.core.v1.LimitRange",
	"io.k8s.api.core.v1.PersistentVolume",
	"io.k8s.api.core.v1.PersistentVolumeClaim",
	"io.k8s.api.core.v1.PodTemplate",
	"io.k8s.api.core.v1.ReplicationController",
	"io.k8s.api.apps.v1.Deployment",
	"io.k8s.api.apps.v1.ReplicaSet",
	"io.k8s.api.apps.v1.StatefulSet",
	"io.k8s.api.apps.v1.DaemonSet",
	"io.k8s.api.apps.v1.ControllerRevision",
	"io.k8s.api.batch.v1.Job",
	"io.k8s.api.batch.v1.CronJob",
	"io.k8s.api.discovery.v1.EndpointSlice",
	"io.k8s.api.networking.v1.NetworkPolicy",
	"io.k8s.api.policy.v1.PodDisruptionBudget",
	"io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
	"io.k8s.api.rbac.v1.Role",
	"io.k8s.api.rbac.v1.ClusterRole",
	"io.k8s.api.rbac.v1.RoleBinding",
	"io.k8s.api.rbac.v1.ClusterRoleBinding",
	"io.k8s.api.scheduling.v1.PriorityClass",
	"io.k8s.api.storage.v1.StorageClass",
	"io.k8s.api.coordination.v1.Lease",
}
