package publisher

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

var facts = Facts{ClusterID: "cluster", PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.96.0.0/16", Epoch: "e1"}

// world is a state with the objects that it was told of, and a listener that
// hears every message.
type world struct {
	state    *state
	revision uint64
	objects  map[string]schemas.Object
	pods     map[string]map[string]schemas.PodRecord // by node, by key: what listening to all gives
	routes   map[string]schemas.RouteRecord
	seqs     map[string]uint64
	buckets  map[string]bool // keys that hold a value
}

func newWorld() *world {
	return &world{
		state: newState(facts), objects: map[string]schemas.Object{}, pods: map[string]map[string]schemas.PodRecord{},
		routes: map[string]schemas.RouteRecord{}, seqs: map[string]uint64{}, buckets: map[string]bool{},
	}
}

// set stores an object, or with nil content removes it, and returns what was said.
func (w *world) set(t testing.TB, o schemas.Object, gone bool) []bus.FeedWrite {
	w.revision++
	key := schemas.KeyOf(o)
	c := bus.Change{Resource: schemas.KindOf(o).Resource, Old: w.objects[key], New: o, Revision: w.revision}
	if c.Old == nil && gone {
		return nil
	}
	if gone {
		c.New = nil
		delete(w.objects, key)
	} else {
		o.SetResourceVersion(strconv.FormatUint(w.revision, 10))
		w.objects[key] = o
	}
	writes, err := w.state.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range writes {
		w.hear(t, m)
	}
	return writes
}

func (w *world) hear(t testing.TB, m bus.FeedWrite) {
	w.buckets[m.Key] = m.Body != nil
	if m.Body == nil {
		delete(w.buckets, m.Key)
		return
	}
	if m.Key == schemas.DesiredNetworkKey(m.Node) {
		return
	}
	next := func(feed string, at schemas.FeedPos) {
		if w.seqs[feed]++; at.Epoch != facts.Epoch || at.Seq != w.seqs[feed] {
			t.Fatalf("%s is told %+v after %d", feed, at, w.seqs[feed]-1)
		}
	}
	if m.Node == "" {
		var r schemas.RouteRecord
		decode(t, m.Body, &r)
		next("routes", r.Feed)
		w.routes[r.Namespace+"/"+r.Name] = r
		if r.Removed {
			delete(w.routes, r.Namespace+"/"+r.Name)
		}
		return
	}
	var r schemas.PodRecord
	decode(t, m.Body, &r)
	next(m.Node, r.Feed)
	if w.pods[m.Node] == nil {
		w.pods[m.Node] = map[string]schemas.PodRecord{}
	}
	key := r.Namespace + "/" + r.Name
	if had, ok := w.pods[m.Node][key]; ok && had.UID == r.UID && r.Revision < had.Revision {
		t.Fatalf("%s goes back from %d to %d", key, had.Revision, r.Revision)
	}
	w.pods[m.Node][key] = r
	if r.Removed {
		delete(w.pods[m.Node], key)
	}
}

func decode(t testing.TB, data []byte, into any) {
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func pod(name, uid, node string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "x:1"}}},
	}
}

func node(name, cidr string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: cidr}}
}

func service(name, uid, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid)},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
}

func slice(name, service string, ready map[string]bool) *discoveryv1.EndpointSlice {
	port, proto, portName := int32(8080), corev1.ProtocolTCP, "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		Ports:      []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
	}
	for _, ip := range slices.Sorted(maps.Keys(ready)) {
		ok := ready[ip]
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ok}})
	}
	return s
}

func TestStatusOfAPodIsNoNews(t *testing.T) {
	w := newWorld()
	if got := len(w.set(t, pod("p", "u", "a"), false)); got != 1 {
		t.Fatalf("%d messages for a new pod, want 1", got)
	}
	p := pod("p", "u", "a")
	p.Status.Phase = corev1.PodRunning
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	if got := w.set(t, p, false); len(got) != 0 {
		t.Errorf("its status was told: %s", got[0].Body)
	}
	if got := w.pods["a"]["default/p"].Revision; got != 1 {
		t.Errorf("revision is %d, want that of the last change of content", got)
	}
	p = p.DeepCopy()
	p.Spec.Containers[0].Image = "x:2"
	if got := len(w.set(t, p, false)); got != 1 {
		t.Errorf("%d messages for a new image, want 1", got)
	}
}

