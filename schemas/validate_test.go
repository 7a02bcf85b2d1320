package schemas

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

func mustDecode(t testing.TB, manifest string) Object {
	t.Helper()
	o, err := Decode([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

const deployYAML = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: i:1
`

const serviceYAML = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: web}
  ports:
  - port: 80
`

// goodPod is podYAML in a namespace, with more of a container and of a spec.
func goodPod(container, spec string) string {
	return strings.Replace(podYAML, "name: a", "name: a\n  namespace: default", 1) + container + spec
}

func TestValidate(t *testing.T) {
	deploy := func(old, new string) string { return strings.Replace(deployYAML, old, new, 1) }
	svc := func(old, new string) string { return strings.Replace(serviceYAML, old, new, 1) }
	container := func(lines string) string { return goodPod(lines, "") }
	tests := []struct {
		desc, in string
		want     []string
	}{
		{"good deployment", deployYAML, nil},
		{"good service", serviceYAML, nil},
		{"good pod", container(""), nil},
		{"no name", strings.Replace(container(""), "name: a", "labels: {}", 1), []string{"metadata.name: Required value: name or generateName is required"}},
		{"no namespace", podYAML, []string{"metadata.namespace: Required value"}},
		{"namespace with dots", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a.b"}}`, []string{"metadata.name: Invalid value: \"a.b\""}},
		{"service with a digit first", svc("name: web", "name: 1web"), nil},
		{"service with a dot", svc("name: web", "name: we.b"), []string{"metadata.name: Invalid value: \"we.b\""}},
		{"label value", deploy("labels: {app: web}", "labels: {app: web, x: '-'}"), []string{"spec.template.labels: Invalid value: \"-\""}},
		{"label key", deploy("name: web,", "name: web, labels: {'a b': x},"), []string{"metadata.labels: Invalid value: \"a b\""}},
		{"annotation size", deploy("name: web,", "name: web, annotations: {a: '"+strings.Repeat("x", 300<<10)+"'},"), []string{"metadata.annotations: Too long: may not be more than 262144 bytes"}},
		{"finalizer", deploy("name: web,", "name: web, finalizers: ['a b'],"), []string{"metadata.finalizers: Invalid value: \"a b\"", "metadata.finalizers[0]: Invalid value: \"a b\": name is neither a standard"}},
		{"owner", deploy("name: web,", "name: web, ownerReferences: [{apiVersion: v1, kind: Pod, name: p, uid: ''}],"), []string{"metadata.ownerReferences[0].uid: Required value"}},
		{"negative replicas", deploy("spec:", "spec:\n  replicas: -1"), []string{"spec.replicas: Invalid value: -1: must be greater than or equal to 0"}},
		{"no selector", deploy("  selector: {matchLabels: {app: web}}\n", ""), []string{"spec.selector: Required value", "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match"}},
		{"empty selector", deploy("{matchLabels: {app: web}}", "{}"), []string{"spec.selector: Invalid value"}},
		{"other selector", deploy("matchLabels: {app: web}", "matchLabels: {app: x}"), []string{"spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"}},
		{"selector operator", deploy("{matchLabels: {app: web}}", "{matchExpressions: [{key: a, operator: Near}]}"), []string{"spec.selector.matchExpressions[0].operator: Invalid value: \"Near\"", "spec.selector: Invalid value"}},
		{"template that ends", deploy("    spec:", "    spec:\n      restartPolicy: Never"), []string{"spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""}},
		{"nothing moves", deploy("spec:", "spec:\n  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}"), []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"}},
		{"percent", deploy("spec:", "spec:\n  strategy: {rollingUpdate: {maxSurge: 1.5%}}"), []string{"spec.strategy.rollingUpdate.maxSurge: Invalid value: \"1.5%\""}},
		{"over 100%", deploy("spec:", "spec:\n  strategy: {rollingUpdate: {maxUnavailable: 101%}}"), []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"}},
		{"recreate with rollingUpdate", deploy("spec:", "spec:\n  strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}"), []string{"spec.strategy.rollingUpdate: Forbidden"}},
		{"strategy", deploy("spec:", "spec:\n  strategy: {type: Canary}"), []string{"spec.strategy: Unsupported value: \"Canary\""}},
		{"deadline before ready", deploy("spec:", "spec:\n  minReadySeconds: 600"), []string{"spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"}},
		{"no containers", strings.Replace(container(""), "containers:\n  - name: c\n    image: i:1\n", "containers: []\n", 1), []string{"spec.containers: Required value"}},
		{"container name", strings.Replace(container(""), "- name: c", "- name: C_1", 1), []string{"spec.containers[0].name: Invalid value: \"C_1\""}},
		{"containers alike", goodPod("  - name: c\n    image: i\n", ""), []string{"spec.containers[1].name: Duplicate value: \"c\""}},
		{"no image", strings.Replace(container(""), "    image: i:1\n", "", 1), []string{"spec.containers[0].image: Required value"}},
		{"image with space", strings.Replace(container(""), "i:1", "'i:1 '", 1), []string{"spec.containers[0].image: Invalid value: \"i:1 \": must not have leading or trailing whitespace"}},
		{"pull policy", container("    imagePullPolicy: Sometimes\n"), []string{"spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\""}},
		{"environment", container("    env: [{name: 'A=B'}, {value: x}, {name: C, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: D, valueFrom: {}}]\n"), []string{
			"spec.containers[0].env[0].name: Invalid value: \"A=B\"", "spec.containers[0].env[1].name: Required value",
			"spec.containers[0].env[2].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty", "spec.containers[0].env[3].valueFrom: Invalid value: \"\": must specify one of"}},
		{"ports", container("    ports: [{containerPort: 80}, {containerPort: 80}, {containerPort: 70000}, {}, {containerPort: 1, name: toolongforaportname}, {containerPort: 2, name: x}, {containerPort: 3, name: x}]\n"), []string{
			"spec.containers[0].ports[1]: Duplicate value: \"80/TCP\"", "spec.containers[0].ports[2].containerPort: Invalid value: 70000",
			"spec.containers[0].ports[3].containerPort: Required value", "spec.containers[0].ports[4].name: Invalid value", "spec.containers[0].ports[6].name: Duplicate value: \"x\""}},
		{"host ports", goodPod("    ports: [{containerPort: 80, hostPort: 81}]\n  - {name: d, image: i, ports: [{containerPort: 81}]}\n", "  hostNetwork: true\n"), []string{
			"spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort`", "spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP//81\""}},
		{"resources", container("    resources: {limits: {cpu: 1, memory: -1}, requests: {cpu: 2, memory: 500m, phantom: 1}}\n"), []string{
			"spec.containers[0].resources.limits[memory]: Invalid value: \"-1\"", "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
			"spec.containers[0].resources.requests[memory]: Invalid value: \"500m\"", "spec.containers[0].resources.requests: Invalid value: \"500m\": must be less than", "spec.containers[0].resources.requests[phantom]: Invalid value", "spec.containers[0].resources.requests[phantom]: Invalid value: \"phantom\": must be a standard resource for containers"}},
		{"probe without handler", container("    readinessProbe: {periodSeconds: -1}\n"), []string{
			"spec.containers[0].readinessProbe: Required value", "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1"}},
		{"probe with two", container("    readinessProbe: {exec: {command: [x]}, tcpSocket: {port: 0}}\n"), []string{
			"spec.containers[0].readinessProbe.tcpSocket: Forbidden"}},
		{"probe of no port", container("    readinessProbe: {httpGet: {port: web, scheme: FTP}}\n"), []string{
			"spec.containers[0].readinessProbe.httpGet.scheme: Unsupported value: \"FTP\"", "spec.containers[0].readinessProbe.httpGet.port: Invalid value: \"web\": the container has no port of this name"}},
		{"security", container("    securityContext: {runAsUser: -1, privileged: true, allowPrivilegeEscalation: false, capabilities: {add: [NET_FLY]}, seccompProfile: {}}\n"), []string{
			"spec.containers[0].securityContext.runAsUser: Invalid value: -1", "spec.containers[0].securityContext.seccompProfile.type: Required value",
			"spec.containers[0].securityContext.capabilities.add[0]: Invalid value: \"NET_FLY\": not a Linux capability", "spec.containers[0].securityContext: Invalid value: \"\": cannot set `allowPrivilegeEscalation` to false and `privileged` to true"}},
		{"pod fields", goodPod("", "  restartPolicy: Maybe\n  hostname: A\n  terminationGracePeriodSeconds: -1\n  nodeSelector: {a: '-'}\n  securityContext: {supplementalGroups: [-1]}\n"), []string{
			"spec.restartPolicy: Unsupported value: \"Maybe\"", "spec.nodeSelector: Invalid value: \"-\"", "spec.securityContext.supplementalGroups[0]: Invalid value: -1", "spec.hostname: Invalid value: \"A\""}},
		{"no service ports", svc("  ports:\n  - port: 80\n", ""), []string{"spec.ports: Required value"}},
		{"service ports", svc("  - port: 80\n", "  - {port: 80, name: a}\n  - {port: 80, name: a}\n  - {port: 0, targetPort: 99999, protocol: ICMP}\n"), []string{
			"spec.ports[1].name: Duplicate value: \"a\"", "spec.ports[1]: Duplicate value: \"80/TCP\"", "spec.ports[2].name: Required value",
			"spec.ports[2].port: Invalid value: 0", "spec.ports[2].protocol: Unsupported value: \"ICMP\"", "spec.ports[2].targetPort: Invalid value: 99999"}},
		{"TCP and UDP of one port", svc("  - port: 80\n", "  - {port: 53, name: a}\n  - {port: 53, name: b, protocol: UDP}\n"), nil},
		{"cluster IP", svc("spec:", "spec:\n  clusterIP: 10.0.0.256"), []string{"spec.clusterIPs[0]: Invalid value: \"10.0.0.256\""}},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			o := mustDecode(t, tt.in)
			Default(o)
			Derive(o)
			errs := Validate(o)
			var got []string
			for _, e := range errs {
				got = append(got, e.Error())
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %d errors, want %d: %s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("got  %s\nwant %s", got[i], want)
				}
			}
		})
	}
}

func TestValidateUpdate(t *testing.T) {
	tests := []struct {
		desc   string
		old    string
		change func(Object)
		want   string // empty: allowed
	}{
		{"replicas", deployYAML, func(o Object) { o.(*appsv1.Deployment).Spec.Replicas = ptr[int32](5) }, ""},
		{"template", deployYAML, func(o Object) { o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].Image = "j" }, ""},
		{"selector", deployYAML, func(o Object) {
			d := o.(*appsv1.Deployment)
			d.Spec.Selector.MatchLabels["app"] = "x"
			d.Spec.Template.Labels["app"] = "x"
		}, "spec.selector: Invalid value"},
		{"pod image", goodPod("", ""), func(o Object) { o.(*corev1.Pod).Spec.Containers[0].Image = "j" }, ""},
		{"pod labels", goodPod("", ""), func(o Object) { o.SetLabels(map[string]string{"a": "b"}) }, ""},
		{"pod toleration more", goodPod("", ""), func(o Object) {
			o.(*corev1.Pod).Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}, ""},
		{"pod toleration less", goodPod("", "  tolerations: [{operator: Exists}]\n"), func(o Object) { o.(*corev1.Pod).Spec.Tolerations = nil }, "spec.tolerations: Forbidden: existing toleration"},
		{"pod command", goodPod("", ""), func(o Object) { o.(*corev1.Pod).Spec.Containers[0].Command = []string{"x"} }, "spec: Forbidden: pod updates may not change fields other than"},
		{"pod node", goodPod("", ""), func(o Object) { o.(*corev1.Pod).Spec.NodeName = "n" }, "spec: Forbidden"},
		{"pod container more", goodPod("", ""), func(o Object) {
			p := o.(*corev1.Pod)
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "d", Image: "i"})
			Default(p)
		}, "spec.containers: Forbidden: pod updates may not add or remove containers"},
		{"service port", serviceYAML, func(o Object) { o.(*corev1.Service).Spec.Ports[0].TargetPort = intstr.FromInt32(8080) }, ""},
		{"service address", strings.Replace(serviceYAML, "spec:", "spec:\n  clusterIP: 10.0.0.1", 1), func(o Object) {
			s := o.(*corev1.Service)
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.0.0.2", []string{"10.0.0.2"}
		}, "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"},
		{"name", deployYAML, func(o Object) { o.SetName("other") }, "metadata.name: Invalid value: \"other\": field is immutable"},
		{"uid", deployYAML, func(o Object) { o.SetUID("other") }, "metadata.uid: Invalid value: \"other\": field is immutable"},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			old := mustDecode(t, tt.old)
			Default(old)
			Derive(old)
			updated := old.DeepCopyObject().(Object)
			tt.change(updated)
			errs := ValidateUpdate(updated, old)
			switch {
			case tt.want == "" && len(errs) > 0:
				t.Error(errs)
			case tt.want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want)):
				t.Errorf("got %v, want %s", errs, tt.want)
			}
		})
	}
	pod := mustDecode(t, goodPod("", ""))
	Default(pod)
	changed := pod.DeepCopyObject().(*corev1.Pod)
	changed.Spec.Containers[0].Args = []string{"x"}
	if errs := ValidateUpdate(changed, pod); len(errs) != 1 || !strings.Contains(errs[0].Detail, "spec.containers[0].args differs") {
		t.Errorf("the field that differs is not named: %v", errs)
	}
}

