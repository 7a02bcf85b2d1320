package node

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// tcpListen is the state of a listening socket in /proc/net/tcp.
const tcpListen = "0A"

// PortTaken says whether something listens on a port of the host. It reads the
// kernel's tables and does not try to bind: a trial would itself take the port
// from others for a moment.
func PortTaken(protocol corev1.Protocol, port int32) bool {
	name := "tcp"
	if protocol == corev1.ProtocolUDP {
		name = "udp"
	}
	for _, table := range []string{name, name + "6"} {
		// This very thread's network namespace, not that of the process's first.
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err == nil && listens(text, name == "tcp", port) {
			return true
		}
	}
	return false
}

func listens(table []byte, tcp bool, port int32) bool {
	const local, state = 1, 3
	suffix := fmt.Sprintf(":%04X", port)
	for s := bufio.NewScanner(bytes.NewReader(table)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) <= state {
			continue
		}
		if tcp && fields[state] != tcpListen {
			continue
		}
		if strings.HasSuffix(fields[local], suffix) {
			return true
		}
	}
	return false
}