func TestRemovedPodIsToldThenItsKeyGoes(t *testing.T) {
	w := newWorld()
	w.set(t, pod("p", "u", "a"), false)
	writes := w.set(t, pod("p", "u", "a"), true)
	if len(writes) != 2 || writes[1].Body != nil {
		t.Fatalf("%d messages, want a record and a marker", len(writes))
	}
	var r schemas.PodRecord
	decode(t, writes[0].Body, &r)
	want := schemas.PodRecord{ClusterID: "cluster", Node: "a", Feed: schemas.FeedPos{Epoch: "e1", Seq: 2}, Revision: 2, Namespace: "default", Name: "p", UID: "u", Removed: true}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
}

func TestNameThatMovesToAnotherNodeEndsOnTheFirst(t *testing.T) {
	w := newWorld()
	w.set(t, pod("p", "u1", "a"), false)
	// The view may show the second pod without the end of the first.
	w.set(t, pod("p", "u2", "b"), false)
	if len(w.pods["a"]) != 0 || w.pods["b"]["default/p"].UID != "u2" {
		t.Errorf("a has %v, b has %v", w.pods["a"], w.pods["b"])
	}
}

func TestRouteHoldsReadyEndpointsOnce(t *testing.T) {
	w := newWorld()
	w.set(t, service("web", "s", "10.96.0.1"), false)
	w.set(t, slice("web-1", "web", map[string]bool{"10.42.0.3": true, "10.42.0.2": true, "10.42.0.9": false}), false)
	w.set(t, slice("web-2", "web", map[string]bool{"10.42.0.2": true}), false)
	want := []schemas.RoutePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, Endpoints: []schemas.RouteEndpoint{
		{IP: "10.42.0.2", Port: 8080}, {IP: "10.42.0.3", Port: 8080},
	}}}
	if diff := cmp.Diff(want, w.routes["default/web"].Ports); diff != "" {
		t.Error(diff)
	}
	if got := w.set(t, slice("web-2", "web", map[string]bool{"10.42.0.2": true, "10.42.0.8": false}), false); len(got) != 0 {
		t.Errorf("an endpoint that is not ready was told: %s", got[0].Body)
	}
}

func TestHeadlessServiceIsNotRouted(t *testing.T) {
	w := newWorld()
	w.set(t, service("web", "s", "10.96.0.1"), false)
	if w.set(t, service("web", "s", corev1.ClusterIPNone), false); len(w.routes) != 0 {
		t.Errorf("routes are %v", w.routes)
	}
}

func TestUnknownNodeIsRefused(t *testing.T) {
	w := newWorld()
	reply := w.state.sync(schemas.SyncRequest{Node: "a"}, map[string]*frozen{})
	if reply.Error == nil || reply.Error.Reason != metav1.StatusReasonNotFound {
		t.Errorf("reply is %+v", reply)
	}
}

func TestNodeThatMissedNothingIsToldNothing(t *testing.T) {
	w := newWorld()
	w.set(t, node("a", "10.42.0.0/24"), false)
	w.set(t, pod("p", "u", "a"), false)
	pages := map[string]*frozen{}
	first := w.state.sync(schemas.SyncRequest{Node: "a"}, pages)
	if len(first.Pods.Records) != 1 || first.Network.PodCIDR != "10.42.0.0/24" {
		t.Fatalf("first answer is %+v", first)
	}
	again := w.state.sync(schemas.SyncRequest{Node: "a", Pods: first.Pods.Pos, Routes: first.Routes.Pos}, pages)
	if again.Pods != nil || again.Routes != nil || again.Revision != 2 {
		t.Errorf("second answer is %+v", again)
	}
}