func TestUnsupported(t *testing.T) {
	const see = "; see docs/supported-fields.md"
	pod := func(container, spec string) string { return goodPod(container, spec) }
	tests := []struct {
		desc, in       string
		refused, warns []string
	}{
		{"deployment", deployYAML, nil, nil},
		{"volumes", pod("    volumeMounts: [{name: v, mountPath: /v}]\n", "  volumes: [{name: v, emptyDir: {}}]\n"), []string{"spec.volumes", "spec.containers[0].volumeMounts"}, nil},
		{"probes", pod("    livenessProbe: {exec: {command: [x]}}\n    startupProbe: {exec: {command: [x]}}\n    readinessProbe: {grpc: {port: 1}}\n", ""),
			[]string{"spec.containers[0].livenessProbe", "spec.containers[0].readinessProbe.grpc", "spec.containers[0].startupProbe"}, nil},
		{"in a template", strings.Replace(deployYAML, "    spec:", "    spec:\n      initContainers: [{name: i, image: i}]\n      hostPID: true", 1), []string{"spec.template.spec.initContainers", "spec.template.spec.hostPID"}, nil},
		{"values", pod("", "  dnsPolicy: None\n  serviceAccountName: robot\n  shareProcessNamespace: true\n  priority: 5\n"),
			[]string{"spec.dnsPolicy", "spec.serviceAccountName", "spec.serviceAccount", "spec.shareProcessNamespace", "spec.priority"}, nil},
		{"harmless values", pod("", "  dnsPolicy: Default\n  serviceAccountName: default\n  shareProcessNamespace: false\n  automountServiceAccountToken: false\n  affinity: {}\n  os: {name: linux}\n"), nil, nil},
		{"environment", pod("    env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: B, valueFrom: {fieldRef: {fieldPath: 'metadata.labels[''x'']'}}}, {name: C, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n    envFrom: [{configMapRef: {name: c}}]\n", ""),
			[]string{"spec.containers[0].envFrom", "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath", "spec.containers[0].env[2].valueFrom.secretKeyRef"}, nil},
		{"resources", pod("    resources: {limits: {cpu: 1, ephemeral-storage: 1Gi, hugepages-2Mi: 2Mi, 'x.test/gpu': 1}}\n", ""),
			[]string{"spec.containers[0].resources.limits[hugepages-2Mi]", "spec.containers[0].resources.limits[x.test/gpu]", "spec.containers[0].resources.requests[hugepages-2Mi]", "spec.containers[0].resources.requests[x.test/gpu]"},
			[]string{"spec.containers[0].resources.limits[ephemeral-storage] has no effect", "spec.containers[0].resources.requests[ephemeral-storage] has no effect"}},
		{"tolerations", pod("", "  tolerations: [{operator: Exists}]\n"), nil, []string{"spec.tolerations has no effect: taints are not built yet"}},
		{"host port", pod("    ports: [{containerPort: 80, hostPort: 80}]\n", ""), []string{"spec.containers[0].ports[0].hostPort"}, nil},
		{"host port of a template by itself", "apiVersion: v1\nkind: PodTemplate\nmetadata: {name: a, namespace: default}\ntemplate: {spec: {containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 80}]}]}}\n", []string{"template.spec.containers[0].ports[0].hostPort"}, nil},
		{"host port on the host's network", pod("    ports: [{containerPort: 80, hostPort: 80}]\n", "  hostNetwork: true\n"), nil, nil},
		{"security", pod("    securityContext: {runAsUser: 1, seccompProfile: {type: Localhost, localhostProfile: x}, seLinuxOptions: {}}\n", "  securityContext: {fsGroup: 1, sysctls: [{name: a, value: b}]}\n"),
			[]string{"spec.containers[0].securityContext.seLinuxOptions", "spec.containers[0].securityContext.seccompProfile.type", "spec.containers[0].securityContext.seccompProfile.localhostProfile", "spec.securityContext.fsGroup", "spec.securityContext.sysctls"}, nil},
		{"SCTP", pod("    ports: [{containerPort: 80, protocol: SCTP}]\n", ""), []string{"spec.containers[0].ports[0].protocol"}, nil},
		{"service", strings.Replace(serviceYAML, "spec:", "spec:\n  type: LoadBalancer\n  sessionAffinity: ClientIP\n  externalIPs: [1.2.3.4]", 1), []string{"spec.type", "spec.externalIPs", "spec.sessionAffinity", "spec.externalTrafficPolicy", "spec.sessionAffinityConfig", "spec.allocateLoadBalancerNodePorts"}, nil},
		{"headless service", strings.Replace(serviceYAML, "spec:", "spec:\n  clusterIP: None", 1), []string{"spec.clusterIP"}, nil},
		{"service of nothing", strings.Replace(serviceYAML, "  selector: {app: web}\n", "", 1), []string{"spec.selector"}, nil},
		{"status and system fields", strings.Replace(pod("", "status: {phase: Running}\n"), "name: a", "name: a\n  generation: 4\n  creationTimestamp: 2020-01-01T00:00:00Z", 1), nil, nil},
		{"template's name", strings.Replace(deployYAML, "metadata: {labels", "metadata: {name: x, labels", 1), nil, []string{"spec.template.metadata.name has no effect"}},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			o := mustDecode(t, tt.in)
			Default(o)
			errs, warnings := Unsupported(o)
			var refused []string
			for _, e := range errs {
				refused = append(refused, e.Field)
				if !strings.HasSuffix(e.Detail, see) || !strings.HasPrefix(e.Detail, "not supported by Gantry: ") {
					t.Error(e)
				}
			}
			if diff := cmp.Diff(tt.refused, refused); diff != "" {
				t.Error(diff)
			}
			if len(warnings) != len(tt.warns) {
				t.Fatalf("warnings %q", warnings)
			}
			for i, w := range tt.warns {
				if !strings.HasPrefix(warnings[i], w) {
					t.Errorf("got %s, want %s", warnings[i], w)
				}
			}
		})
	}
}

