package scheduler

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// enough is how many fitting nodes are compared before the best is taken. The
// walk starts at a place of the pod's own, so large clusters still fill evenly
// and the work for one pod does not grow with the cluster while there is room.
const enough = 64

// demand is what a pod needs, worked out once for all nodes.
type demand struct {
	uid         types.UID
	request     Amount
	cpu, memory int64 // as scored
	ports       []port
	selector    map[string]string
	tolerations []corev1.Toleration
}

func demandOf(pod *corev1.Pod) demand {
	d := demand{
		uid:         pod.UID,
		request:     Request(pod),
		ports:       hostPorts(pod),
		selector:    pod.Spec.NodeSelector,
		tolerations: pod.Spec.Tolerations,
	}
	d.cpu, d.memory = scored(pod, d.request)
	return d
}

// Reasons says why a pod fits nowhere: of how many nodes, and how many of them
// refused it for each reason. A node may count under several reasons.
type Reasons struct {
	Nodes  int
	Counts map[string]int
}

// String is the one message that users of Kubernetes know; it is empty where
// nothing was refused.
func (r Reasons) String() string {
	if r.Nodes == 0 {
		return "no nodes available to schedule pods"
	}
	if len(r.Counts) == 0 {
		return ""
	}
	parts := make([]string, 0, len(r.Counts))
	for reason, n := range r.Counts {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	sort.Strings(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", r.Nodes, strings.Join(parts, ", "))
}

// Decide picks the node for a pod. The same snapshot and pod always give the
// same node. A pod that names its node gets that node unasked. Where no node
// fits, node is empty and why says what each refused.
func Decide(s *Snapshot, pod *corev1.Pod) (node string, why Reasons) {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName, Reasons{}
	}
	return s.decide(demandOf(pod))
}

func (s *Snapshot) decide(d demand) (string, Reasons) {
	why := Reasons{Nodes: len(s.names), Counts: map[string]int{}}
	if len(s.names) == 0 {
		return "", why
	}
	var best *node
	var bestScore int64
	var bestTie uint64
	found := 0
	start := int(hash(string(d.uid), "") % uint64(len(s.names)))
	for i := range s.names {
		n := s.names[(start+i)%len(s.names)]
		refused := refusals(n, d, false)
		for _, reason := range refused {
			why.Counts[reason]++
		}
		if len(refused) > 0 {
			continue
		}
		score, tie := scoreOf(n, d), hash(string(d.uid), n.name)
		if best == nil || score > bestScore || score == bestScore && (tie > bestTie || tie == bestTie && n.name < best.name) {
			best, bestScore, bestTie = n, score, tie
		}
		if found++; found == enough {
			break
		}
	}
	if best == nil {
		return "", why
	}
	return best.name, Reasons{}
}

// Row is what one node says of a pod.
type Row struct {
	Node string
	// Refused is empty where the pod fits; Score is then how good a place the
	// node is, the higher the better.
	Refused []string
	Score   int64
}

// Explain is Decide's table, node by node in the order of their names, with
// every reason of each.
func Explain(s *Snapshot, pod *corev1.Pod) []Row {
	d := demandOf(pod)
	rows := make([]Row, 0, len(s.names))
	for _, n := range s.names {
		row := Row{Node: n.name, Refused: refusals(n, d, true)}
		if len(row.Refused) == 0 {
			row.Score = scoreOf(n, d)
		}
		rows = append(rows, row)
	}
	return rows
}

// refusals lists why a node does not take a pod; nil where it does. Unless all
// are asked for, the first kind of reason is enough, as Kubernetes counts them;
// resources that lack are always listed together.
func refusals(n *node, d demand, all bool) []string {
	var out []string
	if n.object.Spec.Unschedulable && !tolerates(d.tolerations, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		out = append(out, "node(s) were unschedulable")
	}
	if (len(out) == 0 || all) && (!ready(n.object) || n.object.DeletionTimestamp != nil) {
		out = append(out, "node(s) were not ready")
	}
	if len(out) == 0 || all {
		if taint, ok := untolerated(n.object.Spec.Taints, d.tolerations); ok {
			out = append(out, fmt.Sprintf("node(s) had untolerated taint {%s: %s}", taint.Key, taint.Value))
		}
	}
	if len(out) == 0 || all {
		for k, v := range d.selector {
			if have, ok := n.object.Labels[k]; !ok || have != v {
				out = append(out, "node(s) didn't match Pod's node affinity/selector")
				break
			}
		}
	}
	if (len(out) == 0 || all) && n.portTaken(d.ports) {
		out = append(out, "node(s) didn't have free ports for the requested pod ports")
	}
	if len(out) == 0 || all {
		out = append(out, n.lacks(d.request)...)
	}
	return out
}

func (n *node) portTaken(wanted []port) bool {
	for _, w := range wanted {
		if w.ip != "" {
			if n.ports[w] > 0 || n.ports[port{w.protocol, "", w.number}] > 0 {
				return true
			}
			continue
		}
		for held := range n.ports {
			if w.clashes(held) {
				return true
			}
		}
	}
	return false
}

// lacks lists the resources of which the node has too little left. What a pod
// does not ask for is never lacking, even on a node that is over its limit.
func (n *node) lacks(r Amount) []string {
	var out []string
	if r.Pods > 0 && n.used.Pods+r.Pods > n.allocatable.Pods {
		out = append(out, "Too many pods")
	}
	if r.CPU > 0 && n.used.CPU+r.CPU > n.allocatable.CPU {
		out = append(out, "Insufficient cpu")
	}
	if r.Memory > 0 && n.used.Memory+r.Memory > n.allocatable.Memory {
		out = append(out, "Insufficient memory")
	}
	if r.Ephemeral > 0 && n.used.Ephemeral+r.Ephemeral > n.allocatable.Ephemeral {
		out = append(out, "Insufficient ephemeral-storage")
	}
	var others []string
	for name, want := range r.Other {
		if want > 0 && n.used.Other[name]+want > n.allocatable.Other[name] {
			others = append(others, "Insufficient "+string(name))
		}
	}
	slices.Sort(others)
	return append(out, others...)
}

// untolerated is the first taint that keeps a pod away.
func untolerated(taints []corev1.Taint, tolerations []corev1.Toleration) (corev1.Taint, bool) {
	for _, t := range taints {
		if t.Effect != corev1.TaintEffectNoSchedule && t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if !tolerates(tolerations, t) {
			return t, true
		}
	}
	return corev1.Taint{}, false
}

func tolerates(tolerations []corev1.Toleration, taint corev1.Taint) bool {
	for _, t := range tolerations {
		if t.Effect != "" && t.Effect != taint.Effect {
			continue
		}
		if t.Key == "" && t.Operator == corev1.TolerationOpExists {
			return true
		}
		if t.Key != taint.Key {
			continue
		}
		if t.Operator == corev1.TolerationOpExists || t.Value == taint.Value {
			return true
		}
	}
	return false
}

// scoreOf is how good a place a node is: half for how much of it stays free,
// half for how evenly CPU and memory are used, each of 10,000, less 1,000 for
// each taint that asks to be avoided.
func scoreOf(n *node, d demand) int64 {
	cpu := share(n.scoredCPU+d.cpu, n.allocatable.CPU)
	memory := share(n.scoredMemory+d.memory, n.allocatable.Memory)
	least := (20000 - cpu - memory) / 2
	balanced := 10000 - max(cpu-memory, memory-cpu)
	score := (least + balanced) / 2
	for _, t := range n.object.Spec.Taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(d.tolerations, t) {
			score -= 1000
		}
	}
	return score
}

// share is used of total in ten thousandths, at most all of it. Memory is
// divided first so that no product overflows.
func share(used, total int64) int64 {
	if total <= 0 || used >= total {
		return 10000
	}
	return int64(float64(used) / float64(total) * 10000)
}

// hash is 64 bits of FNV-1a with its bits mixed: names that differ in the last
// letter alone must not come out in the order of their names.
func hash(a, b string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(a))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(b))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
