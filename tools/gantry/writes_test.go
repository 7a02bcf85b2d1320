package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write makes a file in a directory of the test's own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestMergeDiff(t *testing.T) {
	for _, tc := range []struct {
		desc           string
		from, to, want string
	}{
		{"the same", `{"a": 1, "b": {"c": [1]}}`, `{"a": 1, "b": {"c": [1]}}`, `{}`},
		{"added", `{}`, `{"a": {"b": 1}}`, `{"a": {"b": 1}}`},
		{"taken out", `{"a": 1, "b": 2}`, `{"b": 2}`, `{"a": null}`},
		{"deep", `{"a": {"b": {"c": 1, "d": 2}}}`, `{"a": {"b": {"c": 3}}}`, `{"a": {"b": {"c": 3, "d": null}}}`},
		{"a list as a whole", `{"a": [1, 2]}`, `{"a": [1]}`, `{"a": [1]}`},
		{"another type", `{"a": {"b": 1}}`, `{"a": "x"}`, `{"a": "x"}`},
		{"emptied", `{"a": {"b": 1}}`, `{"a": {}}`, `{"a": {"b": null}}`},
		{"large numbers", `{"a": 9007199254740993}`, `{"a": 9007199254740992}`, `{"a": 9007199254740992}`},
	} {
		t.Run(tc.desc, func(t *testing.T) {
			read := func(s string) map[string]any {
				t.Helper()
				m, err := tree([]byte(s))
				if err != nil {
					t.Fatal(err)
				}
				return m
			}
			from, to := read(tc.from), read(tc.to)
			patch := mergeDiff(from, to)
			if diff := cmp.Diff(read(tc.want), patch); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(to, mergePatch(from, patch)); diff != "" {
				t.Errorf("the patch does not lead there (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(read(tc.from), from); diff != "" {
				t.Errorf("the original was altered:\n%s", diff)
			}
		})
	}
}

func TestAStoryOfMarks(t *testing.T) {
	l := newLab(t)
	l.ok(deployment+"---"+service, "apply", "-f", "-")
	get := func(path string) string { return l.ok("", "get", "deployment/web", "-o", "jsonpath="+path) }

	expect(t, "label", "deployment.apps/web labeled\nservice/web labeled\n", l.ok("", "label", "deployment/web", "service/web", "tier=front"))
	expect(t, "label again", "deployment.apps/web not labeled\n", l.ok("", "label", "deployment/web", "tier=front"))
	_, stderr := l.fails("", "label", "deployment/web", "tier=back")
	expect(t, "another value", "error: label of web: 'tier' already has a value (front), and --overwrite is false\n", stderr)
	expect(t, "--overwrite", "deployment.apps/web labeled\n", l.ok("", "label", "--overwrite", "deployment", "web", "tier=back"))
	expect(t, "--list", "app=web\ntier=back\n", l.ok("", "label", "deployment/web", "--list"))
	expect(t, "taken off", "deployment.apps/web unlabeled\n", l.ok("", "label", "deployment/web", "tier-", "none-"))
	expect(t, "labels in the end", `{"app":"web"}`, get("{.metadata.labels}"))
	expect(t, "--all", "service/web labeled\n", l.ok("", "label", "svc", "--all", "--overwrite", "tier=x"))
	expect(t, "-l", "deployment.apps/web labeled\n", l.ok("", "label", "deployments", "-l", "app=web", "tier=x"))
	expect(t, "no change with -l", "", l.ok("", "label", "deployments", "-l", "app=none", "tier=y"))
	expect(t, "a dry run of the client's", "deployment.apps/web labeled (dry run)\n", l.ok("", "label", "deployment/web", "dry=run", "--dry-run=client"))
	expect(t, "which left nothing", "", get("{.metadata.labels.dry}"))
	expect(t, "a dry run's object", "run", l.ok("", "label", "deployment/web", "dry=run", "--dry-run=client", "-o", "jsonpath={.metadata.labels.dry}"))

	expect(t, "annotate", "deployment.apps/web annotated\n", l.ok("", "annotate", "deployment/web", "team=shop", "kubernetes.io/change-cause=first"))
	expect(t, "the value", "shop", get("{.metadata.annotations.team}"))
	expect(t, "annotation taken off", "deployment.apps/web annotated\n", l.ok("", "annotate", "deployment/web", "team-"))
	expect(t, "gone", "", get("{.metadata.annotations.team}"))

	version := get("{.metadata.resourceVersion}")
	l.ok("", "label", "deployment/web", "moved=on")
	_, stderr = l.fails("", "label", "deployment/web", "too=late", "--resource-version", version)
	if !strings.Contains(stderr, "Error from server (Conflict)") {
		t.Errorf("--resource-version of an earlier version: %s", stderr)
	}
	expect(t, "nodes have labels, too", "node/n1 labeled\n", l.ok("", "label", "node", "n1", "disk=ssd"))
}

