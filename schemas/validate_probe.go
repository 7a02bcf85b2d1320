package schemas

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var urlSchemes = []corev1.URIScheme{corev1.URISchemeHTTP, corev1.URISchemeHTTPS}

// probes checks the three probes of a container.
func (p *podCheck) probes(c *corev1.Container, at *field.Path) {
	p.probe(c.LivenessProbe, c, at, "livenessProbe")
	p.probe(c.ReadinessProbe, c, at, "readinessProbe")
	p.probe(c.StartupProbe, c, at, "startupProbe")
	if r := c.ReadinessProbe; r != nil && r.TerminationGracePeriodSeconds != nil {
		p.invalid(at.Child("readinessProbe", "terminationGracePeriodSeconds"), *r.TerminationGracePeriodSeconds, "must not be set for readinessProbes")
	}
	p.succeedsOnce(c.LivenessProbe, at, "livenessProbe")
	p.succeedsOnce(c.StartupProbe, at, "startupProbe")
}

// succeedsOnce: a second success would say nothing that the first did not.
func (p *podCheck) succeedsOnce(probe *corev1.Probe, at *field.Path, name string) {
	if probe != nil && probe.SuccessThreshold != 1 {
		p.invalid(at.Child(name, "successThreshold"), probe.SuccessThreshold, "must be 1")
	}
}

func (p *podCheck) probe(probe *corev1.Probe, c *corev1.Container, at *field.Path, name string) {
	if probe == nil {
		return
	}
	at = at.Child(name)
	p.handler(handler{probe.Exec, probe.HTTPGet, probe.TCPSocket, probe.GRPC, nil}, at)
	p.notNegative(int64(probe.InitialDelaySeconds), at, "initialDelaySeconds")
	p.notNegative(int64(probe.TimeoutSeconds), at, "timeoutSeconds")
	p.notNegative(int64(probe.PeriodSeconds), at, "periodSeconds")
	p.notNegative(int64(probe.SuccessThreshold), at, "successThreshold")
	p.notNegative(int64(probe.FailureThreshold), at, "failureThreshold")
	if g := probe.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		p.invalid(at.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0")
	}
	if h := probe.HTTPGet; h != nil {
		p.knownPort(h.Port, c, at, "httpGet")
	}
	if t := probe.TCPSocket; t != nil {
		p.knownPort(t.Port, c, at, "tcpSocket")
	}
}

// knownPort refuses a port's name that the container does not have: Kubernetes
// lets the probe fail for ever.
func (p *podCheck) knownPort(port intstr.IntOrString, c *corev1.Container, at *field.Path, name string) {
	if port.Type == intstr.Int || len(validation.IsValidPortName(port.StrVal)) > 0 {
		return
	}
	for i := range c.Ports {
		if c.Ports[i].Name == port.StrVal {
			return
		}
	}
	p.invalid(at.Child(name, "port"), port.StrVal, "the container has no port of this name")
}

// handler is what a probe or hook does: exactly one of these is set.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func (p *podCheck) handler(h handler, at *field.Path) {
	given := false
	// first says whether an action is the first of its handler; a second one
	// is refused unread.
	first := func(name string) bool {
		if given {
			p.forbidden(at.Child(name), "may not specify more than 1 handler type")
			return false
		}
		given = true
		return true
	}
	if h.exec != nil && first("exec") && len(h.exec.Command) == 0 {
		p.required(at.Child("exec", "command"), "")
	}
	if h.http != nil && first("httpGet") {
		p.httpGet(h.http, at.Child("httpGet"))
	}
	if h.tcp != nil && first("tcpSocket") {
		p.portNumberOrName(h.tcp.Port, at, "tcpSocket", "port")
	}
	if h.grpc != nil && first("grpc") {
		p.portNumberOrName(intstr.FromInt32(h.grpc.Port), at, "grpc", "port")
	}
	if h.sleep != nil && first("sleep") {
		if g := p.spec.TerminationGracePeriodSeconds; g != nil && (h.sleep.Seconds < 0 || h.sleep.Seconds > *g) {
			p.invalid(at.Child("sleep"), h.sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *g))
		}
	}
	if !given {
		p.required(at, "must specify a handler type")
	}
}

func (p *podCheck) httpGet(h *corev1.HTTPGetAction, at *field.Path) {
	p.given(h.Path, at, "path")
	p.portNumberOrName(h.Port, at, "port")
	choose(&p.problems, h.Scheme, at, "scheme", urlSchemes)
	for _, header := range h.HTTPHeaders {
		p.check(validation.IsHTTPHeaderName, header.Name, at, "httpHeaders")
	}
}

func (p *problems) portNumberOrName(port intstr.IntOrString, at *field.Path, name string, more ...string) {
	if port.Type == intstr.Int {
		if messages := validation.IsValidPortNum(port.IntValue()); len(messages) > 0 {
			p.invalid(at.Child(name, more...), port.IntValue(), messages...)
		}
		return
	}
	if messages := validation.IsValidPortName(port.StrVal); len(messages) > 0 {
		p.invalid(at.Child(name, more...), port.StrVal, messages...)
	}
}

// stopSignals are the names that Linux has for signals.
var stopSignals = func() []corev1.Signal {
	names := strings.Fields(`SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL
		SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGRTMAX`)
	for i := 1; i < 15; i++ {
		names = append(names, fmt.Sprintf("SIGRTMAX-%d", i))
	}
	names = append(names, "SIGRTMIN")
	for i := 1; i < 16; i++ {
		names = append(names, fmt.Sprintf("SIGRTMIN+%d", i))
	}
	names = append(names, strings.Fields(`SIGSEGV SIGSTKFLT SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1
		SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ`)...)
	out := make([]corev1.Signal, len(names))
	for i, n := range names {
		out[i] = corev1.Signal(n)
	}
	return out
}()

var stopSignalsOfWindows = []corev1.Signal{corev1.SIGKILL, corev1.SIGTERM}

// lifecycle checks a container's hooks and its stop signal.
func (p *podCheck) lifecycle(l *corev1.Lifecycle, at *field.Path) {
	if l == nil {
		return
	}
	at = at.Child("lifecycle")
	if h := l.PostStart; h != nil {
		p.handler(handler{h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep}, at.Child("postStart"))
	}
	if h := l.PreStop; h != nil {
		p.handler(handler{h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep}, at.Child("preStop"))
	}
	switch {
	case l.StopSignal == nil:
	case p.spec.OS == nil:
		p.forbidden(at.Child("stopSignal"), "may not be set for containers with empty `spec.os.name`")
	case p.spec.OS.Name == corev1.Windows:
		choose(&p.problems, *l.StopSignal, at, "stopSignal", stopSignalsOfWindows)
	case p.spec.OS.Name == corev1.Linux:
		choose(&p.problems, *l.StopSignal, at, "stopSignal", stopSignals)
	}
}
