package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/image/imagetest"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: example.test/web:v1, ports: [{containerPort: 8080}]}
`

const service = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.77
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]
`

func expect(t *testing.T, what, want, got string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestAStoryOfADeployment goes through the commands as a person would.
func TestAStoryOfADeployment(t *testing.T) {
	l := newLab(t)
	both := deployment + "---" + service

	expect(t, "apply", "\ndeployment.apps/web created\nservice/web created\n", l.ok(both, "apply", "-f", "-"))
	expect(t, "apply again", "\ndeployment.apps/web unchanged\nservice/web unchanged\n", l.ok(both, "apply", "-f", "-"))
	expect(t, "apply a change", "\ndeployment.apps/web configured\nservice/web unchanged\n",
		l.ok(strings.Replace(both, "replicas: 2", "replicas: 3", 1), "apply", "-f", "-"))
	expect(t, "rollout", "deployment \"web\" successfully rolled out\n",
		lastLine(l.ok("", "rollout", "status", "deployment/web", "--timeout", "30s")))
	expect(t, "wait", "deployment.apps/web condition met\n", l.ok("", "wait", "--for=condition=Available", "deployment/web"))
	l.ok("", "wait", "--for=jsonpath={.status.phase}=Running", "pods", "-l", "app=web")

	expect(t, "get deployments", `
NAME|READY|UP-TO-DATE|AVAILABLE|AGE
web|3/3|3|3|AGE
`, plain(l.ok("", "get", "deployments")))
	expect(t, "get -o wide", `
NAME|READY|UP-TO-DATE|AVAILABLE|AGE|CONTAINERS|IMAGES|SELECTOR
web|3/3|3|3|AGE|web|example.test/web:v1|app=web
`, plain(l.ok("", "get", "deploy", "web", "-o", "wide")))
	expect(t, "get service", `
NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE
web|ClusterIP|10.96.0.77|<none>|80/TCP,53/UDP|AGE
`, plain(l.ok("", "get", "svc")))
	expect(t, "get pods", `
NAME|READY|STATUS|RESTARTS|AGE
web-X-X|1/1|Running|0|AGE
web-X-X|1/1|Running|0|AGE
web-X-X|1/1|Running|0|AGE
`, plain(l.ok("", "get", "pods", "-l", "app=web")))
	expect(t, "get all", `
NAME|READY|STATUS|RESTARTS|AGE
pod/web-X-X|1/1|Running|0|AGE
pod/web-X-X|1/1|Running|0|AGE
pod/web-X-X|1/1|Running|0|AGE

NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE
service/web|ClusterIP|10.96.0.77|<none>|80/TCP,53/UDP|AGE

NAME|READY|UP-TO-DATE|AVAILABLE|AGE
deployment.apps/web|3/3|3|3|AGE

NAME|DESIRED|CURRENT|READY|AGE
replicaset.apps/web-X|3|3|3|AGE
`, plain(l.ok("", "get", "all")))
	expect(t, "names", "deployment.apps/web\nservice/web\n", l.ok("", "get", "deploy,svc", "-o", "name"))
	if out := plain(l.ok("", "get", "svc", "-A")); !strings.HasPrefix(out, "NAMESPACE|NAME|TYPE") || !strings.Contains(out, "default|web|ClusterIP") {
		t.Errorf("get -A = %s", out)
	}
	expect(t, "nodes", "NAME|STATUS|ROLES|AGE|VERSION", strings.SplitN(plain(l.ok("", "get", "nodes")), "\n", 2)[0])

	var list corev1.PodList
	if err := json.Unmarshal([]byte(l.ok("", "get", "pods", "-o", "json")), &list); err != nil || len(list.Items) != 3 || list.Kind != "List" {
		t.Errorf("get -o json: %v, %d items of kind %s", err, len(list.Items), list.Kind)
	}
	pod := list.Items[0].Name
	expect(t, "jsonpath", "web", l.ok("", "get", "pod", pod, "-o", "jsonpath={.spec.containers[0].name}"))
	if out := l.ok("", "get", "pod/"+pod, "-o", "yaml"); !strings.HasPrefix(out, "apiVersion: v1\nkind: Pod\n") {
		t.Errorf("get -o yaml = %.100s", out)
	}

	if out := l.ok("", "describe", "pod", pod); !strings.Contains(out, "Controlled By:") || !strings.Contains(out, "Scheduled") {
		t.Errorf("describe pod:\n%s", out)
	}
	if out := l.ok("", "describe", "deployment", "web"); !strings.Contains(out, "3 desired | 3 updated | 3 total | 3 available | 0 unavailable") {
		t.Errorf("describe deployment:\n%s", out)
	}
	if out := l.ok("", "describe", "node", "n1"); !strings.Contains(out, "Pods (3 in total)") || !strings.Contains(out, pod) {
		t.Errorf("describe node:\n%s", out)
	}
	for _, kind := range []string{"service", "replicaset", "namespace", "endpointslices", "events"} {
		if out := l.ok("", "describe", kind); !strings.HasPrefix(out, "Name:") {
			t.Errorf("describe %s:\n%s", kind, out)
		}
	}
	if out := l.ok("", "events", "--for", "deployment/web"); !strings.HasPrefix(out, "LAST SEEN") || !strings.Contains(out, "Scaled up replica set") {
		t.Errorf("events:\n%s", out)
	}

	expect(t, "scale", "deployment.apps/web scaled\n", l.ok("", "scale", "deployment/web", "--replicas", "1"))
	_, stderr := l.fails("", "scale", "deployment/web", "--replicas=5", "--current-replicas=3")
	expect(t, "scale from another number", "error: expected replicas to be 3, was 1\n", stderr)
	l.ok("", "wait", "--for=jsonpath={.status.replicas}=1", "deployment/web")

	expect(t, "delete", "deployment.apps \"web\" deleted\nservice \"web\" deleted\n", l.ok(both, "delete", "-f", "-"))
	l.ok("", "wait", "--for=delete", "pods", "-l", "app=web")
	out, stderr, code := l.call(context.Background(), "", "get", "pods,deploy,svc,rs")
	if out != "" || stderr != "No resources found in default namespace.\n" || code != 0 {
		t.Errorf("after deletion: %q %q %d", out, stderr, code)
	}
}

func lastLine(s string) string {
	lines := strings.SplitAfter(strings.TrimSuffix(s, "\n"), "\n")
	return strings.TrimSuffix(lines[len(lines)-1], "\n") + "\n"
}

// TestErrorsAreThoseOfKubectl: the words, the stream and the code.
func TestErrorsAreThoseOfKubectl(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken.yaml")
	if err := os.WriteFile(broken, []byte("kind: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		desc  string
		stdin string
		args  []string
		says  []string
	}{
		{"no such object", "", []string{"get", "pod", "x"}, []string{`Error from server (NotFound): pods "x" not found`}},
		{"one of two", "", []string{"get", "ns", "default", "x"}, []string{`Error from server (NotFound): namespaces "x" not found`}},
		{"no such kind", "", []string{"get", "things"}, []string{`error: the server doesn't have a resource type "things"`}},
		{"no kind", "", []string{"get"}, []string{"error: you must specify the type of resource"}},
		{"bad output", "", []string{"get", "pods", "-o", "xml"}, []string{"error: unable to match a printer"}},
		{"bad selector", "", []string{"get", "pods", "-l", "a in"}, []string{"Error from server (BadRequest)"}},
		{"name and all namespaces", "", []string{"get", "pod", "x", "-A"}, []string{"error: a resource cannot be retrieved by name across all namespaces"}},
		{"broken YAML", "", []string{"apply", "-f", broken}, []string{"error: error parsing " + broken, "line"}},
		{"no file", "", []string{"apply", "-f", filepath.Join(dir, "none")}, []string{"does not exist"}},
		{"no -f", "", []string{"apply"}, []string{"error: must specify one of -f"}},
		{"nothing in it", "# nothing\n", []string{"apply", "-f", "-"}, []string{"error: no objects passed in"}},
		{"unknown kind", "apiVersion: v2\nkind: Thing\nmetadata: {name: x}\n", []string{"apply", "-f", "-"}, []string{"Thing"}},
		{"unknown field", strings.Replace(service, "selector:", "selektor:", 1), []string{"apply", "-f", "-"}, []string{`error: error parsing STDIN: Service "web": line`, "spec.selektor"}},
		{"wrong value", strings.Replace(deployment, "replicas: 2", "replicas: -2", 1), []string{"apply", "-f", "-"}, []string{"Error from server (Invalid)", "spec.replicas", "-2"}},
		{"no such namespace", deployment, []string{"apply", "-n", "nowhere", "-f", "-"}, []string{`Error from server (NotFound)`, `namespaces "nowhere" not found`}},
		{"exists", strings.Replace(service, "name: web", "name: twice", 1), []string{"create", "-f", "-"}, nil},
		{"delete nothing", "", []string{"delete", "pod", "x"}, []string{`Error from server (NotFound): pods "x" not found`}},
		{"delete without a name", "", []string{"delete", "pods"}, []string{"no name was specified"}},
		{"delete a namespace that must stay", "", []string{"delete", "ns", "default"}, []string{"Error from server (Forbidden)"}},
		{"scale without a number", "", []string{"scale", "deploy/x"}, []string{"--replicas=COUNT flag is required"}},
		{"scale below zero", "", []string{"scale", "deploy/x", "--replicas=-1"}, []string{"greater than or equal to 0"}},
		{"scale what is not there", "", []string{"scale", "deploy/x", "--replicas=1"}, []string{`deployments.apps "x" not found`}},
		{"wait for what is not there", "", []string{"wait", "--for=condition=Ready", "pod/x"}, []string{`pods "x" not found`}},
		{"wait in vain", "", []string{"wait", "--for=condition=Nice", "node/n1", "--timeout=300ms"}, []string{"error: timed out waiting for the condition on nodes/n1"}},
		{"wait for nothing", "", []string{"wait", "pod/x"}, []string{"--for says what to wait for"}},
		{"wait for no match", "", []string{"wait", "--for=condition=Ready", "pods", "-l", "a=b"}, []string{"error: no matching resources found"}},
		{"logs of nothing", "", []string{"logs", "x"}, []string{`Error from server (NotFound): pods "x" not found`}},
		{"logs of no pod", "", []string{"logs"}, []string{"POD or TYPE/NAME is a required argument"}},
		{"unknown flag", "", []string{"get", "pods", "--nope"}, []string{"unknown flag: --nope", "See 'gantry get --help'"}},
		{"unknown command", "", []string{"frobnicate"}, []string{`unknown command "frobnicate"`}},
		{"image file missing", "", []string{"image", "load", filepath.Join(dir, "none.tar")}, []string{"no such file"}},
		{"not an image", "", []string{"image", "load", broken}, []string{"Error from server (BadRequest): node n1", "not a readable archive"}},
	} {
		t.Run(tc.desc, func(t *testing.T) {
			l := *l
			l.T = t
			if tc.says == nil { // the second time it exists
				l.ok(tc.stdin, tc.args...)
				tc.says = []string{"Error from server (AlreadyExists)"}
			}
			_, stderr := l.fails(tc.stdin, tc.args...)
			for _, want := range tc.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q:\n%s", want, stderr)
				}
			}
		})
	}
}

