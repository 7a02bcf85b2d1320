package bus

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"gantry.dev/schemas"
)

// crashDir makes the test binary a server that writes until it is killed.
const crashDir = "GANTRY_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func writeUntilKilled(dir string) error {
	ctx := context.Background()
	s, err := StartServer(ctx, ServerOptions{StateDir: dir, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	c, err := Open(ctx, OpenOptions{Server: s, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	st, err := OpenStore(ctx, c, nil)
	if err != nil {
		return err
	}
	failed := make(chan error)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				o, err := st.Create(ctx, testPod("default", fmt.Sprintf("w%d-%d-%d", w, os.Getpid(), i), ""))
				if err != nil {
					failed <- err
					return
				}
				fmt.Printf("acked %s\n", o.GetName()) // one write: lines do not mix
			}
		}()
	}
	return <-failed
}

func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	var acked []string
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if name, ok := strings.CutPrefix(lines.Text(), "acked "); ok {
				acked = append(acked, name)
			}
			if n == 200 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer ended by itself")
		}
		if len(acked) < 200*(round+1) {
			t.Fatalf("round %d: only %d writes", round, len(acked))
		}
	}
	v := newStoreAt(t, dir).View()
	for _, name := range acked {
		if v.Get(schemas.Pods, "default", name) == nil {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
}

func newStoreAt(t *testing.T, dir string) Store {
	return openTestStore(t, openTest(t, startTestServer(t, dir)), nil)
}

func TestOneServerPerDirectory(t *testing.T) {
	dir := t.TempDir()
	startTestServer(t, dir)
	second, err := StartServer(testContext(t), ServerOptions{StateDir: dir})
	if err == nil {
		stopServer(t, second)
	}
	if err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("second server on one directory: %v", err)
	}
}
