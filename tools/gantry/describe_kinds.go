package main

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"gantry.dev/schemas"
)

// object writes all about an object but its events. pods are those of a node.
func (d *description) object(k schemas.Kind, o schemas.Object, pods []*corev1.Pod) error {
	d.meta(k, o)
	switch o := o.(type) {
	case *corev1.Pod:
		d.pod(o)
	case *appsv1.Deployment:
		d.deployment(o)
	case *appsv1.ReplicaSet:
		want := int32(1)
		if o.Spec.Replicas != nil {
			want = *o.Spec.Replicas
		}
		d.line(0, "Selector", "%s", metav1.FormatLabelSelector(o.Spec.Selector))
		d.line(0, "Replicas", "%d current / %d desired, %d ready", o.Status.Replicas, want, o.Status.ReadyReplicas)
		d.template(o.Spec.Template)
	case *corev1.Service:
		d.service(o)
	case *corev1.Node:
		d.node(o, pods)
	case *corev1.Namespace:
		d.line(0, "Status", "%s", orText(string(o.Status.Phase), string(corev1.NamespaceActive)))
	case *discoveryv1.EndpointSlice:
		d.endpointSlice(o)
	case *corev1.ConfigMap:
		d.configMap(o)
	case *corev1.Secret:
		d.secret(o)
	case *corev1.PodTemplate:
		d.template(o.Template)
	case *appsv1.ControllerRevision:
		d.controllerRevision(o)
	case *coordinationv1.Lease:
		d.lease(o)
	default:
		return d.rest(o)
	}
	return nil
}

func (d *description) pod(p *corev1.Pod) {
	node := p.Spec.NodeName
	if p.Status.HostIP != "" {
		node += "/" + p.Status.HostIP
	}
	d.line(0, "Node", "%s", node)
	if p.Status.StartTime != nil {
		d.line(0, "Start Time", "%s", d.when(p.Status.StartTime.Time))
	}
	if p.DeletionTimestamp == nil {
		d.line(0, "Status", "%s", podStatus(p))
	}
	if p.Status.Message != "" {
		d.line(0, "Message", "%s", p.Status.Message)
	}
	d.line(0, "IP", "%s", p.Status.PodIP)
	d.head(0, "Containers")
	states := map[string]corev1.ContainerStatus{}
	for _, s := range p.Status.ContainerStatuses {
		states[s.Name] = s
	}
	for _, c := range p.Spec.Containers {
		d.container(c)
		if s, ok := states[c.Name]; ok {
			d.containerState(s)
		}
	}
	d.conditions(podConditions(p))
	d.line(0, "Restart Policy", "%s", p.Spec.RestartPolicy)
	if p.Status.QOSClass != "" {
		d.line(0, "QoS Class", "%s", p.Status.QOSClass)
	}
	d.pairs("Node-Selectors", p.Spec.NodeSelector)
}

func (d *description) container(c corev1.Container) {
	d.head(1, c.Name)
	d.line(2, "Image", "%s", c.Image)
	var ports []string
	for _, p := range c.Ports {
		text := fmt.Sprintf("%d/%s", p.ContainerPort, orText(string(p.Protocol), "TCP"))
		if p.Name != "" {
			text += " (" + p.Name + ")"
		}
		if p.HostPort > 0 {
			text += fmt.Sprintf(" on host port %d", p.HostPort)
		}
		ports = append(ports, text)
	}
	d.line(2, "Ports", "%s", strings.Join(ports, ", "))
	if len(c.Command) > 0 {
		d.line(2, "Command", "%s", strings.Join(c.Command, " "))
	}
	if len(c.Args) > 0 {
		d.line(2, "Args", "%s", strings.Join(c.Args, " "))
	}
	for _, r := range []struct {
		label string
		list  corev1.ResourceList
	}{{"Limits", c.Resources.Limits}, {"Requests", c.Resources.Requests}} {
		if len(r.list) > 0 {
			d.line(2, r.label, "%s", quantities(r.list))
		}
	}
	if p := c.ReadinessProbe; p != nil {
		d.line(2, "Readiness", "%s", probe(p))
	}
	if p := c.LivenessProbe; p != nil {
		d.line(2, "Liveness", "%s", probe(p))
	}
	if len(c.Env) > 0 {
		d.head(2, "Environment")
		for _, e := range c.Env {
			value := e.Value
			if f := e.ValueFrom; f != nil && f.FieldRef != nil {
				value = "(" + f.FieldRef.FieldPath + ")"
			} else if f != nil {
				value = "(from another object)"
			}
			d.line(3, e.Name, "%s", value)
		}
	}
	if len(c.VolumeMounts) > 0 {
		d.head(2, "Mounts")
		for _, m := range c.VolumeMounts {
			d.line(3, m.MountPath, "from %s", m.Name)
		}
	}
}

