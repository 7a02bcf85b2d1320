package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: '1', b: '2'}\n"
	lease     = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: leader}\nspec: {holderIdentity: me, leaseDurationSeconds: 15}\n"
	mould     = "apiVersion: v1\nkind: PodTemplate\nmetadata: {name: mould}\ntemplate:\n  metadata: {labels: {app: web}}\n  spec: {containers: [{name: c, image: example.test/web:v1}]}\n"
	revision1 = "apiVersion: apps/v1\nkind: ControllerRevision\nmetadata: {name: first}\nrevision: 3\ndata: {a: 1}\n"
)

// growing is what a program writes while a test reads it.
type growing struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (g *growing) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

func (g *growing) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}

// background runs the program until stop is called, which returns its code.
func (l *lab) background(args ...string) (out, stderr *growing, stop func() int) {
	l.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, stderr = &growing{}, &growing{}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"--credentials", l.plane.AdminCredentials()}, args...), strings.NewReader(""), out, stderr)
	}()
	once := sync.OnceValue(func() int {
		cancel()
		return <-ended
	})
	l.Cleanup(func() { once() })
	return out, stderr, once
}

// until waits until text shows what is expected.
func (l *lab) until(what string, holds func() bool) {
	l.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatalf("%s: did not come in %s", what, patience)
		}
	}
}

func TestGetOfTheNewKinds(t *testing.T) {
	l := newLab(t)
	l.ok(strings.Join([]string{configMap, lease, mould, revision1}, "---\n"), "apply", "-f", "-")
	expect(t, "get of four kinds", `
NAME|DATA|AGE
configmap/settings|2|AGE

NAME|HOLDER|AGE
lease.coordination.k8s.io/leader|me|AGE

NAME|CONTAINERS|IMAGES|POD LABELS
podtemplate/mould|c|example.test/web:v1|app=web

NAME|CONTROLLER|REVISION|AGE
controllerrevision.apps/first|<none>|3|AGE
`, plain(l.ok("", "get", "cm,leases,podtemplates,controllerrevisions")))
	expect(t, "pairs of two kinds", `
NAME|DATA|AGE
configmap/settings|2|AGE

NAME|HOLDER|AGE
lease.coordination.k8s.io/leader|me|AGE
`, plain(l.ok("", "get", "cm/settings", "lease/leader")))
	expect(t, "--show-kind", "NAME|DATA|AGE\nconfigmap/settings|2|AGE\n", plain(l.ok("", "get", "cm", "--show-kind")))
	expect(t, "custom columns of two kinds", "KIND        NAME\nConfigMap   settings\nLease       leader\n",
		l.ok("", "get", "cm/settings", "lease/leader", "-o", "custom-columns=KIND:.kind,NAME:.metadata.name"))
	expect(t, "without headers", "settings   1\n", l.ok("", "get", "cm", "--no-headers", "-o", "custom-columns=NAME:.metadata.name,A:.data.a"))
	expect(t, "go-template", "settings=1;", l.ok("", "get", "cm", "-o", "go-template={{range .items}}{{.metadata.name}}={{.data.a}};{{end}}"))
	expect(t, "template in a flag of its own", "2", l.ok("", "get", "cm", "settings", "-o", "jsonpath", "--template", "{.data.b}"))
	expect(t, "events take the outputs, too", "REASON\n", l.ok("", "events", "--for", "cm/settings", "-o", "custom-columns=REASON:.reason"))
}

func TestGetInPieces(t *testing.T) {
	l := newLab(t)
	var all strings.Builder
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		all.WriteString("---\n" + strings.Replace(configMap, "settings", name, 1))
	}
	l.ok(all.String(), "apply", "-f", "-")
	expect(t, "--chunk-size", "configmap/a\nconfigmap/b\nconfigmap/c\nconfigmap/d\nconfigmap/e\n",
		l.ok("", "get", "cm", "-o", "name", "--chunk-size", "2"))
}

func TestGetOfASubresource(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=Available", "deployment/web")
	expect(t, "scale", "NAME|DESIRED|AVAILABLE|AGE\nweb|2|2|AGE\n", plain(l.ok("", "get", "deploy", "web", "--subresource=scale")))
	expect(t, "its data", "2", l.ok("", "get", "deploy/web", "--subresource=scale", "-o", "jsonpath={.spec.replicas}"))
}

