package ringtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"gantry.dev/bus"
	"gantry.dev/controlplane/plane"
	"gantry.dev/schemas"
)

const patience = 20 * time.Second

// ring is a control plane with nodes, and a user who drives it over the bus.
type ring struct {
	*testing.T
	dir   string
	log   zerolog.Logger
	plane *plane.Plane
	user  *bus.UserConn
	nodes map[string]*Node
	clock clock
}

// clock runs with the real one and can be moved on.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) moveOn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// begin starts a control plane and the nodes, each with 4 cores, 8 GiB and
// room for 110 pods.
func begin(t *testing.T, nodes ...string) *ring {
	t.Helper()
	t.Parallel()
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	if os.Getenv("RING_LOG") != "" {
		log = log.Level(zerolog.DebugLevel)
	}
	r := &ring{T: t, dir: t.TempDir(), log: log, nodes: map[string]*Node{}}
	r.startPlane(nodes...)
	t.Cleanup(func() {
		for _, n := range r.nodes {
			n.Stop()
		}
		r.stopPlane()
	})
	for _, n := range nodes {
		r.join(n, "instance-of-"+n)
	}
	for _, n := range nodes {
		r.until("node "+n+" is ready", func() error { return r.nodeIs(n, corev1.ConditionTrue) })
	}
	return r
}

func (r *ring) startPlane(nodes ...string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	listen := "127.0.0.1:0"
	if data, err := os.ReadFile(r.dir + "/listen"); err == nil {
		listen = string(data)
	}
	var err error
	r.plane, err = plane.Start(ctx, plane.Options{
		StateDir: r.dir + "/state", Listen: listen, Nodes: nodes, Now: r.clock.now,
		PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: r.log,
	})
	if err != nil {
		r.Fatalf("start: %v", err)
	}
	address := strings.TrimPrefix(r.plane.Server().URLs()[0], "nats://")
	if err := os.WriteFile(r.dir+"/listen", []byte(address), 0o600); err != nil {
		r.Fatal(err)
	}
	creds, err := bus.ReadUserCredentials(r.plane.AdminCredentials())
	if err != nil {
		r.Fatal(err)
	}
	if r.user, err = bus.ConnectUser(ctx, creds); err != nil {
		r.Fatal(err)
	}
}

func (r *ring) stopPlane() {
	r.Helper()
	if r.plane == nil {
		return
	}
	r.user.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.plane.Stop(ctx); err != nil {
		r.Errorf("stop: %v", err)
	}
	r.plane = nil
}

// join starts an agent for a node, with the credentials that are on disk.
func (r *ring) join(name, instance string) *Node {
	r.Helper()
	n := r.agent(name, instance)
	r.nodes[name] = n
	return n
}

func (r *ring) agent(name, instance string) *Node {
	r.Helper()
	creds, err := bus.ReadNodeCredentials(r.plane.NodeCredentials(name))
	if err != nil {
		r.Fatal(err)
	}
	n, err := StartNode(context.Background(), creds, instance, Capacity("4", "8Gi", "110"), r.log)
	if err != nil {
		r.Fatal(err)
	}
	return n
}

// until waits for something to hold, and says what was missing if it never does.
func (r *ring) until(what string, holds func() error) {
	r.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("waited %v until %s: %v", patience, what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *ring) request(verb, resource, namespace, name string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	var data []byte
	switch b := body.(type) {
	case nil:
	case []byte:
		data = b
	default:
		var err error
		if data, err = json.Marshal(b); err != nil {
			return nil, err
		}
	}
	reply, err := r.user.Request(ctx, verb, resource, namespace, name, data)
	return reply.Body, err
}

// apply sends each document of a manifest as one raw request.
func (r *ring) apply(manifest string) {
	r.Helper()
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		data, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			r.Fatal(err)
		}
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(data, &o); err != nil {
			r.Fatal(err)
		}
		kind, ok := schemas.KindByGVK(o.APIVersion, o.Kind)
		if !ok {
			r.Fatalf("no kind %s %s", o.APIVersion, o.Kind)
		}
		namespace := o.Namespace
		if namespace == "" && kind.Namespaced {
			namespace = "default"
		}
		if _, err := r.request(schemas.VerbApply, kind.Resource, namespace, o.Name, data); err != nil {
			r.Fatalf("apply %s %s: %v", kind.Resource, o.Name, err)
		}
	}
}

