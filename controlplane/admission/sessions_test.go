package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// asked is one request as a node got it.
type asked struct {
	Node, Method string
	Header       map[string][]string
	Body         string
}

// nodes stands for all nodes: it keeps what it was asked last.
func (w *world) nodes(answer func(node string) ([]byte, map[string][]string, error)) *asked {
	last := &asked{}
	var mu sync.Mutex // several nodes are asked at once
	w.api.ask = func(_ context.Context, node, method string, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
		mu.Lock()
		*last = asked{node, method, header, string(body)}
		mu.Unlock()
		return answer(node)
	}
	return last
}

func (w *world) handle(verb, name string, header map[string][]string, body string) (string, map[string][]string, *metav1.Status) {
	out, h, st := w.api.Handle(w.ctx, schemas.Call{Verb: verb, Resource: schemas.Pods, Namespace: "default", Name: name}, header, []byte(body))
	return string(out), h, st
}

// ran gives a pod the status of one that runs on n1.
func (w *world) ran(name string, phase corev1.PodPhase, states ...corev1.ContainerStatus) corev1.Pod {
	w.t.Helper()
	o := w.store.View().Get(schemas.Pods, "default", name)
	p := o.DeepCopyObject().(*corev1.Pod)
	p.Status.Phase, p.Status.ContainerStatuses = phase, states
	if _, err := w.store.Update(w.ctx, p); err != nil {
		w.t.Fatal(err)
	}
	return *p
}

