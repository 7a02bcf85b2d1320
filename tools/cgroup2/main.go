// Command cgroup2 runs the runtime's tests on cgroup v2 and on a stock
// distribution kernel, whatever this machine has: it boots a kernel as a
// process (Debian's user-mode-linux) on this machine's root, read-only.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// result is how the script's last line begins; what follows is the exit code.
const result = "cgroup2-result:"

func main() {
	limit := flag.Duration("timeout", 10*time.Minute, "end the machine after this long")
	run := flag.String("run", "", "only the tests that match this expression")
	kernel := flag.String("kernel", "linux.uml", "the kernel to run")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	if err := prove(ctx, *kernel, *run); err != nil {
		fmt.Fprintln(os.Stderr, "cgroup2:", err)
		os.Exit(1)
	}
}

func prove(ctx context.Context, kernel, run string) error {
	path, err := exec.LookPath(kernel)
	if err != nil {
		return fmt.Errorf("find kernel (apt-get install user-mode-linux kmod): %w", err)
	}
	// Not in /tmp, over which the machine mounts its own.
	dir, err := os.MkdirTemp("/var/tmp", "gantry-cgroup2-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	begin := time.Now()
	if err := build(ctx, dir); err != nil {
		return err
	}
	fmt.Printf("built in %.1fs\n", time.Since(begin).Seconds())
	init := filepath.Join(dir, "init")
	if err := os.WriteFile(init, []byte(script(dir, run)), 0o755); err != nil {
		return err
	}
	return boot(ctx, path, init, dir)
}

// build makes the binaries under test, and the tests, as files that need
// nothing from the machine.
func build(ctx context.Context, dir string) error {
	const pkg = "gantry.dev/nodeagent/runtime"
	plain, static := []string{"-ldflags", "-s -w"}, []string{
		"-tags", "seccomp osusergo netgo", "-ldflags", `-s -w -linkmode external -extldflags "-static"`,
	}
	for _, b := range []struct {
		cgo  string
		args []string
	}{
		{"0", append([]string{"build", "-o", filepath.Join(dir, "gantry-shim")}, append(plain, pkg+"/shim")...)},
		{"0", append([]string{"build", "-o", filepath.Join(dir, "testprog")}, append(plain, pkg+"/testprog")...)},
		{"1", append([]string{"build", "-o", filepath.Join(dir, "gantry-launcher")}, append(static, pkg+"/launcher")...)},
		{"0", append([]string{"test", "-c", "-o", filepath.Join(dir, "runtime.test")}, pkg)},
	} {
		cmd := exec.CommandContext(ctx, "go", b.args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(b.args, " "), err, out)
		}
	}
	return nil
}

// script is the machine's first process.
func script(dir, run string) string {
	args := "-test.v"
	if run != "" {
		args += " -test.run '" + strings.ReplaceAll(run, "'", "") + "'"
	}
	return `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for c in cpu memory pids io cpuset; do echo "+$c" > /sys/fs/cgroup/cgroup.subtree_control; done 2>/dev/null
release=$(uname -r)
# The package keeps its modules where modprobe does not look.
mkdir -p /tmp/kernel/lib/modules
ln -s /usr/lib/uml/modules/$release /tmp/kernel/lib/modules/$release
for m in overlay veth bridge; do modprobe -d /tmp/kernel $m || exit 1; done
ip link set lo up 2>/dev/null || ifconfig lo up
echo "kernel $release, controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"
cd /tmp
GANTRY_TEST_BIN=` + dir + ` HOME=/tmp ` + dir + `/runtime.test ` + args + `
echo "` + result + ` $?"
echo o > /proc/sysrq-trigger
sleep 60
`
}

// boot runs the machine and passes on what it says, until it has said how the
// tests ended.
func boot(ctx context.Context, kernel, init, dir string) error {
	cmd := exec.CommandContext(ctx, kernel, "mem=1536M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"init="+init, "con=null", "con0=fd:0,fd:1", "quiet", "umid="+filepath.Base(dir))
	// Its processes are processes here: end them together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	code, err := listen(out)
	// It has nothing more to say; a clean power-off is not what is proved.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the machine took too long: %w", ctx.Err())
	case err != nil:
		return err
	case code != "0":
		return fmt.Errorf("tests on cgroup v2 ended with %s", code)
	}
	fmt.Println("the runtime's tests pass on cgroup v2")
	return nil
}

func listen(out io.Reader) (code string, err error) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		line := strings.TrimRight(in.Text(), "\r")
		if code, ok := strings.CutPrefix(line, result); ok {
			return strings.TrimSpace(code), nil
		}
		if strings.HasPrefix(line, "=== ") {
			continue
		}
		fmt.Println(line)
	}
	return "", errors.Join(errors.New("the machine ended without a result"), in.Err())
}
