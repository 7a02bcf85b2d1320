//go:build linux

// Package copy carries files out of a container and into it as a tar stream,
// without a program in the container. Every path is resolved by the kernel
// within the container's root, so that nothing in it can lead anyone outside.
package copy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds how deep directories are followed: each level holds a
	// descriptor open, and the agent's are for all pods.
	maxDepth = 200
	// maxRemembered bounds what is remembered of hard links and of directories'
	// times; beyond it links become files and times are those of the copy.
	maxRemembered = 100_000
)

// within keeps a look-up below a directory without following any link: for
// what lies under the path that the user named.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// Root is the root directory of a container, seen from outside.
type Root struct{ dir *os.File }

// OpenRoot opens the root directory of a process: its own root, with all that
// is mounted there for it.
func OpenRoot(pid int) (*Root, error) {
	return openRoot(fmt.Sprintf("/proc/%d/root", pid))
}

func openRoot(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Root{os.NewFile(uintptr(fd), dir)}, nil
}

// Close lets go of the root. Copies under way are not affected.
func (r *Root) Close() error { return r.dir.Close() }

// open resolves a path as a process of the container would, links included,
// and returns it without having opened what it names (O_PATH).
func (r *Root) open(name string) (*os.File, error) {
	return openat(r.dir, name, unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// openat is openat2, tried again where a rename elsewhere confused it.
func openat(dir *os.File, name string, flags, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	var err error
	for range 64 {
		var fd int
		if fd, err = unix.Openat2(int(dir.Fd()), name, &how); err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return nil, err
}

// reopen opens what a descriptor stands for, and nothing else, for reading: no
// name is looked up again, and no device is opened to find out that it is one.
func reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func stat(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st, err
}

// kindOf words what a file is.
func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	}
	return "file of an unknown kind"
}

// explain says what an error of the kernel means for a copy.
func explain(what, name string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	var hint string
	switch errno {
	case unix.ENOENT:
		return fmt.Errorf("%s: %w in the container", name, errno)
	case unix.EROFS:
		hint = "the container's file system is read-only there"
	case unix.ELOOP, unix.EXDEV:
		hint = "a symbolic link is in the way; it is not followed"
	case unix.ENOSPC, unix.EDQUOT:
		hint = "the disk is full"
	case unix.EISDIR:
		hint = "a directory is in its place"
	case unix.ENOTDIR:
		hint = "a part of the path is no directory"
	default:
		return fmt.Errorf("%s %s: %w", what, name, errno)
	}
	return fmt.Errorf("%s %s: %s: %w", what, name, hint, errno)
}

// absolute makes a path begin at the root, whose working directory is "/".
func absolute(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%q is not a path", name)
	}
	if len(name) >= unix.PathMax {
		return "", fmt.Errorf("path of %d bytes is too long: %w", len(name), unix.ENAMETOOLONG)
	}
	// Not path.Clean: "a/../b" means something else where a is a link.
	if !strings.HasPrefix(name, "/") {
		name = "/" + name
	}
	return name, nil
}

// base is what the thing at a path is called in the stream.
func base(name string) string {
	b := path.Base(path.Clean(name))
	if b == "/" || b == ".." {
		return "."
	}
	return b
}