func TestAStoryOfChanges(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	get := func(path string) string { return l.ok("", "get", "deployment/web", "-o", "jsonpath="+path) }

	expect(t, "set image", "deployment.apps/web image updated\n", l.ok("", "set", "image", "deployment/web", "web=example.test/web:v2"))
	expect(t, "the image", "example.test/web:v2", get("{.spec.template.spec.containers[*].image}"))
	expect(t, "set the same image", "", l.ok("", "set", "image", "deployment/web", "web=example.test/web:v2"))
	expect(t, "set all images", "deployment.apps/web image updated\n", l.ok("", "set", "image", "deployments", "--all", "*=example.test/web:v3"))
	expect(t, "what else is in the container", "8080", get("{.spec.template.spec.containers[0].ports[0].containerPort}"))

	expect(t, "set env", "deployment.apps/web env updated\n", l.ok("", "set", "env", "deployment/web", "MODE=fast", "-e", "LEVEL=3"))
	expect(t, "set env --list", "# Deployment web, container web\nMODE=fast\nLEVEL=3\n", l.ok("", "set", "env", "deployment/web", "--list"))
	expect(t, "take env out", "deployment.apps/web env updated\n", l.ok("", "set", "env", "deployment/web", "MODE-"))
	expect(t, "env left", `[{"name":"LEVEL","value":"3"}]`, get("{.spec.template.spec.containers[0].env}"))

	expect(t, "set resources", "deployment.apps/web resource requirements updated\n",
		l.ok("", "set", "resources", "deployment/web", "-c", "w*", "--limits=cpu=200m,memory=64Mi", "--requests=cpu=100m,memory=32Mi"))
	expect(t, "the limits", `{"limits":{"cpu":"200m","memory":"64Mi"},"requests":{"cpu":"100m","memory":"32Mi"}}`, get("{.spec.template.spec.containers[0].resources}"))
	expect(t, "take a limit off", "deployment.apps/web resource requirements updated\n", l.ok("", "set", "resources", "deployment/web", "--limits=cpu=0"))
	expect(t, "the limits left", `{"memory":"64Mi"}`, get("{.spec.template.spec.containers[0].resources.limits}"))

	merge := []string{"patch", "deployment/web", "--type=merge"}
	expect(t, "patch", "deployment.apps/web patched\n", l.ok("", append(merge, "-p", `{"spec": {"replicas": 4}}`)...))
	expect(t, "patch in YAML", "4", get("{.spec.replicas}"))
	expect(t, "patch to the same", "deployment.apps/web patched (no change)\n", l.ok("", append(merge, "-p", "spec: {replicas: 4}")...))
	expect(t, "patch of a file", "deployment.apps/web patched\n", l.ok("spec: {replicas: 2}", append(merge, "--patch-file", "-")...))
	expect(t, "patch rehearsed", "7", l.ok("", append(merge, "--dry-run=client", "-o", "jsonpath={.spec.replicas}", "-p", `{"spec": {"replicas": 7}}`)...))
	expect(t, "patch of the scale", "deployment.apps/web patched\n", l.ok("", append(merge, "--subresource=scale", "-p", `{"spec": {"replicas": 1}}`)...))
	expect(t, "replicas", "1", get("{.spec.replicas}"))

	expect(t, "scale", "deployment.apps/web scaled\n", l.ok("", "scale", "--replicas=2", "--current-replicas=1", "deployment/web", "--timeout=20s"))
	expect(t, "scaled", "2", get("{.status.replicas}"))
	expect(t, "scale rehearsed", "deployment.apps/web scaled (dry run)\n", l.ok("", "scale", "--replicas=5", "deployments", "--all", "--dry-run=client"))
	expect(t, "not scaled", "2", get("{.spec.replicas}"))

	whole := l.ok("", "get", "deployment/web", "-o", "yaml")
	expect(t, "replace", "deployment.apps/web replaced\n", l.ok(regexp.MustCompile("(?m)^ *resourceVersion: .*\n").ReplaceAllString(strings.Replace(whole, "replicas: 2", "replicas: 3", 1), ""), "replace", "-f", "-"))
	_, stderr := l.fails(strings.Replace(whole, "replicas: 2", "replicas: 4", 1), "replace", "-f", "-")
	if !strings.Contains(stderr, "Error from server (Conflict)") {
		t.Errorf("replace of an old version: %s", stderr)
	}
	uid := get("{.metadata.uid}")
	expect(t, "replace --force", "deployment.apps \"web\" deleted\ndeployment.apps/web replaced\n", l.ok(whole, "replace", "--force", "-f", "-"))
	if get("{.metadata.uid}") == uid {
		t.Error("replace --force left the old object")
	}
}

