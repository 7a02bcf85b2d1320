//go:build linux

package main

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// errElsewhere says that a mount has to wait for one that libcontainer makes.
var errElsewhere = errors.New("destination is not there yet")

// bind makes the bind mounts at the head of the list and returns the rest for
// libcontainer, which needs some fifty system calls for each, in the process
// that is to become the container. Mounts are left to it from the first on that
// is of another kind or fails here, whatever the reason: order matters, and its
// errors are as good as ours. So this needs no way around old kernels.
//
// Destinations are resolved by the kernel with root as /, links of the image
// and of volumes included, and held open from then on: who can write to a
// volume that is already mounted cannot lead a later mount out of the root.
func bind(root, dev string, list []*configs.Mount) []*configs.Mount {
	if len(list) == 0 {
		return nil
	}
	trees := map[string]int{}
	for _, path := range []string{root, dev} {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return list
		}
		defer func() { _ = unix.Close(fd) }()
		trees[path] = fd
	}
	for i, m := range list {
		if m.Device != "bind" || m.Data != "" {
			return list[i:]
		}
		// /dev is put into the root by libcontainer, with what is mounted in it.
		tree, path := trees[root], m.Destination
		if p, ok := strings.CutPrefix(path, "/dev/"); ok {
			tree, path = trees[dev], p
		}
		if bindOne(tree, path, m) != nil {
			return list[i:]
		}
	}
	return nil
}

func bindOne(tree int, path string, m *configs.Mount) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if m.Flags&unix.MS_REC != 0 {
		flags |= unix.AT_RECURSIVE
	}
	source, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(source) }()
	if err := setAttributes(source, m); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	target, err := openTarget(tree, path, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(target) }()
	if err := checkTarget(tree, target); err != nil {
		return err
	}
	return unix.MoveMount(source, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// setAttributes gives the mounts of a tree their propagation and, where the
// order has an opinion on flags, its top exactly the flags of the order.
func setAttributes(tree int, m *configs.Mount) error {
	for _, p := range m.PropagationFlags {
		flags := uint(unix.AT_EMPTY_PATH)
		if p&unix.MS_REC != 0 {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", flags, &unix.MountAttr{Propagation: uint64(p &^ unix.MS_REC)}); err != nil {
			return err
		}
	}
	if m.Flags&^(unix.MS_BIND|unix.MS_REC) == 0 && m.ClearedFlags == 0 {
		return nil
	}
	set, atime := attributes(m.Flags)
	clr := uint64(unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC) &^ set
	if atime {
		clr |= unix.MOUNT_ATTR__ATIME
	}
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: set, Attr_clr: clr})
}

// attributes translates flags of mount(2) to those of mount_setattr(2), and
// tells whether they speak of access times.
func attributes(flags int) (set uint64, atime bool) {
	for _, f := range []struct {
		flag int
		attr uint64
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME}, {unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME},
	} {
		if flags&f.flag != 0 {
			set |= f.attr
		}
	}
	return set, flags&(unix.MS_NOATIME|unix.MS_STRICTATIME|unix.MS_RELATIME) != 0
}

// checkTarget refuses a place that is about to be covered by a mount that
// libcontainer makes, and the top of the tree.
func checkTarget(tree, target int) error {
	top, err := pathOf(tree)
	if err != nil {
		return err
	}
	path, err := pathOf(target)
	if err != nil {
		return err
	}
	rest, ok := strings.CutPrefix(path, top+"/")
	if !ok {
		return errElsewhere
	}
	covered := []string{"proc", "dev"}
	if cgroups.IsCgroup2UnifiedMode() {
		covered = append(covered, "sys/fs/cgroup")
	}
	for _, c := range covered {
		if rest == c || strings.HasPrefix(rest, c+"/") {
			return errElsewhere
		}
	}
	return nil
}

func pathOf(fd int) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), buf[:])
	return string(buf[:n]), err
}

// openTarget opens path below tree, made if it is missing: a directory or an
// empty file.
func openTarget(tree int, path string, dir bool) (int, error) {
	fd, err := openBelow(tree, path)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, name := filepath.Split(strings.Trim(path, "/"))
	if name == "" {
		return -1, err
	}
	at, err := openTarget(tree, "/"+parent, true)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(at) }()
	if dir {
		err = unix.Mkdirat(at, name, 0o755)
	} else {
		var file int
		file, err = unix.Openat(at, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err == nil {
			_ = unix.Close(file)
		}
	}
	// A link to nowhere is there and cannot be opened; that is the end of it.
	if err != nil {
		return -1, err
	}
	return openBelow(tree, path)
}

func openBelow(tree int, path string) (int, error) {
	return unix.Openat2(tree, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}