func TestDefault(t *testing.T) {
	tests := []struct{ desc, in, want string }{
		{"pod", goodPod("    ports: [{containerPort: 80}]\n    resources: {limits: {cpu: 100m, memory: 1Mi}, requests: {cpu: 50m}}\n    readinessProbe: {httpGet: {port: 80}}\n", ""), `{
			"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"default"},"spec":{
			"containers":[{"name":"c","image":"i:1","imagePullPolicy":"IfNotPresent","ports":[{"containerPort":80,"protocol":"TCP"}],
				"resources":{"limits":{"cpu":"100m","memory":"1Mi"},"requests":{"cpu":"50m","memory":"1Mi"}},
				"readinessProbe":{"httpGet":{"path":"/","port":80,"scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},
				"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],
			"dnsPolicy":"ClusterFirst","enableServiceLinks":true,"restartPolicy":"Always",
			"schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30},"status":{}}`},
		{"deployment", deployYAML, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"default"},"spec":{
			"replicas":1,"selector":{"matchLabels":{"app":"web"}},"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":"25%","maxUnavailable":"25%"}},
			"revisionHistoryLimit":10,"progressDeadlineSeconds":600,
			"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"c","image":"i:1","imagePullPolicy":"IfNotPresent","resources":{},
				"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],
			"dnsPolicy":"ClusterFirst","restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30}}},"status":{}}`},
		{"service", serviceYAML, `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"default"},"spec":{
			"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster",
			"selector":{"app":"web"},"ports":[{"port":80,"protocol":"TCP","targetPort":80}]},"status":{"loadBalancer":{}}}`},
	}
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			o := mustDecode(t, tt.in)
			Default(o)
			data, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for image, want := range map[string]corev1.PullPolicy{
		"a": corev1.PullAlways, "a:latest": corev1.PullAlways, "r:5000/a": corev1.PullAlways, "a:1": corev1.PullIfNotPresent,
		"r:5000/a:1": corev1.PullIfNotPresent, "a@sha256:0": corev1.PullIfNotPresent,
	} {
		if got := defaultPullPolicy(image); got != want {
			t.Errorf("%s: %s", image, got)
		}
	}
}

