package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// TestMain lets the test's own binary be the daemon, so that it can be killed.
func TestMain(m *testing.M) {
	if args := os.Getenv("CONTROLPLANE_ARGS"); args != "" {
		if err := run(strings.Split(args, "\n"), os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type daemon struct {
	*exec.Cmd
	out *bytes.Buffer
}

func start(t *testing.T, args ...string) daemon {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CONTROLPLANE_ARGS="+strings.Join(args, "\n"))
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return daemon{cmd, out}
}

func (d daemon) awaitReady(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		data, err := os.ReadFile(filepath.Join(dir, "ready"))
		if err == nil && strings.TrimSpace(string(data)) == strconv.Itoa(d.Process.Pid) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	_ = d.Process.Kill()
	_ = d.Wait()
	t.Fatalf("not ready:\n%s", d.out)
}

func connect(t *testing.T, dir string) *bus.UserConn {
	t.Helper()
	creds, err := bus.ReadUserCredentials(filepath.Join(dir, "credentials", "admin.json"))
	if err != nil {
		t.Fatal(err)
	}
	user, err := bus.ConnectUser(t.Context(), creds)
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func namedPod(i int) (string, []byte) {
	name := fmt.Sprintf("p%06d", i)
	body, err := json.Marshal(corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "registry.example/x:1"}}},
	})
	if err != nil {
		panic(err)
	}
	return name, body
}

// TestKillLosesNothingThatWasAcknowledged kills -9 the control plane three
// times in the middle of writes: whatever was acknowledged before is there
// afterwards.
func TestKillLosesNothingThatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	next := 0
	for round := range 3 {
		d := start(t, "--state-dir", dir, "--listen", "127.0.0.1:0", "--log-level", "warn")
		d.awaitReady(t, dir)
		user := connect(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var writers sync.WaitGroup
		enough := make(chan struct{})
		count := 0
		for range 8 {
			writers.Go(func() {
				for ctx.Err() == nil {
					mu.Lock()
					next++
					name, body := namedPod(next)
					mu.Unlock()
					if _, err := user.Request(ctx, schemas.VerbCreate, schemas.Pods, "default", name, body); err != nil {
						return
					}
					mu.Lock()
					acknowledged[name] = true
					if count++; count == 40 {
						close(enough)
					}
					mu.Unlock()
				}
			})
		}
		select {
		case <-enough:
		case <-time.After(20 * time.Second):
			t.Fatalf("round %d: too few writes\n%s", round, d.out)
		}
		if err := d.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = d.Wait() // it was killed
		cancel()
		writers.Wait()
		user.Close()
	}
	d := start(t, "--state-dir", dir, "--listen", "127.0.0.1:0", "--log-level", "warn")
	d.awaitReady(t, dir)
	user := connect(t, dir)
	defer user.Close()
	all, err := user.List(t.Context(), schemas.Pods, "default", metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range all.Items {
		var p corev1.Pod
		if err := json.Unmarshal(item, &p); err != nil {
			t.Fatal(err)
		}
		delete(acknowledged, p.Name)
	}
	if len(acknowledged) > 0 {
		t.Errorf("%d acknowledged pods are lost: %v", len(acknowledged), acknowledged)
	}
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, d.out)
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it still says that it is ready: %v", err)
	}
}

func TestSecondControlPlaneIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	first := start(t, "--state-dir", dir, "--listen", "127.0.0.1:0")
	first.awaitReady(t, dir)
	second := start(t, "--state-dir", dir, "--listen", "127.0.0.1:0")
	if err := second.Wait(); err == nil {
		t.Fatal("the second one ran")
	}
	want := fmt.Sprintf("another control plane uses this state directory (pid %d)", first.Process.Pid)
	if !strings.Contains(second.out.String(), want) {
		t.Errorf("it says %q, want %q", second.out, want)
	}
}

func TestFlagsAreRefusedByName(t *testing.T) {
	for _, test := range []struct {
		desc string
		args []string
		want string
	}{
		{"an argument", []string{"x"}, `unexpected argument "x"`},
		{"an unknown flag", []string{"--nodes", "a"}, "unknown flag: --nodes"},
		{"a bad prefix", []string{"--cluster-prefix", "a.b"}, "--cluster-prefix"},
		{"a bad level", []string{"--log-level", "loud"}, "--log-level"},
		{"a bad format", []string{"--log-format", "xml"}, "--log-format"},
		{"beyond loopback without TLS", []string{"--state-dir", t.TempDir(), "--listen", "0.0.0.0:0"}, "refused beyond loopback without TLS"},
		{"a bad pod range", []string{"--state-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--pod-cidr", "10.0.0.0/25"}, "pod CIDR"},
		{"a bad service range", []string{"--state-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--service-cidr", "x"}, "service CIDR"},
	} {
		t.Run(test.desc, func(t *testing.T) {
			var out bytes.Buffer
			err := run(test.args, &out)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
}