func TestAStoryOfRollouts(t *testing.T) {
	l := newLab(t)
	rolled := func() {
		t.Helper()
		expect(t, "status", "deployment \"web\" successfully rolled out\n",
			lastLine(l.ok("", "rollout", "status", "deployment/web", "--timeout", "20s")))
	}
	image := func() string {
		return l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	}
	l.ok(strings.Replace(deployment, "metadata: {name: web,", "metadata: {name: web, annotations: {kubernetes.io/change-cause: begun},", 1), "apply", "-f", "-")
	rolled()
	_, stderr := l.fails("", "rollout", "undo", "deployment/web")
	expect(t, "undo of nothing", "error: no rollout history found for deployment \"web\": it has no revision before the one that runs\n", stderr)
	l.ok("", "set", "image", "deployment/web", "web=example.test/web:v2")
	rolled()
	// The annotation goes to the set that runs.
	l.ok("", "annotate", "--overwrite", "deployment/web", "kubernetes.io/change-cause=newer")
	l.ok("", "wait", "--for=jsonpath={.metadata.annotations.kubernetes\\.io/change-cause}=newer",
		"rs/"+l.ok("", "rollout", "history", "deployment/web", "--revision=2", "-o", "jsonpath={.metadata.name}"))
	expect(t, "history", `
deployment.apps/web
REVISION|CHANGE-CAUSE
1|begun
2|newer
`, plain(l.ok("", "rollout", "history", "deployment/web")))
	one := l.ok("", "rollout", "history", "deployment/web", "--revision=1")
	if !strings.HasPrefix(one, "deployment.apps/web with revision #1\nPod Template:\n") || !strings.Contains(one, "example.test/web:v1") {
		t.Errorf("history --revision:\n%s", one)
	}
	expect(t, "history as data", "example.test/web:v2", l.ok("", "rollout", "history", "deployment/web", "--revision=2", "-o", "jsonpath={.spec.template.spec.containers[0].image}"))

	expect(t, "undo rehearsed", "deployment.apps/web rolled back (dry run)\n", l.ok("", "rollout", "undo", "deployment/web", "--dry-run=client"))
	expect(t, "still", "example.test/web:v2", image())
	expect(t, "undo", "deployment.apps/web rolled back\n", l.ok("", "rollout", "undo", "deployment/web"))
	expect(t, "as before", "example.test/web:v1", image())
	rolled()
	expect(t, "history after the undo", `
deployment.apps/web
REVISION|CHANGE-CAUSE
2|newer
3|begun
`, plain(l.ok("", "rollout", "history", "deployment/web")))
	expect(t, "undo to what runs", "deployment.apps/web skipped rollback (current template already matches revision 3)\n",
		l.ok("", "rollout", "undo", "deployment/web", "--to-revision=3"))
	expect(t, "undo to a revision", "deployment.apps/web rolled back\n", l.ok("", "rollout", "undo", "deployment/web", "--to-revision=2"))
	expect(t, "that revision", "example.test/web:v2", image())
	rolled()
	_, stderr = l.fails("", "rollout", "undo", "deployment/web", "--to-revision=9")
	expect(t, "no such revision", "error: unable to find specified revision 9 in the history of deployment \"web\": there are 3, 4\n", stderr)

	expect(t, "pause", "deployment.apps/web paused\n", l.ok("", "rollout", "pause", "deployment/web"))
	_, stderr = l.fails("", "rollout", "pause", "deployment/web")
	expect(t, "pause again", "error: deployments.apps \"web\" is already paused\n", stderr)
	_, stderr = l.fails("", "rollout", "undo", "deployment/web")
	expect(t, "undo while paused", "error: you cannot roll back a paused deployment; resume it first with 'gantry rollout resume deployment/web' and try again\n", stderr)
	_, stderr = l.fails("", "rollout", "restart", "deployment/web")
	expect(t, "restart while paused", "error: can't restart paused deployment \"web\": run gantry rollout resume deployment/web first\n", stderr)
	expect(t, "resume", "deployment.apps/web resumed\n", l.ok("", "rollout", "resume", "deployment/web"))
	_, stderr = l.fails("", "rollout", "resume", "deployment/web")
	expect(t, "resume again", "error: deployments.apps \"web\" is not paused\n", stderr)

	before := l.ok("", "get", "pods", "-l", "app=web", "-o", "name")
	expect(t, "restart", "deployment.apps/web restarted\n", l.ok("", "rollout", "restart", "deployment/web"))
	rolled()
	if after := l.ok("", "get", "pods", "-l", "app=web", "-o", "name"); after == before {
		t.Errorf("the restart left the pods:\n%s", after)
	}
	_, stderr = l.fails("", "rollout", "status", "deployment/web", "--revision=1")
	expect(t, "status of another revision", "error: desired revision (1) is different from the running revision (5)\n", stderr)
}

