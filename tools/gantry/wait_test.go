package main

import (
	"context"
	"strings"
	"testing"
)

func TestWaitForAllForms(t *testing.T) {
	l := newLab(t)
	made, _, _ := l.background("wait", "--for=create", "cm/settings", "-o", "jsonpath={.data.a}")
	l.ok(configMap, "apply", "-f", "-")
	l.until("create", func() bool { return made.String() == "1" })
	expect(t, "jsonpath", "configmap/settings condition met\n", l.ok("", "wait", "--for=jsonpath={.data.b}=2", "cm/settings"))
	expect(t, "-o name", "configmap/settings\n", l.ok("", "wait", "--for=jsonpath={.data.b}", "cm", "--all", "-o", "name"))
	expect(t, "a condition", "node/n1 condition met\n", l.ok("", "wait", "--for=condition=ready", "nodes", "--field-selector=metadata.name=n1"))

	gone := ""
	l.until("delete comes", func() bool {
		// One that looks for the first time between the two has nothing to wait for.
		ended := make(chan string, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			out, _, _ := l.call(ctx, "", "wait", "--for=delete", "cm/settings")
			ended <- out
		}()
		l.until("it ends", func() bool {
			l.ok("", "delete", "cm", "settings", "--ignore-not-found")
			l.ok(configMap, "apply", "-f", "-") // another object of that name does not count
			select {
			case gone = <-ended:
				return true
			default:
				return false
			}
		})
		return gone != ""
	})
	expect(t, "delete", "configmap/settings condition met\n", gone)
	expect(t, "delete of what is not there", "", l.ok("", "wait", "--for=delete", "cm/none"))
	_, stderr := l.fails("", "wait", "--for=delete", "cm/settings", "--timeout=50ms")
	expect(t, "delete in vain", "error: timed out waiting for the condition on configmaps/settings\n", stderr)
	_, stderr = l.fails("", "wait", "--for=create", "cm/none", "--timeout=50ms")
	expect(t, "create in vain", "error: timed out waiting for the condition on configmaps/none\n", stderr)
	_, stderr = l.fails("", "wait", "--for=jsonpath={.data.a}=7", "cm", "--all", "-A", "--timeout=50ms")
	expect(t, "jsonpath in vain", "error: timed out waiting for the condition on configmaps/settings\n", stderr)
}

func TestEventsOfTypes(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	l.ok("", "wait", "--for=condition=Available", "deployment/web")
	l.until("an event", func() bool {
		return strings.Contains(l.ok("", "events", "--for", "deployment/web", "--types=Normal", "-o", "name"), "event/web.")
	})
	both := l.ok("", "events", "--for=deployment/web", "--types=normal,Warning", "-o", "name")
	expect(t, "both types are all", l.ok("", "events", "--for=deployment/web", "-o", "name"), both)
	expect(t, "no warnings", "", l.ok("", "events", "--for=deployment/web", "--types=Warning", "-o", "name"))
	watching, _, _ := l.background("events", "--for=deployment/web", "--watch", "-o", "jsonpath={.message}{\"\\n\"}")
	l.ok("", "scale", "deployment/web", "--replicas=0")
	l.until("a new event", func() bool { return strings.Contains(watching.String(), "Scaled down") })
	for args, want := range map[string]string{
		"--types=Odd": `valid --types are Normal or Warning, not "Odd"`,
		"--types=,":   `valid --types are Normal or Warning, not ""`,
		"--for=web":   "--for must be in resource/name form",
	} {
		if _, stderr := l.fails("", "events", args); !strings.Contains(stderr, want) {
			t.Errorf("events %s: %s", args, stderr)
		}
	}
}
