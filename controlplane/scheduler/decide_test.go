package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

func newNode(name, cpu, memory, pods string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory), corev1.ResourcePods: resource.MustParse(pods),
			},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func newPod(name, cpu, memory string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: asks(cpu, memory)}}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func asks(cpu, memory string) corev1.ResourceList {
	out := corev1.ResourceList{}
	if cpu != "" {
		out[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		out[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return out
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }
func notReady(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }
func tainted(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: "v", Effect: effect})
	}
}
func on(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
func holds(port int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: port, HostPort: port}}
	}
}

func TestDecideSaysWhereOrWhyNot(t *testing.T) {
	for _, test := range []struct {
		desc  string
		nodes []*corev1.Node
		bound []*corev1.Pod
		pod   *corev1.Pod
		node  string
		why   string
	}{
		{
			desc: "without nodes nothing is available",
			pod:  newPod("p", "1", ""),
			why:  "no nodes available to schedule pods",
		}, {
			desc:  "what is asked for and what is refused are counted by reason",
			nodes: []*corev1.Node{newNode("a", "4", "1Gi", "10"), newNode("b", "4", "8Gi", "10", cordoned), newNode("c", "4", "8Gi", "10", cordoned)},
			pod:   newPod("p", "1", "2Gi"),
			why:   "0/3 nodes are available: 1 Insufficient memory, 2 node(s) were unschedulable.",
		}, {
			desc:  "a node that lacks two things counts under both",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "10")},
			pod:   newPod("p", "2", "2Gi"),
			why:   "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
		}, {
			desc:  "a full node takes no pod that asks for nothing either",
			nodes: []*corev1.Node{newNode("a", "4", "8Gi", "1")},
			bound: []*corev1.Pod{newPod("x", "", "", on("a"))},
			pod:   newPod("p", "", ""),
			why:   "0/1 nodes are available: 1 Too many pods.",
		}, {
			desc:  "a node over its memory takes what asks for none",
			nodes: []*corev1.Node{newNode("a", "4", "1Gi", "10")},
			bound: []*corev1.Pod{newPod("x", "", "2Gi", on("a"))},
			pod:   newPod("p", "1", ""),
			node:  "a",
		}, {
			desc:  "a pod that has ended takes nothing",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "1")},
			bound: []*corev1.Pod{newPod("x", "1", "1Gi", on("a"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })},
			pod:   newPod("p", "1", "1Gi"),
			node:  "a",
		}, {
			desc:  "a node that is not ready takes none",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "1", notReady)},
			pod:   newPod("p", "", ""),
			why:   "0/1 nodes are available: 1 node(s) were not ready.",
		}, {
			desc:  "a taint keeps away what does not tolerate it",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "1", tainted("gpu", corev1.TaintEffectNoSchedule))},
			pod:   newPod("p", "", ""),
			why:   "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: v}.",
		}, {
			desc:  "a toleration lets it in",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "1", tainted("gpu", corev1.TaintEffectNoExecute))},
			pod: newPod("p", "", "", func(p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpEqual, Value: "v"}}
			}),
			node: "a",
		}, {
			desc:  "a taint that asks to be avoided is avoided where possible",
			nodes: []*corev1.Node{newNode("a", "4", "4Gi", "9", tainted("slow", corev1.TaintEffectPreferNoSchedule)), newNode("b", "4", "4Gi", "9")},
			pod:   newPod("p", "", ""),
			node:  "b",
		}, {
			desc:  "the node selector must match",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "1"), newNode("b", "1", "1Gi", "1")},
			pod: newPod("p", "", "", func(p *corev1.Pod) {
				p.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": "b"}
			}),
			node: "b",
		}, {
			desc:  "nobody has the label",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "1")},
			pod:   newPod("p", "", "", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			why:   "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
		}, {
			desc:  "a host port is held once",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "10")},
			bound: []*corev1.Pod{newPod("x", "", "", on("a"), holds(80))},
			pod:   newPod("p", "", "", holds(80)),
			why:   "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
		}, {
			desc:  "on the host network a container port is a host port",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "10")},
			bound: []*corev1.Pod{newPod("x", "", "", on("a"), holds(80))},
			pod: newPod("p", "", "", func(p *corev1.Pod) {
				p.Spec.HostNetwork = true
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80}}
			}),
			why: "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
		}, {
			desc:  "one port on two addresses is two ports",
			nodes: []*corev1.Node{newNode("a", "1", "1Gi", "10")},
			bound: []*corev1.Pod{newPod("x", "", "", on("a"), holds(80), func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].HostIP = "10.0.0.1" })},
			pod:   newPod("p", "", "", holds(80), func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].HostIP = "10.0.0.2" }),
			node:  "a",
		}, {
			desc:  "the emptier node is better",
			nodes: []*corev1.Node{newNode("a", "4", "4Gi", "10"), newNode("b", "4", "4Gi", "10")},
			bound: []*corev1.Pod{newPod("x", "2", "2Gi", on("a"))},
			pod:   newPod("p", "1", "1Gi"),
			node:  "b",
		}, {
			desc:  "a pod that names its node gets it",
			nodes: []*corev1.Node{newNode("a", "4", "4Gi", "10", cordoned)},
			pod:   newPod("p", "100", "", on("a")),
			node:  "a",
		},
	} {
		t.Run(test.desc, func(t *testing.T) {
			s := NewSnapshot()
			for _, n := range test.nodes {
				s.SetNode(n)
			}
			for _, p := range test.bound {
				s.SetPod(p)
			}
			node, why := Decide(s, test.pod)
			if node != test.node {
				t.Errorf("node is %q, want %q (%s)", node, test.node, why)
			}
			if node == "" && why.String() != test.why {
				t.Errorf("why is %q, want %q", why, test.why)
			}
		})
	}
}

