package main

import (
	"context"
	"regexp"
	"strings"
	"testing"
)

func TestApplyRehearsed(t *testing.T) {
	l := newLab(t)
	both := deployment + "---" + service
	three := strings.Replace(both, "replicas: 2", "replicas: 3", 1)
	expect(t, "by the client", "deployment.apps/web created (dry run)\nservice/web created (dry run)\n", l.ok(both, "apply", "-f", "-", "--dry-run=client"))
	expect(t, "by the server", "deployment.apps/web created (server dry run)\nservice/web created (server dry run)\n", l.ok(both, "apply", "-f", "-", "--dry-run=server"))
	expect(t, "which stored nothing", "", l.ok("", "get", "deploy,svc", "-o", "name"))
	expect(t, "with what the server fills in", "RollingUpdate", l.ok(deployment, "apply", "-f", "-", "--dry-run=server", "-o", "jsonpath={.spec.strategy.type}"))
	_, stderr := l.fails(strings.Replace(deployment, "replicas: 2", "replicas: -2", 1), "apply", "-f", "-", "--dry-run=server")
	if !strings.Contains(stderr, `Error from server (Invalid): error when applying "STDIN": Deployment.apps "web" is invalid: spec.replicas: Invalid value: -2`) {
		t.Errorf("stderr: %s", stderr)
	}
	_, stderr = l.fails(strings.Replace(service, "{name: web}", "{name: web, namespace: kube-system}", 1), "apply", "-n", "default", "-f", "-")
	expect(t, "two namespaces", "error: STDIN: the namespace from the provided object \"kube-system\" does not match the namespace \"default\": pass '--namespace=kube-system', or none\n", stderr)
	l.ok(both, "apply", "-f", "-")
	expect(t, "nothing new", "deployment.apps/web unchanged (server dry run)\nservice/web unchanged (server dry run)\n", l.ok(both, "apply", "-f", "-", "--dry-run=server"))
	expect(t, "something new", "deployment.apps/web configured (server dry run)\nservice/web unchanged (server dry run)\n", l.ok(three, "apply", "-f", "-", "--dry-run=server"))
	expect(t, "still", "2", l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.replicas}"))
	expect(t, "-l", "deployment.apps/web configured\n", l.ok(three, "apply", "-f", "-", "-l", "app=web"))
	expect(t, "-o name", "deployment.apps/web\nservice/web\n", l.ok(three, "apply", "-f", "-", "-o", "name"))
	if out := l.ok(three, "apply", "-f", "-", "-o", "yaml"); !strings.HasPrefix(out, "apiVersion: v1\nitems:\n") || strings.Contains(out, "managedFields") {
		t.Errorf("-o yaml of two:\n%s", out)
	}

	for _, tc := range []struct {
		args, want string
	}{
		{"create namespace shop", "namespace/shop created (server dry run)\n"},
		{"run one --image=x", "pod/one created (server dry run)\n"},
		{"label deployment/web a=b", "deployment.apps/web labeled (server dry run)\n"},
		{"set image deployment/web web=x", "deployment.apps/web image updated (server dry run)\n"},
		{"scale deployment/web --replicas=9", "deployment.apps/web scaled (server dry run)\n"},
		{"rollout pause deployment/web", "deployment.apps/web paused (server dry run)\n"},
		{"cordon n1", "node/n1 cordoned (server dry run)\n"},
		{"delete deployment/web", "deployment.apps \"web\" deleted (server dry run)\n"},
		{"patch deployment/web -p {\"spec\":{\"replicas\":8}}", "deployment.apps/web patched (server dry run)\n"},
	} {
		expect(t, tc.args, tc.want, l.ok("", append(strings.Fields(tc.args), "--dry-run=server")...))
	}
	expect(t, "nothing of it was stored", "3  example.test/web:v1  ", l.ok("", "get", "deployment/web",
		"-o", "jsonpath={.spec.replicas} {.metadata.labels.a} {.spec.template.spec.containers[0].image} {.spec.paused} {.metadata.deletionTimestamp}"))
	expect(t, "no other namespace", "default\nkube-system\n", l.ok("", "get", "ns", "-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}`))
	expect(t, "the node is open", "", l.ok("", "get", "node/n1", "-o", "jsonpath={.spec.unschedulable}"))
}

func TestServerSideApply(t *testing.T) {
	l := newLab(t)
	one := []string{"apply", "--server-side", "--field-manager=one", "-f", "-"}
	two := []string{"apply", "--server-side", "--field-manager=two", "-f", "-"}
	three := strings.Replace(deployment, "replicas: 2", "replicas: 3", 1)
	expect(t, "apply", "deployment.apps/web serverside-applied\n", l.ok(deployment, one...))
	expect(t, "the same of another", "deployment.apps/web serverside-applied\n", l.ok(deployment, two...))
	_, stderr := l.fails(three, two...)
	expect(t, "another value", `error: Apply failed with 1 conflict: conflict with "one": .spec.replicas
Somebody else wrote these fields and owns them. Choose one of these ways:
* The fields are to be as this manifest says, and yours from now on:
  repeat the command with --force-conflicts.
* They are not your business: take them out of the manifest.
* Their owner's value is what you want as well: write that value into the
  manifest, and both of you own the field.
`, stderr)
	expect(t, "rehearsed", "deployment.apps/web serverside-applied (server dry run)\n", l.ok(three, append(two, "--force-conflicts", "--dry-run=server")...))
	expect(t, "still", "2", l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.replicas}"))
	expect(t, "forced", "deployment.apps/web serverside-applied\n", l.ok(three, append(two, "--force-conflicts")...))
	expect(t, "it is", "3", l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.replicas}"))
	managers := l.ok("", "get", "deployment/web", "--show-managed-fields", "-o", `jsonpath={range .metadata.managedFields[?(@.operation=="Apply")]}{.manager} {end}`)
	expect(t, "who applied", "one two ", managers)
	l.ok(service, "apply", "-f", "-")
	_, stderr = l.fails(strings.Replace(service, "selector: {app: web}", "selector: {app: other}", 1), append(one, "--dry-run=server")...)
	if !strings.HasSuffix(stderr, "\"before-first-apply\" is everybody who wrote before the first apply --server-side: it may have been you.\n") {
		t.Errorf("what was applied otherwise before: %s", stderr)
	}
	l.ok("", "label", "deployment/web", "by=hand", "--field-manager=hand")
	managers = l.ok("", "get", "deployment/web", "--show-managed-fields", "-o", `jsonpath={.metadata.managedFields[?(@.manager=="hand")].operation}`)
	expect(t, "who else wrote", "Update", managers)
}

func TestPatchTypes(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	containers := func() string {
		return l.ok("", "get", "deployment/web", "-o", `jsonpath={range .spec.template.spec.containers[*]}{.name}={.image} {end}`)
	}
	l.ok("", "patch", "deployment/web", "-p", `{"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}}}`)
	expect(t, "a strategic patch merges lists", "side=s web=example.test/web:v1 ", containers())
	l.ok("", "patch", "deployment/web", "--type=json", "-p", `[{"op": "test", "path": "/spec/replicas", "value": 2}, {"op": "remove", "path": "/spec/template/spec/containers/0"}]`)
	expect(t, "a JSON patch has operations", "web=example.test/web:v1 ", containers())
	_, stderr := l.fails("", "patch", "deployment/web", "--type=json", "-p", `[{"op": "test", "path": "/spec/replicas", "value": 7}]`)
	if !strings.HasPrefix(stderr, "Error from server (Invalid): the server rejected our request due to an error in our request") {
		t.Errorf("a test that fails: %s", stderr)
	}
	l.ok("", "patch", "deployment/web", "--type=merge", "-p", `{"spec": {"template": {"spec": {"containers": [{"name": "only", "image": "o"}]}}}}`)
	expect(t, "a merge patch replaces lists", "only=o ", containers())
}

func TestDiff(t *testing.T) {
	l := newLab(t)
	both := deployment + "---" + service
	t.Setenv("TMPDIR", t.TempDir())
	diff := func(stdin string, args ...string) (string, string, int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return l.call(ctx, stdin, append([]string{"diff", "-f", "-"}, args...)...)
	}
	l.ok(deployment, "apply", "-f", "-")
	l.ok("", "rollout", "status", "deployment/web")
	if out, stderr, code := diff(deployment); out != "" || stderr != "" || code != 0 {
		t.Errorf("no difference: %d\n%s%s", code, out, stderr)
	}
	out, stderr, code := diff(strings.Replace(both, "web:v1", "web:v2", 1))
	if stderr != "" || code != 1 {
		t.Errorf("a difference: %d\n%s", code, stderr)
	}
	for _, want := range []string{
		"LIVE/apps.v1.Deployment.default.web", "MERGED/apps.v1.Deployment.default.web",
		"\n-      - image: example.test/web:v1\n+      - image: example.test/web:v2\n",
		"MERGED/v1.Service.default.web", "\n+kind: Service\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the difference lacks %q:\n%s", want, out)
		}
	}
	if changed := regexp.MustCompile(`(?m)^[-+] .*`).FindAllString(strings.Split(out, "v1.Service")[0], -1); len(changed) > 4 {
		t.Errorf("more differs than what was asked for:\n%s", strings.Join(changed, "\n"))
	}
	expect(t, "what is there", "deployment.apps/web\n", l.ok("", "get", "deploy,svc", "-o", "name"))
	expect(t, "its image", "example.test/web:v1", l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"))

	for _, tc := range []struct {
		desc, stdin string
		args        []string
		says        string
	}{
		{"what the server refuses", strings.Replace(deployment, "replicas: 2", "replicas: -1", 1), nil, "Error from server (Invalid)"},
		{"no namespace", deployment, []string{"-n", "nowhere"}, `namespaces "nowhere" not found`},
		{"an unknown flag", "", []string{"--nope"}, "unknown flag: --nope"},
		{"--prune", "", []string{"--prune"}, "error: --prune is not built"},
		{"conflicts", strings.Replace(deployment, "replicas: 2", "replicas: 5", 1), []string{"--server-side", "--field-manager=other"}, "Apply failed with 1 conflict"},
	} {
		if _, stderr, code := diff(tc.stdin, tc.args...); code != 2 || !strings.Contains(stderr, tc.says) {
			t.Errorf("%s: code %d, want 2 and %q:\n%s", tc.desc, code, tc.says, stderr)
		}
	}

	t.Setenv("GANTRY_EXTERNAL_DIFF", "ls -1 ;")
	if _, stderr, code := diff(deployment); code != 2 || !strings.Contains(stderr, "failed to run ls -1 ;") {
		t.Errorf("a program that fails, and no shell that would take ; for an end: %d\n%s", code, stderr)
	}
	t.Setenv("GANTRY_EXTERNAL_DIFF", "no-such-program -u")
	if _, stderr, code := diff(deployment); code != 2 || !strings.Contains(stderr, "name another program in $GANTRY_EXTERNAL_DIFF") {
		t.Errorf("no program: %d\n%s", code, stderr)
	}
	program := write(t, "compare", "#!/bin/sh\nls $2 >$(dirname $0)/seen; exit 0\n")
	t.Setenv("GANTRY_EXTERNAL_DIFF", program+" -q")
	if _, stderr, code := diff(both); code != 0 {
		t.Errorf("a program of one's own: %d\n%s", code, stderr)
	}
}