func TestBadFlagsOfGet(t *testing.T) {
	l := newLab(t)
	for want, args := range map[string][]string{
		"error: --output-watch-events option can only be used with --watch or --watch-only\n":      {"pods", "--output-watch-events"},
		"error: --sort-by cannot be used with --watch: what changes is shown when it changes\n":    {"pods", "-w", "--sort-by=.a"},
		"error: invalid subresource value: \"spec\". Must be one of [status scale]\n":              {"pod", "x", "--subresource=spec"},
		"error: --subresource takes named objects: give the names of the deployments\n":            {"deploy", "--subresource=scale"},
		"error: --chunk-size -1: must be 0 or more\n":                                              {"pods", "--chunk-size=-1"},
		"error: you may only watch one kind or one object at a time\n":                             {"pods,svc", "-w"},
		"error: couldn't find any field with path \"{.metadata.nme}\" in the list of objects\n":    {"ns", "--sort-by=.metadata.nme"},
		"error: template format specified but no template given: use -o custom-columns=TEMPLATE\n": {"ns", "-o", "custom-columns"},
		"error: number of headers (2) and field specifications (1) don't match":                    nil,
		"Error from server (NotFound): configmaps \"none\" not found\n":                            {"cm", "none", "-w"},
	} {
		if args == nil {
			continue
		}
		_, stderr := l.fails("", append([]string{"get"}, args...)...)
		expect(t, strings.Join(args, " "), want, stderr)
	}
}

// TestWatchSaysWhatHappened in all namespaces at once.
func TestWatchSaysWhatHappened(t *testing.T) {
	l := newLab(t)
	l.ok("apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n", "apply", "-f", "-")
	l.ok(configMap, "apply", "-f", "-")
	tables, _, stopTables := l.background("get", "cm", "-A", "--watch", "--output-watch-events")
	data, _, stopData := l.background("get", "cm", "-A", "--watch-only", "--output-watch-events", "-o", "jsonpath={.type} {.object.metadata.namespace}{\"\\n\"}")
	names, _, stopNames := l.background("get", "cm", "-A", "--watch", "--output-watch-events", "-o", "name")
	l.until("the first", func() bool { return strings.Contains(tables.String(), "settings") && names.String() != "" })
	// The second watch shows nothing of what is there: it is told of something
	// until it shows that it listens.
	l.until("watch-only listens", func() bool {
		l.ok(strings.Replace(configMap, "'1'", "'"+time.Now().Format(time.RFC3339Nano)+"'", 1), "apply", "-f", "-")
		return data.String() != ""
	})
	l.ok(configMap, "apply", "-n", "other", "-f", "-")
	l.ok("", "delete", "cm", "settings", "-n", "other")
	last := func(g *growing) string { return lastLine(plain(g.String())) }
	defer func() {
		if t.Failed() {
			t.Logf("tables:\n%s\ndata:\n%s\nnames:\n%s", tables, data, names)
		}
	}()
	l.until("the end", func() bool {
		return strings.HasPrefix(last(tables), "DELETED") && strings.HasPrefix(last(data), "DELETED") && strings.HasPrefix(last(names), "DELETED")
	})
	for _, stop := range []func() int{stopTables, stopData, stopNames} {
		stop()
	}
	expect(t, "first lines", "EVENT|NAMESPACE|NAME|DATA|AGE\nADDED|default|settings|2|AGE\n",
		strings.Join(strings.SplitAfter(plain(tables.String()), "\n")[:2], ""))
	tail := func(s string) string {
		lines := strings.SplitAfter(plain(s), "\n")
		return strings.Join(lines[len(lines)-3:], "")
	}
	expect(t, "last lines", "ADDED|other|settings|2|AGE\nDELETED|other|settings|2|AGE\n", tail(tables.String()))
	expect(t, "last data", "ADDED other\nDELETED other\n", tail(data.String()))
	expect(t, "last names", "ADDED configmap/settings\nDELETED configmap/settings\n", tail(names.String()))
	if strings.Contains(data.String(), "ADDED default") {
		t.Errorf("--watch-only showed what was there:\n%s", data)
	}
}