func TestRequestFollowsKubernetesRules(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	c := func(cpu string) corev1.Container {
		return corev1.Container{Resources: corev1.ResourceRequirements{Requests: asks(cpu, "")}}
	}
	sidecar := func(cpu string) corev1.Container { x := c(cpu); x.RestartPolicy = &always; return x }
	for _, test := range []struct {
		desc string
		spec corev1.PodSpec
		cpu  int64
	}{
		{"containers add up", corev1.PodSpec{Containers: []corev1.Container{c("1"), c("2")}}, 3000},
		{"the largest init container counts alone", corev1.PodSpec{InitContainers: []corev1.Container{c("2"), c("4")}, Containers: []corev1.Container{c("1"), c("2")}}, 4000},
		{"a sidecar runs beside the containers", corev1.PodSpec{InitContainers: []corev1.Container{sidecar("1")}, Containers: []corev1.Container{c("2")}}, 3000},
		{"and beside the init containers after it", corev1.PodSpec{InitContainers: []corev1.Container{sidecar("1"), c("4")}, Containers: []corev1.Container{c("2")}}, 5000},
		{"but not before it", corev1.PodSpec{InitContainers: []corev1.Container{c("4"), sidecar("1")}, Containers: []corev1.Container{c("2")}}, 4000},
		{"overhead comes on top", corev1.PodSpec{Containers: []corev1.Container{c("1")}, Overhead: asks("250m", "")}, 1250},
		{"a limit stands in for no request", corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: asks("3", "")}}}}, 3000},
		{"the pod's own request replaces the sum", corev1.PodSpec{Containers: []corev1.Container{c("1")}, Resources: &corev1.ResourceRequirements{Requests: asks("5", "")}}, 5000},
	} {
		t.Run(test.desc, func(t *testing.T) {
			if got := Request(&corev1.Pod{Spec: test.spec}).CPU; got != test.cpu {
				t.Errorf("%d thousandths of a core, want %d", got, test.cpu)
			}
		})
	}
}

func TestExplainListsEveryReasonOfEveryNode(t *testing.T) {
	s := NewSnapshot()
	s.SetNode(newNode("b", "1", "1Gi", "1", cordoned, notReady))
	s.SetNode(newNode("a", "4", "8Gi", "10"))
	rows := Explain(s, newPod("p", "2", ""))
	for i := range rows {
		rows[i].Score = 0
	}
	want := []Row{{Node: "a"}, {Node: "b", Refused: []string{"node(s) were unschedulable", "node(s) were not ready", "Insufficient cpu"}}}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Error(diff)
	}
}

// twin counts by hand what the snapshot keeps up to date: it looks at every
// pod for every question.
type twin struct {
	nodes map[string]*corev1.Node
	pods  map[types.UID]*corev1.Pod
}

func (w *twin) left(node string) (cpu, memory, pods int64) {
	n := w.nodes[node]
	if n == nil {
		return 0, 0, 0
	}
	cpu, memory, pods = n.Status.Allocatable.Cpu().MilliValue(), n.Status.Allocatable.Memory().Value(), n.Status.Allocatable.Pods().Value()
	for _, p := range w.pods {
		if p.Spec.NodeName == node && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			cpu -= p.Spec.Containers[0].Resources.Requests.Cpu().MilliValue()
			memory -= p.Spec.Containers[0].Resources.Requests.Memory().Value()
			pods--
		}
	}
	return cpu, memory, pods
}

