package endpoints_test

import (
	"fmt"
	"slices"
	"testing"

	"gantry.dev/bus"
	"gantry.dev/controlplane/endpoints"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/reconcile/reconciletest"
	"gantry.dev/schemas"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func service(edit ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, e := range edit {
		e(s)
	}
	return s
}

func pod(name, ip string, port int32, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web", "tier": "x"}},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{
			Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port}},
		}}},
		Status: corev1.PodStatus{
			PodIP: ip, Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

func notReady(p *corev1.Pod) { p.Status.Conditions = nil }
func ending(p *corev1.Pod)   { p.DeletionTimestamp = &metav1.Time{} }

// lines writes slices down as "ports: address flags ...": r ready, s serving, t terminating.
func lines(got []*discoveryv1.EndpointSlice) []string {
	var out []string
	for _, s := range got {
		line := string(s.AddressType)
		for _, p := range s.Ports {
			line += fmt.Sprintf(" %s/%s/%d", *p.Name, *p.Protocol, *p.Port)
		}
		line += ":"
		for _, e := range s.Endpoints {
			line += " " + e.Addresses[0] + " "
			for _, f := range []struct {
				c *bool
				s string
			}{{e.Conditions.Ready, "r"}, {e.Conditions.Serving, "s"}, {e.Conditions.Terminating, "t"}} {
				if *f.c {
					line += f.s
				}
			}
		}
		out = append(out, line)
	}
	return out
}

func TestSlices(t *testing.T) {
	publish := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
	for _, tt := range []struct {
		name    string
		service *corev1.Service
		pods    []*corev1.Pod
		want    []string
	}{
		{"no pods", service(), nil, []string{"IPv4:"}},
		{"ready", service(), []*corev1.Pod{pod("a", "10.0.0.1", 8080)}, []string{"IPv4 http/TCP/8080: 10.0.0.1 rs"}},
		{"not ready", service(), []*corev1.Pod{pod("a", "10.0.0.1", 8080, notReady)}, []string{"IPv4 http/TCP/8080: 10.0.0.1 "}},
		{"ending but serving", service(), []*corev1.Pod{pod("a", "10.0.0.1", 8080, ending)}, []string{"IPv4 http/TCP/8080: 10.0.0.1 st"}},
		{"published before ready", service(publish), []*corev1.Pod{pod("a", "10.0.0.1", 8080, notReady)}, []string{"IPv4 http/TCP/8080: 10.0.0.1 r"}},
		{"published while ending", service(publish), []*corev1.Pod{pod("a", "10.0.0.1", 8080, ending)}, []string{"IPv4 http/TCP/8080: 10.0.0.1 rst"}},
		{"named port with two numbers", service(),
			[]*corev1.Pod{pod("a", "10.0.0.1", 8080), pod("b", "10.0.0.2", 9090), pod("c", "10.0.0.3", 8080)},
			[]string{"IPv4 http/TCP/8080: 10.0.0.1 rs 10.0.0.3 rs", "IPv4 http/TCP/9090: 10.0.0.2 rs"}},
		{"name that the pod does not have", service(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("grpc") }),
			[]*corev1.Pod{pod("a", "10.0.0.1", 8080)}, []string{"IPv4: 10.0.0.1 rs"}},
		{"name of another protocol", service(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }),
			[]*corev1.Pod{pod("a", "10.0.0.1", 8080)}, []string{"IPv4: 10.0.0.1 rs"}},
		{"number", service(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(7) }),
			[]*corev1.Pod{pod("a", "10.0.0.1", 8080)}, []string{"IPv4 http/TCP/7: 10.0.0.1 rs"}},
		{"no target", service(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.IntOrString{} }),
			[]*corev1.Pod{pod("a", "10.0.0.1", 8080)}, []string{"IPv4 http/TCP/80: 10.0.0.1 rs"}},
		{"both families", service(func(s *corev1.Service) {
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		}), []*corev1.Pod{pod("a", "10.0.0.1", 80, func(p *corev1.Pod) {
			p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}
		})}, []string{"IPv4 http/TCP/80: 10.0.0.1 rs", "IPv6 http/TCP/80: fd00::1 rs"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, lines(endpoints.Slices(tt.service, tt.pods))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestManyEndpointsArePartedAndNoneIsLost(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 4321 {
		pods = append(pods, pod(fmt.Sprintf("p%d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250), 80))
	}
	seen := map[string]bool{}
	names := map[string]bool{}
	for _, s := range endpoints.Slices(service(), pods) {
		if len(s.Endpoints) > 1000 {
			t.Errorf("%s holds %d endpoints", s.Name, len(s.Endpoints))
		}
		names[s.Name] = true
		for _, e := range s.Endpoints {
			seen[e.Addresses[0]] = true
		}
	}
	if len(seen) != len(pods) || len(names) < 5 {
		t.Errorf("%d addresses in %d slices", len(seen), len(names))
	}
}

func world() *reconciletest.World {
	return reconciletest.NewWorld(reconcile.Indexes(), endpoints.New())
}

func put(t *testing.T, w *reconciletest.World, o schemas.Object) {
	t.Helper()
	if _, err := w.Put(o); err != nil {
		t.Fatal(err)
	}
	if err := w.Settle(); err != nil {
		t.Fatal(err)
	}
}

func stored(w *reconciletest.World) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, o := range w.View().List(schemas.EndpointSlices, "") {
		out = append(out, o.(*discoveryv1.EndpointSlice))
	}
	return out
}

func TestSliceFollowsItsPodsAndService(t *testing.T) {
	w := world()
	want := func(what string, lines_ ...string) {
		t.Helper()
		if diff := cmp.Diff(lines_, lines(stored(w))); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", what, diff)
		}
	}
	s := service()
	s.UID = ""
	put(t, w, s)
	want("no pods", "IPv4:")
	name := stored(w)[0].Name
	put(t, w, pod("a", "", 8080))
	want("a pod without an address", "IPv4:")
	put(t, w, pod("a", "10.0.0.1", 8080, notReady))
	want("it has one", "IPv4 http/TCP/8080: 10.0.0.1 ")
	put(t, w, pod("a", "10.0.0.1", 8080))
	want("it is ready", "IPv4 http/TCP/8080: 10.0.0.1 rs")
	put(t, w, pod("other", "10.0.0.9", 8080, func(p *corev1.Pod) { p.Labels["app"] = "db" }))
	want("a pod of others", "IPv4 http/TCP/8080: 10.0.0.1 rs")
	put(t, w, pod("a", "10.0.0.1", 8080, func(p *corev1.Pod) { p.Labels["app"] = "db" }))
	want("its label is taken", "IPv4:")
	put(t, w, pod("a", "10.0.0.1", 8080))
	s.Spec.Ports[0].TargetPort = intstr.FromInt32(9)
	put(t, w, s)
	want("the port changes", "IPv4 http/TCP/9: 10.0.0.1 rs")
	if got := stored(w)[0]; got.Name != name || got.OwnerReferences[0].Name != "web" || got.Labels[discoveryv1.LabelServiceName] != "web" {
		t.Errorf("slice %+v", got.ObjectMeta)
	}
	put(t, w, pod("a", "10.0.0.1", 8080, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))
	want("it has failed", "IPv4:")
	before := w.Writes()
	w.Restart()
	if err := w.Settle(); err != nil || w.Writes() != before {
		t.Errorf("%d writes at rest, %v", w.Writes()-before, err)
	}
	if err := w.Delete(t.Context(), w.View().Get(schemas.Services, "default", "web")); err != nil {
		t.Fatal(err)
	}
	if err := w.Settle(); err != nil {
		t.Fatal(err)
	}
	want("the Service is gone")
}

func TestPodWakesOnlyTheServicesThatSelectIt(t *testing.T) {
	store := reconciletest.NewStore(reconcile.Indexes())
	for i := range 50 {
		s := service(func(s *corev1.Service) {
			s.UID, s.Name = "", fmt.Sprintf("s%d", i)
			s.Spec.Selector = map[string]string{"app": fmt.Sprintf("app%d", i)}
		})
		if _, err := store.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	c := endpoints.New()
	label := func(v string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels["app"] = v } }
	old, moved := pod("a", "10.0.0.1", 80, label("app7")), pod("a", "10.0.0.1", 80, label("app9"))
	busy := old.DeepCopy()
	busy.Status.Message = "whatever a node says"
	for _, tt := range []struct {
		name   string
		change bus.Change
		want   []string
	}{
		{"new", bus.Change{Resource: schemas.Pods, New: old}, []string{"default/s7"}},
		{"gone", bus.Change{Resource: schemas.Pods, Old: old}, []string{"default/s7"}},
		{"moved", bus.Change{Resource: schemas.Pods, Old: old, New: moved}, []string{"default/s7", "default/s9"}},
		{"nothing that is seen", bus.Change{Resource: schemas.Pods, Old: old, New: busy}, nil},
	} {
		got := c.Wakes(tt.change, store.View())
		slices.Sort(got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}
