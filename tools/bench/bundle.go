package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// editSpec makes runc's default bundle run the sample program without a
// terminal in a cgroup of ours, with the memory limit that our pod has.
func editSpec(path, cgroup string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	process, _ := spec["process"].(map[string]any)
	linux, _ := spec["linux"].(map[string]any)
	root, _ := spec["root"].(map[string]any)
	if process == nil || linux == nil || root == nil {
		return fmt.Errorf("%s has no process, linux or root", path)
	}
	process["terminal"] = false
	process["args"] = []string{"/web", "exit", "0"}
	// Raising limits needs a capability that not every machine gives.
	delete(process, "rlimits")
	root["readonly"] = false
	linux["cgroupsPath"] = cgroup
	resources, _ := linux["resources"].(map[string]any)
	if resources == nil {
		resources = map[string]any{}
		linux["resources"] = resources
	}
	resources["memory"] = map[string]any{"limit": 64 << 20}
	resources["pids"] = map[string]any{"limit": 4096}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
