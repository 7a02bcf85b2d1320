package node

import (
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/nodeagent/image"
)

func TestFactsAndStatus(t *testing.T) {
	f, err := Look(Options{Node: "n1", StateDir: t.TempDir(), MaxPods: 110, Reserved: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}})
	if err != nil {
		t.Fatal(err)
	}
	if f.IP() == "" || f.Memory() == 0 || f.Info.BootID == "" || f.Labels[corev1.LabelHostname] != "n1" {
		t.Errorf("facts %+v", f)
	}
	memory := f.Allocatable[corev1.ResourceMemory]
	if got := f.Memory() - memory.Value(); got != 64<<20 {
		t.Errorf("%d bytes are reserved, want 64Mi", got)
	}
	now := time.Now()
	first := f.Status([]image.Image{{ID: "1", Ref: "a", Size: 1}, {ID: "2", Ref: "b", RepoDigest: "b@x", Size: 9}, {ID: "1", Ref: "c", Size: 1}}, nil, now)
	if len(first.Images) != 2 || len(first.Images[0].Names) != 2 || first.Images[0].SizeBytes != 9 {
		t.Errorf("images %+v", first.Images)
	}
	later := f.Status(nil, first.Conditions, now.Add(time.Hour))
	for i, c := range later.Conditions {
		if !c.LastTransitionTime.Equal(&first.Conditions[i].LastTransitionTime) && c.Status == first.Conditions[i].Status {
			t.Errorf("%s moved its transition time", c.Type)
		}
	}
}

func TestTooMuchIsReserved(t *testing.T) {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, "gpu"} {
		_, err := Look(Options{Node: "n1", StateDir: t.TempDir(), Reserved: corev1.ResourceList{name: resource.MustParse("1000Ti")}})
		if err == nil {
			t.Errorf("reserving 1000Ti of %s is accepted", name)
		}
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int32(l.Addr().(*net.TCPAddr).Port)
	if !PortTaken(corev1.ProtocolTCP, port) {
		t.Error("a port that listens is not taken")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if PortTaken(corev1.ProtocolTCP, port) {
		t.Error("a port that was closed is taken")
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = int32(c.LocalAddr().(*net.UDPAddr).Port)
	if !PortTaken(corev1.ProtocolUDP, port) || PortTaken(corev1.ProtocolTCP, port) && !PortTaken(corev1.ProtocolUDP, port) {
		t.Error("a UDP port that is bound is not taken")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
