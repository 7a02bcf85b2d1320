//go:build linux

package copy

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Write unpacks a tar stream into a directory of the container, which must be
// there. A file replaces another as a whole or not at all; directories that are
// there keep their owner and mode. An entry that would leave the directory, by
// its name or over a symbolic link, ends the copy; devices, FIFOs and sockets
// are left out with a warning.
func (r *Root) Write(ctx context.Context, name string, in io.Reader, o Options) (Count, error) {
	at, err := absolute(name)
	if err != nil {
		return Count{}, err
	}
	f, err := r.open(at)
	if err != nil {
		return Count{}, explain("write to", name, err)
	}
	defer func() { _ = f.Close() }()
	st, err := stat(f)
	if err != nil {
		return Count{}, explain("write to", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Count{}, fmt.Errorf("write to %s: it is a %s, not a directory", name, kindOf(st.Mode))
	}
	w := &writer{ctx: ctx, o: o, dest: f, buf: make([]byte, 64<<10)}
	defer w.leave()
	err = w.all(tar.NewReader(in))
	return w.count, r.result(ctx, err)
}

// writer is one copy into a container.
type writer struct {
	ctx   context.Context
	o     Options
	dest  *os.File
	count Count
	buf   []byte
	// at is the directory that was written to last, called atName.
	at     *os.File
	atName string
	dirs   []dirTime
	kept   memory
}

// dirTime is a directory whose time is set when nothing is put in it any more.
type dirTime struct {
	name string
	time unix.Timespec
}

func (w *writer) all(t *tar.Reader) error {
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the tar stream: %w", err)
		}
		name, err := clean(h.Name)
		if err != nil {
			return err
		}
		if err := w.entry(h, name, t); err != nil {
			return err
		}
	}
	// Innermost first, though the order does not matter: setting a time changes
	// no other one.
	for i := len(w.dirs) - 1; i >= 0; i-- {
		w.setDirTime(w.dirs[i])
	}
	return nil
}

// clean refuses names that lead out of the destination.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("refuse entry %q: its name holds a NUL byte", name)
	}
	if strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("refuse entry %q: its name begins at the root", name)
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "..":
			return "", fmt.Errorf("refuse entry %q: its name leads out of the destination", name)
		case "", ".":
		default:
			depth++
		}
	}
	if depth > maxDepth {
		return "", fmt.Errorf("refuse entry %q: directories are nested deeper than %d levels", name, maxDepth)
	}
	return path.Clean(name), nil
}

func (w *writer) entry(h *tar.Header, name string, content io.Reader) error {
	if name == "." {
		return nil // the destination itself stays as it is
	}
	if sparse(h) {
		return fmt.Errorf("refuse entry %q: it is sparse: a few bytes of stream would become as many of disk as they like", name)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		w.o.warn("%s: left out: it is a device or FIFO", name)
		return nil
	default:
		w.o.warn("%s: left out: a tar entry of type %q", name, h.Typeflag)
		return nil
	}
	dir, err := w.enter(path.Dir(name))
	if err != nil {
		return explain("write", name, err)
	}
	last := path.Base(name)
	switch h.Typeflag {
	case tar.TypeDir:
		err = w.directory(dir, last, name, h)
	case tar.TypeSymlink:
		err = w.symlink(dir, last, h)
	case tar.TypeLink:
		err = w.hardLink(dir, last, h)
	default:
		err = w.file(dir, last, h, content)
	}
	if err != nil {
		return explain("write", name, err)
	}
	w.count.Entries++
	return nil
}

// sparse says that what is read of an entry is more than what was sent.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// enter returns a directory below the destination, which is made where it is
// missing. It stays open until another one is entered.
func (w *writer) enter(name string) (*os.File, error) {
	if w.at != nil && w.atName == name {
		return w.at, nil
	}
	f, err := openat(w.dest, name, unix.O_RDONLY|unix.O_DIRECTORY, within)
	if errors.Is(err, unix.ENOENT) {
		f, err = w.makeDirs(name)
	}
	if err != nil {
		return nil, err
	}
	w.leave()
	w.at, w.atName = f, name
	return f, nil
}

func (w *writer) leave() {
	if w.at != nil {
		_ = w.at.Close()
		w.at = nil
	}
}

