package nodes

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// Reasons that this package writes into conditions.
const (
	reasonNodeNotReady = "NodeNotReady"
	reasonUnknown      = "NodeStatusUnknown"
	reasonNeverUpdated = "NodeStatusNeverUpdated"
	reasonCreating     = "ContainerCreating"
	messageUnknown     = "The node agent stopped reporting."
	messageNever       = "The node agent has not reported yet."
)

// Annotations of Node objects that say which agent speaks for the node. They
// outlive the control plane, so that after its restart the name stays with
// the agent that has it.
const (
	AnnotationInstance = "gantry.dev/instance"
	AnnotationHost     = "gantry.dev/host"
)

// Fold is a pod's status after a report of its node. The condition
// PodScheduled is the scheduler's and stays as it is; what a report leaves out
// and cannot change stays too. report may be nil: then only lost is applied. A
// pod of a lost node is not ready, whatever was reported last; held is then the
// Ready condition to go back to when the node returns.
func Fold(pod *corev1.Pod, report *schemas.PodHealth, held *corev1.PodCondition, lost bool, now time.Time) (status corev1.PodStatus, hold *corev1.PodCondition) {
	status = *pod.Status.DeepCopy()
	if report != nil {
		status = foldReport(pod, report)
	} else if held != nil {
		// Take our own mark off again before deciding anew.
		if i := conditionIndex(status.Conditions, corev1.PodReady); i >= 0 && status.Conditions[i].Reason == reasonNodeNotReady {
			status.Conditions[i] = *held
		}
	}
	if !lost || finished(status.Phase) {
		return status, nil
	}
	i := conditionIndex(status.Conditions, corev1.PodReady)
	if i < 0 || status.Conditions[i].Status == corev1.ConditionFalse {
		return status, nil
	}
	hold = status.Conditions[i].DeepCopy()
	mark := corev1.PodCondition{
		Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: reasonNodeNotReady,
		Message: "node " + pod.Spec.NodeName + " is not ready", LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	if was := conditionIndex(pod.Status.Conditions, corev1.PodReady); was >= 0 && pod.Status.Conditions[was].Reason == reasonNodeNotReady {
		mark.LastTransitionTime = pod.Status.Conditions[was].LastTransitionTime
	}
	status.Conditions[i] = mark
	return status, hold
}

func foldReport(pod *corev1.Pod, report *schemas.PodHealth) corev1.PodStatus {
	status := *report.Status.DeepCopy()
	status.Conditions = slices.DeleteFunc(status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
	if i := conditionIndex(pod.Status.Conditions, corev1.PodScheduled); i >= 0 {
		status.Conditions = append(status.Conditions, *pod.Status.Conditions[i].DeepCopy())
	}
	if status.QOSClass == "" {
		status.QOSClass = pod.Status.QOSClass
	}
	if status.StartTime == nil {
		status.StartTime = pod.Status.StartTime
	}
	if status.Phase == "" {
		status.Phase = pod.Status.Phase
	}
	// A pod that has ended stays ended: a report of a run before that end, or of
	// an agent that lost its records, does not bring it back.
	if finished(pod.Status.Phase) && !finished(status.Phase) {
		return *pod.Status.DeepCopy()
	}
	return status
}

func finished(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

func conditionIndex(conditions []corev1.PodCondition, t corev1.PodConditionType) int {
	return slices.IndexFunc(conditions, func(c corev1.PodCondition) bool { return c.Type == t })
}

// Compose is the Node object after a report. have is the stored object, or nil
// for a node that is not stored yet; report is the newest, or nil where there
// was none in this life of the control plane. Heartbeats change nothing in it:
// its times move only with what they date.
func Compose(name string, have *corev1.Node, report *schemas.NodeHealth, who life, podCIDR string, lost bool, now time.Time) *corev1.Node {
	var want *corev1.Node
	if have != nil {
		want = have.DeepCopy()
	} else {
		want = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	want.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
	if want.Spec.PodCIDR == "" && podCIDR != "" {
		want.Spec.PodCIDR, want.Spec.PodCIDRs = podCIDR, []string{podCIDR}
	}
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	want.Labels[corev1.LabelHostname] = name
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	if who.instance != "" {
		want.Annotations[AnnotationInstance], want.Annotations[AnnotationHost] = who.instance, who.host
	}
	if report != nil {
		for k, v := range report.Labels {
			want.Labels[k] = v
		}
		conditions := want.Status.Conditions
		want.Status = *report.Status.DeepCopy()
		want.Status.Conditions = mergeConditions(conditions, withReady(want.Status.Conditions), now)
		if v := want.Status.NodeInfo.OperatingSystem; v != "" {
			want.Labels[corev1.LabelOSStable] = v
		}
		if v := want.Status.NodeInfo.Architecture; v != "" {
			want.Labels[corev1.LabelArchStable] = v
		}
	}
	switch {
	case lost:
		want.Status.Conditions = mergeConditions(want.Status.Conditions, unknown(want.Status.Conditions, reasonUnknown, messageUnknown), now)
	case report == nil && have == nil:
		want.Status.Conditions = mergeConditions(nil, unknown(nil, reasonNeverUpdated, messageNever), now)
	case report == nil:
		// Back from silence under a new control plane: the agent repeats its
		// report, until then its life alone is known.
		want.Status.Conditions = mergeConditions(want.Status.Conditions, revived(want.Status.Conditions), now)
	}
	if have != nil {
		keepOrder(want, have)
	}
	return want
}

// withReady adds the Ready condition to a report that leaves it out: that it
// reports is then all there is to say.
func withReady(conditions []corev1.NodeCondition) []corev1.NodeCondition {
	for _, c := range conditions {
		if c.Type == corev1.NodeReady {
			return conditions
		}
	}
	return append(conditions, agentReady())
}

func agentReady() corev1.NodeCondition {
	return corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "NodeAgentReady", Message: "The node agent is reporting.",
	}
}

func unknown(conditions []corev1.NodeCondition, reason, message string) []corev1.NodeCondition {
	out := slices.Clone(conditions)
	if !slices.ContainsFunc(out, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady }) {
		out = append(out, corev1.NodeCondition{Type: corev1.NodeReady})
	}
	for i := range out {
		out[i].Status, out[i].Reason, out[i].Message = corev1.ConditionUnknown, reason, message
	}
	return out
}

func revived(conditions []corev1.NodeCondition) []corev1.NodeCondition {
	out := slices.Clone(conditions)
	for i, c := range out {
		if c.Type == corev1.NodeReady && c.Reason == reasonUnknown {
			out[i] = agentReady()
		}
	}
	return out
}

// mergeConditions dates the new conditions: one that says what it said keeps
// its dates.
func mergeConditions(have, want []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	stamp := metav1.NewTime(now.Truncate(time.Second))
	out := slices.Clone(want)
	for i := range out {
		c := &out[i]
		c.LastHeartbeatTime, c.LastTransitionTime = stamp, stamp
		for _, h := range have {
			if h.Type != c.Type {
				continue
			}
			if h.Status == c.Status {
				c.LastTransitionTime = h.LastTransitionTime
			}
			if h.Status == c.Status && h.Reason == c.Reason && h.Message == c.Message {
				c.LastHeartbeatTime = h.LastHeartbeatTime
			}
		}
	}
	return out
}

// keepOrder leaves lists that say the same in the order in which they are
// stored, so that an agent that lists its images or addresses in another order
// causes no write.
func keepOrder(want, have *corev1.Node) {
	if sameSet(want.Status.Addresses, have.Status.Addresses, func(a corev1.NodeAddress) string { return string(a.Type) + a.Address }) {
		want.Status.Addresses = have.Status.Addresses
	}
	if sameSet(want.Status.Conditions, have.Status.Conditions, func(c corev1.NodeCondition) string {
		return string(c.Type) + string(c.Status) + c.Reason + "\x00" + c.Message
	}) {
		want.Status.Conditions = have.Status.Conditions
	}
}

func sameSet[T any](a, b []T, key func(T) string) bool {
	if len(a) != len(b) {
		return false
	}
	seen := make(map[string]int, len(a))
	for _, x := range a {
		seen[key(x)]++
	}
	for _, x := range b {
		if seen[key(x)]--; seen[key(x)] < 0 {
			return false
		}
	}
	return true
}