// TestEachObjectGetsItsAnswer: one that is refused spoils no other, and the
// code tells that one was.
func TestEachObjectGetsItsAnswer(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(name string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `","namespace":"own"},"spec":{"containers":[{"name":"c","image":"x"}]}}`
	}
	write("1.json", `{"apiVersion":"v1","kind":"List","items":[`+pod("a")+`,{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"own"}},`+pod("b")+`]}`)
	write("2.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: NotADNSLabel}\nspec: {containers: [{name: c, image: x}]}\n---\n"+pod("c"))
	write("notes.txt", "not a manifest")
	write("deep/3.yml", pod("d"))
	out, stderr := l.fails("", "apply", "-f", dir)
	expect(t, "out", "namespace/own created\npod/b created\npod/c created\n", out)
	if lines := strings.Split(strings.TrimSpace(stderr), "\n"); len(lines) != 2 ||
		!strings.Contains(lines[0], `namespaces "own" not found`) || !strings.Contains(lines[1], "NotADNSLabel") {
		t.Errorf("stderr:\n%s", stderr)
	}
	out, _ = l.fails("", "apply", "-R", "-f", dir)
	expect(t, "out of the second", "pod/a created\nnamespace/own unchanged\npod/b unchanged\npod/c unchanged\npod/d created\n", out)
	expect(t, "delete by selector of none", "No resources found\n", l.ok("", "delete", "pods", "-n", "own", "-l", "no=one"))
	l.ok("", "wait", "-n", "own", "--for=condition=Ready", "pods", "--all")
	out = l.ok("", "delete", "pods", "-n", "own", "--all", "--now")
	expect(t, "delete --all", "pod \"a\" deleted\npod \"b\" deleted\npod \"c\" deleted\npod \"d\" deleted\n", out)
	expect(t, "nothing is left", "", l.ok("", "get", "pods", "-n", "own", "-o", "name"))
	expect(t, "delete what is gone", "", l.ok("", "delete", "pod", "a", "-n", "own", "--ignore-not-found"))
}