// makeDirs makes the directories of a path that the stream does not speak of.
func (w *writer) makeDirs(name string) (*os.File, error) {
	dir, err := openat(w.dest, ".", unix.O_RDONLY|unix.O_DIRECTORY, within)
	if err != nil {
		return nil, err
	}
	for part := range strings.SplitSeq(name, "/") {
		err := unix.Mkdirat(int(dir.Fd()), part, 0o755)
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
		var next *os.File
		if err == nil {
			next, err = openat(dir, part, unix.O_RDONLY|unix.O_DIRECTORY, within)
		}
		_ = dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

func (w *writer) directory(dir *os.File, last, name string, h *tar.Header) error {
	err := unix.Mkdirat(int(dir.Fd()), last, 0o700)
	if errors.Is(err, unix.EEXIST) {
		f, err := openat(dir, last, unix.O_PATH|unix.O_DIRECTORY, within)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err != nil {
		return err
	}
	f, err := openat(dir, last, unix.O_RDONLY|unix.O_DIRECTORY, within)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// What a process of the container may have put into its place is not given
	// away: only what still looks as it was made.
	st, err := stat(f)
	if err != nil || st.Mode&0o7777&^unix.S_ISGID != 0o700 || st.Uid != uint32(os.Geteuid()) {
		return errors.Join(err, errors.New("somebody else put something into its place"))
	}
	if w.kept.holds(name) {
		w.dirs = append(w.dirs, dirTime{name, timespec(h)})
	}
	return owned(f, h)
}

// owned gives an open file its owner and mode. The mode comes second: a change
// of owner takes away the bits that let it run as that owner.
func owned(f *os.File, h *tar.Header) error {
	if err := unix.Fchown(int(f.Fd()), h.Uid, h.Gid); err != nil {
		return err
	}
	return unix.Fchmod(int(f.Fd()), uint32(h.Mode&0o7777))
}

func timespec(h *tar.Header) unix.Timespec {
	t, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return t
}

func (w *writer) setDirTime(d dirTime) {
	f, err := openat(w.dest, d.name, unix.O_PATH|unix.O_DIRECTORY, within)
	if err != nil {
		return // moved away since
	}
	defer func() { _ = f.Close() }()
	if err := setTime(f, d.time); err != nil {
		w.o.warn("%s: its time could not be set: %v", d.name, err)
	}
}

func setTime(f *os.File, t unix.Timespec) error {
	return unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{t, t}, unix.AT_EMPTY_PATH)
}

// temporary is a name that nothing in the directory has.
func temporary() string { return ".gantry-" + rand.Text() }

// file writes under another name and renames: whoever reads the file sees the
// old or the new one, and a copy that breaks off leaves nothing.
func (w *writer) file(dir *os.File, last string, h *tar.Header, content io.Reader) error {
	if err := refuseDirectory(dir, last); err != nil {
		return err
	}
	tmp := temporary()
	fd, err := unix.Openat(int(dir.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), last)
	err = w.fill(f, content)
	if err == nil {
		err = owned(f, h)
	}
	if err == nil {
		err = setTime(f, timespec(h))
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), tmp, int(dir.Fd()), last)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), tmp, 0)
		if errors.Is(err, unix.EBUSY) {
			return errors.New("it is mounted into the container and cannot be replaced")
		}
	}
	return err
}

func (w *writer) fill(f *os.File, content io.Reader) error {
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		n, err := content.Read(w.buf)
		if n > 0 {
			if _, err := f.Write(w.buf[:n]); err != nil {
				return err
			}
			w.count.Bytes += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the tar stream: %w", err)
		}
	}
}

// refuseDirectory makes of a rename's odd errors a clear one.
func refuseDirectory(dir *os.File, last string) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), last, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	return nil
}

// place puts what make makes under a temporary name into its place.
func place(dir *os.File, last string, make func(tmp string) error) error {
	if err := refuseDirectory(dir, last); err != nil {
		return err
	}
	tmp := temporary()
	if err := make(tmp); err != nil {
		return err
	}
	if err := unix.Renameat(int(dir.Fd()), tmp, int(dir.Fd()), last); err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), tmp, 0)
		return err
	}
	// Two names of one file: the rename does nothing and leaves both.
	if err := unix.Unlinkat(int(dir.Fd()), tmp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (w *writer) symlink(dir *os.File, last string, h *tar.Header) error {
	return place(dir, last, func(tmp string) error {
		if err := unix.Symlinkat(h.Linkname, int(dir.Fd()), tmp); err != nil {
			return err
		}
		f, err := openat(dir, tmp, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		st, err := stat(f)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return errors.Join(err, errors.New("somebody else put something into its place"))
		}
		err = unix.Fchownat(int(f.Fd()), "", h.Uid, h.Gid, unix.AT_EMPTY_PATH)
		return errors.Join(err, setTime(f, timespec(h)))
	})
}

// hardLink gives a second name to what the stream, or the destination, has.
func (w *writer) hardLink(dir *os.File, last string, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return err
	}
	if target == "." {
		return errors.New("a hard link to a directory")
	}
	from, err := openat(w.dest, path.Dir(target), unix.O_PATH|unix.O_DIRECTORY, within)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", target, err)
	}
	defer func() { _ = from.Close() }()
	return place(dir, last, func(tmp string) error {
		if err := unix.Linkat(int(from.Fd()), path.Base(target), int(dir.Fd()), tmp, 0); err != nil {
			return fmt.Errorf("hard link to %s: %w", target, err)
		}
		return nil
	})
}