// TestLargeSnapshotIsPagedAndTrue: no page is larger than the bus takes, all
// pages are of one moment although pods change in between, and together they
// are complete.
func TestLargeSnapshotIsPagedAndTrue(t *testing.T) {
	w := newWorld()
	w.set(t, node("a", "10.42.0.0/24"), false)
	for i := range 40 {
		p := pod(fmt.Sprintf("p%02d", i), fmt.Sprintf("u%d", i), "a")
		p.Annotations = map[string]string{"filler": strings.Repeat("x", 50_000)}
		w.set(t, p, false)
		s := service(fmt.Sprintf("s%02d", i), fmt.Sprintf("s%d", i), "10.96.0.1")
		s.Spec.Ports[0].Name = strings.Repeat("y", 50_000)
		w.set(t, s, false)
	}
	pages := map[string]*frozen{}
	req := schemas.SyncRequest{Node: "a", Instance: "i"}
	var names []string
	first := schemas.FeedPos{}
	for page := 0; ; page++ {
		reply := w.state.sync(req, pages)
		if reply.Error != nil {
			t.Fatal(reply.Error.Message)
		}
		body, err := json.Marshal(reply)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > 800<<10 {
			t.Fatalf("page %d has %d bytes", page, len(body))
		}
		if page == 0 {
			first = reply.Pods.Pos
		}
		if reply.Pods.Pos != first {
			t.Fatalf("page %d is of %+v, the first of %+v", page, reply.Pods.Pos, first)
		}
		for _, r := range reply.Pods.Records {
			names = append(names, r.Name)
		}
		if reply.Pods.Next == "" {
			break
		}
		req.PodsAfter = reply.Pods.Next
		w.set(t, pod(fmt.Sprintf("p%02d", page), fmt.Sprintf("u%d", page), "a"), true)
	}
	if len(names) != 40 || !slices.IsSorted(names) {
		t.Errorf("%d names: %v", len(names), names)
	}
	// Then the routes, page by page.
	req = schemas.SyncRequest{Node: "a", Instance: "i", Pods: w.state.podPos("a")}
	routes := 0
	for {
		reply := w.state.sync(req, pages)
		if reply.Routes == nil {
			t.Fatalf("no routes: %+v", reply)
		}
		routes += len(reply.Routes.Records)
		if reply.Routes.Next == "" {
			break
		}
		req.RoutesAfter = reply.Routes.Next
	}
	if routes != 40 {
		t.Errorf("%d routes", routes)
	}
}

func TestPageThatIsNoLongerKeptIsRefused(t *testing.T) {
	w := newWorld()
	w.set(t, node("a", ""), false)
	reply := w.state.sync(schemas.SyncRequest{Node: "a", PodsAfter: "default/p"}, map[string]*frozen{})
	if reply.Error == nil || reply.Error.Reason != metav1.StatusReasonExpired || reply.Pods != nil {
		t.Errorf("reply is %+v", reply)
	}
}

func (s *state) podPos(node string) schemas.FeedPos {
	return schemas.FeedPos{Epoch: s.facts.Epoch, Seq: s.feeds[node].seq}
}

// TestListenerAndSnapshotAgreeWithTwin lets objects come, change and go at
// random. Who listens to every message, who asks for a snapshot, and who
// compiles everything anew from the objects all see the same, and the buckets
// hold exactly that.
func TestListenerAndSnapshotAgreeWithTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		tb := rapidTB{TB: nil, t: t}
		names := []string{"a", "b"}
		count := 0
		t.Repeat(map[string]func(*rapid.T){
			"pod": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				old, _ := w.objects[schemas.ObjectKey(schemas.Pods, "default", name)].(*corev1.Pod)
				p := pod(name, "", rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node"))
				if old != nil && rapid.Bool().Draw(t, "same") {
					p = old.DeepCopy()
					if p.Spec.NodeName == "" {
						p.Spec.NodeName = rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "bind")
					}
				} else {
					count++
					p.UID = types.UID(fmt.Sprint(count))
				}
				p.Status.Message = rapid.SampledFrom([]string{"x", "y"}).Draw(t, "status")
				p.Labels = map[string]string{"v": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "label")}
				w.set(tb, p, false)
			},
			"pod goes": func(t *rapid.T) {
				w.set(tb, pod(rapid.SampledFrom(names).Draw(t, "name"), "", ""), true)
			},
			"node": func(t *rapid.T) {
				w.set(tb, node(rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "name"), rapid.SampledFrom([]string{"", "10.42.1.0/24"}).Draw(t, "cidr")),
					rapid.IntRange(0, 3).Draw(t, "goes") == 0)
			},
			"service": func(t *rapid.T) {
				w.set(tb, service(rapid.SampledFrom(names).Draw(t, "name"), rapid.SampledFrom([]string{"1", "2"}).Draw(t, "uid"),
					rapid.SampledFrom([]string{"10.96.0.1", "10.96.0.2", "None"}).Draw(t, "ip")), rapid.IntRange(0, 3).Draw(t, "goes") == 0)
			},
			"slice": func(t *rapid.T) {
				w.set(tb, slice(rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "name"), rapid.SampledFrom(append(names, "")).Draw(t, "service"),
					rapid.MapOf(rapid.SampledFrom([]string{"10.42.0.1", "10.42.0.2"}), rapid.Bool()).Draw(t, "ready")), rapid.IntRange(0, 3).Draw(t, "goes") == 0)
			},
			"": func(*rapid.T) { w.check(tb) },
		})
	})
}

