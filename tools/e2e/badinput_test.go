package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/nodeagent/image/imagetest"
	"gantry.dev/tools/cluster"
)

const badDeployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"bad"},"spec":{"replicas":%s,
"selector":{"matchLabels":{"app":"bad"}},"template":{"metadata":{"labels":{"app":%q}},"spec":{"containers":[{"name":"c","image":"x"}]}}}}`

func badPod(name, container string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{"containers":[{"name":"c","image":"x"%s}]}}`, name, container)
}

// aliasBomb is a page of YAML that would be billions of values.
func aliasBomb() string {
	text := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		text += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.Repeat(fmt.Sprintf("*%c,", c-1), 9))
	}
	return text
}

// TestBadManifests: the error names object, field and reason, by `gantry` and
// over the bus alike, and nothing is stored or reserved.
func TestBadManifests(t *testing.T) {
	l := newLab(t)
	everything := func() string {
		t.Helper()
		out := l.must(l.gantry("", "get", "pods,services,deployments,replicasets,endpointslices", "-A", "-o", "name"))
		return out + l.must(l.nats("kv", "ls", "reservations"))
	}
	before := everything()
	for _, c := range []struct {
		desc, manifest string
		want           []string
	}{
		{"broken YAML", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bad\n   labels: x\n", []string{"line 5", "not valid YAML"}},
		{"broken JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"}`, []string{"not valid JSON"}},
		{"a key twice", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  name: b\n", []string{"line 5", `"name" already set`}},
		{"no kind", `{"apiVersion":"v1","metadata":{"name":"bad"}}`, []string{"kind: required"}},
		{"kind that is not supported", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"bad"}}`, []string{`Secret "bad"`, "kind: Secret is not supported by Gantry yet"}},
		{"kind that nobody knows", `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"bad"}}`, []string{`Widget "bad"`, "kind: Widget of example.com/v1 is not supported"}},
		{"not an object", "hello", []string{"want an object"}},
		{"wrong type", badPod("bad", `,"ports":"abc"`), []string{`Pod "bad"`, "spec.containers[0].ports", `want a list, got the string "abc"`}},
		{"wrong type of a number", fmt.Sprintf(badDeployment, `"3"`, "bad"), []string{`Deployment "bad"`, "spec.replicas", "want a whole number"}},
		{"unknown field", badPod("bad", `,"imagee":"x"`), []string{`Pod "bad"`, "spec.containers[0].imagee: unknown field", `did you mean "image"?`}},
		{"known but unsupported field", badPod("bad", `,"livenessProbe":{"tcpSocket":{"port":1}}`), []string{`Pod "bad"`, "spec.containers[0].livenessProbe", "not supported by Gantry"}},
		{"unsupported value", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"bad"},"spec":{"type":"NodePort","selector":{"a":"b"},"ports":[{"port":80}]}}`, []string{`Service "bad"`, "spec.type", `"NodePort"`}},
		{"name with capitals", badPod("Bad_Name", ""), []string{`Pod "Bad_Name"`, "metadata.name", "RFC 1123"}},
		{"name of a Service with a dot", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"bad.dot"},"spec":{"selector":{"a":"b"},"ports":[{"port":80}]}}`, []string{`Service "bad.dot"`, "metadata.name", "must not contain dots"}},
		{"name of a container", strings.Replace(badPod("bad", ""), `"name":"c"`, `"name":"C_1"`, 1), []string{`Pod "bad"`, "spec.containers[0].name", "RFC 1123"}},
		{"negative replicas", fmt.Sprintf(badDeployment, "-1", "bad"), []string{`"bad"`, "spec.replicas", "greater than or equal to 0"}},
		{"selector that does not match", fmt.Sprintf(badDeployment, "1", "other"), []string{`"bad"`, "spec.template.metadata.labels", "does not match"}},
		{"duplicate ports of a Service", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"bad"},"spec":{"selector":{"a":"b"},"ports":[{"name":"a","port":80},{"name":"b","port":80}]}}`, []string{`Service "bad"`, "spec.ports[1]", "Duplicate value"}},
		{"duplicate names of ports", badPod("bad", `,"ports":[{"name":"p","containerPort":1},{"name":"p","containerPort":2}]`), []string{`Pod "bad"`, "spec.containers[0].ports[1].name", "Duplicate value"}},
		{"duplicate containers", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"},"spec":{"containers":[{"name":"c","image":"x"},{"name":"c","image":"x"}]}}`, []string{`Pod "bad"`, "spec.containers[1].name", "Duplicate value"}},
		{"no containers", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"},"spec":{"containers":[]}}`, []string{`Pod "bad"`, "spec.containers", "Required value"}},
		{"namespace that does not exist", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad","namespace":"nowhere"},"spec":{"containers":[{"name":"c","image":"x"}]}}`, []string{`namespaces "nowhere" not found`}},
		{"deep JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"},"spec":` + strings.Repeat("[", 5000), []string{"nested deeper than"}},
		{"deep YAML", "kind: " + strings.Repeat("[", 20_000), []string{"not valid YAML"}},
		{"an alias bomb", aliasBomb(), []string{"not valid YAML"}},
		{"no text", "apiVersion: v1\nkind: Pod\nmetadata: {name: \xff}\n", []string{"line 3", "not valid UTF-8"}},
		{"a number beyond 64 bits", fmt.Sprintf(badDeployment, "99999999999999999999", "bad"), []string{`Deployment "bad"`, "spec.replicas"}},
		{"more errors than an answer holds", fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"},"spec":{"containers":[%s{}]}}`,
			strings.Repeat(`{"name":"C_1","image":"i","ports":[{}]},`, 5000)), []string{`Pod "bad"`, "spec.containers[0].name", "problems more"}},
		{"object over the payload limit", badPod("bad", `,"env":[{"name":"A","value":"`+strings.Repeat("x", 1<<20)+`"}]`), []string{`Pod "bad"`, "bytes, more than the limit"}},
	} {
		t.Run(c.desc, func(t *testing.T) {
			l := *l
			l.T = t
			_, err := l.gantry(c.manifest, "apply", "-f", "-")
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("gantry apply lacks %q: %.1000v", want, err)
				}
			}
			if !strings.HasPrefix(c.manifest, "{") || len(c.manifest) > 64<<10 {
				return // not for the bus, or more than a command line takes
			}
			kind := "pods"
			for _, k := range []string{"Deployment", "Service"} {
				if strings.Contains(c.manifest, `"kind":"`+k+`"`) {
					kind = strings.ToLower(k) + "s"
				}
			}
			name := "bad"
			for _, other := range []string{"Bad_Name", "bad.dot"} {
				if strings.Contains(c.manifest, other) {
					name = other
				}
			}
			namespace := "default"
			if strings.Contains(c.manifest, "nowhere") {
				namespace = "nowhere"
			}
			out := l.must(l.nats("req", "--raw", "--timeout", "10s", "api.apply."+kind+"."+namespace+"."+name, c.manifest))
			if !strings.Contains(out, `"status":"Failure"`) {
				t.Fatalf("nats req answered %s", out)
			}
			// JSON within JSON: quotes are escaped.
			last := strings.ReplaceAll(c.want[len(c.want)-1], `"`, `\"`)
			if !strings.Contains(out, last) {
				t.Errorf("nats req lacks %q: %s", last, out)
			}
		})
	}
	if after := everything(); after != before {
		t.Errorf("something was stored or reserved; before:\n%s\nafter:\n%s", before, after)
	}

	t.Run("each object of a file gets its own answer", func(t *testing.T) {
		dir := t.TempDir()
		for name, text := range map[string]string{
			"a.yaml":     badPod("first", "") + "\n---\n" + fmt.Sprintf(badDeployment, "-1", "bad") + "\n---\n" + badPod("second", ""),
			"b.json":     `{"apiVersion":`,
			"ignored.md": "text",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := l.gantry("", "apply", "-f", dir)
		if err == nil || !strings.Contains(err.Error(), "spec.replicas") || !strings.Contains(err.Error(), "b.json") {
			t.Errorf("errors: %v", err)
		}
		if out != "pod/first created\npod/second created\n" {
			t.Errorf("apply printed %q", out)
		}
		l.must(l.gantry("", "delete", "pod", "first", "second", "--wait"))
	})
}

