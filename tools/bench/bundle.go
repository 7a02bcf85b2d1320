package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// containerCaps is the default set that both sides' programs get.
var containerCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// editSpec turns runc's default bundle into what our pod is: the sample program
// without a terminal, in a cgroup of ours, under the same limits, capabilities
// and seccomp profile.
func editSpec(path, cgroup string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if spec.Process == nil || spec.Linux == nil || spec.Root == nil {
		return fmt.Errorf("%s has no process, linux or root", path)
	}
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/web", "exit", "0"}
	spec.Process.Rlimits = nil // raising them needs a capability that not every machine gives
	spec.Process.NoNewPrivileges = false
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: containerCaps, Effective: containerCaps, Permitted: containerCaps}
	spec.Root.Readonly = false
	spec.Linux.CgroupsPath = cgroup
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	memory, pids := int64(64<<20), int64(4096)
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	if spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(&spec); err != nil {
		return fmt.Errorf("default seccomp profile: %w", err)
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
