//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/want"
)

const quiet = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV

// premount makes /dev, beside the root, and /sys, in it, before libcontainer
// takes over, which leaves it only what needs the new PID and cgroup namespaces.
// It would do the same with some fifty system calls per mount, because it must
// expect the root to be changed under its hands; here nobody else can reach root
// yet, so it is enough to look once that its directories are no links. /dev is
// bound into place by libcontainer, which then sees no reason to fill it.
//
// It returns where the container's cgroups of v1 are, by controller, which
// libcontainer would search for.
func premount(root, dev string, w want.Run) (map[string]string, error) {
	// Modes are meant as they are written.
	defer unix.Umask(unix.Umask(0))
	for _, d := range []string{"proc", "sys"} {
		if err := plainDir(filepath.Join(root, d)); err != nil {
			return nil, err
		}
	}
	if err := premountDev(dev, w.Privileged); err != nil {
		return nil, fmt.Errorf("/dev: %w", err)
	}
	paths, err := premountSys(filepath.Join(root, "sys"), w)
	if err != nil {
		return nil, fmt.Errorf("/sys: %w", err)
	}
	return paths, nil
}

// plainDir makes path a directory; an image in which it is a link, or anything
// else, is refused rather than followed.
func plainDir(path string) error {
	if err := unix.Mkdir(path, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("/%s is not a directory in the image", filepath.Base(path))
	}
	return nil
}

func mountAt(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, target, err)
	}
	return nil
}

func premountDev(dev string, all bool) error {
	if err := unix.Mkdir(dev, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := mountAt("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME, "mode=755,size=65536k"); err != nil {
		return err
	}
	for _, m := range []struct {
		name, kind string
		flags      uintptr
		data       string
	}{
		{"pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"shm", "tmpfs", quiet, "mode=1777,size=65536k"},
		{"mqueue", "mqueue", quiet, ""},
	} {
		target := filepath.Join(dev, m.name)
		if err := unix.Mkdir(target, 0o755); err != nil {
			return err
		}
		if err := mountAt(m.name, target, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	nodes := specconv.AllowedDevices
	if all {
		host, err := hostDevices()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		nodes = append(host, nodes...)
	}
	for _, d := range nodes {
		if d.Path == "" { // a rule without a node
			continue
		}
		if err := makeNode(dev, d); err != nil {
			return fmt.Errorf("make %s: %w", d.Path, err)
		}
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "core": "/proc/kcore",
	} {
		if err := unix.Symlink(to, filepath.Join(dev, name)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

func makeNode(dev string, d *devices.Device) error {
	path := filepath.Join(dev, d.Path[len("/dev/"):])
	mode := uint32(d.FileMode.Perm())
	if d.Type == devices.BlockDevice {
		mode |= unix.S_IFBLK
	} else {
		mode |= unix.S_IFCHR
	}
	nr := int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))
	err := unix.Mknod(path, mode, nr)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = unix.Mknod(path, mode, nr)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil && (d.Uid != 0 || d.Gid != 0) {
		err = unix.Lchown(path, int(d.Uid), int(d.Gid))
	}
	return err
}

func premountSys(sys string, w want.Run) (map[string]string, error) {
	flags := uintptr(quiet | unix.MS_RDONLY)
	if w.Privileged {
		flags = quiet
	}
	if err := mountAt("sysfs", sys, "sysfs", flags, ""); err != nil {
		return nil, err
	}
	if cgroups.IsCgroup2UnifiedMode() {
		return nil, nil // in the container's cgroup namespace, so by libcontainer
	}
	return premountCgroup1(filepath.Join(sys, "fs/cgroup"), w.Cgroup, flags)
}

// premountCgroup1 shows the container its own cgroups, each where programs look
// for it.
func premountCgroup1(target, own string, flags uintptr) (map[string]string, error) {
	const host = "/sys/fs/cgroup"
	if err := mountAt("tmpfs", target, "tmpfs", quiet, "mode=755"); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(host)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	made := []string{target}
	for _, e := range entries {
		from, to := filepath.Join(host, e.Name()), filepath.Join(target, e.Name())
		if e.Type()&os.ModeSymlink != 0 { // cpu -> cpu,cpuacct
			link, err := os.Readlink(from)
			if err == nil {
				err = os.Symlink(link, to)
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		var st unix.Statfs_t
		if unix.Statfs(from, &st) != nil {
			continue
		}
		if st.Type == unix.CGROUP2_SUPER_MAGIC && e.Name() == "unified" {
			paths[""] = filepath.Join(from, own) // beside v1: joined, not shown
		}
		if st.Type != unix.CGROUP_SUPER_MAGIC {
			continue
		}
		for name := range strings.SplitSeq(e.Name(), ",") {
			if name == "systemd" {
				name = "name=systemd" // a hierarchy without a controller
			}
			paths[name] = filepath.Join(from, own)
		}
		// libcontainer will find it made.
		if err := makeCgroup(filepath.Join(from, own)); err != nil {
			return nil, err
		}
		if err := unix.Mkdir(to, 0o755); err != nil {
			return nil, err
		}
		if err := mountAt(filepath.Join(from, own), to, "bind", unix.MS_BIND, ""); err != nil {
			return nil, err
		}
		made = append(made, to)
	}
	// All of them at once, where the kernel can (5.12).
	set, _ := attributes(int(flags))
	if unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: set}) == nil {
		return paths, nil
	}
	for _, to := range made {
		if err := mountAt("", to, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// makeCgroup makes the directory, whose parents are mostly there already.
func makeCgroup(path string) error {
	err := unix.Mkdir(path, 0o755)
	if errors.Is(err, unix.ENOENT) {
		if err := makeCgroup(filepath.Dir(path)); err != nil {
			return err
		}
		err = unix.Mkdir(path, 0o755)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}
