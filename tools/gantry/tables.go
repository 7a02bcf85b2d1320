package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"gantry.dev/schemas"
)

const none = "<none>"

// columns of each kind; those after the bar are for -o wide.
var columns = map[string]string{
	schemas.Pods:                "Name,Ready,Status,Restarts,Age|IP,Node,Nominated Node,Readiness Gates",
	schemas.Deployments:         "Name,Ready,Up-to-date,Available,Age|Containers,Images,Selector",
	schemas.ReplicaSets:         "Name,Desired,Current,Ready,Age|Containers,Images,Selector",
	schemas.Services:            "Name,Type,Cluster-IP,External-IP,Port(s),Age|Selector",
	schemas.Namespaces:          "Name,Status,Age",
	schemas.Nodes:               "Name,Status,Roles,Age,Version|Internal-IP,External-IP,OS-Image,Kernel-Version,Container-Runtime",
	schemas.EndpointSlices:      "Name,AddressType,Ports,Endpoints,Age",
	schemas.ConfigMaps:          "Name,Data,Age",
	schemas.Secrets:             "Name,Type,Data,Age",
	schemas.PodTemplates:        "Name,Containers,Images,Pod Labels",
	schemas.ControllerRevisions: "Name,Controller,Revision,Age",
	schemas.Leases:              "Name,Holder,Age",
	schemas.Events:              "Last Seen,Type,Reason,Object,Message|Subobject,Source,First Seen,Count,Name",
}

// table lays objects of one kind out. now is what ages are counted from.
func table(k schemas.Kind, objects []schemas.Object, now time.Time) *metav1.Table {
	spec, ok := columns[k.Resource]
	if !ok {
		spec = "Name,Age"
	}
	t := &metav1.Table{ColumnDefinitions: definitions(spec)}
	for _, o := range objects {
		t.Rows = append(t.Rows, metav1.TableRow{Cells: cells(o, now), Object: runtime.RawExtension{Object: o}})
	}
	return t
}

// definitions reads a line of columns.
func definitions(spec string) []metav1.TableColumnDefinition {
	var out []metav1.TableColumnDefinition
	narrow, wide, _ := strings.Cut(spec, "|")
	for i, part := range []string{narrow, wide} {
		for name := range strings.SplitSeq(part, ",") {
			if name == "" {
				continue
			}
			c := metav1.TableColumnDefinition{Name: name, Type: "string", Priority: int32(i)}
			if name == "Name" {
				c.Format = "name" // what gets the kind as a prefix
			}
			out = append(out, c)
		}
	}
	return out
}

func cells(o schemas.Object, now time.Time) []any {
	created := age(o.GetCreationTimestamp().Time, now)
	switch o := o.(type) {
	case *corev1.Pod:
		return podCells(o, created, now)
	case *appsv1.Deployment:
		desired := int32(1)
		if o.Spec.Replicas != nil {
			desired = *o.Spec.Replicas
		}
		names, images := containers(o.Spec.Template.Spec)
		return []any{o.Name, fmt.Sprintf("%d/%d", o.Status.ReadyReplicas, desired), o.Status.UpdatedReplicas, o.Status.AvailableReplicas,
			created, names, images, metav1.FormatLabelSelector(o.Spec.Selector)}
	case *appsv1.ReplicaSet:
		desired := int32(1)
		if o.Spec.Replicas != nil {
			desired = *o.Spec.Replicas
		}
		names, images := containers(o.Spec.Template.Spec)
		return []any{o.Name, desired, o.Status.Replicas, o.Status.ReadyReplicas, created, names, images, metav1.FormatLabelSelector(o.Spec.Selector)}
	case *corev1.Service:
		return []any{o.Name, orText(string(o.Spec.Type), string(corev1.ServiceTypeClusterIP)), orText(strings.Join(clusterIPs(o), ","), none), externalIP(o),
			servicePorts(o), created, orText(labels.FormatLabels(o.Spec.Selector), none)}
	case *corev1.Namespace:
		return []any{o.Name, orText(string(o.Status.Phase), string(corev1.NamespaceActive)), created}
	case *corev1.Node:
		return nodeCells(o, created)
	case *discoveryv1.EndpointSlice:
		return []any{o.Name, string(o.AddressType), slicePorts(o), sliceEndpoints(o), created}
	case *corev1.Event:
		return eventCells(o, now)
	case *corev1.ConfigMap:
		return []any{o.Name, len(o.Data) + len(o.BinaryData), created}
	case *corev1.Secret:
		return []any{o.Name, string(o.Type), len(o.Data), created}
	case *corev1.PodTemplate:
		names, images := containers(o.Template.Spec)
		return []any{o.Name, names, images, orText(labels.FormatLabels(o.Template.Labels), none)}
	case *appsv1.ControllerRevision:
		return []any{o.Name, controllerName(o), o.Revision, created}
	case *coordinationv1.Lease:
		holder := ""
		if o.Spec.HolderIdentity != nil {
			holder = *o.Spec.HolderIdentity
		}
		return []any{o.Name, holder, created}
	}
	return []any{o.GetName(), created}
}

