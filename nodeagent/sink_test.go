package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/netfilter"
	"gantry.dev/nodeagent/image"
	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/state"
	"gantry.dev/schemas"
)

// still is a machine on which nothing can be started, and that holds a sandbox
// for each pod in it until it is removed.
type still struct {
	mu        sync.Mutex
	sandboxes map[types.UID]bool
}

var errStill = errors.New("nothing starts here")

func (m *still) EnsureSandbox(context.Context, runtime.Sandbox) (runtime.SandboxState, error) {
	return runtime.SandboxState{}, errStill
}
func (m *still) Start(context.Context, runtime.Container) error { return errStill }
func (m *still) Sandbox(uid types.UID) (runtime.SandboxState, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return runtime.SandboxState{Sandbox: runtime.Sandbox{UID: uid}, PID: 1}, m.sandboxes[uid], nil
}
func (m *still) Signal(context.Context, types.UID, string, int, syscall.Signal) error { return nil }
func (m *still) Remove(context.Context, types.UID, string, int) error                 { return nil }
func (m *still) RemoveSandbox(_ context.Context, uid types.UID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sandboxes, uid)
	return nil
}
func (m *still) Get(string) (image.Image, bool) { return image.Image{}, false }
func (m *still) Pull(context.Context, string) (image.Image, error) {
	return image.Image{}, errStill
}
func (m *still) Attach(context.Context, types.UID, int) (netip.Addr, error) {
	return netip.Addr{}, errStill
}
func (m *still) Detach(context.Context, types.UID) error { return nil }

// program remembers the Services that it was told.
type program struct {
	frames   int
	replaced int
	services map[string]bool
}

func (p *program) SetFrame(netfilter.Frame) { p.frames++ }
func (p *program) Set(s netfilter.Service)  { p.services[s.Name] = true }
func (p *program) Remove(name string)       { delete(p.services, name) }
func (p *program) Replace(all []netfilter.Service) {
	p.replaced++
	clear(p.services)
	for _, s := range all {
		p.services[s.Name] = true
	}
}

func newSink(t *testing.T, dir string, m *still, setUp error) (*sink, *program, state.Loaded) {
	t.Helper()
	store, loaded, err := state.Open(dir, "c1", "n1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := &program{services: map[string]bool{}}
	s := &sink{
		ctx: ctx, store: store, program: p, log: zerolog.Nop(), again: func() {},
		setUp: func(context.Context, schemas.NetworkRecord) (netfilter.Frame, error) {
			return netfilter.Frame{}, setUp
		},
		known: map[types.UID]told{}, orphans: map[types.UID]pod.Desired{}, over: map[types.UID]time.Time{},
		routes: map[string]schemas.RouteRecord{},
	}
	s.pods = pod.New(ctx, pod.Config{
		Host:    pod.Host{Node: "n1", PodDir: t.TempDir(), LogDir: t.TempDir()},
		Runtime: m, Images: m, Network: m, Records: s,
		Report: func(pod.Report) {}, Event: func(schemas.PodEvent) {}, Log: zerolog.Nop(),
	})
	t.Cleanup(func() {
		cancel()
		s.pods.Wait()
		_ = store.Close() // closed already where the test did
	})
	return s, p, loaded
}

func record(name string, revision uint64) schemas.PodRecord {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i", ImagePullPolicy: corev1.PullNever}}
	return schemas.PodRecord{ClusterID: "c1", Node: "n1", Namespace: "default", Name: name, UID: p.UID, Revision: revision, Pod: p}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("not reached: " + what)
}

func TestPodsAreKeptAndForgotten(t *testing.T) {
	dir, m := t.TempDir(), &still{sandboxes: map[types.UID]bool{}}
	s, _, loaded := newSink(t, dir, m, nil)
	s.boot(loaded, nil)
	s.Pod(record("a", 5))
	s.Pod(record("a", 4)) // old word
	if view, ok := s.pods.Find("default", "a", ""); !ok || view.Want.Revision != 5 {
		t.Errorf("found %v: %+v", ok, view.Want)
	}
	gone := schemas.PodRecord{ClusterID: "c1", Node: "n1", Namespace: "default", Name: "a", UID: "uid-a", Revision: 6, Removed: true}
	s.Pod(gone)
	await(t, "forgotten", func() bool { return len(s.pods.List()) == 0 })
	s.Pod(record("a", 5)) // comes late
	s.Pod(gone)
	if got := s.pods.List(); len(got) != 0 {
		t.Errorf("a forgotten pod is back: %+v", got)
	}
	s.Pod(record("b", 7))
	s.pods.Wake("uid-b")
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, loaded = newSink(t, dir, m, nil)
	if len(loaded.Pods) != 1 || loaded.Pods["uid-b"].Pod == nil {
		t.Errorf("on disk: %+v", loaded.Pods)
	}
}

func TestSandboxesWithoutRecordWaitForWord(t *testing.T) {
	m := &still{sandboxes: map[types.UID]bool{"uid-x": true}}
	s, _, loaded := newSink(t, t.TempDir(), m, nil)
	s.boot(loaded, map[types.UID]pod.Desired{"uid-x": {UID: "uid-x", Namespace: "default", Name: "x"}})
	if got := s.Pods(); !slices.Equal(got, []types.UID{"uid-x"}) {
		t.Errorf("pods %v", got)
	}
	if _, there, _ := m.Sandbox("uid-x"); !there {
		t.Error("removed before the control plane was heard")
	}
	s.Absent("uid-x")
	await(t, "removed", func() bool { _, there, _ := m.Sandbox("uid-x"); return !there })
}

func TestRoutesWaitUntilTheyAreComplete(t *testing.T) {
	route := func(name string, revision uint64) schemas.RouteRecord {
		return schemas.RouteRecord{Namespace: "default", Name: name, Revision: revision, ClusterIPs: []string{"10.96.0.9"}}
	}
	dir, m := t.TempDir(), &still{}
	s, p, loaded := newSink(t, dir, m, nil)
	s.boot(loaded, nil)
	s.Network(schemas.NetworkRecord{PodCIDR: "10.1.0.0/24"})
	s.Route(route("a", 1))
	if p.replaced != 0 || len(p.services) != 0 {
		t.Error("routed before all Services were told")
	}
	s.RoutesComplete()
	s.Route(route("b", 2))
	removed := route("a", 3)
	removed.Removed = true
	s.Route(removed)
	if p.replaced != 1 || len(p.services) != 1 || !p.services["default/b"] {
		t.Errorf("services %v after %d replacements", p.services, p.replaced)
	}
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	// The next agent routes from disk, without the control plane.
	s, p, loaded = newSink(t, dir, m, nil)
	s.boot(loaded, nil)
	if p.frames != 1 || p.replaced != 1 || !p.services["default/b"] {
		t.Errorf("from disk: %d frames, services %v", p.frames, p.services)
	}
}

func TestOneAgentPerMachine(t *testing.T) {
	// A name of its own: a real agent may run beside the tests.
	lock := fmt.Sprintf("%s-test-%d", aloneLock, os.Getpid())
	release, err := alone("n1", lock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alone("n2", lock); !errors.Is(err, errNotAlone) {
		t.Errorf("a second agent: %v", err)
	}
	release()
	release, err = alone("n1", lock)
	if err != nil {
		t.Fatal(err)
	}
	release()
}
