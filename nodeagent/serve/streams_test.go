package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/session"
)

// shop is a node with one pod, shop/web, whose container app runs for the
// third time and whose container side has ended.
type shop struct{}

func (shop) Find(namespace, name string, uid types.UID) (pod.View, bool) {
	if namespace != "shop" || name != "web" || uid != "" && uid != "u" {
		return pod.View{}, false
	}
	return pod.View{
		Want: pod.Desired{UID: "u", Namespace: "shop", Name: "web", Pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{defaultContainerKey: "app"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "side"}, {Name: "app"}}},
		}},
		Containers: []runtime.ContainerState{
			{Name: "app", Attempt: 1, Phase: runtime.PhaseExited}, {Name: "app", Attempt: 2, Phase: runtime.PhaseRunning},
			{Name: "side", Attempt: 0, Phase: runtime.PhaseExited},
		},
	}, true
}

// connections notes what is asked of the runtime.
type connections struct {
	asked []string
	err   error
}

func (c *connections) note(format string, args ...any) (runtime.Streams, error) {
	c.asked = append(c.asked, fmt.Sprintf(format, args...))
	zero := 0
	return runtime.Streams{Wait: func() (*int, error) { return &zero, nil }, Stop: func() {}}, c.err
}

func (c *connections) Open(uid types.UID, name string, attempt int, cmd runtime.Command) (runtime.Streams, error) {
	return c.note("exec %s/%s.%d %q %v %v %dx%d", uid, name, attempt, cmd.Args, cmd.Stdin, cmd.TTY, cmd.Columns, cmd.Rows)
}

func (c *connections) Attach(uid types.UID, name string, attempt int, a runtime.Attachment) (runtime.Streams, error) {
	return c.note("attach %s/%s.%d %v %dx%d", uid, name, attempt, a.Stdin, a.Columns, a.Rows)
}

func TestStreams(t *testing.T) {
	in := func(pod, container string, more ...any) map[string]any {
		m := map[string]any{"session": "0123456789abcdef", "namespace": "shop", "pod": pod, "container": container}
		for i := 0; i < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	for _, tt := range []struct {
		desc    string
		exec    bool
		request any
		runtime error
		asked   string
		refused string
	}{
		{
			desc: "exec", exec: true, request: in("web", "app", "uid", "u", "command", []string{"sh", "-c", "x"}, "stdin", true, "tty", true, "columns", 80, "rows", 24),
			asked: `exec u/app.2 ["sh" "-c" "x"] true true 80x24`,
		},
		{desc: "exec in the default container", exec: true, request: in("web", "", "command", []string{"x"}), asked: `exec u/app.2 ["x"] false false 0x0`},
		{desc: "exec without a command", exec: true, request: in("web", "app"), refused: "command: must not be empty"},
		{desc: "exec of nonsense", exec: true, request: in("web", "app", "command", []string{"a", "b\x00"}), refused: "command[1]: must not hold a NUL byte"},
		{desc: "exec in a pod that is not there", exec: true, request: in("wob", "", "command", []string{"x"}), refused: `pods "wob" not found`},
		{desc: "exec in another pod of that name", exec: true, request: in("web", "", "uid", "v", "command", []string{"x"}), refused: `pods "web" not found`},
		{desc: "exec in a container that is not there", exec: true, request: in("web", "b", "command", []string{"x"}), refused: "container b is not valid for pod web, choose one of: [side app]"},
		{desc: "exec in a container that has ended", exec: true, request: in("web", "side", "command", []string{"x"}), refused: "container side in pod web is not running"},
		{
			desc: "exec in a container that ends just now", exec: true, request: in("web", "app", "command", []string{"x"}),
			runtime: fmt.Errorf("exec: %w", runtime.ErrNotRunning), asked: `exec u/app.2 ["x"] false false 0x0`, refused: "container app in pod web is not running",
		},
		{desc: "exec of another type", exec: true, request: []int{1}, refused: "exec request: json: cannot unmarshal array"},
		{desc: "attach", request: in("web", "app", "stdin", true, "columns", 80, "rows", 24), asked: "attach u/app.2 true 80x24"},
		{desc: "attach to what has ended", request: in("web", "side"), refused: "container side in pod web is not running"},
		{desc: "attach without input", request: in("web", "app", "stdin", true), runtime: runtime.ErrNoInput, asked: "attach u/app.2 true 0x0", refused: "has no standard input; it needs stdin: true"},
		{desc: "attach to a closed input", request: in("web", "app", "stdin", true), runtime: runtime.ErrInputClosed, asked: "attach u/app.2 true 0x0", refused: "the standard input of container app in pod web is closed"},
		{desc: "attach that fails otherwise", request: in("web", "app"), runtime: errors.New("no space"), asked: "attach u/app.2 false 0x0", refused: "no space"},
	} {
		t.Run(tt.desc, func(t *testing.T) {
			engine := session.New(session.Options{})
			defer engine.Close()
			rt := &connections{err: tt.runtime}
			s := &Streams{Pods: shop{}, Sessions: engine, Runtime: rt}
			body, err := json.Marshal(tt.request)
			if err != nil {
				t.Fatal(err)
			}
			answer := s.Attach
			if tt.exec {
				answer = s.Exec
			}
			got, _, err := answer(context.Background(), nil, body)
			if diff := cmp.Diff(tt.asked, strings.Join(rt.asked, "\n")); diff != "" {
				t.Errorf("asked of the runtime (-want +got):\n%s", diff)
			}
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("refused with %v, want %q", err, tt.refused)
				}
				return
			}
			if err != nil || string(got) != `{"session":"0123456789abcdef","container":"app"}` {
				t.Errorf("answer %s, %v", got, err)
			}
			if _, _, err := answer(context.Background(), nil, body); err != nil || len(rt.asked) != 1 {
				t.Errorf("asked again: %v, %q", err, rt.asked)
			}
		})
	}
}
