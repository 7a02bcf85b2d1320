package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "gantry.dev"

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// packages lists the packages of this module with what they import.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", "seccomp", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages: the rules below would hold of nothing", len(all))
	}
	return all
}

func under(path string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool {
		return path == module+"/"+d || strings.HasPrefix(path, module+"/"+d+"/")
	})
}

// TestImportsPointOneWay: tools -> {controlplane, nodeagent} -> {bus,
// netfilter} -> schemas.
func TestImportsPointOneWay(t *testing.T) {
	for _, rule := range []struct {
		from, to []string
		reason   string
	}{
		{[]string{"schemas"}, []string{"bus", "netfilter", "controlplane", "nodeagent", "tools"},
			"schemas is the vocabulary: everyone imports it and it imports nobody"},
		{[]string{"bus", "netfilter"}, []string{"controlplane", "nodeagent", "tools"},
			"the bus and the packet rules know nothing of who uses them"},
		{[]string{"netfilter"}, []string{"bus"},
			"a ruleset is a value: where its input came from must not matter"},
		{[]string{"bus"}, []string{"netfilter"},
			"the bus carries records and knows nothing of packets"},
		{[]string{"controlplane"}, []string{"nodeagent", "netfilter", "tools"},
			"the two planes share records, never code: each can be replaced alone"},
		{[]string{"nodeagent"}, []string{"controlplane", "tools"},
			"the two planes share records, never code: each can be replaced alone"},
	} {
		for _, p := range packages(t) {
			if !under(p.ImportPath, rule.from...) {
				continue
			}
			for _, imported := range p.Imports {
				if under(imported, rule.to...) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imported, rule.reason)
				}
			}
		}
	}
}

// TestSystemLibrariesHaveOneImporter: a library that reaches the kernel, the
// bus or a registry is imported by one package, so that its quirks are known
// in one place and a fake can stand in for it.
func TestSystemLibrariesHaveOneImporter(t *testing.T) {
	for _, rule := range []struct {
		library  string
		importer []string
	}{
		{"github.com/nats-io/", []string{"bus"}},
		{"github.com/opencontainers/runc/", []string{"nodeagent/runtime/launcher"}},
		{"github.com/opencontainers/cgroups", []string{"nodeagent/runtime/launcher"}},
		{"github.com/google/nftables", []string{"netfilter/kernel"}},
		{"github.com/vishvananda/netlink", []string{"nodeagent/network"}},
		// The registry and the sample images are tools that serve and make what
		// the image store then reads through its own importer.
		{"github.com/google/go-containerregistry/", []string{"nodeagent/image", "tools/images", "tools/registry"}},
		{"github.com/containerd/containerd/", []string{"nodeagent/image"}},
	} {
		found := false
		for _, p := range packages(t) {
			for _, imported := range p.Imports {
				if !strings.HasPrefix(imported, rule.library) {
					continue
				}
				if under(p.ImportPath, rule.importer...) {
					found = true
				} else {
					t.Errorf("%s imports %s: only %s may", p.ImportPath, imported, strings.Join(rule.importer, ", "))
				}
			}
		}
		if !found {
			t.Errorf("nobody imports %s: the rule is out of date", rule.library)
		}
	}
}

// TestSmallBinariesStaySmall: the shim lives once for each pod and the launcher
// is executed for each container, so what they link is paid for each time.
func TestSmallBinariesStaySmall(t *testing.T) {
	for binary, forbidden := range map[string][]string{
		"nodeagent/runtime/shim": {"net/http", "encoding/json", "fmt", "github.com/"},
		// libcontainer itself brings fmt, encoding/json and logrus.
		"nodeagent/runtime/launcher": {"github.com/nats-io/", "github.com/google/", "k8s.io/", "github.com/miekg/"},
	} {
		out, err := exec.Command("go", "list", "-tags", "seccomp", "-deps", module+"/"+binary).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", binary, err)
		}
		for dep := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
			for _, f := range forbidden {
				// The types package holds three string types and weighs nothing.
				if strings.HasPrefix(dep, f) && dep != "k8s.io/apimachinery/pkg/types" {
					t.Errorf("%s links %s: it would weigh on every pod", binary, dep)
				}
			}
		}
	}
}
