package admission

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// TestThroughTheBus drives the API as a user does: over a connection, with
// requests by subject, and with objects as large as they may be.
func TestThroughTheBus(t *testing.T) {
	w := newWorld(t)
	if err := w.conn.ServeAPI(w.ctx, Verbs, w.api.Handle); err != nil {
		t.Fatal(err)
	}
	creds, err := w.server.AdminCredentials()
	if err != nil {
		t.Fatal(err)
	}
	u, err := bus.ConnectUser(w.ctx, creds)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()

	r, err := u.Request(w.ctx, schemas.VerbApply, schemas.Deployments, "default", "web", []byte(web))
	if err != nil || r.Header[schemas.HeaderResult][0] != created {
		t.Fatalf("apply: %v, %v", r.Header, err)
	}
	_, err = u.Request(w.ctx, schemas.VerbApply, schemas.Deployments, "default", "web", []byte(strings.Replace(web, "replicas: 2", "replicas: -2", 1)))
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `Deployment.apps "web" is invalid: spec.replicas: Invalid value: -2`) {
		t.Errorf("invalid: %v", err)
	}
	r, err = u.Request(w.ctx, schemas.VerbApply, schemas.Pods, "default", "p", []byte(pod("p", `,"tolerations":[{"operator":"Exists"}]`)))
	if err != nil || !strings.HasPrefix(r.Header[schemas.HeaderWarning][0], "spec.tolerations has no effect") {
		t.Errorf("warning: %v, %v", r.Header, err)
	}

	big := func(name string, size int) []byte {
		return []byte(strings.Replace(pod(name, ""), `"image":"i"`, `"image":"i","args":["`+strings.Repeat("x", size)+`"]`, 1))
	}
	for i := range 2 {
		if _, err := u.Request(w.ctx, schemas.VerbCreate, schemas.Pods, "default", "", big(fmt.Sprint("big", i), schemas.MaxObjectBytes-2000)); err != nil {
			t.Fatalf("as large as may be: %v", err)
		}
	}
	if _, err := u.Request(w.ctx, schemas.VerbCreate, schemas.Pods, "default", "", big("huge", schemas.MaxObjectBytes)); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("one byte more than the limit: %v", err)
	}
	if _, err := u.Request(w.ctx, schemas.VerbGet, schemas.Pods, "default", "big0", nil); err != nil {
		t.Errorf("get the large: %v", err)
	}
	list, err := u.List(w.ctx, schemas.Pods, "default", metav1.ListOptions{})
	if err != nil || len(list.Items) != 3 {
		t.Fatalf("list: %d, %v", len(list.Items), err)
	}

	done := errors.New("done")
	var seen []string
	start := w.deployment("web").ResourceVersion
	if _, err := u.Request(w.ctx, schemas.VerbDelete, schemas.Pods, "default", "big1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Request(w.ctx, schemas.VerbDelete, schemas.Pods, "default", "p", nil); err != nil {
		t.Fatal(err)
	}
	err = u.Watch(w.ctx, schemas.Pods, "default", metav1.ListOptions{ResourceVersion: start}, func(e metav1.WatchEvent) error {
		if seen = append(seen, e.Type); len(seen) == 5 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || strings.Join(seen, " ") != "ADDED ADDED ADDED DELETED DELETED" {
		t.Errorf("watch: %v, %v", seen, err)
	}
}
