//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/want"
)

// mounts is what could not be mounted before: what needs the new namespaces, and
// of the pod's own mounts, which may lie over any of ours, those that bind left.
func mounts(root, dev string, w want.Run) ([]*configs.Mount, error) {
	list := []*configs.Mount{
		{Source: "proc", Destination: "/proc", Device: "proc", Flags: quiet},
		{Source: dev, Destination: "/dev", Device: "bind", Flags: unix.MS_BIND | unix.MS_REC},
	}
	if cgroups.IsCgroup2UnifiedMode() {
		m := &configs.Mount{Source: "cgroup", Destination: "/sys/fs/cgroup", Device: "cgroup", Flags: quiet | unix.MS_RELATIME | unix.MS_RDONLY}
		if w.Privileged {
			m.Flags &^= unix.MS_RDONLY
		}
		list = append(list, m)
	}
	var own []*configs.Mount
	for _, m := range w.Mounts {
		cm, err := mount(m)
		if err != nil {
			return nil, because(want.InvalidMount, fmt.Errorf("mount %s: %w", m.Destination, err))
		}
		own = append(own, cm)
	}
	return append(list, bind(root, dev, own)...), nil
}

func mount(m want.Mount) (*configs.Mount, error) {
	if !filepath.IsAbs(m.Destination) {
		return nil, fmt.Errorf("destination is not absolute")
	}
	cm := &configs.Mount{Source: m.Source, Destination: filepath.Clean(m.Destination), Device: m.Type}
	var data []string
	for _, o := range m.Options {
		if f, ok := mountFlags[o]; ok {
			if f.clear {
				cm.Flags &^= f.flag
				cm.ClearedFlags |= f.flag
			} else {
				cm.Flags |= f.flag
				cm.ClearedFlags &^= f.flag
			}
		} else if p, ok := propagation[o]; ok {
			cm.PropagationFlags = append(cm.PropagationFlags, p)
		} else {
			data = append(data, o)
		}
	}
	cm.Data = strings.Join(data, ",")
	if m.Type == "bind" || m.Type == "" || cm.Flags&unix.MS_BIND != 0 {
		cm.Device = "bind"
		cm.Flags |= unix.MS_BIND
		if _, err := os.Stat(m.Source); err != nil {
			return nil, err
		}
	}
	return cm, nil
}

var mountFlags = map[string]struct {
	flag  int
	clear bool
}{
	"bind": {unix.MS_BIND, false}, "rbind": {unix.MS_BIND | unix.MS_REC, false},
	"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
	"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
	"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"noatime": {unix.MS_NOATIME, false}, "relatime": {unix.MS_RELATIME, false},
	"strictatime": {unix.MS_STRICTATIME, false},
}

var propagation = map[string]int{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
}

// hostDevices lists the device nodes in the host's /dev.
func hostDevices() ([]*devices.Device, error) {
	var out []*devices.Device
	err := filepath.WalkDir("/dev", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // gone since it was listed
		case d.IsDir() && (path == "/dev/pts" || path == "/dev/shm" || path == "/dev/mqueue"):
			return filepath.SkipDir
		case d.Type()&os.ModeDevice == 0, path == "/dev/console", path == "/dev/ptmx":
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil
		}
		kind := devices.BlockDevice
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = devices.CharDevice
		}
		out = append(out, &devices.Device{
			Path: path, FileMode: os.FileMode(st.Mode & 0o777), Uid: st.Uid, Gid: st.Gid,
			Rule: devices.Rule{
				Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
				Permissions: "rwm", Allow: true,
			},
		})
		return nil
	})
	return out, err
}

// swapAccounted tells whether swap can be limited here.
func swapAccounted() bool {
	if cgroups.IsCgroup2UnifiedMode() {
		return true // libcontainer passes over a missing file when it is to be 0
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return err == nil
}
