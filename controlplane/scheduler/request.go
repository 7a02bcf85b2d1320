package scheduler

import corev1 "k8s.io/api/core/v1"

// Amount is what a pod asks for or a node has. CPU is in thousandths of a
// core, memory and ephemeral storage in bytes; any other resource is counted
// in Other in its own unit.
type Amount struct {
	CPU, Memory, Ephemeral, Pods int64
	Other                        map[corev1.ResourceName]int64
}

// What a container without requests is taken to use when nodes are compared:
// such pods would otherwise all look free and pile up on one node. It never
// counts against what a node has.
const (
	scoredCPU    = 100
	scoredMemory = 200 << 20
)

func (a *Amount) add(b Amount, times int64) {
	a.CPU += b.CPU * times
	a.Memory += b.Memory * times
	a.Ephemeral += b.Ephemeral * times
	a.Pods += b.Pods * times
	for name, n := range b.Other {
		if a.Other == nil {
			a.Other = map[corev1.ResourceName]int64{}
		}
		a.Other[name] += n * times
		if a.Other[name] == 0 {
			delete(a.Other, name)
		}
	}
}

// max raises each resource of a to that of b.
func (a *Amount) max(b Amount) {
	a.CPU = max(a.CPU, b.CPU)
	a.Memory = max(a.Memory, b.Memory)
	a.Ephemeral = max(a.Ephemeral, b.Ephemeral)
	for name, n := range b.Other {
		if a.Other == nil {
			a.Other = map[corev1.ResourceName]int64{}
		}
		a.Other[name] = max(a.Other[name], n)
	}
}

// amountOf reads a resource list; what is named there but is not one of the
// fixed fields goes to Other.
func amountOf(list corev1.ResourceList) Amount {
	var a Amount
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			a.CPU = q.MilliValue()
		case corev1.ResourceMemory:
			a.Memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.Ephemeral = q.Value()
		case corev1.ResourcePods:
			a.Pods = q.Value()
		default:
			if a.Other == nil {
				a.Other = map[corev1.ResourceName]int64{}
			}
			a.Other[name] = q.Value()
		}
	}
	return a
}

// Request is what a pod needs of a node by Kubernetes' rules: the larger of
// what runs together at last (containers and sidecars) and of what any init
// container needs beside the sidecars that started before it, plus the pod's
// overhead. Requests on the pod's own level replace the containers' sum.
func Request(pod *corev1.Pod) Amount {
	var running, sidecars, peak Amount
	for i := range pod.Spec.Containers {
		running.add(containerRequest(&pod.Spec.Containers[i]), 1)
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		need := containerRequest(c)
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars.add(need, 1)
			peak.max(sidecars)
			continue
		}
		need.add(sidecars, 1)
		peak.max(need)
	}
	running.add(sidecars, 1)
	running.max(peak)
	if own := pod.Spec.Resources; own != nil {
		list := requestsOf(*own)
		if q, ok := list[corev1.ResourceCPU]; ok {
			running.CPU = q.MilliValue()
		}
		if q, ok := list[corev1.ResourceMemory]; ok {
			running.Memory = q.Value()
		}
	}
	running.add(amountOf(pod.Spec.Overhead), 1)
	running.Pods = 1
	return running
}

func containerRequest(c *corev1.Container) Amount { return amountOf(requestsOf(c.Resources)) }

// requestsOf is the requests, with a limit standing in where nothing is
// requested, as Kubernetes defaults it.
func requestsOf(r corev1.ResourceRequirements) corev1.ResourceList {
	missing := false
	for name := range r.Limits {
		if _, ok := r.Requests[name]; !ok {
			missing = true
		}
	}
	if !missing {
		return r.Requests
	}
	out := corev1.ResourceList{}
	for name, q := range r.Limits {
		out[name] = q
	}
	for name, q := range r.Requests {
		out[name] = q
	}
	return out
}

// scored is the request with containers that ask for nothing taken at a
// typical size.
func scored(pod *corev1.Pod, request Amount) (cpu, memory int64) {
	cpu, memory = request.CPU, request.Memory
	for i := range pod.Spec.Containers {
		r := requestsOf(pod.Spec.Containers[i].Resources)
		if _, ok := r[corev1.ResourceCPU]; !ok {
			cpu += scoredCPU
		}
		if _, ok := r[corev1.ResourceMemory]; !ok {
			memory += scoredMemory
		}
	}
	return cpu, memory
}

// port is a place on a node's own addresses that one pod can hold.
type port struct {
	protocol corev1.Protocol
	ip       string // empty for every address
	number   int32
}

// hostPorts lists what the pod takes of the node's own ports. With hostNetwork
// a container port is a host port, whether it says so or not.
func hostPorts(pod *corev1.Pod) []port {
	var out []port
	take := func(containers []corev1.Container) {
		for i := range containers {
			for _, p := range containers[i].Ports {
				number := p.HostPort
				if number == 0 && pod.Spec.HostNetwork {
					number = p.ContainerPort
				}
				if number == 0 {
					continue
				}
				proto, ip := p.Protocol, p.HostIP
				if proto == "" {
					proto = corev1.ProtocolTCP
				}
				if ip == "0.0.0.0" || ip == "::" {
					ip = ""
				}
				out = append(out, port{proto, ip, number})
			}
		}
	}
	take(pod.Spec.Containers)
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			take(pod.Spec.InitContainers[i : i+1])
		}
	}
	return out
}

func (p port) clashes(q port) bool {
	return p.number == q.number && p.protocol == q.protocol && (p.ip == q.ip || p.ip == "" || q.ip == "")
}