// TestBadImages: what a registry or an image can do wrong shows as reason and
// event of the pod, and leaves nothing in the store or outside of it.
func TestBadImages(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, "--insecure-registry", reg.Host+","+down)
	outside := filepath.Join(l.dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	climb := strings.Repeat("../", 40) + outside[1:]
	files := imagetest.Files(t, "bin/app", strings.Repeat("content ", 5000))
	cut := imagetest.Files(t, "bin/app", strings.Repeat("other content ", 5000))
	hostile := func(entries ...imagetest.Entry) imagetest.Layer {
		return imagetest.Gzip(t, imagetest.Tar(t, entries...))
	}
	reg.Break(imagetest.OnBlob(files.Sum, imagetest.SendInstead(bytes.Repeat([]byte("x"), len(files.Bytes)))))
	reg.Break(imagetest.OnBlob(cut.Sum, imagetest.Truncate(cut.Bytes, len(cut.Bytes)/2)))

	images := filepath.Join(l.AgentStateDir(), "images")
	before := listing(t, images)
	cases := []struct {
		name, image string
		want        []string
	}{
		{"no-image", reg.Ref("none:1"), []string{"not found"}},
		{"registry-down", down + "/app:1", []string{"registry unavailable", "connection refused"}},
		{"digest-mismatch", reg.Push(t, "mismatch:1", imagetest.Image(t, files)), []string{"corrupt", files.Sum.String()}},
		{"truncated-layer", reg.Push(t, "truncated:1", imagetest.Image(t, cut)), []string{"corrupt", "ended after", cut.Sum.String()}},
		{"path-escape", reg.Push(t, "path:1", imagetest.Image(t, hostile(imagetest.Entry{Name: climb + "/evil", Body: "x"}))), []string{"unsafe", "leaves the root"}},
		{"symlink-escape", reg.Push(t, "link:1", imagetest.Image(t, hostile(
			imagetest.Entry{Name: "l", Type: tar.TypeSymlink, Link: outside}, imagetest.Entry{Name: "l/evil", Body: "x"}))), []string{"unsafe", `goes through the symbolic link "l"`}},
		{"sparse-bomb", reg.Push(t, "bomb:1", imagetest.Image(t, imagetest.Gzip(t, imagetest.SparseTar("bomb", 10<<30)))), []string{"exceeds a limit", `"bomb" (10.0 GiB)`}},
		{"bad-reference", "127.0.0.1:5050/Gantry:v1", []string{"InvalidImageName"}},
	}
	for _, c := range cases {
		l.apply(strings.Replace(onePod(c.name, "", ""), sampleImage, c.image, 1))
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := *l
			l.T = t
			p := l.pod(c.name, "says why", func(p corev1.Pod) bool {
				w := container(p, "c").State.Waiting
				if w == nil {
					return false
				}
				for _, want := range append(c.want, c.image) {
					if !strings.Contains(w.Reason+" "+w.Message, want) {
						return false
					}
				}
				return w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff" || w.Reason == "InvalidImageName"
			})
			if p.Status.Phase != corev1.PodPending {
				t.Errorf("phase %s", p.Status.Phase)
			}
			l.eventually("an event tells", func() error {
				out, err := l.gantry("", "events", "--for", "pod/"+c.name)
				if err == nil && (!strings.Contains(out, "Warning") || !strings.Contains(out, c.want[len(c.want)-1])) {
					err = fmt.Errorf("events: %s", out)
				}
				return err
			})
		})
	}
	for _, c := range cases {
		l.must(l.gantry("", "delete", "pod", c.name, "--wait"))
	}
	if out := listing(t, outside); out != "" {
		t.Errorf("ESCAPED: %s", out)
	}
	if after := listing(t, images); after != before {
		t.Errorf("left in the store; before:\n%s\nafter:\n%s", before, after)
	}
}

