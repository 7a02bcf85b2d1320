package ringtest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"encoding/json"

	"gantry.dev/bus"
	"gantry.dev/controlplane/plane"
	"gantry.dev/schemas"
)

// benchRing is a control plane with one pretended node of any size.
func benchRing(b *testing.B) (*bus.UserConn, *Node) {
	b.Helper()
	dir := b.TempDir()
	p, err := plane.Start(b.Context(), plane.Options{
		StateDir: filepath.Join(dir, "state"), Listen: "127.0.0.1:0", Nodes: []string{"a"},
		PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: zerolog.Nop(),
	})
	if err != nil {
		b.Fatal(err)
	}
	creds, err := p.Server().NodeCredentials("a")
	if err != nil {
		b.Fatal(err)
	}
	n, err := StartNode(context.Background(), creds, "i", Capacity("100000", "100000Gi", "1000000"), zerolog.Nop())
	if err != nil {
		b.Fatal(err)
	}
	admin, err := p.Server().AdminCredentials()
	if err != nil {
		b.Fatal(err)
	}
	user, err := bus.ConnectUser(b.Context(), admin)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		user.Close()
		n.Stop()
		if err := p.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	for !readyNode(p) {
		time.Sleep(time.Millisecond)
	}
	return user, n
}

func readyNode(p *plane.Plane) bool {
	node, _ := p.Store().View().Get(schemas.Nodes, "", "a").(*corev1.Node)
	return node != nil && len(node.Status.Conditions) > 0 && node.Status.Conditions[0].Status == corev1.ConditionTrue
}

func createPod(b *testing.B, user *bus.UserConn, name string) {
	body, err := json.Marshal(corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "registry.example/x:1"}}},
	})
	if err != nil {
		b.Error(err)
		return
	}
	if _, err := user.Request(b.Context(), schemas.VerbCreate, schemas.Pods, "default", name, body); err != nil {
		b.Error(err)
	}
}

// BenchmarkCreateToNode is from a create request to the node having heard of
// the pod: stored, bound, compiled, signed and told.
func BenchmarkCreateToNode(b *testing.B) {
	user, n := benchRing(b)
	i := 0
	for b.Loop() {
		heard := n.Heard()
		i++
		createPod(b, user, fmt.Sprintf("p%d", i))
		for n.Heard() == heard {
			time.Sleep(20 * time.Microsecond)
		}
	}
}

// BenchmarkManyToNode is the same for many at once, per pod.
func BenchmarkManyToNode(b *testing.B) {
	user, n := benchRing(b)
	heard := n.Heard()
	b.ResetTimer()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 64 {
		wg.Go(func() {
			for i := range next {
				createPod(b, user, fmt.Sprintf("p%d", i))
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
	for n.Heard() < heard+b.N {
		time.Sleep(20 * time.Microsecond)
	}
}