func quantities(list corev1.ResourceList) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(list)) {
		q := list[name]
		out = append(out, fmt.Sprintf("%s %s", name, q.String()))
	}
	return strings.Join(out, ", ")
}

func probe(p *corev1.Probe) string {
	what := "unknown"
	switch {
	case p.HTTPGet != nil:
		what = fmt.Sprintf("http-get %s://%s:%s%s", strings.ToLower(orText(string(p.HTTPGet.Scheme), "http")), p.HTTPGet.Host, p.HTTPGet.Port.String(), p.HTTPGet.Path)
	case p.TCPSocket != nil:
		what = fmt.Sprintf("tcp-socket %s:%s", p.TCPSocket.Host, p.TCPSocket.Port.String())
	case p.Exec != nil:
		what = fmt.Sprintf("exec %v", p.Exec.Command)
	case p.GRPC != nil:
		what = fmt.Sprintf("grpc :%d", p.GRPC.Port)
	}
	return fmt.Sprintf("%s delay=%ds timeout=%ds period=%ds #success=%d #failure=%d",
		what, p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
}

func (d *description) containerState(s corev1.ContainerStatus) {
	d.line(2, "Container ID", "%s", s.ContainerID)
	d.line(2, "Image ID", "%s", s.ImageID)
	d.state("State", s.State)
	if s.LastTerminationState.Terminated != nil {
		d.state("Last State", s.LastTerminationState)
	}
	d.line(2, "Ready", "%t", s.Ready)
	d.line(2, "Restart Count", "%d", s.RestartCount)
}

func (d *description) state(label string, s corev1.ContainerState) {
	switch {
	case s.Running != nil:
		d.line(2, label, "Running since %s", d.when(s.Running.StartedAt.Time))
	case s.Waiting != nil:
		d.line(2, label, "Waiting: %s", s.Waiting.Reason)
		if s.Waiting.Message != "" {
			d.line(3, "Message", "%s", s.Waiting.Message)
		}
	case s.Terminated != nil:
		t := s.Terminated
		d.line(2, label, "Terminated: %s", endReason(t))
		d.line(3, "Exit Code", "%d", t.ExitCode)
		if t.Signal != 0 {
			d.line(3, "Signal", "%d", t.Signal)
		}
		if t.Message != "" {
			d.line(3, "Message", "%s", t.Message)
		}
		d.line(3, "Started", "%s", d.when(t.StartedAt.Time))
		d.line(3, "Finished", "%s", d.when(t.FinishedAt.Time))
	}
}

// condition is what conditions of all kinds have in common.
type condition struct{ name, status, reason, message string }

func podConditions(p *corev1.Pod) []condition {
	var out []condition
	for _, c := range p.Status.Conditions {
		out = append(out, condition{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	return out
}

func (d *description) conditions(cs []condition) {
	if len(cs) == 0 {
		return
	}
	d.head(0, "Conditions")
	var rows [][]string
	for _, c := range cs {
		rows = append(rows, []string{c.name, c.status, c.reason, c.message})
	}
	d.rows(1, "Type,Status,Reason,Message", rows)
}

func (d *description) deployment(o *appsv1.Deployment) {
	want := int32(1)
	if o.Spec.Replicas != nil {
		want = *o.Spec.Replicas
	}
	s := o.Status
	d.line(0, "Selector", "%s", metav1.FormatLabelSelector(o.Spec.Selector))
	d.line(0, "Replicas", "%d desired | %d updated | %d total | %d available | %d unavailable", want, s.UpdatedReplicas, s.Replicas, s.AvailableReplicas, s.UnavailableReplicas)
	d.line(0, "StrategyType", "%s", o.Spec.Strategy.Type)
	if r := o.Spec.Strategy.RollingUpdate; r != nil && r.MaxUnavailable != nil && r.MaxSurge != nil {
		d.line(0, "RollingUpdateStrategy", "%s max unavailable, %s max surge", r.MaxUnavailable.String(), r.MaxSurge.String())
	}
	d.template(o.Spec.Template)
	var cs []condition
	for _, c := range s.Conditions {
		cs = append(cs, condition{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(cs)
}

func (d *description) template(t corev1.PodTemplateSpec) {
	d.head(0, "Pod Template")
	d.line(1, "Labels", "%s", labels.FormatLabels(t.Labels))
	for _, c := range t.Spec.Containers {
		d.container(c)
	}
}

func (d *description) service(s *corev1.Service) {
	d.line(0, "Selector", "%s", labels.FormatLabels(s.Spec.Selector))
	d.line(0, "Type", "%s", orText(string(s.Spec.Type), string(corev1.ServiceTypeClusterIP)))
	d.line(0, "IP", "%s", s.Spec.ClusterIP)
	for _, p := range s.Spec.Ports {
		d.line(0, "Port", "%s %d/%s -> %s", orText(p.Name, "<unset>"), p.Port, orText(string(p.Protocol), "TCP"), p.TargetPort.String())
		d.line(0, "Endpoints", "%s", strings.Join(d.endpoints(p.Name), ","))
	}
	d.line(0, "Session Affinity", "%s", s.Spec.SessionAffinity)
}

// endpoints are the addresses that the port of this name leads to now.
func (d *description) endpoints(port string) []string {
	var out []string
	for _, s := range d.slices {
		for _, p := range s.Ports {
			if p.Port == nil || p.Name == nil || *p.Name != port {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, address := range e.Addresses {
					out = append(out, net.JoinHostPort(address, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func (d *description) endpointSlice(s *discoveryv1.EndpointSlice) {
	d.line(0, "AddressType", "%s", s.AddressType)
	d.line(0, "Ports", "%s", slicePorts(s))
	d.head(0, "Endpoints")
	for _, e := range s.Endpoints {
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		target := ""
		if e.TargetRef != nil {
			target = strings.ToLower(e.TargetRef.Kind) + "/" + e.TargetRef.Name
		}
		d.line(1, strings.Join(e.Addresses, ","), "%s ready=%t", target, ready)
	}
}

func (d *description) node(n *corev1.Node, pods []*corev1.Pod) {
	d.line(0, "Roles", "%s", nodeRoles(n))
	d.line(0, "Unschedulable", "%t", n.Spec.Unschedulable)
	var cs []condition
	for _, c := range n.Status.Conditions {
		cs = append(cs, condition{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(cs)
	for _, a := range n.Status.Addresses {
		d.line(0, string(a.Type), "%s", a.Address)
	}
	d.line(0, "Capacity", "%s", quantities(n.Status.Capacity))
	d.line(0, "Allocatable", "%s", quantities(n.Status.Allocatable))
	info := n.Status.NodeInfo
	d.line(0, "OS", "%s, kernel %s, %s/%s", info.OSImage, info.KernelVersion, info.OperatingSystem, info.Architecture)
	d.line(0, "Agent", "%s, %s", info.KubeletVersion, info.ContainerRuntimeVersion)
	d.line(0, "PodCIDR", "%s", n.Spec.PodCIDR)
	total := corev1.ResourceList{}
	var rows [][]string
	for _, p := range pods {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		own := corev1.ResourceList{}
		for _, c := range p.Spec.Containers {
			add(own, c.Resources.Requests)
		}
		add(total, own)
		cpu, memory := own[corev1.ResourceCPU], own[corev1.ResourceMemory]
		rows = append(rows, []string{p.Namespace, p.Name, cpu.String(), memory.String(), age(p.CreationTimestamp.Time, d.now)})
	}
	d.head(0, fmt.Sprintf("Pods (%d in total)", len(rows)))
	d.rows(1, "Namespace,Name,CPU Requests,Memory Requests,Age", rows)
	d.line(0, "Requested", "%s", quantities(total))
}

func add(total, more corev1.ResourceList) {
	for name, q := range more {
		sum, ok := total[name]
		if !ok {
			sum = resource.Quantity{}
		}
		sum.Add(q)
		total[name] = sum
	}
}