// listing is every path below a directory.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if path != dir {
			fmt.Fprintln(&out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestDiskFullDuringAPull: the pod says so, nothing half done stays, and with
// room made it starts by itself.
func TestDiskFullDuringAPull(t *testing.T) {
	l := newLab(t)
	l.killAgent()
	images := filepath.Join(l.AgentStateDir(), "images")
	if err := os.RemoveAll(images); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("gtest-full", images, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the cluster is taken down
		l.killAgent()
		// Its last threads may hold files for a moment longer than its first.
		l.eventually("the file system is unmounted", func() error { return unix.Unmount(images, 0) })
	})
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
	before := listing(t, images)
	l.apply(onePod("large", "", ""))
	l.pod("large", "says that the disk is full", func(p corev1.Pod) bool {
		w := container(p, "c").State.Waiting
		return w != nil && strings.Contains(w.Message, "no space left for images") && strings.Contains(w.Message, sampleImage)
	})
	if after := listing(t, images); after != before {
		t.Errorf("left in the store; before:\n%s\nafter:\n%s", before, after)
	}
	if err := unix.Mount("gtest-full", images, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	l.pod("large", "is ready", ready)
	l.must(l.gantry("", "delete", "pod", "large", "--wait"))
}

func (l *lab) killAgent() {
	l.Helper()
	if err := l.Kill(l.ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
		l.Fatal(err)
	}
}
