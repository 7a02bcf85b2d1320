//go:build linux

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

func jsonName(tag string) string {
	name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
	return name
}
