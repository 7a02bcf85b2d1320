package schemas

// Level says what Gantry does with a field that a manifest sets.
type Level int

// The levels. A field that the table does not name is Refused.
const (
	// Refused fields stop the object at admission.
	Refused Level = iota
	// Supported fields do what Kubernetes documents.
	Supported
	// Ignored fields are harmless to leave out: they are kept and warned about.
	Ignored
	// System fields are written by Gantry; what a manifest says is dropped silently.
	System
)

// FieldRule is one row of the table of fields.
type FieldRule struct {
	// Path is the field from the object's root: "spec.containers[].image". []
	// stands for every item of a list; a key of a map follows a dot. A rule holds
	// for everything below its path, too.
	Path  string
	Level Level
	// Values limits a Supported field to these; any other value is refused.
	Values []string
	// EmptyOK lets a Refused field be present as long as nothing is in it.
	EmptyOK bool
	// Note is the reason of a refusal or limit, or a remark for the docs.
	Note string
}

func yes(paths ...string) []FieldRule {
	var out []FieldRule
	for _, p := range paths {
		out = append(out, FieldRule{Path: p, Level: Supported})
	}
	return out
}

func only(path, note string, values ...string) FieldRule {
	return FieldRule{Path: path, Level: Supported, Values: values, Note: note}
}

func no(path, note string) FieldRule { return FieldRule{Path: path, Level: Refused, Note: note} }

func warn(path, note string) FieldRule { return FieldRule{Path: path, Level: Ignored, Note: note} }

func system(paths ...string) []FieldRule {
	var out []FieldRule
	for _, p := range paths {
		out = append(out, FieldRule{Path: p, Level: System})
	}
	return out
}