func (w *twin) takes(node string, pod *corev1.Pod) bool {
	n := w.nodes[node]
	if n.Spec.Unschedulable || n.Status.Conditions[0].Status != corev1.ConditionTrue {
		return false
	}
	if len(pod.Spec.Containers[0].Ports) > 0 {
		for _, p := range w.pods {
			if p.Spec.NodeName == node && p.Status.Phase != corev1.PodSucceeded && len(p.Spec.Containers[0].Ports) > 0 &&
				p.Spec.Containers[0].Ports[0].HostPort == pod.Spec.Containers[0].Ports[0].HostPort {
				return false
			}
		}
	}
	cpu, memory, pods := w.left(node)
	r := pod.Spec.Containers[0].Resources.Requests
	return pods >= 1 && (r.Cpu().IsZero() || r.Cpu().MilliValue() <= cpu) && (r.Memory().IsZero() || r.Memory().Value() <= memory)
}

// TestSnapshotAgreesWithTwin lets nodes and pods come, change and go at random:
// the snapshot that is kept up to date decides as one that is counted anew
// would, no node is ever given more than it has, and a pod waits only where
// truly no node takes it.
func TestSnapshotAgreesWithTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, w := NewSnapshot(), &twin{nodes: map[string]*corev1.Node{}, pods: map[types.UID]*corev1.Pod{}}
		nodeNames := []string{"a", "b", "c", "d", "e"}
		count := 0
		somePod := func(t *rapid.T) *corev1.Pod {
			uids := slices.Sorted(maps.Keys(w.pods))
			if len(uids) == 0 {
				t.Skip("no pods")
			}
			return w.pods[rapid.SampledFrom(uids).Draw(t, "pod")].DeepCopy()
		}
		t.Repeat(map[string]func(*rapid.T){
			"node comes or changes": func(t *rapid.T) {
				n := newNode(rapid.SampledFrom(nodeNames).Draw(t, "name"), fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "cpu")),
					fmt.Sprintf("%dGi", rapid.IntRange(0, 4).Draw(t, "memory")), fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "pods")))
				if rapid.IntRange(0, 4).Draw(t, "cordoned") == 0 {
					cordoned(n)
				}
				if rapid.IntRange(0, 4).Draw(t, "notReady") == 0 {
					notReady(n)
				}
				w.nodes[n.Name] = n
				s.SetNode(n)
			},
			"node goes": func(t *rapid.T) {
				name := rapid.SampledFrom(nodeNames).Draw(t, "name")
				delete(w.nodes, name)
				s.RemoveNode(name)
			},
			"pod is decided": func(t *rapid.T) {
				count++
				p := newPod(fmt.Sprintf("p%d", count), fmt.Sprintf("%dm", rapid.IntRange(0, 4).Draw(t, "cpu")*500), fmt.Sprintf("%dMi", rapid.IntRange(0, 4).Draw(t, "memory")*512))
				if rapid.IntRange(0, 3).Draw(t, "port") == 0 {
					holds(int32(rapid.IntRange(80, 81).Draw(t, "number")))(p)
				}
				node, why := Decide(s, p)
				if again, _ := Decide(s, p); again != node {
					t.Fatalf("decided %q, then %q", node, again)
				}
				for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
					if w.takes(name, p) && node == "" {
						t.Fatalf("%s would take the pod, but: %s", name, why)
					}
				}
				if node == "" {
					return
				}
				if w.nodes[node] == nil || !w.takes(node, p) {
					t.Fatalf("%s was given a pod that it does not take", node)
				}
				s.Assume(p, node)
				if rapid.Bool().Draw(t, "fails") {
					s.Forget(p.UID)
					return
				}
				p.Spec.NodeName = node
				w.pods[p.UID] = p
				s.SetPod(p)
				s.Forget(p.UID) // a late word that it failed does not lose the pod
			},
			"pod is bound by hand": func(t *rapid.T) {
				count++
				p := newPod(fmt.Sprintf("p%d", count), "1", "1Gi", on(rapid.SampledFrom(nodeNames).Draw(t, "node")))
				w.pods[p.UID] = p
				s.SetPod(p)
			},
			"pod ends": func(t *rapid.T) {
				p := somePod(t)
				p.Status.Phase = corev1.PodSucceeded
				w.pods[p.UID] = p
				s.SetPod(p)
			},
			"pod goes": func(t *rapid.T) {
				p := somePod(t)
				delete(w.pods, p.UID)
				s.RemovePod(p.UID)
			},
			"": func(t *rapid.T) {
				for _, n := range s.names {
					cpu, memory, pods := w.left(n.name)
					got := []int64{n.allocatable.CPU - n.used.CPU, n.allocatable.Memory - n.used.Memory, n.allocatable.Pods - n.used.Pods}
					if diff := cmp.Diff([]int64{cpu, memory, pods}, got); diff != "" {
						t.Fatalf("left on %s: %s", n.name, diff)
					}
				}
				if len(s.names) != len(w.nodes) {
					t.Fatalf("%d nodes, want %d", len(s.names), len(w.nodes))
				}
			},
		})
	})
}
