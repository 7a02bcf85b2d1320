package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gantry.dev/bus"
)

const secretSeed = "SUAKEEPTHISTOYOURSELF"

// alone runs the program with a configuration of its own and without a cluster.
type alone struct {
	*testing.T
	file string
}

func newAlone(t *testing.T) *alone {
	t.Helper()
	a := &alone{t, filepath.Join(t.TempDir(), "gantry", "config.yaml")}
	t.Setenv("GANTRY_CONFIG", a.file)
	t.Setenv("GANTRY_CREDENTIALS", "")
	return a
}

func (a *alone) call(stdin string, args ...string) (out, stderr string, code int) {
	var o, e bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(stdin), &o, &e)
	return o.String(), e.String(), code
}

func (a *alone) ok(stdin string, args ...string) string {
	a.Helper()
	out, stderr, code := a.call(stdin, args...)
	if code != 0 {
		a.Fatalf("gantry %s: code %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

func (a *alone) fails(stdin string, args ...string) string {
	a.Helper()
	out, stderr, code := a.call(stdin, args...)
	if code != 1 {
		a.Fatalf("gantry %s: code %d, want 1\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return stderr
}

func (a *alone) write(text string, mode os.FileMode) {
	a.Helper()
	if err := os.MkdirAll(filepath.Dir(a.file), 0o700); err != nil {
		a.Fatal(err)
	}
	if err := os.WriteFile(a.file, []byte(text), mode); err != nil {
		a.Fatal(err)
	}
	if err := os.Chmod(a.file, mode); err != nil {
		a.Fatal(err)
	}
}

func credentialsOf(user string) string {
	return fmt.Sprintf(`{"user":%q,"urls":["nats://127.0.0.1:1"],"seed":%q}`, user, secretSeed)
}

func TestAStoryOfContexts(t *testing.T) {
	a := newAlone(t)
	expect(t, "nothing yet", "error: cannot read the configuration: open "+a.file+": no such file or directory\n", a.fails("", "config", "get-contexts"))
	expect(t, "the first is used", "Context \"home\" created.\nSwitched to context \"home\".\n",
		a.ok(credentialsOf("me"), "config", "import", "-", "--name=home"))
	expect(t, "the second is not", "Context \"work\" created.\n", a.ok(credentialsOf("worker"), "config", "import", "-", "--name=work", "-n", "shop"))
	expect(t, "get-contexts", `
CURRENT   NAME   SERVER               USER     NAMESPACE
*         home   nats://127.0.0.1:1   me       
          work   nats://127.0.0.1:1   worker   shop
`, a.ok("", "config", "get-contexts"))
	expect(t, "one of them", "work\n", a.ok("", "config", "get-contexts", "work", "-o", "name"))
	expect(t, "current-context", "home\n", a.ok("", "config", "current-context"))
	expect(t, "use-context", "Switched to context \"work\".\n", a.ok("", "config", "use-context", "work"))
	expect(t, "set-context", "Context \"work\" modified.\n", a.ok("", "config", "set-context", "--current", "--namespace=x"))
	expect(t, "rename-context", "Context \"work\" renamed to \"job\".\n", a.ok("", "config", "rename-context", "work", "job"))
	expect(t, "the current one keeps up", "job\n", a.ok("", "config", "current-context"))
	expect(t, "view", `
apiVersion: gantry.dev/v1
contexts:
- credentials:
    seed: REDACTED
    urls:
    - nats://127.0.0.1:1
    user: worker
  name: job
  namespace: x
current-context: job
kind: Config
`, a.ok("", "config", "view", "--minify"))
	expect(t, "view as data", "home job", a.ok("", "config", "view", "-o", "jsonpath={.contexts[*].name}"))
	if out := a.ok("", "config", "view", "--raw"); strings.Count(out, secretSeed) != 2 {
		t.Errorf("view --raw lacks the secrets:\n%s", out)
	}
	out, stderr, code := a.call("", "config", "delete-context", "job")
	if code != 0 || out != "deleted context job from "+a.file+"\n" || !strings.HasPrefix(stderr, "warning: this removed your active context") {
		t.Errorf("delete-context: %q %q %d", out, stderr, code)
	}
	expect(t, "none is current", "error: current-context is not set in "+a.file+": choose one with gantry config use-context\n", a.fails("", "config", "current-context"))
	info, err := os.Stat(a.file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(a.file))
	if err != nil || len(left) != 1 {
		t.Errorf("files left next to the configuration: %v, %v", left, err)
	}
}

func TestAContextWithAFileOfCredentials(t *testing.T) {
	a := newAlone(t)
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte(credentialsOf("me")), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "set-context", "Context \"lab\" created.\n", a.ok("", "config", "set-context", "lab", "--credentials", file))
	a.ok("", "config", "use-context", "lab")
	if text := a.ok("", "config", "view", "--raw"); !strings.Contains(text, "credentials-file: "+file) || strings.Contains(text, secretSeed) {
		t.Errorf("view:\n%s", text)
	}
	// The configuration holds no secret: others may read it.
	if err := os.Chmod(a.file, 0o644); err != nil {
		t.Fatal(err)
	}
	expect(t, "get-contexts", "*     lab   nats://127.0.0.1:1   me    \n", a.ok("", "config", "get-contexts", "--no-headers"))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if out := a.ok("", "config", "get-contexts"); !strings.Contains(out, "<cannot read "+file+">") {
		t.Errorf("get-contexts:\n%s", out)
	}
	if stderr := a.fails("", "get", "pods"); !strings.Contains(stderr, `context "lab"`) || !strings.Contains(stderr, file) {
		t.Errorf("stderr: %s", stderr)
	}
}

func TestBadConfigurationsNameFieldAndWayOut(t *testing.T) {
	a := newAlone(t)
	secret := "contexts:\n- name: x\n  credentials: " + credentialsOf("me") + "\n"
	for _, tc := range []struct {
		desc, text string
		mode       os.FileMode
		args       []string
		want       string
	}{
		{"others may read a secret", secret, 0o644, []string{"config", "view"}, `holds the secret of context "x" and others may read or write it (mode 0644): run chmod 600 ` + a.file},
		{"others may write it", secret, 0o620, []string{"get", "pods", "--context=x"}, "run chmod 600"},
		{"unknown field", "contexts:\n- name: x\n  namspace: y\n", 0o600, []string{"config", "view"}, `unknown field "contexts[0].namspace"`},
		{"a name that YAML takes for a truth", "contexts:\n- name: y\n", 0o600, []string{"config", "view"}, "cannot unmarshal bool"},
		{"no YAML", "contexts: [\n", 0o600, []string{"config", "view"}, "configuration " + a.file + ": "},
		{"another kind", "kind: Pod\n", 0o600, []string{"config", "view"}, `kind "Pod": this program reads gantry.dev/v1, Config`},
		{"twice", "contexts:\n- name: x\n- name: x\n", 0o600, []string{"config", "view"}, `contexts[1]: there are two contexts with the name "x"`},
		{"no name", "contexts:\n- namespace: x\n", 0o600, []string{"config", "view"}, "contexts[0]: a context needs a name"},
		{"both credentials", strings.Replace(secret, "name: x", "name: x\n  credentials-file: f", 1), 0o600, []string{"config", "view"}, `context "x" has credentials and credentials-file: leave one out`},
		{"no seed of a user", strings.Replace(secret, "SUA", "SAA", 1), 0o600, []string{"config", "view"}, `context "x": credentials: seed is not the secret key of a user`},
		{"seed in another place", "contexts:\n- name: x\n  credentials: " + secretSeed + "\n", 0o600, []string{"config", "view"}, "cannot unmarshal string"},
		{"no such context", secret, 0o600, []string{"get", "pods", "--context=y"}, `no context exists with the name: "y" in ` + a.file + ": it has x"},
		{"current context is gone", secret + "current-context: z\n", 0o600, []string{"get", "pods"}, `no context exists with the name: "z"`},
		{"no credentials", "contexts:\n- name: x\n", 0o600, []string{"get", "pods", "--context=x"}, `context "x" has no credentials: run gantry config set-context x --credentials=FILE`},
		{"two that say who", secret, 0o600, []string{"get", "pods", "--context=x", "--credentials=y"}, "--context and --credentials both say who you are"},
		{"use what is not there", secret, 0o600, []string{"config", "use-context", "y"}, `no context exists with the name: "y"`},
		{"rename what is not there", secret, 0o600, []string{"config", "rename-context", "y", "z"}, `no context exists with the name: "y"`},
		{"rename onto another", secret + "- name: z\n", 0o600, []string{"config", "rename-context", "x", "z"}, `the context "z" already exists`},
		{"delete what is not there", secret, 0o600, []string{"config", "delete-context", "y"}, `no context exists with the name: "y"`},
		{"show what is not there", secret, 0o600, []string{"config", "get-contexts", "y"}, `no context exists with the name: "y"`},
		{"import onto another", secret, 0o600, []string{"config", "import", "-", "--name=x"}, `context "x" exists in `},
		{"import without a name", secret, 0o600, []string{"config", "import", "-"}, "--name is needed"},
		{"set nothing", secret, 0o600, []string{"config", "set-context"}, "name a context, or use --current"},
		{"set the current of none", secret, 0o600, []string{"config", "set-context", "--current", "-n", "y"}, "no current context is set in"},
		{"set credentials that are not there", secret, 0o600, []string{"config", "set-context", "y", "--credentials=/none"}, "/none"},
		{"a table", secret, 0o600, []string{"config", "view", "-o", "wide"}, "a configuration is no table"},
		{"empty namespace", secret, 0o600, []string{"get", "pods", "--context=x", "-n", ""}, "--namespace is empty"},
	} {
		a.write(tc.text, tc.mode)
		stderr := a.fails(credentialsOf("me"), tc.args...)
		if !strings.Contains(stderr, tc.want) || strings.Contains(stderr, "KEEPTHIS") {
			t.Errorf("%s: %s, want %q", tc.desc, stderr, tc.want)
		}
		if data, err := os.ReadFile(a.file); err != nil || string(data) != tc.text {
			t.Errorf("%s: the file was changed: %v\n%s", tc.desc, err, data)
		}
	}
	if err := os.Remove(a.file); err != nil {
		t.Fatal(err)
	}
	if stderr := a.fails("", "get", "pods"); !strings.Contains(stderr, a.file+": no such file") {
		t.Errorf("a configuration that was named is not there: %s", stderr)
	}
	a.ok("", "version", "--client")
}

func TestImportTakesCredentialsOfUsersOnly(t *testing.T) {
	a := newAlone(t)
	for text, want := range map[string]string{
		`{"node":"n1","seed":"` + secretSeed + `"}`: `unknown field "node"`,
		`{"user":"x","urls":["u"]}`:                 "seed is not the secret key of a user",
		`{"user":"x","seed":"` + secretSeed + `"}`:  "urls are missing",
		`{"urls":["u"],"seed":"S"}`:                 "user is missing",
		`nonsense ` + secretSeed:                    "cannot unmarshal string",
		``:                                          "user is missing",
	} {
		stderr := a.fails(text, "config", "import", "-", "--name=x")
		if !strings.Contains(stderr, "standard input holds no credentials of a user") || !strings.Contains(stderr, want) || strings.Contains(stderr, secretSeed) {
			t.Errorf("%s: %s", text, stderr)
		}
	}
	if _, err := os.Stat(a.file); err == nil {
		t.Error("a configuration was written")
	}
}

// TestConfigIsWrittenByOneAtATime: no change is lost.
func TestConfigIsWrittenByOneAtATime(t *testing.T) {
	a := newAlone(t)
	const many = 20
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			if _, stderr, code := a.call(credentialsOf("me"), "config", "import", "-", fmt.Sprintf("--name=c%02d", i)); code != 0 {
				t.Errorf("import: %s", stderr)
			}
		})
	}
	wg.Wait()
	if got := strings.Count(a.ok("", "config", "get-contexts", "-o", "name"), "\n"); got != many {
		t.Errorf("%d contexts, want %d", got, many)
	}
}

func TestALinkedConfigurationStaysALink(t *testing.T) {
	a := newAlone(t)
	behind := filepath.Join(t.TempDir(), "real.yaml")
	if err := os.WriteFile(behind, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(a.file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(behind, a.file); err != nil {
		t.Fatal(err)
	}
	a.ok(credentialsOf("me"), "config", "import", "-", "--name=x")
	if to, err := os.Readlink(a.file); err != nil || to != behind {
		t.Errorf("link = %q, %v", to, err)
	}
	if data, err := os.ReadFile(behind); err != nil || !strings.Contains(string(data), "name: x") {
		t.Errorf("behind it: %v\n%s", err, data)
	}
}

// TestContextsSayWhereCommandsGo: which credentials win, and whose namespace.
func TestContextsSayWhereCommandsGo(t *testing.T) {
	l := newLab(t)
	a := newAlone(t)
	for _, ns := range []string{"shop", "blue"} {
		l.ok("apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n", "apply", "-f", "-")
		l.ok(strings.Replace(configMap, "settings", "in-"+ns, 1), "apply", "-n", ns, "-f", "-")
	}
	admin := l.plane.AdminCredentials()
	get := []string{"get", "cm", "-o", "name"}
	a.ok("", "config", "import", admin, "-n", "shop")
	expect(t, "name of the file", "admin\n", a.ok("", "config", "current-context"))
	expect(t, "the context's namespace", "configmap/in-shop\n", a.ok("", get...))
	expect(t, "a namespace that is named", "configmap/in-blue\n", a.ok("", append(get, "-n", "blue")...))
	a.ok("", "config", "set-context", "--current", "--namespace=blue")
	expect(t, "another namespace", "configmap/in-blue\n", a.ok("", get...))
	expect(t, "whoami", "ATTRIBUTE|VALUE\nUsername|admin", strings.Join(strings.SplitN(plain(a.ok("", "auth", "whoami")), "\n", 3)[:2], "\n"))

	// The second leads nowhere.
	a.ok(credentialsOf("me"), "config", "import", "-", "--name=nowhere", "--use")
	stderr := a.fails("", get...)
	if !strings.Contains(stderr, `context "nowhere"`) || strings.Contains(stderr, secretSeed) {
		t.Errorf("stderr: %s", stderr)
	}
	expect(t, "--context", "configmap/in-blue\n", a.ok("", append(get, "--context=admin")...))
	expect(t, "--credentials, whose namespace is the default", "configmap/in-shop\n", func() string {
		return a.ok("", append(get, "--credentials", admin, "-n", "shop")...)
	}())
	expect(t, "the context's namespace goes with its credentials", "", a.ok("", append(get, "--credentials", admin)...))
	t.Setenv("GANTRY_CREDENTIALS", admin)
	expect(t, "$GANTRY_CREDENTIALS comes before the current context", "configmap/in-shop\n", a.ok("", append(get, "-n", "shop")...))
	expect(t, "and after --context", "configmap/in-blue\n", a.ok("", append(get, "--context=admin")...))
	if _, err := bus.ReadUserCredentials(admin); err != nil {
		t.Errorf("the file that was imported: %v", err)
	}
}
