package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/tools/cluster"
)

// start runs gantry in the background until the test ends.
func (l *lab) start(stdin io.Reader, args ...string) (*exec.Cmd, *lockedBuffer) {
	l.Helper()
	cmd := exec.Command(filepath.Join(l.bin, "gantry"), append([]string{"--credentials", l.Credentials()}, args...)...)
	out := &lockedBuffer{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, out, out
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, or has ended
	})
	return cmd, out
}

// says waits until what a program printed matches.
func (l *lab) says(out *lockedBuffer, want string) []string {
	l.Helper()
	var found []string
	l.eventually(fmt.Sprintf("it says %q", want), func() error {
		if found = regexp.MustCompile(want).FindStringSubmatch(out.String()); found == nil {
			return fmt.Errorf("it said %q", out.String())
		}
		return nil
	})
	return found
}

// refuses runs gantry, which must fail with a code and say why.
func (l *lab) refuses(code int, says string, args ...string) {
	l.Helper()
	got, out := l.exitCode(args...)
	if got != code || !strings.Contains(out, says) || strings.Contains(out, "panic") {
		l.Errorf("gantry %s: exit code %d, want %d and %q in:\n%s", strings.Join(args, " "), got, code, says, out)
	}
}

const twoContainers = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"two"},"spec":{"terminationGracePeriodSeconds":1,"containers":[
{"name":"first","image":%[1]q,"env":[{"name":"WHO","value":"first"}]},{"name":"second","image":%[1]q,"args":["sleep"],"env":[{"name":"WHO","value":"second"}]}]}}`

// TestExec: output, input, exit codes and containers as kubectl users know them.
func TestExec(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("web", "", ""))
	l.apply(fmt.Sprintf(twoContainers, sampleImage))
	l.apply(onePod("done", `"args":["exit"]`, `"restartPolicy":"Never"`))
	l.pod("web", "is ready", ready)
	l.pod("two", "is ready", ready)
	l.pod("done", "has ended", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })

	cmd := exec.Command(filepath.Join(l.bin, "gantry"), "--credentials", l.Credentials(), "exec", "web", "--", "web", "lines", "--count", "4", "--stderr")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stdout.String() != "line 1\nline 3\n" || stderr.String() != "line 2\nline 4\n" {
		t.Errorf("two outputs: %v, %q, %q", err, stdout.String(), stderr.String())
	}
	l.refuses(7, "command terminated with exit code 7", "exec", "web", "--", "web", "exit", "7")
	l.refuses(0, "", "exec", "pod/web", "--", "web", "exit", "0")
	l.refuses(1, "none", "exec", "web", "--", "none")
	l.refuses(1, `pods "nowhere" not found`, "exec", "nowhere", "--", "web")
	l.refuses(1, "container none is not valid for pod web", "exec", "web", "-c", "none", "--", "web")
	l.refuses(1, "cannot exec into a container in a completed pod; current phase is Succeeded", "exec", "done", "--", "web")
	l.refuses(1, "you must specify at least one command", "exec", "web")
	l.refuses(1, "exec [POD] [COMMAND] is not supported", "exec", "web", "web", "exit")
	l.refuses(1, "pod or type/name must be specified", "exec", "--", "web")
	l.refuses(1, "has no pods", "exec", "configmap/web", "--", "web")

	// Where nothing is said, the first container, and a word about it.
	if out := l.must(l.gantry("", "exec", "two", "--", "web", "env")); !strings.Contains(out, "WHO=first") {
		t.Errorf("the default container: %s", out)
	}
	if out := l.must(l.gantry("", "exec", "two", "-c", "second", "--", "web", "env")); !strings.Contains(out, "WHO=second") {
		t.Errorf("the second container: %s", out)
	}
	_, out := l.start(nil, "exec", "two", "--", "web", "exit")
	l.says(out, `Defaulted container "first" out of: first, second`)

	// What comes in goes to the command, and its end ends it.
	said := strings.Repeat("0123456789abcdef", 100_000)
	if out := l.must(l.gantry(said, "exec", "-i", "web", "--", "web", "cat")); out != said {
		t.Errorf("%d bytes came back of %d, or others", len(out), len(said))
	}
	if out := l.must(l.gantry("nobody reads this", "exec", "-i", "web", "--", "web", "exit")); out != "" {
		t.Errorf("a command that reads nothing: %q", out)
	}
	if out := l.must(l.gantry("not passed on", "exec", "web", "--", "web", "cat")); out != "" {
		t.Errorf("without -i: %q", out)
	}

	// Interrupted, it takes the command with it.
	cmd, out = l.start(nil, "exec", "web", "--", "web", "sleep", "12345s")
	l.says(out, "sleeping")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	l.eventually("the command has ended", func() error {
		if text, err := exec.Command("pgrep", "-f", "web sleep 12345s").Output(); err == nil {
			return fmt.Errorf("still there: %s", text)
		}
		return nil
	})
}

// pty is a terminal and the side of it that a person sits at.
type pty struct{ person, terminal *os.File }

func newPTY(t *testing.T) pty {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return pty{person, terminal}
}

func (p pty) size(t *testing.T, columns, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(p.person.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// inTerminal runs gantry as a person does: in a terminal of its own.
func (l *lab) inTerminal(p pty, args ...string) (*exec.Cmd, *lockedBuffer) {
	l.Helper()
	cmd := exec.Command(filepath.Join(l.bin, "gantry"), append([]string{"--credentials", l.Credentials()}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.terminal, p.terminal, p.terminal
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, or has ended
	})
	out := &lockedBuffer{}
	go func() { _, _ = io.Copy(out, p.person) }() // ends with the terminal
	return cmd, out
}

func (p pty) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(p.person, keys); err != nil {
		t.Fatal(err)
	}
}

// TestExecInATerminal: size, changes of size, keys, Ctrl-C and the state in
// which the person's own terminal is left.
func TestExecInATerminal(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("web", "", ""))
	l.pod("web", "is ready", ready)
	p := newPTY(t)
	p.size(t, 100, 40)
	before, err := unix.IoctlGetTermios(int(p.terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd, out := l.inTerminal(p, "exec", "-it", "web", "--", "web", "terminal")
	l.says(out, "terminal 100x40")
	p.types(t, "hello\r")
	l.says(out, `heard "hello"`)
	p.size(t, 91, 27)
	l.says(out, "terminal 91x27")
	p.types(t, "end\r")
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v:\n%s", err, out.String())
	}
	after, err := unix.IoctlGetTermios(int(p.terminal.Fd()), unix.TCGETS)
	if err != nil || *before != *after {
		t.Errorf("the terminal was %+v and is %+v, %v", before, after, err)
	}

	// Ctrl-C is a key for the command, not for gantry.
	p = newPTY(t)
	cmd, out = l.inTerminal(p, "exec", "-it", "web", "--", "web", "sleep")
	l.says(out, "sleeping")
	p.types(t, "\x03")
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted, it ended with %v:\n%s", err, out.String())
	}

	// Without a terminal here there is still one for the command.
	if out := l.must(l.gantry("end\n", "exec", "-it", "web", "--", "web", "terminal")); !strings.Contains(out, "terminal ") {
		t.Errorf("-t without a terminal: %q", out)
	}
}

// TestAttach: a container's own streams, with its input and its terminal.
func TestAttach(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("talks", `"args":["lines","--interval","50ms"]`, ""))
	l.apply(onePod("listens", `"args":["cat"],"stdin":true`, ""))
	l.apply(onePod("shell", `"args":["terminal"],"stdin":true,"tty":true`, `"restartPolicy":"Never"`))
	for _, name := range []string{"talks", "listens", "shell"} {
		l.pod(name, "is ready", ready)
	}
	cmd, out := l.start(nil, "attach", "talks")
	l.says(out, `line \d+\nline \d+\n`)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was interrupted
	if n := container(l.pod("talks", "runs", ready), "c").RestartCount; n != 0 {
		t.Errorf("detached, the container was restarted %d times", n)
	}

	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = in.Close(), typed.Close() }()
	_, out = l.start(in, "attach", "-i", "listens")
	if _, err := io.WriteString(typed, "hello\n"); err != nil {
		t.Fatal(err)
	}
	l.says(out, "hello\n")

	p := newPTY(t)
	p.size(t, 71, 17)
	cmd, out = l.inTerminal(p, "attach", "-it", "shell")
	l.says(out, "If you don't see a command prompt, try pressing enter.")
	p.types(t, "hello\r")
	l.says(out, `heard "hello"`)
	l.says(out, "terminal 71x17")
	p.types(t, "end\r")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the container has ended, and attach with %v:\n%s", err, out.String())
	}
	l.pod("shell", "has ended", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })

	_, out = l.start(nil, "attach", "-t", "talks")
	l.says(out, "Unable to use a TTY - container c did not allocate one")
	l.refuses(1, "stdin", "attach", "-i", "talks")
	l.refuses(1, "cannot attach a container in a completed pod; current phase is Succeeded", "attach", "shell")
	l.refuses(1, `pods "none" not found`, "attach", "none")
	l.refuses(1, "container none is not valid for pod talks", "attach", "talks", "-c", "none")
	l.refuses(1, "pod or type/name must be specified", "attach")
}

// TestSessionsOutliveTheControlPlane: kill -9 of what serves them, while a
// command talks and a copy runs.
func TestSessionsOutliveTheControlPlane(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("web", "", ""))
	l.pod("web", "is ready", ready)
	_, out := l.start(nil, "exec", "web", "--", "web", "lines", "--count", "400", "--interval", "20ms")
	l.says(out, "line 5\n")
	big := filepath.Join(t.TempDir(), "big")
	hash := random(t, big, 100_000_000)
	copying, copied := l.start(nil, "cp", big, "web:/tmp/big")
	l.eventually("the copy is under way", func() error {
		if out, err := l.gantry("", "exec", "web", "--", "web", "ls", "/tmp"); !strings.Contains(out, ".gantry-") {
			return fmt.Errorf("/tmp holds %q: %w", out, err)
		}
		return nil
	})
	if err := l.Kill(l.ctx, cluster.ControlPlane, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.StartControlPlane(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.says(out, "line 400\n")
	var want strings.Builder
	for i := range 400 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if out.String() != want.String() {
		t.Errorf("lines were lost, repeated or put in another order:\n%s", out.String())
	}
	if err := copying.Wait(); err != nil {
		t.Fatalf("the copy ended with %v: %s", err, copied.String())
	}
	l.must(l.gantry("", "cp", "web:/tmp/big", big+".back"))
	if hashOf(t, big+".back") != hash {
		t.Error("what was copied meanwhile is not what it was")
	}
}

// hostPort is what port-forward says it listens on.
const hostPort = `Forwarding from (127\.0\.0\.1:\d+) -> `

// TestPortForward: several ports, many connections at once, large answers,
// names, services, the host's network, and what is refused.
func TestPortForward(t *testing.T) {
	l := newLab(t)
	const echo = `"args":["--listen","127.0.0.1:8080","--tcp-echo","127.0.0.1:7000"],"ports":[{"name":"web","containerPort":8080},{"name":"lines","containerPort":7000}],
