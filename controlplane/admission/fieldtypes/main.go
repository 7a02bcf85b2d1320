// Fieldtypes extracts from k8s.io/client-go how the fields of our kinds merge,
// for server-side apply. The whole of it has every version of every kind of
// Kubernetes, at ten MiB of control plane.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gantry.dev/schemas"
)

func main() {
	out := flag.String("out", "", "file to write")
	flag.Parse()
	text, err := extract()
	if err == nil {
		err = os.WriteFile(*out, []byte(text), 0o644) //nolint:gosec // source, for all to read
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fieldtypes:", err)
		os.Exit(1)
	}
}

var (
	name      = regexp.MustCompile(`(?m)^- name: (\S+)$`)
	reference = regexp.MustCompile(`namedType: (\S+)`)
)

// extract returns the types that our kinds are made of.
func extract() (string, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/client-go").Output()
	if err != nil {
		return "", fmt.Errorf("find k8s.io/client-go: %w", err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "applyconfigurations", "internal", "internal.go"))
	if err != nil {
		return "", fmt.Errorf("read the types of fields: %w", err)
	}
	_, rest, ok := strings.Cut(string(source), "`types:\n")
	all, _, closed := strings.Cut(rest, "`")
	if !ok || !closed {
		return "", fmt.Errorf("internal.go of client-go does not hold the types as it used to")
	}
	types := map[string]string{}
	starts := name.FindAllStringSubmatchIndex(all, -1)
	for i, at := range starts {
		end := len(all)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		types[all[at[2]:at[3]]] = all[at[0]:end]
	}
	var todo []string
	for _, k := range schemas.Kinds {
		group, _, _ := strings.Cut(k.GVK.Group, ".")
		if group == "" {
			group = "core"
		}
		todo = append(todo, "io.k8s.api."+group+"."+k.GVK.Version+"."+k.GVK.Kind)
	}
	used := map[string]bool{}
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		if used[next] {
			continue
		}
		text, ok := types[next]
		if !ok {
			return "", fmt.Errorf("client-go has no type %s", next)
		}
		used[next] = true
		for _, m := range reference.FindAllStringSubmatch(text, -1) {
			todo = append(todo, m[1])
		}
	}
	var b strings.Builder
	b.WriteString("# Made from k8s.io/client-go by controlplane/admission/fieldtypes; go generate makes it anew.\ntypes:\n")
	for _, n := range slices.Sorted(maps.Keys(used)) {
		b.WriteString(types[n])
	}
	return b.String(), nil
}
