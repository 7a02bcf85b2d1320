//go:build linux

package stats

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// machine is a kernel of files.
type machine struct {
	*testing.T
	dir   string
	v2    bool
	now   time.Time
	slept int
	s     *Sampler
	pods  []Pod
	// during is called while the sampler waits between two measurements.
	during func()
}

func newMachine(t *testing.T, v2 bool) *machine {
	m := &machine{T: t, dir: t.TempDir(), v2: v2, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), during: func() {}}
	m.file("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   400 kB\n")
	if v2 {
		m.file("cgroup/cgroup.controllers", "cpu memory\n")
	} else {
		m.file("cgroup/cpu,cpuacct/tasks", "")
		m.file("cgroup/memory/tasks", "")
	}
	m.node(0)
	m.s = New(Options{
		Cgroup: "/gantry-n1", Mount: filepath.Join(m.dir, "cgroup"), Proc: filepath.Join(m.dir, "proc"),
		Pods: func() []Pod { return m.pods },
	})
	m.s.now = func() time.Time { return m.now }
	m.s.sleep = func(_ context.Context, d time.Duration) error {
		m.slept++
		m.now = m.now.Add(d)
		m.during()
		return nil
	}
	return m
}

func (m *machine) file(name, text string) {
	m.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.Fatal(err)
	}
}

// node sets what all processors did, in hundredths of a second.
func (m *machine) node(busy int) {
	m.Helper()
	m.file("proc/stat", fmt.Sprintf("cpu  %d 0 0 5000 700 0 0 0 90 0\ncpu0 1 2 3\n", busy))
}

// run sets what the container of a pod has used.
func (m *machine) run(pod, run string, cpu time.Duration, memory, inactive int) {
	m.Helper()
	dir := "gantry-n1/pod" + pod + "/" + run
	if m.v2 {
		m.file("cgroup/"+dir+"/cpu.stat", fmt.Sprintf("usage_usec %d\nuser_usec 1\n", cpu.Microseconds()))
		m.file("cgroup/"+dir+"/memory.current", fmt.Sprintln(memory))
		m.file("cgroup/"+dir+"/memory.stat", fmt.Sprintf("anon 5\ninactive_file %d\n", inactive))
		return
	}
	m.file("cgroup/cpu,cpuacct/"+dir+"/cpuacct.usage", fmt.Sprintln(cpu.Nanoseconds()))
	m.file("cgroup/memory/"+dir+"/memory.usage_in_bytes", fmt.Sprintln(memory))
	m.file("cgroup/memory/"+dir+"/memory.stat", fmt.Sprintf("inactive_file 1\ntotal_inactive_file %d\n", inactive))
}

func (m *machine) stats() schemas.NodeStats {
	m.Helper()
	out, err := m.s.Stats(m.Context())
	if err != nil {
		m.Fatal(err)
	}
	return out
}