"env":[{"name":"POD_NAME","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]`
	l.apply(onePod("web", echo, ""))
	l.apply(onePod("host", strings.NewReplacer("8080", "18080", "7000", "17000").Replace(echo), `"hostNetwork":true`))
	l.apply(onePod("done", `"args":["exit"]`, `"restartPolicy":"Never"`))
	l.apply(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"front"},"spec":{"selector":{"pod":"web"},"ports":[{"name":"http","port":80,"targetPort":"web"},{"name":"l","port":81,"targetPort":7000}]}}`)
	l.pod("web", "is ready", ready)
	l.pod("host", "is ready", ready)
	l.pod("done", "has ended", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })

	get := func(address string) (string, error) {
		client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		return strings.TrimSpace(string(text)), err
	}
	// What listens on loopback alone is reached all the same.
	cmd, out := l.start(nil, "port-forward", "pod/web", ":web", ":7000")
	address := l.says(out, hostPort+"8080")[1]
	lines := l.says(out, hostPort+"7000")[1]
	var all sync.WaitGroup
	for range 60 { // more than a pod may have sessions
		all.Go(func() {
			if text, err := get(address); err != nil || text != "web" {
				t.Errorf("web answered %q, %v", text, err)
			}
		})
	}
	for i := range 5 {
		all.Go(func() {
			if text, err := say("tcp", lines, fmt.Sprint("hello ", i)); err != nil || text != fmt.Sprint("web hello ", i) {
				t.Errorf("the echo answered %q, %v", text, err)
			}
		})
	}
	all.Wait()
	l.says(out, "Handling connection for ")

	for target, want := range map[string]string{"service/front :http": "web", "svc/front :80": "web", "pod/host :18080": "host"} {
		_, out := l.start(nil, append([]string{"port-forward"}, strings.Fields(target)...)...)
		if text, err := get(l.says(out, hostPort)[1]); err != nil || text != want {
			t.Errorf("%s answered %q, %v", target, text, err)
		}
	}
	_, refused := l.start(nil, "port-forward", "--address", "127.0.0.1", "web", ":81")
	if text, err := get(l.says(refused, hostPort+"81")[1]); err == nil {
		t.Errorf("nobody listens there, and it answers %q", text)
	}
	l.says(refused, `an error occurred forwarding \d+ -> 81: .*failed to connect to localhost:81 inside the pod: connection refused`)

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, port, _ := strings.Cut(taken.Addr().String(), ":")
	for says, args := range map[string][]string{
		"unable to listen on port " + port:             {"web", port + ":8080"},
		`pods "none" not found`:                        {"none", "80"},
		"pod is not running. Current status=Succeeded": {"done", "80"},
		`does not have a named port "none"`:            {"web", "none"},
		"does not have a service port 82":              {"svc/front", "82"},
		"remote port must be 1 to 65535":               {"web", "8080:0"},
		"error parsing local port":                     {"web", "70000:80"},
		"is not a valid IP address or localhost":       {"--address", "example", "web", "80"},
		"TYPE/NAME and list of ports are required":     {"web"},
	} {
		l.refuses(1, says, append([]string{"port-forward"}, args...)...)
	}

	// It ends with its pod, and when it is told to.
	l.must(l.gantry("", "delete", "pod", "web", "--wait"))
	if _, err := get(address); err == nil {
		t.Error("a pod that is gone answers")
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "lost connection to pod") {
		t.Errorf("it ended with %v:\n%s", err, out.String())
	}
	cmd, out = l.start(nil, "port-forward", "host", ":18080")
	l.says(out, hostPort)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted, it ended with %v", err)
	}
}

// random writes a file that no compression makes smaller.
func random(t *testing.T, path string, size int) [sha256.Size]byte {
	t.Helper()
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = source.Read(data) // never fails
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

func hashOf(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// TestCopy: 100 MB there and back, directories with what they hold, both ways
// to name a destination, and what is refused.
func TestCopy(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("web", "", ""))
	l.apply(onePod("ro", `"securityContext":{"readOnlyRootFilesystem":true}`, ""))
	l.apply(fmt.Sprintf(twoContainers, sampleImage))
	for _, name := range []string{"web", "ro", "two"} {
		l.pod(name, "is ready", ready)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	cp := func(args ...string) {
		t.Helper()
		if code, out := l.exitCode(append([]string{"cp"}, args...)...); code != 0 {
			t.Fatalf("gantry cp %s: %d\n%s", strings.Join(args, " "), code, out)
		}
	}
	hash := random(t, at("big"), 100_000_000)
	cp(at("big"), "web:/tmp/there")
	cp("default/web:/tmp/there", at("back"))
	if hashOf(t, at("back")) != hash {
		t.Error("100 MB are not what they were")
	}
	if info, err := os.Stat(at("back")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// A directory is what it is put into; anything else is its new name.
	cp(at("big"), "web:/tmp")
	cp(at("big"), "web:/home/")
	if err := os.Mkdir(at("into"), 0o755); err != nil {
		t.Fatal(err)
	}
	cp("web:/tmp/big", at("into"))
	cp("web:/home/big", at("new/on/the/way"))
	if hashOf(t, at("into/big")) != hash || hashOf(t, at("new/on/the/way")) != hash {
		t.Error("copies into directories are not what they were")
	}

	small := random(t, at("tree/sub/file"), 1000)
	for name, to := range map[string]string{"tree/inside": "sub/file", "tree/outside": "/etc/passwd", "tree/up": "../../x"} {
		if err := os.Symlink(to, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(at("tree/empty"), 0o700), unix.Mkfifo(at("tree/fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	code, out := l.exitCode("cp", at("tree"), "web:/tmp/tree")
	if code != 0 {
		t.Fatalf("%d\n%s", code, out)
	}
	cp(at("tree/sub"), "web:/tmp/tree") // into it
	code, _ = l.exitCode("cp", "web:/tmp/tree", at("again"))
	if code != 0 || hashOf(t, at("again/sub/file")) != small {
		t.Errorf("%d, or the tree is not what it was", code)
	}
	if to, err := os.Readlink(at("again/inside")); err != nil || to != "sub/file" {
		t.Errorf("a link within: %q, %v", to, err)
	}
	for _, name := range []string{"again/outside", "again/up", "again/fifo"} {
		if _, err := os.Lstat(at(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	if info, err := os.Stat(at("again/empty")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("an empty directory: %v", err)
	}

	// Each container has files of its own.
	cp(at("tree/sub/file"), "two:/tmp/mine", "-c", "second")
	if out := l.must(l.gantry("", "exec", "two", "-c", "second", "--", "web", "ls", "/tmp")); out != "mine\n" {
		t.Errorf("the second container has %q", out)
	}
	if out := l.must(l.gantry("", "exec", "two", "-c", "first", "--", "web", "ls", "/tmp")); out != "" {
		t.Errorf("the first container has %q", out)
	}
	cp("--no-preserve", at("tree/sub/file"), "web:/home/owned")
	if out := l.must(l.gantry("", "exec", "web", "--", "web", "cat", "/home/owned")); len(out) != 1000 {
		t.Errorf("who owns the directory reads %d bytes", len(out))
	}

	for says, args := range map[string][]string{
		"none: no such file or directory in the container":             {"web:/none", at("x")},
		"none/x/: no such file or directory in the container":          {at("big"), "web:/none/x/"},
		"/none: no such file or directory in the container":            {at("big"), "web:/none/x"},
		"the container's file system is read-only there":               {at("big"), "ro:/x"},
		"no such file or directory":                                    {at("none"), "web:/tmp"},
		`pods "nowhere" not found`:                                     {at("big"), "nowhere:/tmp"},
		"container none is not valid for pod web":                      {at("big"), "web:/tmp", "-c", "none"},
		"one of src or dest must be a local file specification":        {at("big"), at("x")},
		"and the other one name a pod":                                 {"web:/tmp/big", "web:/tmp/x"},
		"filespec must match the canonical format":                     {":/tmp/big", at("x")},
		"filepath can not be empty":                                    {"web:", at("x")},
		"it is a device: only files, directories and links are copied": {"web:/dev/null", at("x")},
		"is neither a file nor a directory":                            {at("tree/fifo"), "web:/tmp"},
		"is a file in the container, and":                              {at("tree"), "web:/tmp/big"},
		"is a file, and /tmp/tree a directory in the container":        {"web:/tmp/tree", at("big")},
		"a symbolic link is in the way":                                {"web:/proc/1/root/etc", at("x")},
		"source and destination are required":                          {at("big")},
	} {
		l.refuses(1, says, append([]string{"cp"}, args...)...)
	}
	if _, err := os.Lstat(at("x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

// TestTop: what pods and nodes use, measured when it is asked for.
func TestTop(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("burner", `"args":["burn"]`, ""))
	l.apply(onePod("eater", `"args":["eat","64Mi"]`, ""))
	l.apply(fmt.Sprintf(twoContainers, sampleImage))
	for _, name := range []string{"burner", "eater", "two"} {
		l.pod(name, "is ready", ready)
	}
	l.eventually("who eats has eaten", func() error {
		out := l.must(l.gantry("", "top", "pod", "eater", "--no-headers"))
		if !regexp.MustCompile(`(?m)^eater +\d+m +(6[4-9]|[7-9]\d)Mi *$`).MatchString(out) {
			return fmt.Errorf("top printed:\n%s", out)
		}
		return nil
	})
	out := l.must(l.gantry("", "top", "pods"))
	if !regexp.MustCompile(`^NAME +CPU\(cores\) +MEMORY\(bytes\) *\nburner +[1-9]\d+m +\d+Mi *\neater .*\ntwo +\d+m +\d+Mi *\n$`).MatchString(out) {
		t.Errorf("top pods printed:\n%s", out)
	}
	if out := l.must(l.gantry("", "top", "pod", "--sort-by", "memory", "--no-headers")); !strings.HasPrefix(out, "eater ") {
		t.Errorf("by memory:\n%s", out)
	}
	l.eventually("who burns is the first", func() error { // once who eats is at rest
		if out := l.must(l.gantry("", "top", "pod", "--sort-by", "cpu", "--no-headers")); !strings.HasPrefix(out, "burner ") {
			return fmt.Errorf("by CPU:\n%s", out)
		}
		return nil
	})
	if out := l.must(l.gantry("", "top", "pod", "-A", "--containers", "-l", "pod=burner")); !regexp.MustCompile(`^NAMESPACE +POD +NAME +CPU\(cores\) +MEMORY\(bytes\) *\ndefault +burner +c +\d+m +\d+Mi *\n$`).MatchString(out) {
		t.Errorf("of all namespaces:\n%s", out)
	}
	if out := l.must(l.gantry("", "top", "pod", "two", "--containers", "--no-headers")); !regexp.MustCompile(`^two +first .*\ntwo +second .*\n$`).MatchString(out) {
		t.Errorf("by container:\n%s", out)
	}
	node := regexp.MustCompile(`^NAME +CPU\(cores\) +CPU\(%\) +MEMORY\(bytes\) +MEMORY\(%\) *\n` + l.Node + ` +[1-9]\d*m +\d+% +[1-9]\d*Mi +\d+% *\n$`)
	for _, args := range [][]string{{"top", "node"}, {"top", "nodes", l.Node}} {
		if out := l.must(l.gantry("", args...)); !node.MatchString(out) {
			t.Errorf("%v printed:\n%s", args, out)
		}
	}
	for says, args := range map[string][]string{
		`pods "none" not found`:                {"pod", "none"},
		`nodes "none" not found`:               {"node", "none"},
		"--sort-by accepts only cpu or memory": {"pod", "--sort-by", "name"},
		"only one of NAME or --selector":       {"pod", "two", "-l", "a=b"},
	} {
		l.refuses(1, says, append([]string{"top"}, args...)...)
	}
	// A node that is away says nothing, and top says so.
	if err := l.Kill(l.ctx, cluster.NodeAgent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code, out := l.exitCode("top", "node"); code != 0 || !regexp.MustCompile(l.Node+` +<unknown>`).MatchString(out) {
		t.Errorf("without its agent: %d\n%s", code, out)
	}
	l.refuses(1, "does not say what it uses", "top", "pod", "two")
	if err := l.StartAgent(l.ctx); err != nil {
		t.Fatal(err)
	}
}

// TestFloodDelaysNobody: while one user follows a container that never stops
// talking and copies 100 MB over and over, another one's calls are answered and
// what happens on the node is heard.
func TestFloodDelaysNobody(t *testing.T) {
	l := newLab(t)
	l.apply(onePod("flood", `"args":["lines"]`, ""))
	l.apply(onePod("web", "", ""))
	l.pod("flood", "runs", ready)
	l.pod("web", "is ready", ready)
	dir := t.TempDir()
	hash := random(t, filepath.Join(dir, "big"), 100_000_000)
	follow := exec.Command(filepath.Join(l.bin, "gantry"), "--credentials", l.Credentials(), "logs", "-f", "flood")
	read := &counter{}
	follow.Stdout = read
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = follow.Process.Kill()
		_ = follow.Wait() // it was killed
	})
	stop, copies := make(chan struct{}), 0
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			if _, err := l.gantry("", "cp", filepath.Join(dir, "big"), "web:/tmp/big"); err != nil {
				t.Error(err)
				return
			}
			copies++
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i := range 5 {
		name := fmt.Sprint("quick-", i)
		l.apply(onePod(name, "", ""))
		l.pod(name, "is ready", ready)
		l.must(l.gantry("", "get", "pods"))
		l.must(l.gantry("", "delete", "pod", name, "--wait"))
	}
	before := read.n()
	l.eventually("the flood goes on", func() error {
		if read.n() == before {
			return errors.New("no line came")
		}
		return nil
	})
	close(stop)
	copying.Wait()
	if out, err := l.gantry("", "cp", "web:/tmp/big", filepath.Join(dir, "back")); err != nil || hashOf(t, filepath.Join(dir, "back")) != hash {
		t.Errorf("after %d copies the file is another: %v %s", copies, err, out)
	}
}

// counter counts what is written to it.
type counter struct {
	mu    sync.Mutex
	bytes int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += int64(len(b))
	return len(b), nil
}

func (c *counter) n() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
