package ringtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/controlplane/plane"
	"gantry.dev/schemas"
)

func TestManifestBecomesRunningPodsBehindAService(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.untilRouted("default", "web", 3)

	for _, p := range list[corev1.Pod](r, schemas.Pods, "default") {
		if p.Spec.NodeName == "" || p.Status.PodIP == "" || condition(&p, corev1.PodScheduled) != corev1.ConditionTrue {
			t.Errorf("pod %s is on %q with address %q, scheduled %s", p.Name, p.Spec.NodeName, p.Status.PodIP, condition(&p, corev1.PodScheduled))
		}
	}
	if a, b := r.nodes["a"].PodCIDR(), r.nodes["b"].PodCIDR(); a == b || !strings.HasSuffix(a, "/24") {
		t.Errorf("nodes have the ranges %s and %s", a, b)
	}
	route, _ := r.nodes["a"].Route("default", "web")
	service, err := get[corev1.Service](r, schemas.Services, "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{service.Spec.ClusterIP}, route.ClusterIPs); diff != "" {
		t.Error(diff)
	}
	if p := route.Ports[0]; p.Port != 80 || p.Endpoints[0].Port != 8080 {
		t.Errorf("port %d goes to %d", p.Port, p.Endpoints[0].Port)
	}
}

func TestScalingAddsAndRemovesPods(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.apply(strings.Replace(web, "replicas: 3", "replicas: 7", 1))
	r.untilReady("default", "web", 7)
	r.untilRouted("default", "web", 7)
	r.apply(strings.Replace(web, "replicas: 3", "replicas: 1", 1))
	r.untilReady("default", "web", 1)
	r.untilRouted("default", "web", 1)
	r.until("the nodes run one pod", func() error { return length(r.onNodes(), 1) })
}

func TestPodThatDiesIsReplaced(t *testing.T) {
	r := begin(t, "a")
	r.apply(web)
	r.untilReady("default", "web", 3)
	victim := r.nodes["a"].Running()[0]
	r.nodes["a"].Change(victim, func(p *Pod) { p.Phase, p.Ready = corev1.PodFailed, false })
	r.until("three others are ready", func() error {
		ready := r.readyPods("default")
		if slices.Contains(ready, victim) {
			return errors.New("the dead pod counts as ready")
		}
		return length(ready, 3)
	})
	r.untilRouted("default", "web", 3)
}

func TestDeletedDeploymentLeavesNothing(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.delete(schemas.Deployments, "default", "web")
	r.delete(schemas.Services, "default", "web")
	r.until("no pod is left", func() error { return length(list[corev1.Pod](r, schemas.Pods, "default"), 0) })
	r.until("the nodes run nothing", func() error { return length(r.onNodes(), 0) })
	for _, n := range r.nodes {
		r.until("no route is left", func() error {
			if _, ok := n.Route("default", "web"); ok {
				return errors.New("route is there")
			}
			return nil
		})
	}
}

func TestDeletedNamespaceTakesItsContentAlong(t *testing.T) {
	r := begin(t, "a")
	r.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}")
	r.apply(strings.ReplaceAll(web, "metadata: {name: web}", "metadata: {name: web, namespace: shop}"))
	r.untilReady("shop", "web", 3)
	r.delete(schemas.Namespaces, "", "shop")
	r.until("the namespace is gone", func() error {
		_, err := get[corev1.Namespace](r, schemas.Namespaces, "", "shop")
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("get: want not found, have %w", orNone(err))
		}
		return nil
	})
	r.until("the node runs nothing", func() error { return length(r.onNodes(), 0) })
}