func TestAStoryOfCreation(t *testing.T) {
	l := newLab(t)
	expect(t, "namespace", "namespace/shop created\n", l.ok("", "create", "namespace", "shop"))
	expect(t, "deployment", "deployment.apps/web created\n",
		l.ok("", "-n", "shop", "create", "deployment", "web", "--image=example.test/web:v1", "--port=8080", "--replicas=2", "--", "serve", "-v"))
	expect(t, "its container", `{"command":["serve","-v"],"image":"example.test/web:v1","name":"web"}`,
		l.ok("", "-n", "shop", "get", "deployment/web", "-o", `go-template={{with index .spec.template.spec.containers 0}}{"command":["{{index .command 0}}","{{index .command 1}}"],"image":"{{.image}}","name":"{{.name}}"}{{end}}`))
	expect(t, "expose", "service/front created\n", l.ok("", "-n", "shop", "expose", "deployment/web", "--name=front", "--port=80", "--target-port=8080"))
	expect(t, "what is exposed", `{"app":"web"} 80 8080`, l.ok("", "-n", "shop", "get", "service/front", "-o", "jsonpath={.spec.selector} {.spec.ports[0].port} {.spec.ports[0].targetPort}"))
	expect(t, "service", "service/web created\n", l.ok("", "-n", "shop", "create", "service", "clusterip", "web", "--tcp=80:http", "--tcp=81"))
	expect(t, "its ports", "80-http:http 81:81 ", l.ok("", "-n", "shop", "get", "service/web", "-o", "jsonpath={range .spec.ports[*]}{.name}:{.targetPort} {end}"))

	file, env := write(t, "app.conf", "# a file\nx = 1\n"), write(t, "app.env", "# variables\nMODE=fast\n\n  LEVEL=a=b\nNOT_SET_ANYWHERE\n")
	expect(t, "configmap", "configmap/settings created\n",
		l.ok("", "create", "configmap", "settings", "--from-literal=mode=fast=1", "--from-file="+file, "--from-file=other="+file))
	expect(t, "its data", `{"app.conf":"# a file\nx = 1\n","mode":"fast=1","other":"# a file\nx = 1\n"}`, l.ok("", "get", "configmap/settings", "-o", "jsonpath={.data}"))
	expect(t, "configmap of variables", "configmap/variables created\n", l.ok("", "create", "configmap", "variables", "--from-env-file="+env))
	expect(t, "their values", `{"LEVEL":"a=b","MODE":"fast"}`, l.ok("", "get", "configmap/variables", "-o", "jsonpath={.data}"))

	expect(t, "run", "pod/one created\n", l.ok("", "run", "one", "--image=example.test/web:v1", "--port=8080", "--env=A=b", "--labels=app=one", "--restart=Never", "--command", "--", "sleep", "1"))
	expect(t, "its label and variable", "one b Never", l.ok("", "get", "pod/one", "-o", "jsonpath={.metadata.labels.app} {.spec.containers[0].env[0].value} {.spec.restartPolicy}"))
	expect(t, "run and expose", "pod/two created\nservice/two created\n", l.ok("", "run", "two", "--image=example.test/web:v1", "--port=8080", "--expose"))
	expect(t, "a manifest to go on with", `apiVersion: v1
kind: Pod
metadata:
  labels:
    run: three
  name: three
spec:
  containers:
  - args:
    - -v
    image: example.test/web:v1
    name: three
    resources: {}
  restartPolicy: Always
`, l.ok("", "run", "three", "--image=example.test/web:v1", "--dry-run=client", "-o", "yaml", "--", "-v"))
	expect(t, "for a namespace that was asked for", "shop", l.ok("", "-n", "shop", "create", "configmap", "x", "--dry-run=client", "-o", "jsonpath={.metadata.namespace}"))
	if out, _, code := l.call(t.Context(), "", "get", "pod/three"); code == 0 {
		t.Errorf("a dry run made a pod:\n%s", out)
	}

	expect(t, "delete rehearsed", "pod \"one\" deleted (dry run)\n", l.ok("", "delete", "pod/one", "--dry-run=client"))
	l.ok("", "get", "pod/one")
}