// check compares the three ways to the truth.
func (w *world) check(t testing.TB) {
	pods, routes, keys := map[string]map[string]string{}, map[string]string{}, map[string]bool{}
	plain := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var all []*discoveryv1.EndpointSlice
	for _, o := range w.objects {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			all = append(all, s)
		}
	}
	nodes := map[string]bool{}
	for _, o := range w.objects {
		switch o := o.(type) {
		case *corev1.Node:
			nodes[o.Name] = true
			if o.Spec.PodCIDR != "" {
				keys[schemas.DesiredNetworkKey(o.Name)] = true
			}
		case *corev1.Pod:
			if o.Spec.NodeName != "" {
				if pods[o.Spec.NodeName] == nil {
					pods[o.Spec.NodeName] = map[string]string{}
				}
				pods[o.Spec.NodeName][path(o)] = plain(CompilePod(facts.ClusterID, o).Pod)
				keys[schemas.DesiredPodKey(o.Spec.NodeName, o.Namespace, o.Name)] = true
			}
		case *corev1.Service:
			var own []*discoveryv1.EndpointSlice
			for _, s := range all {
				if servicePath(s) == path(o) {
					own = append(own, s)
				}
			}
			if r, ok := CompileRoute(facts.ClusterID, o, own); ok {
				routes[path(o)] = string(r.UID) + plain(r.ClusterIPs) + plain(r.Ports)
				keys[schemas.RouteServiceKey(o.Namespace, o.Name)] = true
			}
		}
	}
	if diff := cmp.Diff(keys, w.buckets); diff != "" {
		t.Fatalf("keys in the buckets: %s", diff)
	}
	heard := map[string]string{}
	for key, r := range w.routes {
		heard[key] = string(r.UID) + plain(r.ClusterIPs) + plain(r.Ports)
	}
	if diff := cmp.Diff(routes, heard); diff != "" {
		t.Fatalf("routes as heard: %s", diff)
	}
	for _, name := range []string{"n1", "n2"} {
		want := pods[name]
		if want == nil {
			want = map[string]string{}
		}
		got := map[string]string{}
		for key, r := range w.pods[name] {
			got[key] = plain(r.Pod)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("pods of %s as heard: %s", name, diff)
		}
		if !nodes[name] {
			continue
		}
		reply := w.state.sync(schemas.SyncRequest{Node: name}, map[string]*frozen{})
		got = map[string]string{}
		for _, r := range reply.Pods.Records {
			got[r.Namespace+"/"+r.Name] = plain(r.Pod)
			if diff := cmp.Diff(plain(w.pods[name][r.Namespace+"/"+r.Name]), plain(r)); diff != "" {
				t.Fatalf("the snapshot's record is not the one that was told: %s", diff)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("pods of %s as asked: %s", name, diff)
		}
		if len(reply.Routes.Records) != len(routes) || reply.Routes.Pos.Seq != w.seqs["routes"] || reply.Pods.Pos.Seq != w.seqs[name] {
			t.Fatalf("positions are %+v and %+v", reply.Pods.Pos, reply.Routes.Pos)
		}
	}
}

// rapidTB gives helpers that want a testing.TB the few methods they use.
type rapidTB struct {
	testing.TB
	t *rapid.T
}

func (r rapidTB) Fatal(args ...any)            { r.t.Fatal(args...) }
func (r rapidTB) Fatalf(f string, args ...any) { r.t.Fatalf(f, args...) }