// controllerName is the object that an object belongs to, as deployment.apps/web.
func controllerName(o schemas.Object) string {
	owner := metav1.GetControllerOf(o)
	if owner == nil {
		return none
	}
	kind := strings.ToLower(owner.Kind)
	if group, _, ok := strings.Cut(owner.APIVersion, "/"); ok {
		kind += "." + group
	}
	return kind + "/" + owner.Name
}

// age writes how long ago something was.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(max(now.Sub(t), 0))
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func containers(spec corev1.PodSpec) (names, images string) {
	var n, i []string
	for _, c := range spec.Containers {
		n, i = append(n, c.Name), append(i, c.Image)
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

func podCells(p *corev1.Pod, created string, now time.Time) []any {
	restarts, last, ready := 0, time.Time{}, 0
	for _, s := range p.Status.ContainerStatuses {
		restarts += int(s.RestartCount)
		if t := s.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
		if s.Ready && s.State.Running != nil {
			ready++
		}
	}
	count := strconv.Itoa(restarts)
	if restarts > 0 && !last.IsZero() {
		count = fmt.Sprintf("%d (%s ago)", restarts, age(last, now))
	}
	return []any{p.Name, fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers)), podStatus(p), count, created,
		orText(p.Status.PodIP, none), orText(p.Spec.NodeName, none), orText(p.Status.NominatedNodeName, none), none}
}

// podStatus is the one word that says how a pod is: the most telling reason of
// its containers, or its phase.
func podStatus(p *corev1.Pod) string {
	status := string(p.Status.Phase)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			status = corev1.PodReasonSchedulingGated
		}
	}
	status = orText(p.Status.Reason, status)
	if initial, waiting := initStatus(p); waiting {
		status = initial
	} else {
		status = containersStatus(p, status)
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == "NodeLost":
			return "Unknown"
		case p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed:
			return "Terminating"
		}
	}
	return orText(status, "Unknown")
}

func initStatus(p *corev1.Pod) (string, bool) {
	for i, s := range p.Status.InitContainerStatuses {
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0:
			continue
		case s.State.Terminated != nil:
			return "Init:" + endReason(s.State.Terminated), true
		case s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing":
			return "Init:" + s.State.Waiting.Reason, true
		}
		return fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers)), true
	}
	return "", false
}

func containersStatus(p *corev1.Pod, status string) string {
	running := false
	for _, s := range slices.Backward(p.Status.ContainerStatuses) {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			status = s.State.Waiting.Reason
		case s.State.Terminated != nil:
			status = endReason(s.State.Terminated)
		case s.Ready && s.State.Running != nil:
			running = true
		}
	}
	// One container has done its work, another goes on.
	if status == "Completed" && running {
		status = "NotReady"
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				status = "Running"
			}
		}
	}
	return status
}

func endReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func clusterIPs(s *corev1.Service) []string {
	if s.Spec.ClusterIP == "" {
		return nil
	}
	return []string{s.Spec.ClusterIP}
}

func externalIP(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var ips []string
		for _, i := range s.Status.LoadBalancer.Ingress {
			ips = append(ips, orText(i.IP, i.Hostname))
		}
		return orText(strings.Join(append(ips, s.Spec.ExternalIPs...), ","), "<pending>")
	}
	return orText(strings.Join(s.Spec.ExternalIPs, ","), none)
}

func servicePorts(s *corev1.Service) string {
	var out []string
	for _, p := range s.Spec.Ports {
		text := strconv.Itoa(int(p.Port))
		if p.NodePort > 0 {
			text += ":" + strconv.Itoa(int(p.NodePort))
		}
		out = append(out, text+"/"+orText(string(p.Protocol), "TCP"))
	}
	return orText(strings.Join(out, ","), none)
}

func nodeCells(n *corev1.Node, created string) []any {
	addresses := map[corev1.NodeAddressType]string{}
	for _, a := range n.Status.Addresses {
		if addresses[a.Type] == "" {
			addresses[a.Type] = a.Address
		}
	}
	info := n.Status.NodeInfo
	return []any{n.Name, nodeStatus(n), nodeRoles(n), created, info.KubeletVersion,
		orText(addresses[corev1.NodeInternalIP], none), orText(addresses[corev1.NodeExternalIP], none),
		orText(info.OSImage, "<unknown>"), orText(info.KernelVersion, "<unknown>"), orText(info.ContainerRuntimeVersion, "<unknown>")}
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		status = "NotReady"
		if c.Status == corev1.ConditionTrue {
			status = "Ready"
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

func nodeRoles(n *corev1.Node) string {
	var roles []string
	for l := range n.Labels {
		if role, ok := strings.CutPrefix(l, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return orText(strings.Join(roles, ","), none)
}

func slicePorts(s *discoveryv1.EndpointSlice) string {
	var out []string
	for _, p := range s.Ports {
		if p.Port != nil {
			out = append(out, strconv.Itoa(int(*p.Port)))
		}
	}
	return shortened(out, "<unset>")
}

func sliceEndpoints(s *discoveryv1.EndpointSlice) string {
	var out []string
	for _, e := range s.Endpoints {
		out = append(out, e.Addresses...)
	}
	return shortened(out, "<unset>")
}

// shortened writes at most three values.
func shortened(values []string, otherwise string) string {
	const most = 3
	if len(values) <= most {
		return orText(strings.Join(values, ","), otherwise)
	}
	return fmt.Sprintf("%s + %d more...", strings.Join(values[:most], ","), len(values)-most)
}

func eventCells(e *corev1.Event, now time.Time) []any {
	lastSeen, firstSeen, count := eventTimes(e)
	seen := age(lastSeen, now)
	if count > 1 && !firstSeen.Equal(lastSeen) {
		seen = fmt.Sprintf("%s (x%d over %s)", seen, count, age(firstSeen, now))
	}
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	if e.Source.Host != "" {
		source += ", " + e.Source.Host
	}
	return []any{seen, e.Type, e.Reason, eventObject(e), strings.TrimSpace(e.Message),
		e.InvolvedObject.FieldPath, source, age(firstSeen, now), count, e.Name}
}

func eventObject(e *corev1.Event) string {
	return strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
}

// eventTimes reads both forms in which events say when they were.
func eventTimes(e *corev1.Event) (last, first time.Time, count int32) {
	last, first, count = e.LastTimestamp.Time, e.FirstTimestamp.Time, max(e.Count, 1)
	if e.Series != nil {
		last, count = e.Series.LastObservedTime.Time, e.Series.Count
	}
	if first.IsZero() {
		first = e.EventTime.Time
	}
	if first.IsZero() {
		first = e.CreationTimestamp.Time
	}
	if last.IsZero() {
		last = first
	}
	return last, first, count
}