func TestDrain(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	l.ok("", "rollout", "status", "deployment/web")
	expect(t, "cordon", "node/n1 cordoned\n", l.ok("", "cordon", "n1"))
	expect(t, "cordon again", "node/n1 already cordoned\n", l.ok("", "cordon", "node/n1"))
	expect(t, "uncordon", "node/n1 uncordoned\n", l.ok("", "uncordon", "-l", "kubernetes.io/hostname=n1"))
	l.ok("", "run", "alone", "--image=example.test/web:v1")
	l.ok("", "wait", "--for=condition=Ready", "pod/alone")
	_, stderr := l.fails("", "drain", "n1")
	expect(t, "drain of a pod that nothing makes again",
		"error: unable to drain node \"n1\": cannot delete Pods that nothing would make again (use --force to delete them for good): default/alone\n", stderr)
	out := l.ok("", "drain", "n1", "--force", "--dry-run=client")
	if !strings.HasPrefix(out, "node/n1 already cordoned (dry run)\nevicting pod default/alone (dry run)\n") || !strings.HasSuffix(out, "node/n1 drained (dry run)\n") {
		t.Errorf("drain rehearsed:\n%s", out)
	}
	out = plain(l.ok("", "drain", "n1", "--force", "--grace-period=1"))
	expect(t, "drain", `
node/n1 already cordoned
evicting pod default/alone
evicting pod default/web-X-X
evicting pod default/web-X-X
pod/alone evicted
pod/web-X-X evicted
pod/web-X-X evicted
node/n1 drained
`, out)
	expect(t, "what is left on the node", "", l.ok("", "get", "pods", "-A", "--field-selector", "spec.nodeName=n1", "-o", "name"))
}

// TestChangesAtOnceLoseNothing: each reads the list of variables, adds its own
// and writes all of it; what somebody else added in between stays.
func TestChangesAtOnceLoseNothing(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	l.ok("", "rollout", "pause", "deployment/web")
	const writers = 6
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			out, stderr, code := l.call(ctx, "", "set", "env", "deployment/web", fmt.Sprintf("V%d=x", i))
			if out != "deployment.apps/web env updated\n" || stderr != "" || code != 0 {
				t.Errorf("writer %d: %d %q %q", i, code, out, stderr)
			}
		})
	}
	wg.Wait()
	names := strings.Fields(l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0].env[*].name}"))
	slices.Sort(names)
	if diff := cmp.Diff([]string{"V0", "V1", "V2", "V3", "V4", "V5"}, names); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}