func (r *ring) delete(resource, namespace, name string) {
	r.Helper()
	if _, err := r.request(schemas.VerbDelete, resource, namespace, name, nil); err != nil {
		r.Fatalf("delete %s %s: %v", resource, name, err)
	}
}

func get[T any](r *ring, resource, namespace, name string) (*T, error) {
	body, err := r.request(schemas.VerbGet, resource, namespace, name, nil)
	if err != nil {
		return nil, err
	}
	out := new(T)
	return out, json.Unmarshal(body, out)
}

func list[T any](r *ring, resource, namespace string) []T {
	r.Helper()
	body, err := r.request(schemas.VerbList, resource, namespace, "", nil)
	if err != nil {
		r.Fatalf("list %s: %v", resource, err)
	}
	var l struct {
		Items []T `json:"items"`
	}
	if err := json.Unmarshal(body, &l); err != nil {
		r.Fatal(err)
	}
	return l.Items
}

func (r *ring) nodeIs(name string, status corev1.ConditionStatus) error {
	n, err := get[corev1.Node](r, schemas.Nodes, "", name)
	if err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status != status {
				return fmt.Errorf("ready is %s (%s)", c.Status, c.Reason)
			}
			return nil
		}
	}
	return errors.New("no ready condition")
}

// untilLost lets time pass until a node whose agent has ended counts as lost:
// slowly enough that the others' heartbeats, which come in real time, count.
func (r *ring) untilLost(name string) {
	r.Helper()
	r.until("node "+name+" is unknown", func() error {
		r.clock.moveOn(20 * time.Millisecond)
		return r.nodeIs(name, corev1.ConditionUnknown)
	})
}

// readyPods are the names of the pods of a namespace that run and are ready.
func (r *ring) readyPods(namespace string) []string {
	r.Helper()
	var out []string
	for _, p := range list[corev1.Pod](r, schemas.Pods, namespace) {
		if condition(&p, corev1.PodReady) == corev1.ConditionTrue && p.DeletionTimestamp == nil {
			out = append(out, p.Name)
		}
	}
	return out
}

func condition(p *corev1.Pod, t corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c.Status
		}
	}
	return ""
}

// untilReady waits until a Deployment has exactly n pods, all ready, and the
// nodes run these and no others.
func (r *ring) untilReady(namespace, deployment string, n int) {
	r.Helper()
	r.until(fmt.Sprintf("%s has %d ready pods", deployment, n), func() error {
		d, err := get[appsv1.Deployment](r, schemas.Deployments, namespace, deployment)
		if err != nil {
			return err
		}
		pods := list[corev1.Pod](r, schemas.Pods, namespace)
		if ready := r.readyPods(namespace); int(d.Status.ReadyReplicas) != n || len(ready) != n || len(pods) != n {
			return fmt.Errorf("%d of %d replicas ready, %d pods, %d of them ready", d.Status.ReadyReplicas, n, len(pods), len(ready))
		}
		return nil
	})
}

// untilRouted waits until every node routes the Service to these many endpoints.
func (r *ring) untilRouted(namespace, service string, n int) {
	r.Helper()
	for _, node := range r.nodes {
		r.until(fmt.Sprintf("%s routes %s to %d endpoints", node.Name, service, n), func() error {
			route, ok := node.Route(namespace, service)
			if !ok {
				return errors.New("no route")
			}
			if got := len(route.Ports[0].Endpoints); got != n {
				return fmt.Errorf("%d endpoints", got)
			}
			return nil
		})
	}
}

// untilQuiet waits until nobody has anything to do.
func (r *ring) untilQuiet() {
	r.Helper()
	calm := 0
	r.until("all is quiet", func() error {
		if !r.plane.Quiet() {
			calm = 0
			return errors.New("somebody works")
		}
		if calm++; calm < 20 {
			return errors.New("for too short a time")
		}
		return nil
	})
}

func (r *ring) onNodes() []string {
	var out []string
	for _, n := range r.nodes {
		out = append(out, n.Running()...)
	}
	slices.Sort(out)
	return out
}

const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: registry.example/web:v1
        ports: [{name: http, containerPort: 8080}]
        resources: {requests: {cpu: 100m, memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
`
