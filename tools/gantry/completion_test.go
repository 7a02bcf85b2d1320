package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// offered asks for what the shell offers, as the shell does.
func offered(out string) []string {
	var words []string
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, ":") {
			break // the directive
		}
		word, _, _ := strings.Cut(line, "\t")
		words = append(words, word)
	}
	return words
}

func TestCompletionOffersWhatThereIs(t *testing.T) {
	l := newLab(t)
	l.ok("apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n", "apply", "-f", "-")
	l.ok(configMap+"---\n"+strings.Replace(configMap, "settings", "more", 1), "apply", "-f", "-")
	l.ok(strings.Replace(configMap, "settings", "elsewhere", 1), "apply", "-n", "other", "-f", "-")
	l.ok(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"two"},"spec":{"containers":[{"name":"a","image":"x"},{"name":"b","image":"x"}]}}`, "apply", "-f", "-")
	l.ok(deployment, "apply", "-f", "-")
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "contexts:\n- {name: home, credentials-file: " + l.plane.AdminCredentials() + ", namespace: other}\n- {name: work}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GANTRY_CONFIG", file)
	for _, tc := range []struct {
		args string // the last word is what was typed so far
		want string
	}{
		{"get conf|", "configmaps"},
		{"get cm |", "more settings"},
		{"get cm settings |", "more"},
		{"get cm s|", "settings"},
		{"get cm/|", "cm/more cm/settings"},
		{"get cm/more lea|", "leases/"},
		{"get pods,conf|", "pods,configmaps"},
		{"get cm -n other |", "elsewhere"},
		{"get cm --context=home |", ""}, // with --credentials it contradicts itself
		{"get things |", ""},
		{"describe ns o|", "other"},
		{"delete deploy |", "web"},
		{"get cm -n o|", "other"},
		{"get cm -o custom|", "custom-columns= custom-columns-file="},
		{"get deploy web --subresource=s|", "--subresource=status --subresource=scale"},
		{"logs t|", "two"},
		{"logs deploy|", ""},
		{"logs deploy/|", "deploy/web"},
		{"logs two |", "a b"},
		{"logs two -c |", "a b"},
		{"logs deploy/web -c |", "web"},
		{"wait --for c|", "condition= create"},
		{"wait --for=delete cm |", "more settings"},
		{"events --for pods/t|", "pods/two"},
		{"events --types=W|", "--types=Warning"},
		{"rollout status deployments/|", "deployments/web"},
		{"scale depl|", "deployments"},
		{"config use-context |", "home work"},
		{"config use-context home |", ""},
		{"get cm --context w|", "work"},
		{"explain pods.spec.containers.imageP|", "pods.spec.containers.imagePullPolicy"},
		{"explain lea|", "leases"},
		{"get secr|", ""}, // refused: there are none
		{"explain secr|", "secrets"},
		{"conf|", "config"},
		{"apply -f |", "json yaml yml"},
	} {
		line := strings.TrimSuffix(tc.args, "|")
		words := strings.Split(line, " ")
		var want []string
		if tc.want != "" {
			want = strings.Split(tc.want, " ")
		}
		got := offered(l.ok("", append([]string{"__complete"}, words...)...))
		for i, w := range got {
			// Words that stand behind an = are completed with what is before it.
			if strings.HasPrefix(tc.want, "--") {
				got[i] = words[len(words)-1][:strings.Index(words[len(words)-1], "=")+1] + w
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.args, diff)
		}
	}
}

// TestCompletionWithoutAServer offers nothing.
func TestCompletionWithoutAServer(t *testing.T) {
	a := newAlone(t)
	a.ok(credentialsOf("me"), "config", "import", "-", "--name=gone")
	if got := offered(a.ok("", "__complete", "get", "pods", "")); len(got) > 0 {
		t.Errorf("offered %q", got)
	}
	if got := offered(a.ok("", "__complete", "get", "po")); len(got) != 2 {
		t.Errorf("kinds need no server: %q", got)
	}
}

func TestCompletionScripts(t *testing.T) {
	a := newAlone(t)
	for shell, want := range map[string]string{
		"bash": "complete -o default -F __start_gantry gantry", "zsh": "#compdef gantry", "fish": "complete -c gantry", "powershell": "Register-ArgumentCompleter -CommandName 'gantry'",
	} {
		if out := a.ok("", "completion", shell); !strings.Contains(out, want) {
			t.Errorf("completion %s lacks %q", shell, want)
		}
	}
	// The script is one that bash can read.
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(a.ok("", "completion", "bash"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash: %v\n%s", err, out)
	}
}