func TestStats(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("cgroup v2 %v", v2), func(t *testing.T) {
			m := newMachine(t, v2)
			m.pods = []Pod{
				{"default", "web", "u1", map[string]string{"app": "app.2"}},
				{"default", "going", "u2", map[string]string{"c": "c.0"}},
			}
			m.run("u1", "app.2", 10*time.Second, 500, 100)
			m.run("u2", "c.0", time.Second, 1, 0)
			m.during = func() { // 300 ms
				m.node(15)
				m.run("u1", "app.2", 10*time.Second+150*time.Millisecond, 900, 100)
				for _, dir := range []string{"cgroup/cpu,cpuacct", "cgroup/memory", "cgroup"} {
					if err := os.RemoveAll(filepath.Join(m.dir, dir, "gantry-n1/podu2")); err != nil {
						t.Fatal(err)
					}
				}
			}
			want := schemas.NodeStats{
				Time: metav1.NewTime(m.now.Add(window)), WindowSeconds: 0.3,
				Node: schemas.Usage{NanoCPUs: 500_000_000, MemoryBytes: 600 << 10},
				Pods: []schemas.PodStats{{Namespace: "default", Name: "web", UID: "u1", Containers: map[string]schemas.Usage{"app": {NanoCPUs: 500_000_000, MemoryBytes: 800}}}},
			}
			if diff := cmp.Diff(want, m.stats()); diff != "" || m.slept != 1 {
				t.Errorf("first, slept %d times: (-want +got)\n%s", m.slept, diff)
			}

			// At once again: the same, without a look.
			m.node(1000)
			if diff := cmp.Diff(want, m.stats()); diff != "" {
				t.Errorf("asked again: %s", diff)
			}

			// Half a minute later: since then, without waiting. More is charged as
			// idle than is used for a moment, and a counter begins anew.
			m.pods = m.pods[:1]
			m.now = m.now.Add(30 * time.Second)
			m.node(15 + 3000)
			m.run("u1", "app.2", time.Second, 50, 100)
			want = schemas.NodeStats{
				Time: metav1.NewTime(m.now), WindowSeconds: 30, Node: schemas.Usage{NanoCPUs: 1_000_000_000, MemoryBytes: 600 << 10},
				Pods: []schemas.PodStats{{Namespace: "default", Name: "web", UID: "u1", Containers: map[string]schemas.Usage{"app": {}}}},
			}
			if diff := cmp.Diff(want, m.stats()); diff != "" || m.slept != 1 {
				t.Errorf("later, slept %d times: (-want +got)\n%s", m.slept, diff)
			}

			// Something new runs, or the last measurement is too old.
			m.now = m.now.Add(5 * time.Second)
			m.pods[0].Runs["new"] = "new.0"
			m.during = func() { m.run("u1", "new.0", 300*time.Millisecond, 7, 0) }
			m.run("u1", "new.0", 0, 7, 0)
			if got := m.stats(); m.slept != 2 || got.Pods[0].Containers["new"] != (schemas.Usage{NanoCPUs: 1_000_000_000, MemoryBytes: 7}) {
				t.Errorf("new container, slept %d times: %+v", m.slept, got)
			}
			m.now = m.now.Add(2 * time.Minute)
			if m.stats(); m.slept != 3 {
				t.Errorf("after two minutes slept %d times, want 3", m.slept)
			}
		})
	}
}

// TestOneMeasurementForAll: many who ask at once wait for the same answer.
func TestOneMeasurementForAll(t *testing.T) {
	m := newMachine(t, true)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := m.s.Stats(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if m.slept != 1 {
		t.Errorf("measured %d times", m.slept)
	}
}

func TestStatsFail(t *testing.T) {
	for desc, tt := range map[string]struct {
		spoil func(m *machine)
		says  string
	}{
		"no memory":     {func(m *machine) { m.file("proc/meminfo", "MemTotal: x\n") }, "no MemTotal and MemAvailable"},
		"no processors": {func(m *machine) { m.file("proc/stat", "intr 1\n") }, "is not what all processors did"},
		"no number":     {func(m *machine) { m.file("proc/stat", "cpu 1 x 3 4 5\n") }, "invalid syntax"},
		"no usage":      {func(m *machine) { m.file("cgroup/gantry-n1/podu1/c.0/cpu.stat", "nr_periods 0\n") }, "it has no usage_usec"},
		"no controllers": {func(m *machine) {
			if err := os.RemoveAll(filepath.Join(m.dir, "cgroup")); err != nil {
				m.Fatal(err)
			}
			m.file("cgroup/pids/tasks", "")
			m.s.files = findFiles(filepath.Join(m.dir, "cgroup"))
		}, "no controllers cpuacct and memory"},
	} {
		t.Run(desc, func(t *testing.T) {
			m := newMachine(t, true)
			m.pods = []Pod{{"default", "web", "u1", map[string]string{"c": "c.0"}}}
			m.run("u1", "c.0", 0, 1, 1)
			tt.spoil(m)
			if _, err := m.s.Stats(t.Context()); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("want %q: %v", tt.says, err)
			}
		})
	}
	m := newMachine(t, true)
	m.s.sleep = sleep
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := m.s.Answer(ctx, nil, nil); err == nil {
		t.Error("who gave up got an answer")
	}
}

// TestThisMachine reads the real files, whatever the kernel is.
func TestThisMachine(t *testing.T) {
	s := New(Options{Cgroup: "/none", Pods: func() []Pod { return nil }})
	got, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Node.MemoryBytes == 0 || got.WindowSeconds < window.Seconds() {
		t.Errorf("%+v", got)
	}
}
