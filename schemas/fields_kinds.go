package schemas

// templateAt are the rules of a pod template that stands at a path.
func templateAt(path string) []FieldRule {
	return join(under(path+".metadata.", templateRules()), under(path+".spec.", podSpecRules()))
}

// fieldRules is the one table of what Gantry makes of every field, by
// resource. Admission, docs/supported-fields.md, the JSON Schemas and what
// `gantry explain` says are all read from it. For a kind that is refused it
// says what will be supported once the kind is.
var fieldRules = map[string]func() []FieldRule{
	Namespaces: func() []FieldRule { return join(statusRules(), system("spec.finalizers")) },
	Nodes: func() []FieldRule {
		return join(statusRules(), []FieldRule{
			{Path: "spec.unschedulable", Level: Supported, Note: "the one field of spec that users write: cordon and uncordon"},
			no("spec.taints", "taints are not built yet; cordon with spec.unschedulable"),
			no("spec.podPreemptionPolicy", "priorities are not built yet"),
		}, system("spec.podCIDR", "spec.podCIDRs", "spec.providerID", "spec.externalID", "spec.configSource"))
	},
	Pods: func() []FieldRule { return join(statusRules(), under("spec.", podSpecRules())) },
	Services: func() []FieldRule {
		return join(statusRules(),
			yes("spec.ports[].name", "spec.ports[].port", "spec.ports[].targetPort", "spec.selector",
				"spec.publishNotReadyAddresses"),
			[]FieldRule{
				only("spec.ports[].protocol", "", "TCP", "UDP"),
				warn("spec.ports[].appProtocol", "a hint that nothing reads yet"),
				no("spec.ports[].nodePort", "node ports are not built yet"),
				only("spec.type", "NodePort, LoadBalancer and ExternalName Services are not built yet", "ClusterIP"),
				{Path: "spec.clusterIP", Level: Supported, Note: `an address of the service range, or empty to be given one; headless ("None") is not built yet`},
				{Path: "spec.clusterIPs", Level: Supported, Note: "one address, the same as clusterIP"},
				only("spec.sessionAffinity", "session affinity is not built yet", "None"),
				no("spec.sessionAffinityConfig", "session affinity is not built yet"),
				only("spec.internalTrafficPolicy", "node-local traffic is not built yet", "Cluster"),
				only("spec.ipFamilies[]", "IPv6 is not built yet", "IPv4"),
				only("spec.ipFamilyPolicy", "IPv6 is not built yet", "SingleStack", "PreferDualStack"),
				no("spec.externalIPs", "external addresses are not built yet"),
				no("spec.externalName", "ExternalName Services are not built yet"),
				no("spec.externalTrafficPolicy", "traffic from outside the cluster is not built yet"),
				no("spec.loadBalancerIP", "LoadBalancer Services are not built yet"),
				no("spec.loadBalancerSourceRanges", "LoadBalancer Services are not built yet"),
				no("spec.loadBalancerClass", "LoadBalancer Services are not built yet"),
				no("spec.allocateLoadBalancerNodePorts", "LoadBalancer Services are not built yet"),
				no("spec.healthCheckNodePort", "LoadBalancer Services are not built yet"),
				no("spec.trafficDistribution", "topology-aware routing is not built yet"),
			})
	},
	Deployments: func() []FieldRule {
		return join(statusRules(),
			yes("spec.replicas", "spec.selector", "spec.strategy", "spec.minReadySeconds",
				"spec.revisionHistoryLimit", "spec.progressDeadlineSeconds", "spec.paused"),
			templateAt("spec.template"))
	},
	ReplicaSets: func() []FieldRule {
		return join(statusRules(), yes("spec.replicas", "spec.selector", "spec.minReadySeconds"), templateAt("spec.template"))
	},
	ReplicationControllers: func() []FieldRule {
		return join(statusRules(), yes("spec.replicas", "spec.selector", "spec.minReadySeconds"), templateAt("spec.template"))
	},
	StatefulSets: func() []FieldRule {
		return join(statusRules(),
			yes("spec.replicas", "spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.updateStrategy",
				"spec.revisionHistoryLimit", "spec.minReadySeconds", "spec.ordinals"),
			[]FieldRule{
				no("spec.volumeClaimTemplates", noVolumes),
				only("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", noVolumes, "Retain"),
				only("spec.persistentVolumeClaimRetentionPolicy.whenScaled", noVolumes, "Retain"),
			},
			templateAt("spec.template"))
	},
	DaemonSets: func() []FieldRule {
		return join(statusRules(), yes("spec.selector", "spec.updateStrategy", "spec.minReadySeconds", "spec.revisionHistoryLimit"),
			templateAt("spec.template"))
	},
	Jobs: func() []FieldRule { return join(statusRules(), jobSpecAt("spec")) },
	CronJobs: func() []FieldRule {
		return join(statusRules(),
			yes("spec.schedule", "spec.timeZone", "spec.startingDeadlineSeconds", "spec.concurrencyPolicy", "spec.suspend",
				"spec.successfulJobsHistoryLimit", "spec.failedJobsHistoryLimit"),
			under("spec.jobTemplate.metadata.", templateRules()),
			jobSpecAt("spec.jobTemplate.spec"))
	},
	PodTemplates:        func() []FieldRule { return join(objectRules(), templateAt("template")) },
	ControllerRevisions: func() []FieldRule { return join(objectRules(), yes("data", "revision")) },
	Events: func() []FieldRule {
		return join(objectRules(), yes("involvedObject", "reason", "message", "source", "firstTimestamp", "lastTimestamp",
			"count", "type", "eventTime", "series", "action", "related", "reportingComponent", "reportingInstance"))
	},
	EndpointSlices: func() []FieldRule { return join(objectRules(), yes("addressType", "endpoints", "ports")) },
	ConfigMaps:     func() []FieldRule { return join(objectRules(), yes("data", "binaryData", "immutable")) },
	Secrets:        func() []FieldRule { return join(objectRules(), yes("data", "stringData", "type", "immutable")) },
	ServiceAccounts: func() []FieldRule {
		return join(objectRules(), yes("secrets", "imagePullSecrets", "automountServiceAccountToken"))
	},
	ResourceQuotas:           func() []FieldRule { return join(statusRules(), yes("spec")) },
	LimitRanges:              func() []FieldRule { return join(objectRules(), yes("spec")) },
	PersistentVolumes:        func() []FieldRule { return join(statusRules(), yes("spec")) },
	PersistentVolumeClaims:   func() []FieldRule { return join(statusRules(), yes("spec")) },
	NetworkPolicies:          func() []FieldRule { return join(objectRules(), yes("spec")) },
	PodDisruptionBudgets:     func() []FieldRule { return join(statusRules(), yes("spec")) },
	HorizontalPodAutoscalers: func() []FieldRule { return join(statusRules(), yes("spec")) },
	Roles:                    func() []FieldRule { return join(objectRules(), yes("rules")) },
	ClusterRoles:             func() []FieldRule { return join(objectRules(), yes("rules", "aggregationRule")) },
	RoleBindings:             func() []FieldRule { return join(objectRules(), yes("subjects", "roleRef")) },
	ClusterRoleBindings:      func() []FieldRule { return join(objectRules(), yes("subjects", "roleRef")) },
	PriorityClasses: func() []FieldRule {
		return join(objectRules(), yes("value", "globalDefault", "description", "preemptionPolicy"))
	},
	StorageClasses: func() []FieldRule {
		return join(objectRules(), yes("provisioner", "parameters", "reclaimPolicy", "mountOptions",
			"allowVolumeExpansion", "volumeBindingMode", "allowedTopologies"))
	},
	Leases: func() []FieldRule {
		return join(objectRules(),
			yes("spec.holderIdentity", "spec.leaseDurationSeconds", "spec.acquireTime", "spec.renewTime", "spec.leaseTransitions"),
			[]FieldRule{
				no("spec.strategy", "coordinated leader election is not built; Kubernetes has it switched off as well"),
				no("spec.preferredHolder", "coordinated leader election is not built; Kubernetes has it switched off as well"),
			})
	},
}

func jobSpecAt(path string) []FieldRule {
	return join(under(path+".",
		yes("parallelism", "completions", "activeDeadlineSeconds", "podFailurePolicy", "successPolicy", "backoffLimit",
			"backoffLimitPerIndex", "maxFailedIndexes", "selector", "manualSelector", "ttlSecondsAfterFinished",
			"completionMode", "suspend", "podReplacementPolicy")),
		[]FieldRule{no(path+".managedBy", "there is one Job controller"), no(path+".scheduling", "gang scheduling is not built yet")},
		templateAt(path+".template"))
}

// FieldRules is the table for one resource, in the order of its rows; nil where
// there is no such resource.
func FieldRules(resource string) []FieldRule {
	if rows, ok := fieldRules[resource]; ok {
		return rows()
	}
	return nil
}
