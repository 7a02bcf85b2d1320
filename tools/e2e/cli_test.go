package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// exitCode runs gantry and returns its exit code and what it printed on both.
func (l *lab) exitCode(args ...string) (int, string) {
	l.Helper()
	out, err := l.gantry("", args...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, out
	case errors.As(err, &exit):
		return exit.ExitCode(), out + err.Error()
	}
	l.Fatal(err)
	return 0, ""
}

// TestCommandLine: the commands as users of kubectl type them, with the
// columns, messages and exit codes that they expect.
func TestCommandLine(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	web, err := os.ReadFile("../../examples/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i, doc := range strings.Split(string(web), "\n---\n") {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pod := `web-\w+-\w{5}`
	age := `\d+[sm]\S*`
	steps := []struct {
		args string // split at blanks
		code int
		want string // regular expression over the output with blanks squeezed
	}{
		{"apply -f " + dir, 0, `^deployment.apps/web created\nservice/web created\n$`},
		{"apply -f " + dir, 0, `^deployment.apps/web unchanged\nservice/web unchanged\n$`},
		{"wait --for=condition=Available deployment/web --timeout 60s", 0, `^deployment.apps/web condition met\n$`},
		{"wait --for=condition=Ready pod -l app=web --timeout=60s", 0, `^(pod/` + pod + ` condition met\n){3}$`},
		{"wait --for=condition=Available deployment/none --timeout=1s", 1, `deployments.apps "none" not found`},
		{"wait --for=condition=Nonsense deployment/web --timeout=1s", 1, `timed out waiting for the condition on deployments/web`},
		{"get deployments", 0, `^NAME READY UP-TO-DATE AVAILABLE AGE\nweb 3/3 3 3 ` + age + `\n$`},
		{"get deploy web -o wide", 0, `^NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR\nweb 3/3 3 3 ` + age + ` web 127.0.0.1:5050/gantry/web:v1 app=web\n$`},
		{"get rs", 0, `^NAME DESIRED CURRENT READY AGE\nweb-\w+ 3 3 3 ` + age + `\n$`},
		{"get po", 0, `^NAME READY STATUS RESTARTS AGE\n(` + pod + ` 1/1 Running 0 ` + age + `\n){3}$`},
		{"get pods -o wide", 0, `^NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES\n(` + pod + ` 1/1 Running 0 ` + age + ` [0-9.]+ ` + l.Node + ` <none> <none>\n){3}$`},
		{"get pods -l app=web -o name", 0, `^(pod/` + pod + `\n){3}$`},
		{"get pods -l app!=web", 0, `^$`},
		{"get svc", 0, `^NAME TYPE CLUSTER-IP EXTERNAL-IP PORT\(S\) AGE\nweb ClusterIP [0-9.]+ <none> 80/TCP ` + age + `\n$`},
		{"get nodes", 0, `^NAME STATUS ROLES AGE VERSION\n` + l.Node + ` Ready <none> `},
		{"get ns", 0, `^NAME STATUS AGE\ndefault Active `},
		{"get pods -n kube-system", 0, `^$`},
		{"get pod none", 1, `Error from server \(NotFound\): pods "none" not found`},
		{"get nonsense", 1, `the server doesn't have a resource type "nonsense"`},
		{"get pods -o nonsense", 1, `unable to match a printer suitable for the output format "nonsense"`},
		{"get pods --nonsense", 1, `unknown flag: --nonsense`},
		{"describe deployment web", 0, `Name: web\nNamespace: default\n(.*\n)*Replicas: 3 desired \| 3 updated \| 3 total \| 3 available \| 0 unavailable\n(.*\n)*Events:\n(.*\n)*.*ScalingReplicaSet`},
		{"describe pods -l app=web", 0, `Name: ` + pod + `\n(.*\n)*Node: ` + l.Node + `.*\n(.*\n)*Events:\n(.*\n)*.*Started`},
		{"describe service web", 0, `Name: web\n(.*\n)*IP: [0-9.]+\nPort: http 80/TCP -> http\nEndpoints: ([0-9.]+:8080,){2}[0-9.]+:8080\n`},
		{"events --for deployment/web", 0, `^LAST SEEN TYPE REASON OBJECT MESSAGE\n\S+ Normal ScalingReplicaSet deployment/web Scaled up replica set`},
		{"scale deployment/web --replicas=1", 0, `^deployment.apps/web scaled\n$`},
		{"scale deployment/none --replicas=1", 1, `deployments.apps "none" not found`},
		{"scale deployment/web --replicas=-1", 1, `greater than or equal to 0`},
		{"logs deploy/web", 0, `serves on`},
		{"logs none", 1, `pods "none" not found`},
		{"delete -f " + dir + " --wait", 0, `^deployment.apps "web" deleted.*\nservice "web" deleted.*\n$`},
		{"delete -f " + dir, 1, `Error from server \(NotFound\).*deployments.apps "web" not found`},
		{"delete -f " + dir + " --ignore-not-found", 0, `^$`},
		{"wait --for=delete pod -l app=web --timeout=30s", 0, ``},
		{"get deploy,rs,svc,pods -o name", 0, `^$`},
	}
	blanks := regexp.MustCompile(`[ \t]+`)
	for _, s := range steps {
		code, out := l.exitCode(strings.Fields(s.args)...)
		out = regexp.MustCompile(` \n`).ReplaceAllString(blanks.ReplaceAllString(out, " "), "\n")
		if code != s.code || !regexp.MustCompile(s.want).MatchString(out) {
			t.Errorf("gantry %s: exit code %d, want %d, and %q in:\n%s", s.args, code, s.code, s.want, out)
		}
		if strings.HasPrefix(s.args, "wait --for=condition=Ready") {
			l.formsOfOutput()
		}
	}
}

// formsOfOutput: YAML and JSON hold the same, and what is printed can be
// applied again.
func (l *lab) formsOfOutput() {
	l.Helper()
	asYAML, asJSON := l.must(l.gantry("", "get", "deploy", "web", "-o", "yaml")), l.must(l.gantry("", "get", "deploy", "web", "-o", "json"))
	converted, err := yaml.YAMLToJSON([]byte(asYAML))
	if err != nil {
		l.Fatal(err)
	}
	var a, b map[string]any
	if err := errors.Join(json.Unmarshal(converted, &a), json.Unmarshal([]byte(asJSON), &b)); err != nil {
		l.Fatal(err)
	}
	if fmt.Sprint(a["spec"]) != fmt.Sprint(b["spec"]) {
		l.Errorf("YAML and JSON differ:\n%v\n%v", a["spec"], b["spec"])
	}
	if out := l.must(l.gantry(l.must(l.gantry("", "get", "svc", "web", "-o", "yaml")), "apply", "-f", "-")); !strings.HasPrefix(out, "service/web ") {
		l.Errorf("apply of what get printed: %q", out)
	}
}

// TestWatch shows a pod come and go, one line for each change.
func TestWatch(t *testing.T) {
	l := newLab(t)
	cmd := exec.Command(filepath.Join(l.bin, "gantry"), "--credentials", l.Credentials(), "get", "pods", "--watch")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	saw := func(text string) {
		t.Helper()
		l.eventually("the watch shows "+text, func() error {
			if !strings.Contains(out.String(), text) {
				return fmt.Errorf("so far:\n%s", out.String())
			}
			return nil
		})
	}
	l.apply(onePod("seen", "", ""))
	saw("Pending")
	saw("Running")
	l.must(l.gantry("", "delete", "pod", "seen", "--wait"))
	saw("Terminating")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was interrupted
	if n := strings.Count(out.String(), "NAME"); n != 1 {
		t.Errorf("%d headers:\n%s", n, out.String())
	}
}

// TestCrashLoop: the back-off that kubectl users know. The first restart is at
// once, the second 10 s after the end of the first, and logs are kept for each.
func TestCrashLoop(t *testing.T) {
	l := newLab(t)
	l.apply(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"loop"},"spec":{"terminationGracePeriodSeconds":1,"containers":[
{"name":"crash","image":%[1]q,"args":["exit","7"]},
{"name":"talk","image":%[1]q,"args":["lines","--count","3","--text","said"]},
{"name":"stay","image":%[1]q}]}}`, sampleImage))
	p := l.pod("loop", "waits for its back-off", func(p corev1.Pod) bool {
		s := container(p, "crash")
		return waitingFor(p, "crash") == "CrashLoopBackOff" && s.RestartCount == 1 && container(p, "stay").State.Running != nil &&
			waitingFor(p, "talk") == "CrashLoopBackOff"
	})
	s := container(p, "crash")
	if end := s.LastTerminationState.Terminated; end == nil || end.ExitCode != 7 || end.Reason != "Error" {
		t.Errorf("last state: %+v", s.LastTerminationState)
	}
	if !strings.Contains(s.State.Waiting.Message, "back-off 10s restarting failed container=crash pod=loop_default") {
		t.Errorf("message: %s", s.State.Waiting.Message)
	}
	if end := container(p, "talk").LastTerminationState.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("a container that ends well also waits: %+v", container(p, "talk"))
	}
	if out := l.must(l.gantry("", "get", "pod", "loop")); !strings.Contains(out, "1/3") || !strings.Contains(out, "CrashLoopBackOff") {
		t.Errorf("get printed:\n%s", out)
	}
	ended := s.LastTerminationState.Terminated.FinishedAt.Time
	var again *corev1.ContainerStateTerminated
	l.pod("loop", "has ended a third time", func(p corev1.Pod) bool {
		again = container(p, "crash").LastTerminationState.Terminated
		return container(p, "crash").RestartCount == 2 && waitingFor(p, "crash") == "CrashLoopBackOff"
	})
	if again == nil || again.StartedAt.Sub(ended) < 9*time.Second { // both are whole seconds
		t.Errorf("ended at %s, started again at %+v: sooner than after 10 s", ended, again)
	}
	l.pod("loop", "waits twice as long", func(p corev1.Pod) bool {
		w := container(p, "crash").State.Waiting
		return w != nil && strings.Contains(w.Message, "back-off 20s")
	})

	said := "said 1\nsaid 2\nsaid 3\n"
	for _, args := range [][]string{{"-c", "talk"}, {"-c", "talk", "--previous"}, {"-c", "talk", "-f"}} {
		if out := l.must(l.gantry("", append([]string{"logs", "loop"}, args...)...)); out != said {
			t.Errorf("logs %v printed %q", args, out)
		}
	}
	if out := l.must(l.gantry("", "logs", "loop", "--all-containers", "--prefix")); !strings.Contains(out, "[pod/loop/talk] said 1") || !strings.Contains(out, "[pod/loop/stay] ") {
		t.Errorf("logs of all containers: %q", out)
	}
	stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z said 3\n$`)
	if out := l.must(l.gantry("", "logs", "loop", "-c", "talk", "--tail=1", "--timestamps")); !stamp.MatchString(out) {
		t.Errorf("with timestamps: %q", out)
	}
	for want, args := range map[string][]string{
		"a container name must be specified for pod loop":              {"logs", "loop"},
		"container none is not valid for pod loop":                     {"logs", "loop", "-c", "none"},
		`previous terminated container "stay" in pod "loop" not found`: {"logs", "loop", "-c", "stay", "--previous"},
	} {
		if _, err := l.gantry("", args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("gantry %v: want %q: %v", args, want, err)
		}
	}
}

// TestFollowLogs prints lines as they come and ends with the container.
func TestFollowLogs(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("counter", `"args":["lines","--count","40","--interval","25ms"]`, `"restartPolicy":"Never"`))
	l.pod("counter", "has begun", func(p corev1.Pod) bool { return p.Status.Phase != corev1.PodPending })
	out := l.must(l.gantry("", "logs", "-f", "counter"))
	if n := bytes.Count([]byte(out), []byte("\n")); n != 40 || !strings.HasSuffix(out, "line 40\n") {
		t.Errorf("%d lines, want 40: %q", n, out)
	}
}
