package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// say sends a line (TCP) or a datagram (UDP) and returns the answer.
func say(network, address, text string) (string, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if network == "udp" {
		if _, err := conn.Write([]byte(text)); err != nil {
			return "", err
		}
		buf := make([]byte, 1500)
		n, err := conn.Read(buf)
		return string(buf[:n]), err
	}
	if _, err := fmt.Fprintln(conn, text); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// TestPortsOfAService: one Service with TCP and UDP on one port, a second TCP
// port, names and numbers as targets; asked from the node, from another pod and
// from the pod itself, and refused at once when nobody is behind it.
func TestPortsOfAService(t *testing.T) {
	l := newLab(t)
	const echo = `"args":["--tcp-echo",":7000","--udp-echo",":7001"],
"env":[{"name":"POD_NAME","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}],
"ports":[{"name":"web","containerPort":8080},{"name":"lines","containerPort":7000},{"name":"grams","containerPort":7001,"protocol":"UDP"}]`
	for _, name := range []string{"echo-a", "echo-b"} {
		l.apply(strings.Replace(onePod(name, echo, ""), fmt.Sprintf(`"pod":%q`, name), fmt.Sprintf(`"pod":%q,"app":"echo"`, name), 1))
	}
	l.apply(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"echo"},"spec":{"selector":{"app":"echo"},"ports":[
{"name":"web","port":80,"targetPort":"web"},
{"name":"lines","port":53,"targetPort":"lines"},
{"name":"grams","port":53,"targetPort":"grams","protocol":"UDP"},
{"name":"grams-by-number","port":7001,"targetPort":7001,"protocol":"UDP"}]}}`)
	for _, name := range []string{"echo-a", "echo-b"} {
		l.pod(name, "is ready", ready)
	}
	var s corev1.Service
	if err := l.get(&s, "service", "echo"); err != nil {
		t.Fatal(err)
	}
	ip := s.Spec.ClusterIP
	for _, port := range []struct{ network, address string }{
		{"tcp", ip + ":53"}, {"udp", ip + ":53"}, {"udp", ip + ":7001"},
	} {
		answered := map[string]bool{}
		l.eventually(fmt.Sprintf("both pods answer on %s %s", port.network, port.address), func() error {
			answer, err := say(port.network, port.address, "hello")
			if err != nil {
				return err
			}
			name, rest, _ := strings.Cut(answer, " ")
			if rest != "hello" {
				return fmt.Errorf("the answer is %q", answer)
			}
			if answered[name] = true; len(answered) < 2 {
				return fmt.Errorf("only %v answered", answered)
			}
			return nil
		})
	}
	// This one the web server answers: it does not know who asks.
	l.eventually("the named web port answers", func() error { _, err := ask(ip + ":80"); return err })

	for _, way := range []struct{ from, verb, port string }{
		{"a pod", "tcp", "53"}, {"a pod", "udp", "53"}, {"a pod", "udp", "7001"},
	} {
		name := "asks-" + way.verb + "-" + way.port
		l.apply(onePod(name, fmt.Sprintf(`"args":[%q,"%s:%s","hello"]`, way.verb, ip, way.port), `"restartPolicy":"Never"`))
		l.pod(name, "has its answer", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		if out := l.must(l.gantry("", "logs", name)); !strings.HasPrefix(out, "echo-") || !strings.Contains(out, " hello") {
			t.Errorf("%s heard %q", name, out)
		}
	}

	// Alone behind the Service, a pod reaches itself through it.
	l.must(l.gantry("", "delete", "pod", "echo-b", "--wait"))
	l.eventually("echo-a is alone", func() error {
		var s corev1.Service
		if err := l.get(&s, "service", "echo"); err != nil {
			return err
		}
		out, err := l.gantry("", "get", "endpointslices", "-l", "kubernetes.io/service-name=echo", "-o", "jsonpath={.items[*].endpoints[*].targetRef.name}")
		if err == nil && strings.Contains(out, "echo-b") {
			err = fmt.Errorf("endpoints: %s", out)
		}
		return err
	})
	pid, err := l.ContainerPID(string(l.pod("echo-a", "is ready", ready).UID), "c")
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "udp"} {
		l.eventually("echo-a reaches itself by "+network, func() error {
			out, err := command(l.ctx, "", "nsenter", "-t", fmt.Sprint(pid), "-n", "-m", "/web", network, ip+":53", "me")
			if err == nil && !strings.Contains(out, "echo-a me") {
				err = fmt.Errorf("it heard %q", out)
			}
			return err
		})
	}

	// Nobody left: refused at once, for the node and for pods. Of a datagram the
	// kernel tells a local sender that it may not be sent.
	l.apply(onePod("asker", "", ""))
	asker, err := l.ContainerPID(string(l.pod("asker", "is ready", ready).UID), "c")
	if err != nil {
		t.Fatal(err)
	}
	l.must(l.gantry("", "delete", "pod", "echo-a", "--wait"))
	for _, network := range []string{"tcp", "udp"} {
		l.eventually("the node is refused by "+network, func() error {
			_, err := say(network, ip+":53", "anyone?")
			if errors.Is(err, syscall.ECONNREFUSED) || network == "udp" && errors.Is(err, syscall.EPERM) {
				return nil
			}
			return fmt.Errorf("want connection refused: %w", err)
		})
		l.eventually("a pod is refused by "+network, func() error {
			out, err := command(l.ctx, "", "nsenter", "-t", fmt.Sprint(asker), "-n", "-m", "/web", network, ip+":53", "anyone?")
			if err == nil || !strings.Contains(err.Error(), "connection refused") {
				return fmt.Errorf("want connection refused: %w %s", err, out)
			}
			return nil
		})
	}
}
