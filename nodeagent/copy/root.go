//go:build linux

// Package copy carries files out of a container and into it as a tar stream,
// without a program in the container. Every path is resolved by the kernel
// within the container's root, so that nothing in it can lead anyone outside.
package copy

import (
	"context"
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
	// maxRemembered bounds, in bytes of names, what is remembered of hard links
	// and of directories' times; beyond it links become files and times are those
	// of the copy. A name has up to 50 KiB, so counting names would not do.
	maxRemembered = 16 << 20
	// nameCost is what remembering a name takes beside its bytes.
	nameCost = 100
)

// memory is what one copy remembers.
type memory int

// holds says whether there is room to remember a name, and takes it.
func (m *memory) holds(name string) bool {
	cost := memory(len(name) + nameCost)
	if *m+cost > maxRemembered {
		return false
	}
	*m += cost
	return true
}

// ErrEnded is the error of a copy whose container ended under it. What is
// mounted into a container goes with it, so the copy may lack whole directories,
// and what was written may be nobody's any more.
var ErrEnded = errors.New("the container ended while its files were copied")

// within keeps a look-up below a directory without following any link: for
// what lies under the path that the user named.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// Root is the root directory of a container, seen from outside.
type Root struct {
	dir     *os.File
	process *os.File // whose root it is, as a pidfd; nil for a directory of anybody's
}

// OpenRoot opens the root directory of a process: its own root, with all that
// is mounted there for it.
func OpenRoot(pid int) (*Root, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(fd), "process")
	r, err := openRoot(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		_ = process.Close()
		return nil, err
	}
	r.process = process
	return r, nil
}

// Ended says that the process has ended. While it has not, its number was no
// other's since OpenRoot.
func (r *Root) Ended() bool {
	if r.process == nil {
		return false
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(r.process.Fd()), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}

// result is the error of a copy that ended with err.
func (r *Root) result(ctx context.Context, err error) error {
	if ctx.Err() == nil && r.Ended() {
		return ErrEnded
	}
	return err
}

func openRoot(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir)}, nil
}

// Close lets go of the root. Copies under way are not affected.
func (r *Root) Close() error {
	err := r.dir.Close()
	if r.process != nil {
		err = errors.Join(err, r.process.Close())
	}
	return err
}

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
