//go:build linux

package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runc/libcontainer/configs"

	"gantry.dev/nodeagent/runtime/want"
)

// leftOut are the orders that this launcher never gives, with the reason.
var leftOut = map[string]string{
	"console_width":      "the shim sets the size",
	"console_height":     "the shim sets the size",
	"passed_files_count": "no descriptor but the first three is passed on",
	"apparmor_profile":   "not supported",
	"process_label":      "not supported",
	"rlimits":            "the command gets ours",
	"io_priority":        "not supported",
	"scheduler":          "not supported",
	"cpu_affinity":       "for commands that join",
	"network":            "the agent makes it",
	"spec_state":         "for hooks, of which there are none",
}

// TestOrders holds our orders against libcontainer's own type: a version of it
// that renames or adds one must not be taken without being read.
func TestOrders(t *testing.T) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/opencontainers/runc/libcontainer").Output()
	if err != nil {
		t.Fatalf("find libcontainer: %v", err)
	}
	path := filepath.Join(strings.TrimSpace(string(dir)), "init_linux.go")
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := map[string]bool{}, map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "initConfig" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			theirs[jsonName(strings.Trim(f.Tag.Value, "`"))] = true
		}
		return false
	})
	for f := range reflect.TypeFor[orders]().Fields() {
		ours[jsonName(string(f.Tag))] = true
	}
	for name := range leftOut {
		ours[name] = true
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("libcontainer's orders and ours (-theirs +ours):\n%s", diff)
	}
}

// TestRoot holds what we pass on of a configuration against the whole: nothing
// that configure or mounts set may be lost on the way.
func TestRoot(t *testing.T) {
	for _, w := range []want.Run{
		{Cgroup: "/a/b"},
		{Container: want.Container{Privileged: true}},
		{Container: want.Container{ReadonlyRootfs: true, NoNewPrivileges: true, CapDrop: []string{"ALL"}}},
		{Container: want.Container{CapAdd: []string{"NET_ADMIN"}, Mounts: []want.Mount{
			{Type: "tmpfs", Source: "tmpfs", Destination: "/t", Options: []string{"nosuid", "size=1m"}},
			{Type: "bind", Source: "/", Destination: "/b", Options: []string{"rbind", "rslave", "ro", "dev"}},
		}}},
	} {
		whole, err := configure("/root", w)
		if err != nil {
			t.Fatal(err)
		}
		if whole.Mounts, err = mounts("/root", "/dev", w); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(orders{Config: rootOf(whole)})
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Config configs.Config `json:"config"`
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		want := *whole
		want.Cgroups, want.OomScoreAdj = nil, nil // settle's
		if diff := cmp.Diff(want, got.Config, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("configuration (-whole +passed on):\n%s", diff)
		}
	}
}

func jsonName(tag string) string {
	name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
	return name
}