func join(parts ...[]FieldRule) []FieldRule {
	var out []FieldRule
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// under moves rules below a path, so that a Pod's fields are written once.
func under(prefix string, rules []FieldRule) []FieldRule {
	out := make([]FieldRule, len(rules))
	for i, r := range rules {
		r.Path = prefix + r.Path
		out[i] = r
	}
	return out
}

// objectRules hold for every kind.
func objectRules() []FieldRule {
	return join(
		yes("apiVersion", "kind",
			"metadata.name", "metadata.generateName", "metadata.namespace",
			"metadata.labels", "metadata.annotations", "metadata.finalizers", "metadata.ownerReferences",
			"metadata.uid", "metadata.resourceVersion"),
		system("metadata.selfLink", "metadata.generation", "metadata.creationTimestamp",
			"metadata.deletionTimestamp", "metadata.deletionGracePeriodSeconds", "metadata.managedFields"),
	)
}

// statusRules hold for every kind that has a status.
func statusRules() []FieldRule {
	return join(objectRules(), system("status"))
}

// templateRules hold for the metadata of a pod template, of which Kubernetes
// itself uses no more.
func templateRules() []FieldRule {
	return join(
		yes("labels", "annotations"),
		system("creationTimestamp"),
		[]FieldRule{
			warn("name", "a pod's name comes from its owner"),
			warn("generateName", "a pod's name comes from its owner"),
			warn("namespace", "a pod lives in its owner's namespace"),
			warn("finalizers", "not taken from a template"),
			warn("ownerReferences", "a pod's owner is the one that made it"),
			warn("managedFields", "not taken from a template"),
			no("uid", notAnObject),
			no("resourceVersion", notAnObject),
			no("generation", notAnObject),
			no("selfLink", notAnObject),
			no("deletionTimestamp", notAnObject),
			no("deletionGracePeriodSeconds", notAnObject),
		},
	)
}

const (
	notAnObject = "a template is no object; each pod gets its own"

	noVolumes  = "volumes are not built yet"
	noAccounts = "service accounts are not built yet; pods get no token"
	noWindows  = "nodes run Linux"
	noSELinux  = "SELinux is not built yet"
)

func probeRules() []FieldRule {
	return join(
		yes("httpGet", "tcpSocket", "exec",
			"initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"),
		[]FieldRule{
			no("terminationGracePeriodSeconds", "a readiness probe ends nothing; Kubernetes refuses it as well"),
			no("grpc", "gRPC probes are not built yet; use httpGet, tcpSocket or exec"),
		},
	)
}

func containerRules() []FieldRule {
	return join(
		yes("name", "image", "imagePullPolicy", "command", "args", "workingDir",
			"env[].name", "env[].value",
			"ports[].name", "ports[].containerPort", "ports[].hostPort",
			"resources.requests.cpu", "resources.requests.memory",
			"resources.limits.cpu", "resources.limits.memory",
			"terminationMessagePath", "stdin", "stdinOnce", "tty",
			"securityContext.runAsUser", "securityContext.runAsGroup", "securityContext.runAsNonRoot",
			"securityContext.privileged", "securityContext.allowPrivilegeEscalation",
			"securityContext.capabilities.add", "securityContext.capabilities.drop",
			"securityContext.readOnlyRootFilesystem"),
		[]FieldRule{
			only("terminationMessagePolicy", "", "File", "FallbackToLogsOnError"),
			only("ports[].protocol", "", "TCP", "UDP"),
			no("ports[].hostIP", "host ports on one address are not built yet"),
			only("env[].valueFrom.fieldRef.apiVersion", "", "v1"),
			only("env[].valueFrom.fieldRef.fieldPath", "other fields of the pod are not built yet",
				"metadata.name", "metadata.namespace", "metadata.uid", "status.podIP", "spec.nodeName", "status.hostIP"),
			no("env[].valueFrom.resourceFieldRef", "write the value instead"),
			no("env[].valueFrom.configMapKeyRef", "pods cannot use ConfigMaps yet; write the value instead"),
			no("env[].valueFrom.secretKeyRef", "pods cannot use Secrets yet; write the value instead"),
			no("env[].valueFrom.fileKeyRef", noVolumes),
			no("envFrom", "pods cannot use ConfigMaps and Secrets yet; use env"),
			warn("resources.requests.ephemeral-storage", "disk use is not accounted for yet"),
			warn("resources.limits.ephemeral-storage", "disk use is not limited yet"),
			no("resources.requests", "only cpu and memory (and ephemeral-storage, without effect) are known"),
			no("resources.limits", "only cpu and memory (and ephemeral-storage, without effect) are known"),
			no("resources.claims", "dynamic resource allocation is not built yet"),
			no("resizePolicy", "resizing a running pod is not built yet"),
			no("restartPolicy", "restart policies of single containers are not built yet; use spec.restartPolicy of the pod"),
			no("restartPolicyRules", "restart policies of single containers are not built yet"),
			no("volumeMounts", noVolumes),
			no("volumeDevices", noVolumes),
			no("livenessProbe", "liveness probes are not built yet; readinessProbe is"),
			no("startupProbe", "startup probes are not built yet; readinessProbe with initialDelaySeconds is"),
			{Path: "lifecycle", EmptyOK: true, Note: "postStart and preStop hooks are not built yet"},
			only("securityContext.seccompProfile.type", "profiles from files are not built yet", "RuntimeDefault", "Unconfined"),
			no("securityContext.seccompProfile.localhostProfile", "profiles from files are not built yet"),
			only("securityContext.procMount", "", "Default"),
			no("securityContext.seLinuxOptions", noSELinux),
			no("securityContext.windowsOptions", noWindows),
			only("securityContext.appArmorProfile.type", "AppArmor is not built yet", "Unconfined"),
			no("securityContext.appArmorProfile.localhostProfile", "AppArmor is not built yet"),
		},
		under("readinessProbe.", probeRules()),
	)
}

func podSpecRules() []FieldRule {
	return join(
		under("containers[].", containerRules()),
		yes("restartPolicy", "terminationGracePeriodSeconds", "nodeName", "nodeSelector", "hostNetwork", "hostname",
			"securityContext.runAsUser", "securityContext.runAsGroup", "securityContext.runAsNonRoot",
			"securityContext.supplementalGroups"),
		[]FieldRule{
			only("securityContext.seccompProfile.type", "profiles from files are not built yet", "RuntimeDefault", "Unconfined"),
			no("securityContext.seccompProfile.localhostProfile", "profiles from files are not built yet"),
			only("securityContext.supplementalGroupsPolicy", "", "Merge"),
			no("securityContext.fsGroup", noVolumes+"; use supplementalGroups"),
			no("securityContext.fsGroupChangePolicy", noVolumes),
			no("securityContext.sysctls", "sysctls are not built yet"),
			no("securityContext.seLinuxOptions", noSELinux),
			no("securityContext.seLinuxChangePolicy", noSELinux),
			no("securityContext.windowsOptions", noWindows),
			only("securityContext.appArmorProfile.type", "AppArmor is not built yet", "Unconfined"),
			no("securityContext.appArmorProfile.localhostProfile", "AppArmor is not built yet"),
			only("dnsPolicy", "cluster DNS is not built yet: both give the node's own resolver", "ClusterFirst", "Default"),
			only("schedulerName", "there is one scheduler", "default-scheduler"),
			only("serviceAccountName", noAccounts, "default"),
			only("serviceAccount", noAccounts, "default"),
			only("automountServiceAccountToken", noAccounts, "false"),
			only("shareProcessNamespace", "each container has its own process namespace", "false"),
			only("enableServiceLinks", "kept as Kubernetes' default; environment variables for Services are not made", "true", "false"),
			only("preemptionPolicy", "priorities are not built yet", "PreemptLowerPriority"),
			only("priority", "priorities are not built yet", "0"),
			only("os.name", noWindows, "linux"),
			only("hostUsers", "user namespaces are not built yet", "true"),
			only("setHostnameAsFQDN", "cluster DNS is not built yet", "false"),
			warn("tolerations", "taints are not built yet, so there is nothing to tolerate"),
			no("activeDeadlineSeconds", "deadlines of pods are not built yet"),
			no("volumes", noVolumes),
			no("initContainers", "init containers and sidecars are not built yet"),
			no("ephemeralContainers", "debug containers are not built yet"),
			{Path: "affinity", EmptyOK: true, Note: "affinity is not built yet; use nodeSelector"},
			no("topologySpreadConstraints", "spread constraints are not built yet"),
			no("hostPID", "the host's process namespace is not given out yet"),
			no("hostIPC", "the host's IPC namespace is not given out yet"),
			no("imagePullSecrets", "Secrets are not built yet"),
			no("subdomain", "cluster DNS is not built yet"),
			no("hostnameOverride", "use hostname"),
			no("hostAliases", "host aliases are not built yet"),
			{Path: "dnsConfig", EmptyOK: true, Note: "cluster DNS is not built yet"},
			no("readinessGates", "readiness gates are not built yet"),
			no("runtimeClassName", "there is one runtime"),
			no("priorityClassName", "priorities are not built yet"),
			no("overhead", "overhead comes from runtime classes, which are not built yet"),
			no("schedulingGates", "scheduling gates are not built yet"),
			no("schedulingGroup", "gang scheduling is not built yet"),
			no("resourceClaims", "dynamic resource allocation is not built yet"),
			{Path: "resources", EmptyOK: true, Note: "give each container its resources"},
			no("evictionResponders", "eviction responders are not built yet"),
		},
	)
}