func TestLogs(t *testing.T) {
	l := newLab(t)
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"},"spec":{"containers":[{"name":"c","image":"x"}]}}`, "apply", "-f", "-")
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"two","labels":{"app":"two"}},"spec":{"containers":[{"name":"a","image":"x"},{"name":"b","image":"x"}]}}`, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=Ready", "pod/one", "pod/two")
	at := "2026-01-02T03:04:05.678901234Z"
	stored := []string{at + " stdout F first\n" + at + " stderr P a long", " line\n" + at + " stderr F  in parts\n" + at + " stdout F \n", at + " stdout F cut of"}
	l.logs.set(true, stored...)
	// A line that is cut between two pieces is put together again.
	expect(t, "logs", "first\na long line in parts\n\ncut of\n", l.ok("", "logs", "one"))
	expect(t, "logs -f", "first\na long line in parts\n\ncut of\n", l.ok("", "logs", "-f", "one"))
	expect(t, "--timestamps", at+" first\n"+at+" a long line in parts\n"+at+" \n"+at+" cut of\n", l.ok("", "logs", "pod/one", "--timestamps"))
	expect(t, "--prefix", "[pod/two/a] x\n[pod/two/b] x\n", func() string {
		l.logs.set(true, at+" stdout F x\n")
		return l.ok("", "logs", "-l", "app=two", "--all-containers", "--prefix")
	}())
	l.logs.set(true, at+" stdout F x\n")
	l.ok("", "logs", "one", "--tail", "5", "--since", "1h", "--previous")
	req := l.logs.first()
	if req.TailLines == nil || *req.TailLines != 5 || req.SinceTime == nil || time.Since(*req.SinceTime) < 59*time.Minute || !req.Previous || req.Container != "c" {
		t.Errorf("asked for %+v", req)
	}
	_, stderr := l.fails("", "logs", "two")
	if !strings.Contains(stderr, "a container name must be specified for pod two, choose one of: [a b]") {
		t.Errorf("stderr: %s", stderr)
	}
	expect(t, "-c", "x\n", l.ok("", "logs", "two", "-c", "b"))
}

func TestWatchShowsWhatChanges(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() {
		code := run(ctx, []string{"--credentials", l.plane.AdminCredentials(), "get", "svc", "--watch"}, nil, w, w)
		_ = w.Close()
		ended <- code
	}()
	l.ok(service, "apply", "-f", "-")
	seen := ""
	buf := make([]byte, 4096)
	for !strings.Contains(plain(seen), "web|ClusterIP|10.96.0.77") {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("watch ended: %v\n%s", err, seen)
		}
		seen += string(buf[:n])
	}
	l.ok("", "delete", "svc", "web")
	cancel()
	<-ended
	if strings.Count(seen, "NAME") != 1 {
		t.Errorf("headers:\n%s", seen)
	}
}

// TestImageLoad brings an archive and a layout directory into a node's store,
// in more than one piece.
func TestImageLoad(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(t.TempDir(), "lay")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	img := imagetest.Image(t, imagetest.Plain(imagetest.Tar(t, imagetest.Entry{Name: "big", Body: string(big)})))
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"io.containerd.image.name": "example.test/app:1"})); err != nil {
		t.Fatal(err)
	}
	expect(t, "image load", "node/n1 loaded example.test/app:1\n", l.ok("", "image", "load", dir))
	got, ok := l.store.Get("example.test/app:1")
	if !ok {
		t.Fatal("the node does not have it")
	}
	if data, err := os.ReadFile(filepath.Join(got.Layers[0], "big")); err != nil || string(data) != string(big) {
		t.Errorf("the file differs: %v", err)
	}
	if out := plain(l.ok("", "image", "ls")); !strings.Contains(out, "n1|example.test/app:1|") {
		t.Errorf("image list:\n%s", out)
	}
	if _, stderr := l.fails("", "image", "load", dir, "--node", "n2"); !strings.Contains(stderr, "n2") {
		t.Errorf("stderr: %s", stderr)
	}
}

func TestWithoutAServer(t *testing.T) {
	l := newLab(t)
	gone := filepath.Join(t.TempDir(), "gone.json")
	data, err := os.ReadFile(l.plane.AdminCredentials())
	if err != nil {
		t.Fatal(err)
	}
	var creds map[string]any
	if err := json.Unmarshal(data, &creds); err != nil {
		t.Fatal(err)
	}
	creds["urls"] = []string{"nats://127.0.0.1:1"}
	if data, err = json.Marshal(creds); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gone, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr := l.fails("", "--credentials", gone, "get", "pods")
	if !strings.Contains(stderr, "is the control plane running?") || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("stderr: %s", stderr)
	}
	_, stderr = l.fails("", "--credentials", gone+".not", "get", "pods")
	if !strings.Contains(stderr, gone+".not") {
		t.Errorf("stderr: %s", stderr)
	}
	l.ok("", "version", "--client")
	if out := l.ok("", "version"); !strings.Contains(out, "Node n1:") {
		t.Errorf("version: %s", out)
	}
}
