package schemas

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestLimits is about objects that are too large to be kept as cases for
// Kubernetes to judge; the limits are those that it documents.
func TestLimits(t *testing.T) {
	meta := metav1.ObjectMeta{Name: "a", Namespace: "default"}
	mebibyte := strings.Repeat("x", 1<<20)
	endpoints := func(n int) []discoveryv1.Endpoint {
		out := make([]discoveryv1.Endpoint, n)
		for i := range out {
			out[i].Addresses = []string{"10.0.0.1"}
		}
		return out
	}
	ports := func(n int) []discoveryv1.EndpointPort {
		out := make([]discoveryv1.EndpointPort, n)
		for i := range out {
			out[i] = discoveryv1.EndpointPort{Name: ptr(fmt.Sprintf("p%d", i)), Port: ptr[int32](80), Protocol: ptr(corev1.ProtocolTCP)}
		}
		return out
	}
	for _, tt := range []struct {
		desc string
		in   Object
		want string
	}{
		{"a config map of a MiB", &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"k": mebibyte}}, ""},
		{"a byte more", &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"k": mebibyte, "l": "x"}}, "[]: Too long: may not be more than 1048576 bytes"},
		{"a byte more in binary", &corev1.ConfigMap{ObjectMeta: meta, BinaryData: map[string][]byte{"k": []byte(mebibyte), "l": {0}}}, "[]: Too long: may not be more than 1048576 bytes"},
		{"a secret of a MiB", &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"k": []byte(mebibyte)}}, ""},
		{"a byte more of secret", &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"k": []byte(mebibyte), "l": {0}}}, "data: Too long: may not be more than 1048576 bytes"},
		{"a slice that is full", &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints(1000)}, ""},
		{"an endpoint more", &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints(1001)}, "endpoints: Too many: 1001: must have at most 1000 items"},
		{"too many ports", &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Ports: ports(20001)}, "ports: Too many: 20001: must have at most 20000 items"},
	} {
		got := ""
		if err := Validate(tt.in).ToAggregate(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.desc, got, tt.want)
		}
	}
}
