package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// A story is one verb of the API as a sequence of calls. Three clients tell
// it, each to a fresh cluster of its own: `nats req`, a Python program with a
// socket, and gantry. The first two must be given the same bytes; gantry must
// show the same objects and errors. Only what differs between two clusters by
// nature is masked: times, UIDs, revisions, and addresses.
type story []step

// step is one call. In header, body, cli and stdin, ${rv} is the
// resourceVersion of the object that was last answered with.
type step struct {
	verb, resource, name string
	header               map[string]string
	body                 string
	// refused is the reason of the refusal that this call must meet; empty: none.
	refused metav1.StatusReason
	// cli is the same through gantry; empty where its way is another, and then
	// the steps around show that the outcome is the same.
	cli   string
	stdin string // of gantry
	// shows is how gantry's output relates to the answer: "object" (the default),
	// "items", "bytes", "lines" of a log, the first "event" of a watch that goes
	// on, or "nothing".
	shows string
	// ready names a pod that must be ready, and gone one that must be gone, before
	// the call is made.
	ready, gone string
}

func applying(manager string, force bool) map[string]string {
	return map[string]string{
		schemas.HeaderContentType: schemas.PatchApply,
		schemas.HeaderOptions:     fmt.Sprintf(`{"fieldManager":%q,"force":%v}`, manager, force),
	}
}

func patching(kind string) map[string]string {
	return map[string]string{schemas.HeaderContentType: kind}
}