// anyObject draws an object with some fields set, sensible or not.
func anyObject(t *rapid.T) Object {
	str := rapid.SampledFrom([]string{"", "a", "web", "X_", "1"})
	container := func() corev1.Container {
		c := corev1.Container{Name: str.Draw(t, "name"), Image: str.Draw(t, "image")}
		for range rapid.IntRange(0, 2).Draw(t, "ports") {
			c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: rapid.Int32().Draw(t, "port"), Name: str.Draw(t, "port name")})
		}
		if rapid.Bool().Draw(t, "probe") {
			c.ReadinessProbe = &corev1.Probe{PeriodSeconds: rapid.Int32().Draw(t, "period")}
		}
		return c
	}
	spec := corev1.PodSpec{HostNetwork: rapid.Bool().Draw(t, "host network"), ServiceAccountName: str.Draw(t, "account"), NodeName: str.Draw(t, "node")}
	for range rapid.IntRange(0, 3).Draw(t, "containers") {
		spec.Containers = append(spec.Containers, container())
	}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		return &corev1.Pod{Spec: spec}
	case 1:
		d := &appsv1.Deployment{}
		d.Spec.Template.Spec = spec
		d.Spec.Strategy.Type = appsv1.DeploymentStrategyType(str.Draw(t, "strategy"))
		return d
	case 2:
		rs := &appsv1.ReplicaSet{}
		rs.Spec.Template.Spec = spec
		return rs
	}
	s := &corev1.Service{}
	s.Spec.ClusterIP = str.Draw(t, "ip")
	s.Spec.Ports = []corev1.ServicePort{{Port: rapid.Int32().Draw(t, "port"), TargetPort: intstr.FromString(str.Draw(t, "target"))}}
	return s
}

// TestDefaultProperties: defaulting twice is defaulting once, and a defaulted
// object is the same after it was written and read.
func TestDefaultProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := anyObject(t)
		Default(o)
		once := o.DeepCopyObject().(Object)
		Default(o)
		if diff := cmp.Diff(once, o); diff != "" {
			t.Fatal(diff)
		}
		Derive(o)
		derived := o.DeepCopyObject().(Object)
		Derive(o)
		if diff := cmp.Diff(derived, o); diff != "" {
			t.Fatalf("derived twice: %s", diff)
		}
		once = derived
		data, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(once, again); diff != "" {
			t.Fatal(diff)
		}
		Validate(o)
		Unsupported(o)
		if errs := ValidateUpdate(o, once); len(errs) > len(Validate(o)) {
			t.Fatalf("an update that changes nothing is refused for more: %v", errs)
		}
	})
}
