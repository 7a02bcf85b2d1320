//go:build linux

package copy

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options are how a copy is done.
type Options struct {
	// Warn is told of what is left out or not as it was; nil for nobody. It is
	// called from the goroutine of the copy.
	Warn func(string)
}

func (o Options) warn(format string, args ...any) {
	if o.Warn != nil {
		o.Warn(fmt.Sprintf(format, args...))
	}
}

// Count is how much was copied.
type Count struct {
	Entries int64
	Bytes   int64 // of files' contents
}

// Read writes what is at a path of the container to w as a tar stream, whose
// entries are called by the path's last part. A link that the path itself ends
// in is followed, within the container; those below it are copied as links.
// Devices, FIFOs, sockets and pseudo file systems are left out with a warning.
func (r *Root) Read(ctx context.Context, name string, w io.Writer, o Options) (Count, error) {
	at, err := absolute(name)
	if err != nil {
		return Count{}, err
	}
	f, err := r.open(at)
	if err != nil {
		return Count{}, explain("read", name, err)
	}
	defer func() { _ = f.Close() }()
	out := &reader{ctx: ctx, o: o, tar: tar.NewWriter(w), links: map[inode]string{}, buf: make([]byte, 64<<10)}
	st, err := stat(f)
	if err != nil {
		return Count{}, explain("read", name, err)
	}
	if m := st.Mode & unix.S_IFMT; m != unix.S_IFREG && m != unix.S_IFDIR {
		return Count{}, fmt.Errorf("read %s: it is a %s: only files, directories and links are copied", name, kindOf(st.Mode))
	}
	if pseudo(f) {
		// The agent would read it with rights that the container may not have.
		return Count{}, fmt.Errorf("read %s: it lies in a file system of the kernel's own, with no files in it", name)
	}
	if err := out.entry(f, nil, base(name), 0); err != nil {
		return out.count, r.result(ctx, err)
	}
	// Before the end of the stream, so that no reader takes half for all.
	if err := r.result(ctx, nil); err != nil {
		return out.count, err
	}
	if err := out.tar.Close(); err != nil {
		return out.count, fmt.Errorf("read %s: %w", name, err)
	}
	return out.count, nil
}

type inode struct{ dev, ino uint64 }

// reader is one copy out of a container.
type reader struct {
	ctx   context.Context
	o     Options
	tar   *tar.Writer
	links map[inode]string // what files with several names were called first
	kept  memory
	count Count
	buf   []byte
}

// entry writes the thing that f, opened as a path only, stands for. parent is
// where it lies; nil for the first. What cannot be read is left out with a
// warning, but for the first: an error ends the copy.
func (r *reader) entry(f, parent *os.File, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	st, err := stat(f)
	if err != nil {
		return r.skip(parent, name, err)
	}
	h := header(&st, name)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return r.file(f, parent, h, &st)
	case unix.S_IFDIR:
		return r.directory(f, parent, h, depth)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		// Of the descriptor, so that it cannot be another one's by now.
		n, err := unix.Readlinkat(int(f.Fd()), "", r.buf[:unix.PathMax])
		if err != nil {
			return r.skip(parent, name, err)
		}
		h.Linkname = string(r.buf[:n])
		return r.head(h)
	}
	r.o.warn("%s: left out: it is a %s", name, kindOf(st.Mode))
	return nil
}

// skip leaves out one thing below the first.
func (r *reader) skip(parent *os.File, name string, err error) error {
	if parent == nil {
		return explain("read", name, err)
	}
	if !errors.Is(err, unix.ENOENT) { // removed meanwhile: it is not there
		r.o.warn("%s: left out: %v", name, err)
	}
	return nil
}

func header(st *unix.Stat_t, name string) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	}
	return h
}

func (r *reader) head(h *tar.Header) error {
	r.count.Entries++
	if err := r.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("read %s: %w", h.Name, err)
	}
	return nil
}

func (r *reader) file(f, parent *os.File, h *tar.Header, st *unix.Stat_t) error {
	id := inode{st.Dev, st.Ino}
	if st.Nlink > 1 {
		if first, ok := r.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return r.head(h)
		}
	}
	content, err := reopen(f, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		content, err = reopen(f, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	if err != nil {
		return r.skip(parent, h.Name, err)
	}
	defer func() { _ = content.Close() }()
	if st.Nlink > 1 && r.kept.holds(h.Name) {
		r.links[id] = h.Name
	}
	if err := r.head(h); err != nil {
		return err
	}
	return r.content(content, h)
}

// content writes exactly as many bytes as the header says: what was added
// meanwhile is left out, and what was taken away is made up for with zeros, as
// tar does.
func (r *reader) content(f *os.File, h *tar.Header) error {
	for left := h.Size; left > 0; {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(r.buf[:min(int64(len(r.buf)), left)])
		if n > 0 {
			if _, err := r.tar.Write(r.buf[:n]); err != nil {
				return fmt.Errorf("read %s: %w", h.Name, err)
			}
			r.count.Bytes += int64(n)
			left -= int64(n)
			continue
		}
		switch {
		case errors.Is(err, io.EOF):
			r.o.warn("%s: it shrank by %d bytes while it was read; zeros stand for them", h.Name, left)
		case err != nil:
			r.o.warn("%s: %v after %d bytes; zeros stand for the rest", h.Name, err, h.Size-left)
		}
		return r.pad(left)
	}
	return nil
}

func (r *reader) pad(left int64) error {
	clear(r.buf)
	for left > 0 {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		n, err := r.tar.Write(r.buf[:min(int64(len(r.buf)), left)])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func (r *reader) directory(f, parent *os.File, h *tar.Header, depth int) error {
	if depth >= maxDepth {
		return fmt.Errorf("read %s: directories are nested deeper than %d levels", h.Name, maxDepth)
	}
	if parent != nil && pseudo(f) {
		r.o.warn("%s: left out: it is a file system of the kernel's own, with no files in it", h.Name)
		return nil
	}
	dir, err := openat(f, ".", unix.O_RDONLY|unix.O_DIRECTORY, within)
	if err != nil {
		return r.skip(parent, h.Name, err)
	}
	defer func() { _ = dir.Close() }()
	h.Typeflag = tar.TypeDir
	here := h.Name
	h.Name += "/"
	if err := r.head(h); err != nil {
		return err
	}
	for {
		// Some at a time: nobody knows how many there are.
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := r.child(dir, name, path.Join(here, name), depth); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return r.skip(dir, here, err)
		}
	}
}

func (r *reader) child(dir *os.File, name, full string, depth int) error {
	f, err := openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return r.skip(dir, full, err)
	}
	defer func() { _ = f.Close() }()
	return r.entry(f, dir, full, depth+1)
}

// pseudo says that a directory is of the kernel's own making: its files have
// no size, no end, or an effect when they are read.
func pseudo(f *os.File) bool {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return false
}