const twoContainers = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"annotations":{%s}},"spec":{"nodeName":"n1","containers":[{"name":"a","image":"i"},{"name":"b","image":"i"}]}}`

func TestSessionOpens(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "two", fmt.Sprintf(twoContainers, "two", ""))
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "chosen", fmt.Sprintf(twoContainers, "chosen", `"kubectl.kubernetes.io/default-container":"b"`))
	last := w.nodes(func(string) ([]byte, map[string][]string, error) {
		return []byte(`{"session":"s"}`), map[string][]string{"Secret": {"x"}, schemas.HeaderOffset: {"0"}}, nil
	})
	for desc, tt := range map[string]struct{ pod, verb, body, container string }{
		"the first container":       {"two", schemas.VerbExec, `{"session":"s","command":["x"]}`, "a"},
		"the one asked for":         {"two", schemas.VerbExec, `{"session":"s","command":["x"],"container":"b"}`, "b"},
		"the annotation's":          {"chosen", schemas.VerbAttach, `{"session":"s"}`, "b"},
		"what the client says of a": {"two", schemas.VerbCopy, `{"session":"s","path":"/","namespace":"other","pod":"other"}`, "a"},
	} {
		phase := w.ran(tt.pod, corev1.PodRunning)
		out, h, st := w.handle(tt.verb, tt.pod, map[string][]string{schemas.HeaderSession: {"s"}, schemas.HeaderPod: {"other"}, "Gantry-Cluster": {"evil"}}, tt.body)
		if st != nil || out != `{"session":"s"}` {
			t.Errorf("%s: %q, %+v", desc, out, st)
			continue
		}
		var req schemas.CopyRequest // any of them: these fields are the same
		if err := json.Unmarshal([]byte(last.Body), &req); err != nil {
			t.Fatal(err)
		}
		got := asked{last.Node, last.Method, last.Header, fmt.Sprintln(req.Namespace, req.Pod, req.UID, req.Container)}
		headers := map[string][]string{schemas.HeaderSession: {"s"}, schemas.HeaderPod: {string(phase.UID)}}
		want := asked{"n1", tt.verb, headers, fmt.Sprintln("default", tt.pod, phase.UID, tt.container)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", desc, diff)
		}
		if diff := cmp.Diff(map[string][]string{schemas.HeaderOffset: {"0"}}, h); diff != "" {
			t.Errorf("%s: headers back: %s", desc, diff)
		}
	}
}

func TestSessionRefused(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "free", pod("free", ""))
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "done", pod("done", `,"nodeName":"n1"`))
	w.ran("done", corev1.PodSucceeded)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "waits", pod("waits", `,"nodeName":"n1"`))
	w.ran("waits", corev1.PodPending, corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}})
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "crashed", pod("crashed", `,"nodeName":"n1"`))
	w.ran("crashed", corev1.PodRunning, corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error"}}})
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "up", pod("up", `,"nodeName":"n1"`))
	w.ran("up", corev1.PodRunning)
	w.nodes(func(string) ([]byte, map[string][]string, error) { return nil, nil, errors.New("nobody answers") })
	run := `{"command":["x"]}`
	for desc, tt := range map[string]struct {
		pod, verb, body string
		code            int32
		says            string
	}{
		"no such pod":       {"none", schemas.VerbExec, run, 404, `pods "none" not found`},
		"not scheduled":     {"free", schemas.VerbExec, run, 400, "pod free does not have a host assigned"},
		"recv of nowhere":   {"free", schemas.VerbRecv, "", 400, "pod free does not have a host assigned"},
		"completed":         {"done", schemas.VerbExec, run, 400, "cannot exec into a container in a completed pod; current phase is Succeeded"},
		"completed, port":   {"done", schemas.VerbPortForward, `{"port":80}`, 400, "current phase is Succeeded"},
		"not running yet":   {"waits", schemas.VerbExec, run, 400, "container c in pod waits is not running: it waits: ImagePullBackOff: no such image"},
		"port of a pending": {"waits", schemas.VerbPortForward, `{"port":80}`, 400, "unable to forward port because pod is not running. Current status=Pending"},
		"crashed":           {"crashed", schemas.VerbAttach, "", 400, "it ended with exit code 3: Error"},
		"no such container": {"up", schemas.VerbExec, `{"command":["x"],"container":"z"}`, 400, "container z is not valid for pod up; it has c"},
		"no command":        {"up", schemas.VerbExec, "", 400, "command is empty"},
		"no port":           {"up", schemas.VerbPortForward, "", 400, "0 is not a port"},
		"large port":        {"up", schemas.VerbPortForward, `{"port":65536}`, 400, "read PortForwardRequest"},
		"no path":           {"up", schemas.VerbCopy, "", 400, "path: which file"},
		"unknown field":     {"up", schemas.VerbExec, `{"command":["x"],"cmd":1}`, 400, `unknown field "cmd"`},
		"no JSON":           {"up", schemas.VerbExec, `{`, 400, "read ExecRequest"},
		"another pod's uid": {"up", schemas.VerbExec, `{"command":["x"],"uid":"old"}`, 404, `pods "up" not found`},
		"node away":         {"up", schemas.VerbExec, run, 503, "node n1, which runs pod up, cannot be reached"},
		"node away, recv":   {"up", schemas.VerbRecv, "", 503, "node n1, which runs pod up, cannot be reached"},
	} {
		if _, _, st := w.handle(tt.verb, tt.pod, nil, tt.body); st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
			t.Errorf("%s: want %d %q, got %+v", desc, tt.code, tt.says, st)
		}
	}
	if _, _, st := w.call(schemas.VerbExec, schemas.Deployments, "default", "web", nil); st == nil || st.Code != 400 || !strings.Contains(st.Message, "deployments have no sessions") {
		t.Errorf("exec into a deployment: %+v", st)
	}
	// What the node says reaches the client word for word.
	w.nodes(func(string) ([]byte, map[string][]string, error) {
		return nil, nil, fmt.Errorf("ask: %w", apierrors.NewConflict(corev1.Resource("sessions"), "s", errors.New("taken")))
	})
	if _, _, st := w.handle(schemas.VerbSend, "up", nil, "x"); st == nil || st.Code != 409 || !strings.Contains(st.Message, "taken") {
		t.Errorf("the node's refusal: %+v", st)
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	for _, n := range []string{"n1", "n2"} {
		if _, err := w.store.Create(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, more := range map[string]string{"one": `,"nodeName":"n1"`, "away": `,"nodeName":"n2"`, "idle": `,"nodeName":"n1"`, "free": ""} {
		w.ok(schemas.VerbCreate, schemas.Pods, "default", "", pod(name, more))
	}
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	w.nodes(func(node string) ([]byte, map[string][]string, error) {
		if node == "n2" {
			return nil, nil, errors.New("it is not connected")
		}
		body, err := json.Marshal(schemas.NodeStats{
			Time: at, WindowSeconds: 30, Node: schemas.Usage{NanoCPUs: 1_500_000_000, MemoryBytes: 1 << 30},
			Pods: []schemas.PodStats{{Namespace: "default", Name: "one", UID: corev1.Pod{}.UID}, {
				UID:        decode[corev1.Pod](t, w.ok(schemas.VerbGet, schemas.Pods, "default", "one", nil)).UID,
				Containers: map[string]schemas.Usage{"c": {NanoCPUs: 250_000_000, MemoryBytes: 5<<20 + 1}},
			}},
		})
		return body, nil, err
	})
	out, h, st := w.call(schemas.VerbList, "pods/metrics", "default", "", nil)
	if st != nil {
		t.Fatal(st.Message)
	}
	var list struct {
		metav1.TypeMeta
		Items []json.RawMessage
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"PodMetrics","apiVersion":"metrics.k8s.io/v1beta1","metadata":{"name":"one","namespace":"default","creationTimestamp":"2026-01-02T03:04:05Z"},` +
		`"timestamp":"2026-01-02T03:04:05Z","window":"30s","containers":[{"name":"c","usage":{"cpu":"250m","memory":"5Mi"}}]}`
	if len(list.Items) != 1 || list.Kind != "PodMetricsList" || string(list.Items[0]) != want {
		t.Errorf("listed %s", out)
	}
	if diff := cmp.Diff([]string{"node n2 is left out: it does not say what it uses: it is not connected"}, h[schemas.HeaderWarning]); diff != "" {
		t.Error(diff)
	}
	if got := w.ok(schemas.VerbGet, "pods/metrics", "default", "one", nil); got != want {
		t.Errorf("got %s", got)
	}
	node := decode[schemas.NodeMetrics](t, w.ok(schemas.VerbGet, "nodes/metrics", "", "n1", nil))
	if node.Usage.Cpu().MilliValue() != 1500 || node.Usage.Memory().Value() != 1<<30 {
		t.Errorf("node %+v", node)
	}
	for desc, tt := range map[string]struct {
		verb, resource, name string
		code                 int32
		says                 string
	}{
		"nothing runs":    {schemas.VerbGet, "pods/metrics", "idle", 404, "none of its containers runs"},
		"on no node":      {schemas.VerbGet, "pods/metrics", "free", 404, "it is on no node yet"},
		"no such pod":     {schemas.VerbGet, "pods/metrics", "none", 404, "not found"},
		"node is away":    {schemas.VerbGet, "pods/metrics", "away", 503, "node n2 does not say what it uses"},
		"another kind":    {schemas.VerbGet, "services/metrics", "x", 400, "services have no metrics"},
		"another verb":    {schemas.VerbDelete, "pods/metrics", "one", 405, "can be got and listed only"},
		"without a name":  {schemas.VerbGet, "pods/metrics", "", 400, "names no object"},
		"unknown options": {schemas.VerbList, "pods/metrics", "", 400, "unknown field"},
	} {
		var body any
		if desc == "unknown options" {
			body = `{"colour":"red"}`
		}
		if _, _, st := w.call(tt.verb, tt.resource, "default", tt.name, body); st == nil || st.Code != tt.code || !strings.Contains(st.Message, tt.says) {
			t.Errorf("%s: want %d %q, got %+v", desc, tt.code, tt.says, st)
		}
	}
}
