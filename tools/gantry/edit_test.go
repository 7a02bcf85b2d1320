package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// editor makes gantry edit run a shell script, in which $1 is the file and
// $dir a directory of the test's own.
func editor(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	file := write(t, "editor", "#!/bin/sh -e\ndir="+dir+"\n"+script+"\n")
	t.Setenv("GANTRY_EDITOR", file)
	t.Setenv("TMPDIR", dir)
	return dir
}

// kept is the file that an edit says it left.
func kept(t *testing.T, stderr string) string {
	t.Helper()
	m := regexp.MustCompile(`A copy of your changes has been stored to "([^"]+)"`).FindStringSubmatch(stderr)
	if m == nil {
		t.Fatalf("no copy is named:\n%s", stderr)
	}
	text, err := os.ReadFile(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(dir, "gantry-edit-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestEdit(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	replicas := func() string { return l.ok("", "get", "deployment/web", "-o", "jsonpath={.spec.replicas}") }

	t.Run("a change", func(t *testing.T) {
		dir := editor(t, `sed -i 's/^  replicas: 2/  replicas: 3/' "$1"`)
		expect(t, "edit", "deployment.apps/web edited\n", l.ok("", "edit", "deployment/web"))
		expect(t, "replicas", "3", replicas())
		nothingLeft(t, dir)
	})
	t.Run("none", func(t *testing.T) {
		dir := editor(t, `true`)
		out, stderr, code := l.call(context.Background(), "", "edit", "deployment", "web")
		if out != "" || stderr != "Edit cancelled, no changes made.\n" || code != 0 {
			t.Errorf("%q %q %d", out, stderr, code)
		}
		nothingLeft(t, dir)
	})
	t.Run("emptied", func(t *testing.T) {
		editor(t, `: > "$1"`)
		_, stderr, code := l.call(context.Background(), "", "edit", "deployment/web")
		if stderr != "Edit cancelled, saved file was empty.\n" || code != 0 {
			t.Errorf("%q %d", stderr, code)
		}
	})
	t.Run("refused, then right", func(t *testing.T) {
		dir := editor(t, `
if grep -q '^# .*spec.replicas.*-5.*greater than or equal to 0' "$1"; then
	sed -i 's/replicas: -5/replicas: 4/' "$1"
elif grep -q '^# .*spec.replicaz' "$1"; then
	sed -i 's/replicaz: .*/replicas: -5/' "$1"
else
	sed -i 's/^  replicas: 3/  replicaz: 3/' "$1"
fi`)
		expect(t, "edit", "deployment.apps/web edited\n", l.ok("", "edit", "deployment/web"))
		expect(t, "replicas", "4", replicas())
		nothingLeft(t, dir)
	})
	t.Run("refused, and given up", func(t *testing.T) {
		editor(t, `sed -i 's/^  replicas: 4/  replicas: -5/' "$1"`)
		_, stderr := l.fails("", "edit", "deployment/web")
		if text := kept(t, stderr); !strings.Contains(text, "  replicas: -5\n") || !strings.Contains(stderr, "no valid changes were saved: ") || !strings.Contains(stderr, "spec.replicas: Invalid value: -5") {
			t.Errorf("kept:\n%s\nsaid:\n%s", text, stderr)
		}
		expect(t, "replicas", "4", replicas())
	})
	t.Run("another object", func(t *testing.T) {
		editor(t, `sed -i 's/^  name: web/  name: other/' "$1"`)
		_, stderr := l.fails("", "edit", "deployment/web")
		if text := kept(t, stderr); !strings.Contains(text, `# metadata.name cannot be changed here: it was "web"`) {
			t.Errorf("kept:\n%s", text)
		}
	})
	t.Run("an editor that fails", func(t *testing.T) {
		editor(t, `sed -i 's/^  replicas: 4/  replicas: 9/' "$1"; exit 3`)
		_, stderr := l.fails("", "edit", "deployment/web")
		if text := kept(t, stderr); !strings.Contains(text, "  replicas: 9\n") || !strings.Contains(stderr, "exit status 3") {
			t.Errorf("kept:\n%s\nsaid:\n%s", text, stderr)
		}
		expect(t, "replicas", "4", replicas())
	})
	t.Run("as JSON", func(t *testing.T) {
		editor(t, `sed -i 's/"replicas": 4/"replicas": 5/' "$1"`)
		expect(t, "edit", "deployment.apps/web edited\n", l.ok("", "edit", "deployment/web", "-o", "json"))
		expect(t, "replicas", "5", replicas())
	})
}

// TestEditLosesNobodysChange: what others change while the editor is open
// stays, and of a field that both change the person is asked again.
func TestEditLosesNobodysChange(t *testing.T) {
	l := newLab(t)
	l.ok(deployment, "apply", "-f", "-")
	dir := editor(t, `
if [ -e "$dir/opened" ]; then
	cp "$1" "$dir/second"
	exit 0
fi
sed -i -e 's/^  replicas: 2/  replicas: 5/' -e 's/^    app: web/    app: web\n    mine: "yes"/' "$1"
touch "$dir/opened"
while [ ! -e "$dir/go" ]; do sleep 0.02; done`)
	ended := make(chan string, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		out, stderr, _ := l.call(ctx, "", "edit", "deployment/web")
		ended <- out + stderr
	}()
	for {
		if _, err := os.Stat(filepath.Join(dir, "opened")); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the editor was not opened")
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.ok("", "label", "deployment/web", "theirs=yes")
	l.ok("", "scale", "deployment/web", "--replicas=3")
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "edit", "deployment.apps/web edited\n", <-ended)
	second, err := os.ReadFile(filepath.Join(dir, "second"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# spec.replicas was changed by somebody else meanwhile: it is now 3\n", "\n  replicas: 5\n", "theirs:", "mine:"} {
		if !strings.Contains(string(second), want) {
			t.Errorf("the second look lacks %q:\n%s", want, second)
		}
	}
	expect(t, "all changes", `{"app":"web","mine":"yes","theirs":"yes"} 5`, l.ok("", "get", "deployment/web", "-o", "jsonpath={.metadata.labels} {.spec.replicas}"))
}
