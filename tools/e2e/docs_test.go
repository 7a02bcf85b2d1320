package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"gantry.dev/bus/examples"
)

// TestBusDocs replays the API's story in docs/bus.md, and its calls of a node,
// by the nats command line. (The bus's own tests replay the rest.)
func TestBusDocs(t *testing.T) {
	all, err := examples.Read("../../docs/bus.md")
	if err != nil {
		t.Fatal(err)
	}
	// newLab pushes the sample image, but nothing has pulled it yet.
	l := newLab(t)
	verbs := map[string]bool{}
	revision := ""
	for i, e := range all {
		var subject string
		switch e.Verb {
		case "api":
			subject = e.Args[0]
			verbs[strings.Split(subject, ".")[1]] = true
		case "node":
			subject = "node." + l.Node + "." + e.Args[0]
			verbs[e.Args[0]] = true
		default:
			continue
		}
		if i+1 == len(all) || all[i+1].Verb != "answer" {
			t.Errorf("docs/bus.md:%d: no answer follows", e.Line)
			continue
		}
		args := []string{"req", "--raw", "--timeout", "10s", subject, strings.ReplaceAll(e.Body, "REVISION", revision)}
		for _, h := range e.Args[1:] {
			args = append(args, "--header", strings.Replace(h, "=", ":", 1))
		}
		out := l.must(l.nats(args...))
		var want, got any
		if err := json.Unmarshal([]byte(all[i+1].Body), &want); err != nil {
			t.Fatalf("docs/bus.md:%d: %v", all[i+1].Line, err)
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Errorf("docs/bus.md:%d: %s answers %q: %v", e.Line, subject, out, err)
			continue
		}
		if diff := examples.Missing(want, got); diff != "" {
			t.Errorf("docs/bus.md:%d: %s answers %s\nwhich %s", e.Line, subject, out, diff)
		}
		if m, ok := got.(map[string]any); ok {
			if r, ok := m["resourceVersion"].(string); ok {
				revision = r
			}
		}
	}
	for _, verb := range []string{"apply", "create", "get", "list", "watch", "update", "patch", "delete", "deletecollection", "log", "exec", "copy", "recv", "images", "image-put"} {
		if !verbs[verb] {
			t.Errorf("docs/bus.md has no example of %s", verb)
		}
	}
}

// TestReadmeCommands runs what the README shows of gantry and nats, literally,
// in order; only where the binaries and credentials lie is the test's own.
func TestReadmeCommands(t *testing.T) {
	l := newLab(t)
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	script := &strings.Builder{}
	fmt.Fprintf(script, "set -e\ncd ../..\nnats() { .cache/bin/nats --context %s \"$@\"; }\n", contextOf(l.Credentials()))
	n := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		for line := range strings.Lines(block[1]) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "   #")
			line = strings.TrimSpace(line)
			switch {
			case strings.HasPrefix(line, "bin/gantry "), strings.HasPrefix(line, "nats "):
			default:
				continue // task and go run: other tests and tasks
			}
			n++
			fmt.Fprintf(script, "echo '+ %s'\n", strings.ReplaceAll(line, "'", `'"'"'`))
			if strings.HasPrefix(line, "bin/gantry port-forward") {
				line = "timeout 2 " + line + " || [ $? = 124 ]"
			}
			if strings.HasPrefix(line, "nats kv watch") || strings.HasPrefix(line, "nats sub") {
				// They show and go on until they are stopped.
				line = "timeout 2 .cache/bin/nats --context " + contextOf(l.Credentials()) + strings.TrimPrefix(line, "nats") + " || [ $? = 124 ]"
			}
			fmt.Fprintln(script, line)
		}
	}
	if n < 15 {
		t.Fatalf("only %d commands found", n)
	}
	t.Setenv("GANTRY_CREDENTIALS", l.Credentials())
	out, err := command(l.ctx, "", "sh", "-c", script.String())
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if strings.Contains(out, `"status":"Failure"`) {
		t.Errorf("something was refused:\n%s", out)
	}
}
