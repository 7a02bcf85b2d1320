package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// nats runs the NATS command line with the administrator's context.
func (l *lab) nats(args ...string) (string, error) {
	l.Helper()
	cli, err := filepath.Abs("../../.cache/bin/nats")
	if err != nil {
		l.Fatal(err)
	}
	if _, err := os.Stat(cli); err != nil {
		l.Fatalf("no NATS command line: run `task nats-cli` first: %v", err)
	}
	return command(l.ctx, "", cli, append([]string{"--context", contextOf(l.Credentials())}, args...)...)
}

// contextOf is the nats command line's context beside a credentials file.
func contextOf(credentials string) string {
	return filepath.Join(filepath.Dir(credentials), "nats-context.json")
}

// request sends a body and returns the first JSON value of what is printed.
func (l *lab) request(out any, subject, body string) {
	l.Helper()
	text := l.must(l.nats("req", "--raw", "--timeout", "10s", subject, body))
	if err := json.Unmarshal([]byte(text), out); err != nil {
		l.Fatalf("nats req %s printed %q: %v", subject, text, err)
	}
}

// TestWithTheNATSCommandLine: all that gantry does can be done, and looked
// into, by the nats command line with JSON; rules and errors are the same.
func TestWithTheNATSCommandLine(t *testing.T) {
	l := newLab(t)
	manifests, err := os.ReadFile("../../examples/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(manifests), "\n---\n") {
		body, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		var meta struct{ Kind string }
		if err := json.Unmarshal(body, &meta); err != nil {
			t.Fatal(err)
		}
		var stored struct{ Metadata metav1.ObjectMeta }
		l.request(&stored, "api.apply."+strings.ToLower(meta.Kind)+"s.default.web", string(body))
		if stored.Metadata.UID == "" || stored.Metadata.ResourceVersion == "" {
			t.Errorf("apply of %s answered %+v", meta.Kind, stored.Metadata)
		}
	}
	l.awaitReplicas(3)

	var list corev1.PodList
	l.request(&list, "api.list.pods.default", `{"labelSelector":"app=web"}`)
	if list.Kind != "PodList" || len(list.Items) != 3 {
		t.Errorf("list answered a %s of %d", list.Kind, len(list.Items))
	}
	var deployment appsv1.Deployment
	l.request(&deployment, "api.get.deployments.default.web", "")
	if deployment.Status.ReadyReplicas != 3 {
		t.Errorf("get answered %+v", deployment.Status)
	}

	// The same mistake gives the same words on both ways.
	bad := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"bad"},"spec":{"replicas":-1,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"x"}]}}}}`
	var status metav1.Status
	l.request(&status, "api.apply.deployments.default.bad", bad)
	_, gantryErr := l.gantry(bad, "apply", "-f", "-")
	if status.Code != 422 || !strings.Contains(status.Message, "spec.replicas") {
		t.Errorf("nats req: %+v", status)
	}
	if gantryErr == nil || !strings.Contains(gantryErr.Error(), status.Message) {
		t.Errorf("gantry says %v, nats req says %s", gantryErr, status.Message)
	}

	for _, look := range []struct {
		args []string
		want string
	}{
		{[]string{"kv", "ls"}, "objects"},
		{[]string{"kv", "ls", "objects"}, "deployments.default.web"},
		{[]string{"kv", "get", "objects", "deployments.default.web", "--raw"}, `"kind":"Deployment"`},
		{[]string{"kv", "history", "objects", "deployments.default.web"}, "PUT"},
		{[]string{"kv", "ls", "desired"}, ".pod.default.web-"},
		{[]string{"kv", "get", "routes", "service.default.web", "--raw"}, `"clusterIPs"`},
		{[]string{"micro", "ls"}, "api"},
		{[]string{"micro", "info", "api"}, "api.list.>"},
		{[]string{"micro", "stats", "api"}, "api"},
	} {
		out, err := l.nats(look.args...)
		if err != nil || !strings.Contains(out, look.want) {
			t.Errorf("nats %s: want %q: %v\n%s", strings.Join(look.args, " "), look.want, err, out)
		}
	}
	// One message of health, caught while pods die: one after the other, because
	// nothing tells when the command line has subscribed.
	out, err := func() (string, error) {
		heard, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				if pods, err := l.gantry("", "get", "pods", "-l", "app=web", "-o", "name"); err == nil && pods != "" {
					name, _, _ := strings.Cut(pods, "\n")
					_, _ = l.gantry("", "delete", name) // what it brings about is seen below
				}
				select {
				case <-heard:
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
		}()
		out, err := l.nats("sub", "health.>", "--count", "1", "--wait", "20s")
		close(heard)
		<-done
		return out, err
	}()
	if err != nil || !strings.Contains(out, "health.") {
		t.Errorf("nats sub health.>: %v\n%s", err, out)
	}

	l.request(&status, "api.delete.deployments.default.web", "")
	l.request(&status, "api.delete.services.default.web", "")
	l.eventually("the pods are gone", func() error {
		_, err := l.gantry("", "wait", "--for=delete", "pod", "-l", "app=web", "--timeout", "30s")
		return err
	})
}