func TestPodThatFitsNowhereSaysWhyAndStartsOnceThereIsRoom(t *testing.T) {
	r := begin(t, "a")
	large := func(name string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: registry.example/x:1, resources: {requests: {memory: 6Gi}}}
`, name)
	}
	r.apply(large("first"))
	r.until("the first runs", func() error { return length(r.readyPods("default"), 1) })
	r.apply(large("second"))
	why := "0/1 nodes are available: 1 Insufficient memory."
	r.until("the second says why it waits", func() error {
		p, err := get[corev1.Pod](r, schemas.Pods, "default", "second")
		if err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == "Unschedulable" && c.Message == why {
				return nil
			}
		}
		return fmt.Errorf("conditions are %v", p.Status.Conditions)
	})
	r.until("an event says it too", func() error { return r.hasEvent("default", "second", "FailedScheduling", why, 1) })
	r.delete(schemas.Pods, "default", "first")
	r.until("the second runs", func() error {
		if ready := r.readyPods("default"); !slices.Equal(ready, []string{"second"}) {
			return fmt.Errorf("ready are %v", ready)
		}
		return nil
	})
}

func (r *ring) hasEvent(namespace, object, reason, message string, count int32) error {
	var seen []string
	for _, e := range list[corev1.Event](r, schemas.Events, namespace) {
		if e.InvolvedObject.Name != object {
			continue
		}
		if e.Reason == reason && e.Message == message && e.Count == count {
			return nil
		}
		seen = append(seen, fmt.Sprintf("%s %q x%d", e.Reason, e.Message, e.Count))
	}
	return fmt.Errorf("events of %s are %v", object, seen)
}

func TestEventsOfANodeAreCountedNotRepeated(t *testing.T) {
	r := begin(t, "a")
	r.apply(web)
	r.untilReady("default", "web", 3)
	pod := list[corev1.Pod](r, schemas.Pods, "default")[0]
	for range 3 {
		r.nodes["a"].Event(schemas.PodEvent{
			Namespace: pod.Namespace, Pod: pod.Name, UID: pod.UID, Container: "web",
			Type: "Warning", Reason: "BackOff", Message: "Back-off restarting failed container",
		})
	}
	r.until("one event counts three", func() error {
		return r.hasEvent("default", pod.Name, "BackOff", "Back-off restarting failed container", 3)
	})
	for _, e := range list[corev1.Event](r, schemas.Events, "default") {
		if e.Reason == "BackOff" && (e.InvolvedObject.FieldPath != "spec.containers{web}" || e.Source.Host != "a" || e.InvolvedObject.UID != pod.UID) {
			t.Errorf("event is about %+v from %+v", e.InvolvedObject, e.Source)
		}
	}
}

func TestLostNodeIsNotReadyAndServesNothingUntilItReturns(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	onA, onB := len(r.nodes["a"].Running()), len(r.nodes["b"].Running())
	if onA == 0 || onB == 0 {
		t.Fatalf("pods are not spread: %d and %d", onA, onB)
	}
	lost := r.nodes["a"]
	delete(r.nodes, "a")
	lost.Stop()
	r.untilLost("a")
	r.untilRouted("default", "web", onB)
	if err := r.nodeIs("b", corev1.ConditionTrue); err != nil {
		t.Errorf("node b: %v", err)
	}
	r.join("a", "instance-of-a")
	r.until("node a is ready again", func() error { return r.nodeIs("a", corev1.ConditionTrue) })
	r.untilReady("default", "web", 3)
	r.untilRouted("default", "web", 3)
}

func TestDeletedNodeTakesItsPodsAlong(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.nodes["a"].Stop()
	delete(r.nodes, "a")
	r.untilLost("a")
	r.delete(schemas.Nodes, "", "a")
	r.untilReady("default", "web", 3)
	r.until("all run on b", func() error { return length(r.nodes["b"].Running(), 3) })
}

func TestSecondAgentOfOneNameIsRefused(t *testing.T) {
	r := begin(t, "a")
	r.apply(web)
	r.untilReady("default", "web", 3)
	second := r.agent("a", "somebody-else")
	defer second.Stop()
	want := `node "a": the name is held by instance instance-of-a on host host-of-instance-of-a`
	r.until("the second agent is refused", func() error {
		if why := second.Refused(); !strings.HasPrefix(why, want) {
			return fmt.Errorf("refused with %q", why)
		}
		return nil
	})
	node, err := get[corev1.Node](r, schemas.Nodes, "", "a")
	if err != nil {
		t.Fatal(err)
	}
	if got := node.Annotations["gantry.dev/instance"]; got != "instance-of-a" {
		t.Errorf("the name went to %q", got)
	}
	if len(second.Running()) != 0 {
		t.Errorf("the second agent runs %v", second.Running())
	}
	r.untilReady("default", "web", 3)
}

func TestRestartOfTheControlPlaneChangesNothing(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.untilQuiet()
	before := r.identities()
	revision := r.plane.Store().View().Revision()
	r.stopPlane()
	r.startPlane("a", "b")
	r.until("the nodes are back", func() error {
		if r.plane.Server().NodeConnections("a") == 0 || r.plane.Server().NodeConnections("b") == 0 {
			return errors.New("not connected")
		}
		return nil
	})
	r.untilReady("default", "web", 3)
	r.untilRouted("default", "web", 3)
	r.untilQuiet()
	if diff := cmp.Diff(before, r.identities()); diff != "" {
		t.Errorf("pods changed: %s", diff)
	}
	if now := r.plane.Store().View().Revision(); now != revision {
		t.Errorf("the restart wrote %d objects", now-revision)
	}
}

func TestRestartInTheMiddleOfAScaleEndsInTheSameState(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.apply(strings.Replace(web, "replicas: 3", "replicas: 30", 1))
	r.stopPlane()
	r.startPlane("a", "b")
	r.untilReady("default", "web", 30)
	r.untilRouted("default", "web", 30)
	r.until("the nodes run 30 pods", func() error { return length(r.onNodes(), 30) })
}

func TestConvergedClusterWritesNothing(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.untilRouted("default", "web", 3)
	r.untilQuiet()
	revision, told := r.plane.Store().View().Revision(), r.plane.Told()
	// Two heartbeats of the pretended agents, and applying the same again.
	r.apply(web)
	time.Sleep(4500 * time.Millisecond)
	if now := r.plane.Store().View().Revision(); now != revision {
		t.Errorf("%d objects were written", now-revision)
	}
	if now := r.plane.Told(); now != told {
		t.Errorf("%d records were told", now-told)
	}
}

func TestOneChangeOfAPodIsOneMessageToOneNode(t *testing.T) {
	r := begin(t, "a", "b")
	r.apply(web)
	r.untilReady("default", "web", 3)
	r.untilQuiet()
	told, heardA, heardB := r.plane.Told(), r.nodes["a"].Heard(), r.nodes["b"].Heard()
	r.apply(`
apiVersion: v1
kind: Pod
metadata: {name: alone}
spec:
  nodeSelector: {kubernetes.io/hostname: a}
  containers: [{name: c, image: registry.example/x:1}]
`)
	r.until("it runs", func() error { return length(r.readyPods("default"), 4) })
	r.untilQuiet()
	if got := r.plane.Told() - told; got != 1 {
		t.Errorf("%d records were told, want one", got)
	}
	if a, b := r.nodes["a"].Heard()-heardA, r.nodes["b"].Heard()-heardB; a != 1 || b != 0 {
		t.Errorf("a heard %d and b %d, want 1 and 0", a, b)
	}
}

func TestSecondControlPlaneOnOneDirectoryIsRefused(t *testing.T) {
	r := begin(t)
	_, err := plane.Start(t.Context(), plane.Options{
		StateDir: r.dir + "/state", Listen: "127.0.0.1:0", PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: r.log,
	})
	if !errors.Is(err, plane.ErrLocked) {
		t.Errorf("started: %v", err)
	}
	if _, err := get[corev1.Namespace](r, schemas.Namespaces, "", "default"); err != nil {
		t.Errorf("the first one no longer serves: %v", err)
	}
}

// identities are the pods' UIDs by name, with their nodes and addresses.
func (r *ring) identities() map[string]string {
	r.Helper()
	out := map[string]string{}
	for _, p := range list[corev1.Pod](r, schemas.Pods, "default") {
		out[p.Name] = fmt.Sprint(p.UID, p.Spec.NodeName, p.Status.PodIP)
	}
	return out
}

func length[T any](s []T, want int) error {
	if len(s) != want {
		return fmt.Errorf("there are %d", len(s))
	}
	return nil
}

// orNone is an error to wrap where there may be none.
func orNone(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}
