package main

import (
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const stamped = "2026-01-02T03:04:05.678901234Z stdout F "

// TestALogOutlivesTheControlPlane that served it: nothing is lost, and nothing
// comes twice.
func TestALogOutlivesTheControlPlane(t *testing.T) {
	l := newLab(t)
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"},"spec":{"containers":[{"name":"c","image":"x"}]}}`, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=Ready", "pod/one")
	l.logs.set(false, stamped+"before\n")
	out, stderr, stop := l.background("logs", "-f", "one")
	l.until("the first line", func() bool { return out.String() == "before\n" })
	l.stopPlane()
	l.logs.more(stamped + "while it was gone\n")
	l.startPlane()
	l.until("the second line", func() bool { return strings.HasSuffix(out.String(), "gone\n") })
	l.logs.more(stamped + "after\n")
	l.until("the third line", func() bool { return strings.HasSuffix(out.String(), "after\n") })
	l.logs.end()
	if code := stop(); code != 0 || stderr.String() != "" {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
	expect(t, "log", "before\nwhile it was gone\nafter\n", out.String())
}

// TestAContainerThatHasNotStartedSaysWhy in the words of kubectl.
func TestAContainerThatHasNotStartedSaysWhy(t *testing.T) {
	l := newLab(t)
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"},"spec":{"containers":[{"name":"c","image":"x"}]}}`, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=Ready", "pod/one")
	l.logs.set(true, stamped+"at last\n")
	l.logs.refuseWith(apierrors.NewBadRequest(`container "c" in pod "one" is waiting to start`))
	_, stderr := l.fails("", "logs", "one")
	expect(t, "without -f", "Error from server (BadRequest): container \"c\" in pod \"one\" is waiting to start\n", stderr)
	_, stderr = l.fails("", "logs", "-f", "one", "--pod-running-timeout=1ms")
	if !strings.HasPrefix(stderr, "Error from server (BadRequest): container") {
		t.Errorf("in vain: %s", stderr)
	}
	out, said, _ := l.background("logs", "-f", "one")
	l.until("it says why it waits", func() bool { return strings.Contains(said.String(), "is waiting to start") })
	l.logs.refuseWith(nil)
	l.until("the log", func() bool { return out.String() == "at last\n" })

	// Nothing has been scheduled that asks for more than there is.
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"huge"},"spec":{"containers":[{"name":"c","image":"x","resources":{"requests":{"cpu":"1000"}}}]}}`, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=PodScheduled=false", "pod/huge")
	_, stderr = l.fails("", "logs", "huge")
	if !strings.Contains(stderr, "pod huge does not have a host assigned: ") {
		t.Errorf("not scheduled: %s", stderr)
	}
}

func TestLogsOfSeveralPods(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=Available", "deployment/web")
	l.logs.set(true, stamped+"0123456789\n"+stamped+"x\n")
	out, stderr, code := l.call(t.Context(), "", "logs", "deploy/web")
	if code != 0 || out != "0123456789\nx\n" || !strings.HasPrefix(stderr, "Found 2 pods, using pod/web-") {
		t.Errorf("one of two: %q %q %d", out, stderr, code)
	}
	out = l.ok("", "logs", "deploy/web", "--all-pods")
	if lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], "[pod/web-") || !strings.HasSuffix(lines[0], "/web] 0123456789") {
		t.Errorf("--all-pods:\n%s", out)
	}
	expect(t, "--limit-bytes", "01234\n"[:5]+"01234", l.ok("", "logs", "-l", "app=web", "--limit-bytes=5"))
	_, stderr = l.fails("", "logs", "-f", "-l", "app=web", "--max-log-requests=1")
	expect(t, "--max-log-requests", "error: you are attempting to follow 2 log streams, but maximum allowed concurrency is 1, use --max-log-requests to increase the limit\n", stderr)
	if out := l.ok("", "logs", "-f", "-l", "app=web"); strings.Count(out, "0123456789\n") != 2 {
		t.Errorf("followed at once:\n%s", out)
	}
	l.logs.refuseWith(apierrors.NewBadRequest("no"))
	_, stderr, code = l.call(t.Context(), "", "logs", "-l", "app=web", "--ignore-errors")
	if code != 0 || strings.Count(stderr, "Error from server (BadRequest): no\n") != 2 {
		t.Errorf("--ignore-errors: %q %d", stderr, code)
	}
}

func TestBadFlagsOfLogs(t *testing.T) {
	a := newAlone(t)
	for args, want := range map[string]string{
		"x --since=1h --since-time=2026-01-01T00:00:00Z": "at most one of --since and --since-time may be used",
		"x --since=-1h":           "--since must be greater than 0",
		"x --tail=-2":             "--tail must be greater than or equal to -1",
		"x --limit-bytes=-1":      "--limit-bytes must be greater than 0",
		"x --max-log-requests=0":  "--max-log-requests must be greater than 0",
		"x --all-containers -c y": "--all-containers=true should not be specified with container name y",
		"x y -c z":                "only one of -c or an inline [CONTAINER] arg is allowed",
		"x --all-pods -l a=b":     "--all-pods goes with KIND/NAME",
	} {
		if stderr := a.fails("", append([]string{"logs"}, strings.Fields(args)...)...); !strings.Contains(stderr, want) {
			t.Errorf("logs %s: %s, want %q", args, stderr, want)
		}
	}
	l := newLab(t)
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"},"spec":{"containers":[{"name":"c","image":"x"}]}}`, "apply", "-f", "-")
	if _, stderr := l.fails("", "logs", "one", "--since-time=yesterday"); !strings.Contains(stderr, `--since-time "yesterday" is no time such as 2026-01-05T10:00:00Z`) {
		t.Errorf("stderr: %s", stderr)
	}
	for args, want := range map[string]string{"one -c none": "container none is not valid for pod one; it has c", "cm/x": `configmaps "x" not found`} {
		if _, stderr := l.fails("", append([]string{"logs"}, strings.Fields(args)...)...); !strings.Contains(stderr, want) {
			t.Errorf("logs %s: %s", args, stderr)
		}
	}
}