const (
	dryRun = `{"dryRun":["All"]}`

	confA = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"default","labels":{"story":"one"}},"data":{"k":"1"}}`
	confB = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b","namespace":"default","labels":{"story":"one"}},"data":{"k":"2"}}`

	template = `{"apiVersion":"v1","kind":"PodTemplate","metadata":{"name":"t","namespace":"default"},"template":{"spec":{"containers":[{"name":"app","image":"registry.example/app:1","env":[{"name":"A","value":"1"}]}]}}}`

	runningPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"w","namespace":"default"},"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"app","image":"` + sampleImage + `","readinessProbe":{"httpGet":{"path":"/healthz","port":8080},"periodSeconds":1}}]}}`

	idle = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"idle","namespace":"default"},"spec":{"replicas":0,"paused":true,"selector":{"matchLabels":{"app":"idle"}},"template":{"metadata":{"labels":{"app":"idle"}},"spec":{"containers":[{"name":"app","image":"registry.example/app:1"}]}}}}`
)

var stories = map[string]story{
	"create": {
		{verb: "create", resource: "configmaps", name: "a", body: confA, cli: "create -f - -o json", stdin: confA},
		{verb: "create", resource: "configmaps", name: "a", body: confA, refused: metav1.StatusReasonAlreadyExists, cli: "create -f - -o json", stdin: confA},
		{verb: "create", resource: "configmaps", name: "b", body: confB, header: map[string]string{schemas.HeaderOptions: dryRun}, cli: "create -f - --dry-run=server -o json", stdin: confB},
		{verb: "get", resource: "configmaps", name: "b", refused: metav1.StatusReasonNotFound, cli: "get configmap b -o json"},
		{verb: "create", resource: "configmaps", name: "Bad_Name", body: strings.ReplaceAll(confA, `"a"`, `"Bad_Name"`), refused: metav1.StatusReasonInvalid, cli: "create -f - -o json", stdin: strings.ReplaceAll(confA, `"a"`, `"Bad_Name"`)},
		{verb: "create", resource: "configmaps", name: "a", body: strings.Replace(confA, `"data"`, `"date"`, 1), refused: metav1.StatusReasonBadRequest},
	},
	"get and list": {
		{verb: "create", resource: "configmaps", name: "a", body: confA, cli: "create -f - -o json", stdin: confA},
		{verb: "create", resource: "configmaps", name: "b", body: confB, cli: "create -f - -o json", stdin: confB},
		{verb: "get", resource: "configmaps", name: "a", cli: "get configmap a -o json"},
		{verb: "list", resource: "configmaps", body: `{"labelSelector":"story=one"}`, cli: "get configmaps -l story=one -o json", shows: "items"},
		{verb: "list", resource: "configmaps", body: `{"labelSelector":"story=one,story!=one"}`, cli: "get configmaps -l story=one,story!=one -o json", shows: "items"},
		{verb: "list", resource: "configmaps", body: `{"fieldSelector":"metadata.name=b"}`, cli: "get configmaps --field-selector metadata.name=b -o json", shows: "items"},
		{verb: "list", resource: "configmaps", body: `{"labelSelector":"story=one","limit":1}`},
		{verb: "list", resource: "configmaps", body: `{"fieldSelector":"data.k=1"}`, refused: metav1.StatusReasonBadRequest, cli: "get configmaps --field-selector data.k=1 -o json"},
		{verb: "list", resource: "configmaps", body: `{"labelSelector":"a b"}`, refused: metav1.StatusReasonBadRequest},
	},
	"watch": {
		{verb: "create", resource: "configmaps", name: "a", body: confA, cli: "create -f - -o json", stdin: confA},
		{verb: "watch", resource: "configmaps", body: `{"resourceVersion":"${rv}","timeoutSeconds":0}`},
		{verb: "watch", resource: "configmaps", body: `{"resourceVersion":"${rv}","timeoutSeconds":0,"allowWatchBookmarks":true}`},
		{verb: "watch", resource: "configmaps", body: `{"fieldSelector":"metadata.name=a","sendInitialEvents":true,"allowWatchBookmarks":true,"resourceVersionMatch":"NotOlderThan","timeoutSeconds":0}`,
			cli: "get configmaps --field-selector metadata.name=a --watch --output-watch-events -o json", shows: "event"},
		{verb: "watch", resource: "configmaps", body: `{"resourceVersion":"soon"}`, refused: metav1.StatusReasonBadRequest},
	},
	"update": {
		{verb: "create", resource: "configmaps", name: "a", body: confA, cli: "create -f - -o json", stdin: confA},
		{verb: "update", resource: "configmaps", name: "a", body: strings.Replace(confA, `"1"`, `"3"`, 1), cli: "replace -f - -o json", stdin: strings.Replace(confA, `"1"`, `"3"`, 1)},
		{verb: "update", resource: "configmaps", name: "a", body: strings.Replace(confA, `"name":"a"`, `"name":"a","resourceVersion":"1"`, 1), refused: metav1.StatusReasonConflict, cli: "replace -f - -o json", stdin: strings.Replace(confA, `"name":"a"`, `"name":"a","resourceVersion":"1"`, 1)},
		{verb: "update", resource: "configmaps", name: "a", header: map[string]string{schemas.HeaderOptions: dryRun}, body: strings.Replace(confA, `"1"`, `"4"`, 1), cli: "replace -f - --dry-run=server -o json", stdin: strings.Replace(confA, `"1"`, `"4"`, 1)},
		{verb: "get", resource: "configmaps", name: "a", cli: "get configmap a -o json"},
		{verb: "update", resource: "configmaps", name: "none", body: strings.Replace(confA, `"a"`, `"none"`, 1), refused: metav1.StatusReasonNotFound, cli: "replace -f - -o json", stdin: strings.Replace(confA, `"a"`, `"none"`, 1)},
	},
	"patch": {
		{verb: "create", resource: "podtemplates", name: "t", body: template, cli: "create -f - -o json", stdin: template},
		{verb: "patch", resource: "podtemplates", name: "t", header: patching(schemas.PatchMerge), body: `{"metadata":{"labels":{"merge":"yes"}}}`,
			cli: `patch podtemplate t --type merge -p {"metadata":{"labels":{"merge":"yes"}}} -o json`},
		{verb: "patch", resource: "podtemplates", name: "t", header: patching(schemas.PatchStrategic), body: `{"template":{"spec":{"containers":[{"name":"side","image":"registry.example/side:1"}]}}}`,
			cli: `patch podtemplate t --type strategic -p {"template":{"spec":{"containers":[{"name":"side","image":"registry.example/side:1"}]}}} -o json`},
		{verb: "patch", resource: "podtemplates", name: "t", header: patching(schemas.PatchJSON), body: `[{"op":"test","path":"/template/spec/containers/1/name","value":"app"},{"op":"replace","path":"/template/spec/containers/1/image","value":"registry.example/app:2"}]`,
			cli: `patch podtemplate t --type json -p [{"op":"test","path":"/template/spec/containers/1/name","value":"app"},{"op":"replace","path":"/template/spec/containers/1/image","value":"registry.example/app:2"}] -o json`},
		{verb: "patch", resource: "podtemplates", name: "t", header: patching(schemas.PatchJSON), body: `[{"op":"test","path":"/metadata/name","value":"other"}]`, refused: metav1.StatusReasonInvalid,
			cli: `patch podtemplate t --type json -p [{"op":"test","path":"/metadata/name","value":"other"}] -o json`},
		{verb: "patch", resource: "podtemplates", name: "t", header: patching(schemas.PatchMerge), body: `{"template":{"spec":{"containers":null}}}`, refused: metav1.StatusReasonInvalid,
			cli: `patch podtemplate t --type merge -p {"template":{"spec":{"containers":null}}} -o json`},
		{verb: "get", resource: "podtemplates", name: "t", cli: "get podtemplate t -o json"},
	},
	"server-side apply": {
		{verb: "patch", resource: "configmaps", name: "a", header: applying("one", false), body: confA, cli: "apply --server-side --field-manager=one -f - -o json --show-managed-fields", stdin: confA},
		{verb: "patch", resource: "configmaps", name: "a", header: applying("two", false), body: strings.Replace(confA, `"1"`, `"2"`, 1), refused: metav1.StatusReasonConflict, cli: "apply --server-side --field-manager=two -f - -o json", stdin: strings.Replace(confA, `"1"`, `"2"`, 1)},
		{verb: "patch", resource: "configmaps", name: "a", header: applying("two", true), body: strings.Replace(confA, `"1"`, `"2"`, 1), cli: "apply --server-side --force-conflicts --field-manager=two -f - -o json --show-managed-fields", stdin: strings.Replace(confA, `"1"`, `"2"`, 1)},
		{verb: "get", resource: "configmaps", name: "a", cli: "get configmap a -o json --show-managed-fields"},
	},
	"apply": {
		{verb: "apply", resource: "configmaps", name: "a", body: confA, cli: "apply -f - -o json", stdin: confA},
		{verb: "apply", resource: "configmaps", name: "a", body: strings.Replace(confA, `"k":"1"`, `"l":"5"`, 1), cli: "apply -f - -o json", stdin: strings.Replace(confA, `"k":"1"`, `"l":"5"`, 1)},
		{verb: "get", resource: "configmaps", name: "a", cli: "get configmap a -o json"},
	},
	"status and scale": {
		{verb: "create", resource: "deployments", name: "idle", body: idle},
		{verb: "get", resource: "deployments/scale", name: "idle"},
		{verb: "patch", resource: "deployments/scale", name: "idle", header: patching(schemas.PatchMerge), body: `{"spec":{"replicas":0}}`, cli: "scale deployment idle --replicas=0", shows: "nothing"},
		{verb: "patch", resource: "namespaces/status", name: "default", header: patching(schemas.PatchMerge), body: `{"status":{"conditions":[{"type":"Told","status":"True","reason":"Story","message":"m","lastTransitionTime":"2026-01-05T10:00:00Z"}]}}`,
			cli: `patch namespace default --subresource status --type merge -p {"status":{"conditions":[{"type":"Told","status":"True","reason":"Story","message":"m","lastTransitionTime":"2026-01-05T10:00:00Z"}]}} -o json`},
		{verb: "get", resource: "namespaces/status", name: "default", cli: "get namespace default -o json"},
		{verb: "patch", resource: "deployments/scale", name: "idle", header: patching(schemas.PatchMerge), body: `{"spec":{"replicas":-1}}`, refused: metav1.StatusReasonInvalid},
		{verb: "get", resource: "deployments/scale", name: "none", refused: metav1.StatusReasonNotFound},
		{verb: "patch", resource: "configmaps/scale", name: "a", header: patching(schemas.PatchMerge), body: `{"spec":{"replicas":1}}`, refused: metav1.StatusReasonNotFound},
	},
	"delete": {
		{verb: "create", resource: "configmaps", name: "a", body: confA, cli: "create -f - -o json", stdin: confA},
		{verb: "delete", resource: "configmaps", name: "a", body: `{"preconditions":{"resourceVersion":"1"}}`, refused: metav1.StatusReasonConflict},
		{verb: "delete", resource: "configmaps", name: "a", body: dryRun, cli: "delete configmap a --dry-run=server", shows: "nothing"},
		{verb: "get", resource: "configmaps", name: "a", cli: "get configmap a -o json"},
		{verb: "delete", resource: "configmaps", name: "a", cli: "delete configmap a", shows: "nothing"},
		{verb: "delete", resource: "configmaps", name: "a", refused: metav1.StatusReasonNotFound, cli: "delete configmap a"},
		{verb: "delete", resource: "namespaces", name: "default", refused: metav1.StatusReasonForbidden, cli: "delete namespace default"},
	},
	"deletecollection": {
		{verb: "create", resource: "configmaps", name: "a", body: confA, cli: "create -f - -o json", stdin: confA},
		{verb: "create", resource: "configmaps", name: "b", body: confB, cli: "create -f - -o json", stdin: confB},
		{verb: "deletecollection", resource: "configmaps", header: map[string]string{schemas.HeaderOptions: `{"labelSelector":"story=one"}`}, cli: "delete configmaps -l story=one", shows: "nothing"},
		{verb: "list", resource: "configmaps", body: `{"labelSelector":"story=one"}`, cli: "get configmaps -l story=one -o json", shows: "items"},
	},
	"refusals": {
		{verb: "get", resource: "statefulsets", name: "a", refused: metav1.StatusReasonNotFound},
		{verb: "get", resource: "widgets", name: "a", refused: metav1.StatusReasonNotFound},
		{verb: "create", resource: "configmaps", name: "a", header: map[string]string{schemas.HeaderOptions: `{"dryrun":["All"]}`}, body: confA, refused: metav1.StatusReasonBadRequest},
		{verb: "get", resource: "pods/portforward", name: "a", refused: metav1.StatusReasonNotFound},
		{verb: "exec", resource: "pods", name: "none", body: `{"session":"0123456789abcdef","command":["true"]}`, refused: metav1.StatusReasonNotFound},
	},
	"log, exec, attach, portforward and copy": {
		{verb: "create", resource: "pods", name: "w", body: runningPod, cli: "create -f - -o json", stdin: runningPod},
		{ready: "w", verb: "log", resource: "pods", name: "w", body: `{"tailLines":1}`, cli: "logs w --tail=1", shows: "lines"},
		{verb: "log", resource: "pods", name: "w", body: `{"container":"none"}`, refused: metav1.StatusReasonBadRequest, cli: "logs w -c none"},
		{verb: "exec", resource: "pods", name: "w", body: `{"session":"0123456789abcdef0","command":["/web","cat","/etc/hostname"]}`},
		{verb: "recv", resource: "pods", name: "w", header: map[string]string{schemas.HeaderSession: "0123456789abcdef0", schemas.HeaderCursor: "0", schemas.HeaderWait: "20"}, cli: "exec w -- /web cat /etc/hostname", shows: "bytes"},
		{verb: "recv", resource: "pods", name: "w", header: map[string]string{schemas.HeaderSession: "no-such-session-0"}, refused: metav1.StatusReasonNotFound},
		{verb: "exec", resource: "pods", name: "w", body: `{"session":"0123456789abcdef1","container":"none","command":["true"]}`, refused: metav1.StatusReasonBadRequest, cli: "exec w -c none -- true"},
		{verb: "exec", resource: "pods", name: "w", body: `{"session":"short","command":["true"]}`, refused: metav1.StatusReasonBadRequest},
		{verb: "attach", resource: "pods", name: "w", body: `{"session":"0123456789abcdef2","stdin":true}`, refused: metav1.StatusReasonBadRequest},
		{verb: "portforward", resource: "pods", name: "w", body: `{"session":"0123456789abcdef3","port":0}`, refused: metav1.StatusReasonBadRequest},
		{verb: "portforward", resource: "pods", name: "w", body: `{"session":"0123456789abcdef4","port":8080}`},
		{verb: "send", resource: "pods", name: "w", header: map[string]string{schemas.HeaderSession: "0123456789abcdef4", schemas.HeaderOffset: "0", schemas.HeaderLast: "true"}, body: "GET /healthz HTTP/1.0\r\n\r\n"},
		{verb: "send", resource: "pods", name: "w", header: map[string]string{schemas.HeaderSession: "0123456789abcdef4", schemas.HeaderClose: "true"}},
		{verb: "copy", resource: "pods", name: "w", body: `{"session":"0123456789abcdef5","path":""}`, refused: metav1.StatusReasonBadRequest},
	},
	"binding and eviction": {
		{verb: "create", resource: "pods", name: "w", body: runningPod, cli: "create -f - -o json", stdin: runningPod},
		{ready: "w", verb: "create", resource: "pods/binding", name: "w", body: `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"w"},"target":{"kind":"Node","name":"elsewhere"}}`, refused: metav1.StatusReasonNotFound},
		{verb: "create", resource: "pods/eviction", name: "w", body: `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"w"}}`},
		{gone: "w", verb: "create", resource: "pods/eviction", name: "w", body: `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"w"}}`, refused: metav1.StatusReasonNotFound},
	},
	"schema": {
		{verb: "schema", resource: "configmaps"},
		{verb: "schema", resource: "widgets", refused: metav1.StatusReasonNotFound},
	},
}

// answer is what a client was given.
type answer struct {
	body    []byte
	refused *metav1.Status
}

// caller makes a call as one of the three would.
type caller func(s step) answer

func (l *lab) natsClient() caller {
	return func(s step) answer {
		args := []string{"req", "--raw", "--timeout", "20s", schemas.Names{}.API(s.verb, s.resource, s.namespace(), s.name), s.body}
		for k, v := range s.header {
			args = append(args, "-H", k+":"+v)
		}
		out := l.must(l.nats(args...))
		if strings.TrimSpace(out) == "nil body" { // what nats prints of an empty one
			out = ""
		}
		var st metav1.Status
		if err := json.Unmarshal([]byte(out), &st); err == nil && st.Kind == "Status" && st.Status == metav1.StatusFailure {
			return answer{refused: &st}
		}
		return answer{body: []byte(out)}
	}
}

func (s step) namespace() string {
	kind, ok := schemas.KindByResource(strings.Split(s.resource, "/")[0])
	if ok && !kind.Namespaced || s.verb == schemas.VerbSchema {
		return ""
	}
	return "default"
}

func (l *lab) pythonClient() caller {
	programs, err := filepath.Abs("../../examples/automation")
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.CommandContext(l.ctx, "python3", "-B", "testdata/call.py", programs, l.Credentials())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			l.Errorf("python client: %v: %s", err, stderr.String())
		}
	})
	lines := bufio.NewReader(out)
	return func(s step) answer {
		if s.header == nil {
			s.header = map[string]string{}
		}
		call, err := json.Marshal(map[string]any{
			"verb": s.verb, "resource": s.resource, "namespace": s.namespace(), "name": s.name, "body": s.body, "headers": s.header,
		})
		if err != nil {
			l.Fatal(err)
		}
		if _, err := in.Write(append(call, '\n')); err != nil {
			l.Fatal(err)
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			l.Fatalf("python client: %v: %s", err, stderr.String())
		}
		var got struct {
			Body    string         `json:"body"`
			Refused *metav1.Status `json:"refused"`
		}
		if err := json.Unmarshal(line, &got); err != nil {
			l.Fatal(err)
		}
		body, err := base64.StdEncoding.DecodeString(got.Body)
		if err != nil {
			l.Fatal(err)
		}
		return answer{body: body, refused: got.Refused}
	}
}

// gantryClient tells the story at the command line where that has the words
// for it, and over the bus where not, so that all clusters go the same way.
func (l *lab) gantryClient(otherwise caller) caller {
	return func(s step) answer {
		if s.cli == "" {
			return otherwise(s)
		}
		cmd := exec.CommandContext(l.ctx, filepath.Join(l.bin, "gantry"), append([]string{"--credentials", l.Credentials()}, strings.Fields(s.cli)...)...)
		cmd.Stdin = strings.NewReader(s.stdin)
		if s.shows == "event" {
			return l.firstEvent(cmd)
		}
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		err := cmd.Run()
		if err == nil {
			return answer{body: out.Bytes()}
		}
		return answer{refused: &metav1.Status{Message: strings.TrimSpace(stderr.String())}}
	}
}

// firstEvent ends a watch after what it shows first.
func (l *lab) firstEvent(cmd *exec.Cmd) answer {
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	var event json.RawMessage
	err = json.NewDecoder(out).Decode(&event)
	_ = cmd.Process.Kill() // it would watch for ever
	_ = cmd.Wait()         // killed
	if err != nil {
		l.Fatalf("%v shows no event: %v", cmd.Args, err)
	}
	return answer{body: event}
}

var masks = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`"(uid|resourceVersion|creationTimestamp|deletionTimestamp|time|lastTransitionTime|lastUpdateTime|continue)":\s*"[^"]*"`), `"$1":"*"`},
	{regexp.MustCompile(`([rR]esourceVersion( in object meta:)?) \d+`), `$1 *`},
	{regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT[0-9:.]+Z std`), `* std`},
	{regexp.MustCompile(`(UID in \w+( \w+)?: )[0-9a-f-]{36}`), `$1*`},
}

func masked(data []byte) string {
	for _, m := range masks {
		data = m.pattern.ReplaceAll(data, []byte(m.with))
	}
	return string(data)
}

// canonical is JSON with its keys in order, masked.
func canonical(t *testing.T, data []byte, shows string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("not JSON: %v: %.300s", err, data)
	}
	if m, ok := v.(map[string]any); ok && (shows == "items" || shows == "event") && m["items"] != nil {
		v = m["items"]
	}
	if items, ok := v.([]any); ok && shows == "event" && len(items) > 0 {
		v = items[0]
	}
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return masked(out)
}

func (s step) with(rv string) step {
	r := strings.NewReplacer("${rv}", rv)
	s.body, s.cli, s.stdin = r.Replace(s.body), r.Replace(s.cli), r.Replace(s.stdin)
	return s
}

func (s step) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %.60s", s.verb, s.resource, s.name, s.body))
}

// told is one client's answers to all stories, in order.
func told(t *testing.T, l *lab, order []string, c caller) map[string][]answer {
	out := map[string][]answer{}
	clean := l.natsClient()
	for _, name := range order {
		rv := "1"
		for _, s := range stories[name] {
			if s.ready != "" {
				l.pod(s.ready, "ready", ready)
			}
			if s.gone != "" {
				l.eventually("pod "+s.gone+" is gone", func() error {
					if a := clean(step{verb: "get", resource: "pods", name: s.gone}); a.refused == nil {
						return errors.New("it is there")
					}
					return nil
				})
			}
			a := c(s.with(rv))
			if (s.refused != "") != (a.refused != nil) {
				t.Errorf("%s: %s: want refusal %q, got %+v", name, s, s.refused, a.refused)
			}
			var o metav1.PartialObjectMetadata
			if json.Unmarshal(a.body, &o) == nil && o.ResourceVersion != "" && o.Name != "" {
				rv = o.ResourceVersion
			}
			out[name] = append(out[name], a)
		}
		// The next story finds a clean house.
		for _, resource := range []string{"configmaps", "podtemplates", "deployments", "pods"} {
			if a := clean(step{verb: "deletecollection", resource: resource, body: `{"propagationPolicy":"Background"}`}); a.refused != nil {
				t.Fatalf("clean up after %s: %s", name, a.refused.Message)
			}
		}
		l.eventually("nothing of "+name+" is left", func() error {
			for _, resource := range []string{"configmaps", "podtemplates", "deployments", "replicasets", "pods"} {
				var list struct{ Items []any }
				l.request(&list, "api.list."+resource+".default", "{}")
				if len(list.Items) > 0 {
					return fmt.Errorf("%d %s", len(list.Items), resource)
				}
			}
			return nil
		})
	}
	return out
}

// TestConformance tells every story through each client.
func TestConformance(t *testing.T) {
	var order []string
	for name := range stories {
		order = append(order, name)
	}
	// A fixed order: revisions are masked, but a failure should repeat itself.
	slices.Sort(order)
	answers := map[string]map[string][]answer{}
	for _, who := range []string{"nats", "python", "gantry"} {
		t.Run(who, func(t *testing.T) {
			l := newLab(t)
			c := l.natsClient()
			switch who {
			case "python":
				c = l.pythonClient()
			case "gantry":
				c = l.gantryClient(c)
			}
			answers[who] = told(t, l, order, c)
		})
	}
	if t.Failed() {
		return
	}
	for _, name := range order {
		for i, s := range stories[name] {
			t.Run(name+"/"+fmt.Sprint(i), func(t *testing.T) {
				// The socket's bytes are what others are held against: nats prints
				// newlines of its own behind them.
				first := answers["python"][name][i]
				sameBytes(t, s, first, answers["nats"][name][i])
				if s.cli == "" {
					sameBytes(t, s, first, answers["gantry"][name][i])
				} else {
					sameShown(t, s, first, answers["gantry"][name][i])
				}
			})
		}
	}
}

func sameBytes(t *testing.T, s step, want, got answer) {
	t.Helper()
	if want.refused != nil {
		if want.refused.Reason != s.refused {
			t.Errorf("%s: refused with %s (%s), not with %s", s, want.refused.Reason, want.refused.Message, s.refused)
		}
		if diff := cmp.Diff(maskedStatus(t, want.refused), maskedStatus(t, got.refused)); diff != "" {
			t.Errorf("%s: %s", s, diff)
		}
		return
	}
	trimmed := func(b []byte) string { return masked(bytes.TrimRight(b, "\n")) }
	if diff := cmp.Diff(trimmed(want.body), trimmed(got.body)); diff != "" {
		t.Errorf("%s: %s", s, diff)
	}
}

func maskedStatus(t *testing.T, s *metav1.Status) string {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return masked(data)
}

// sameShown compares what gantry prints with what the API answered.
func sameShown(t *testing.T, s step, want, got answer) {
	t.Helper()
	switch {
	case want.refused != nil:
		text := masked([]byte(got.refused.Message))
		if part := masked([]byte(want.refused.Message)); !strings.Contains(text, part) {
			t.Errorf("%s: gantry says %q, without %q", s, text, part)
		}
		// Conflicts of an apply are told as kubectl tells them, with ways out.
		if reason := string(want.refused.Reason); strings.HasPrefix(text, "Error from server") && !strings.Contains(text, "("+reason+")") {
			t.Errorf("%s: gantry says %q, without the reason %s", s, text, reason)
		}
	case s.shows == "nothing":
	case s.shows == "lines": // what is kept has three words before each line
		var lines strings.Builder
		for line := range strings.Lines(string(want.body)) {
			words := strings.SplitN(line, " ", 4)
			lines.WriteString(words[len(words)-1])
		}
		if diff := cmp.Diff(lines.String(), string(got.body)); diff != "" {
			t.Errorf("%s: %s", s, diff)
		}
	case s.shows == "bytes":
		if diff := cmp.Diff(string(want.body), string(got.body)); diff != "" {
			t.Errorf("%s: %s", s, diff)
		}
	default:
		if diff := cmp.Diff(canonical(t, want.body, s.shows), canonical(t, got.body, s.shows)); diff != "" {
			t.Errorf("%s: %s", s, diff)
		}
	}
}
