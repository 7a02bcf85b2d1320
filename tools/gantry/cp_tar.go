package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// packer makes a tar stream of local files.
type packer struct {
	owner *tar.Header // whose everything becomes; nil to leave it
	warn  func(format string, args ...any)
	buf   []byte
}

func (p *packer) pack(w io.Writer, from, name string) error {
	out := tar.NewWriter(w)
	// What the user named is followed where it is a link; what lies below is not.
	root, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		return p.entry(out, file, path.Join(name, filepath.ToSlash(below)), info)
	})
	return errors.Join(err, out.Close())
}

func (p *packer) entry(out *tar.Writer, file, name string, info fs.FileInfo) error {
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		var err error
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		p.warn("%s: left out: it is no file, directory or link", file)
		return nil
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if p.owner != nil {
		h.Uid, h.Gid = p.owner.Uid, p.owner.Gid
		h.Mode = 0o644
		if info.IsDir() || info.Mode()&0o100 != 0 {
			h.Mode = 0o755
		}
	}
	if !info.Mode().IsRegular() {
		return out.WriteHeader(h)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	// Exactly what the header says, whatever becomes of the file meanwhile.
	n, err := io.CopyBuffer(onlyWriter{out}, io.LimitReader(f, h.Size), p.buf)
	if err == nil && n < h.Size {
		p.warn("%s: it shrank by %d bytes while it was read; zeros stand for them", file, h.Size-n)
		_, err = io.CopyN(out, zeros{}, h.Size-n)
	}
	return err
}

// onlyWriter keeps the tar writer from reading in pieces of its own choice.
type onlyWriter struct{ io.Writer }

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// unpack makes local files of a tar stream whose entries all lie below one
// name, that of the path they were read from. Nothing is written outside of
// the destination, whatever the stream says: the other side is not trusted.
func unpack(in io.Reader, from, to string, noPreserve bool, warn func(format string, args ...any)) error {
	t := tar.NewReader(in)
	first, err := t.Next()
	if err != nil {
		return err
	}
	base := strings.TrimSuffix(first.Name, "/")
	if base != called(from) {
		return fmt.Errorf("refuse what %s is called in the stream: %q", from, first.Name)
	}
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
		if base != "." {
			to = filepath.Join(to, base)
		}
	case err == nil && first.Typeflag == tar.TypeDir:
		return fmt.Errorf("%s is a file, and %s a directory in the container", to, from)
	case err == nil:
	case strings.HasSuffix(to, "/") && first.Typeflag != tar.TypeDir:
		return fmt.Errorf("%s: no such directory", to)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	u := &unpacker{tar: t, base: base, noPreserve: noPreserve, warn: warn, buf: make([]byte, 64<<10)}
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(to)), 0o755); err != nil {
		return err
	}
	if first.Typeflag == tar.TypeReg {
		return u.single(first, to)
	}
	if first.Typeflag != tar.TypeDir {
		return fmt.Errorf("%s is neither a file nor a directory", from)
	}
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if u.root, err = os.OpenRoot(to); err != nil {
		return err
	}
	defer func() { _ = u.root.Close() }()
	return u.directory(first)
}

// called is what the thing at a path is called in a stream. A stream that called
// it otherwise would choose what is written to in the directory here.
func called(from string) string {
	if base := path.Base(path.Clean("/" + from)); base != "/" {
		return base
	}
	return "."
}

type unpacker struct {
	tar        *tar.Reader
	base       string
	root       *os.Root
	noPreserve bool
	warn       func(format string, args ...any)
	buf        []byte
	parent     string // the directory that was found to be one last
	// dirs are directories whose time and mode are set at the end: one that
	// may not be written to still has to be filled.
	dirs []*tar.Header
}

// single writes the one file of a stream. What is there and is no file, such
// as a pipe or /dev/stdout, is written to.
func (u *unpacker) single(h *tar.Header, to string) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = io.CopyBuffer(f, u.tar, u.buf)
	}
	regular := err == nil && info.Mode().IsRegular()
	if regular && !u.noPreserve {
		err = f.Chmod(fs.FileMode(h.Mode & 0o777))
	}
	err = errors.Join(err, f.Close())
	if err == nil && regular {
		err = os.Chtimes(to, time.Time{}, h.ModTime)
	}
	return err
}

func (u *unpacker) directory(first *tar.Header) error {
	for h := first; ; {
		name, err := u.name(h.Name)
		if err != nil {
			return err
		}
		if err := u.entry(h, name); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		h, err = u.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if !u.noPreserve {
			if err := u.root.Chmod(h.Name, fs.FileMode(h.Mode&0o777)); err != nil {
				return err
			}
		}
		if err := u.root.Chtimes(h.Name, time.Time{}, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// name is an entry's below the destination.
func (u *unpacker) name(entry string) (string, error) {
	below := strings.TrimSuffix(entry, "/")
	if u.base != "." && below != u.base {
		var ok bool
		if below, ok = strings.CutPrefix(below, u.base+"/"); !ok {
			return "", fmt.Errorf("refuse entry %q: it does not lie below %q", entry, u.base)
		}
	} else if below == u.base {
		below = "."
	}
	if !fs.ValidPath(below) {
		return "", fmt.Errorf("refuse entry %q: its name may lead out of the destination", entry)
	}
	return below, nil
}

// within insists that the directories above a name are no links. What is
// written through one could not leave the destination, but a link that is made
// there could point out of it, and would not look like it.
func (u *unpacker) within(name string) error {
	parent := path.Dir(name)
	if parent == "." || parent == u.parent {
		return nil
	}
	for i := range parent + "/" {
		if i < len(parent) && parent[i] != '/' {
			continue
		}
		info, err := u.root.Lstat(parent[:i])
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is no directory", parent[:i])
		}
	}
	u.parent = parent
	return nil
}

func (u *unpacker) entry(h *tar.Header, name string) error {
	if err := u.within(name); err != nil {
		return err
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return errors.New("it is sparse: a few bytes would become as many as they like")
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err := u.root.Mkdir(name, 0o755)
		if errors.Is(err, fs.ErrExist) {
			// Lstat: a link in its place would lead the rest elsewhere.
			info, err := u.root.Lstat(name)
			if err != nil || !info.IsDir() {
				return errors.Join(err, errors.New("what is there is no directory"))
			}
			if name != "." {
				return nil // it keeps what it has
			}
		} else if err != nil {
			return err
		}
		dir := *h
		dir.Name = name
		u.dirs = append(u.dirs, &dir)
		return nil
	case tar.TypeReg:
		return u.file(h, name)
	case tar.TypeSymlink:
		return u.symlink(h, name)
	case tar.TypeLink:
		to, err := u.name(h.Linkname)
		if err != nil {
			return err
		}
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Link(to, name)
	}
	u.warn("%s: left out: it is no file, directory or link", h.Name)
	return nil
}

// clear makes room for a file or link.
func (u *unpacker) clear(name string) error {
	info, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("a directory is in its place")
	}
	return u.root.Remove(name)
}

func (u *unpacker) file(h *tar.Header, name string) error {
	if err := u.clear(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(f, u.tar, u.buf)
	if err == nil && !u.noPreserve {
		err = f.Chmod(fs.FileMode(h.Mode & 0o777))
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = u.root.Chtimes(name, time.Time{}, h.ModTime)
	}
	return err
}

// symlink makes links that stay within the destination, and leaves out the
// others: whoever follows one later would be led wherever the pod says.
func (u *unpacker) symlink(h *tar.Header, name string) error {
	if path.IsAbs(h.Linkname) || backwards(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
		u.warn("skipping symlink: %q -> %q: it leads out of the destination", h.Name, h.Linkname)
		return nil
	}
	if err := u.clear(name); err != nil {
		return err
	}
	return u.root.Symlink(h.Linkname, name)
}

// backwards says that a link goes up after it went down: over a link of the
// stream's own, that step need not be what it looks like.
func backwards(link string) bool {
	down := false
	for part := range strings.SplitSeq(link, "/") {
		switch part {
		case "", ".":
		case "..":
			if down {
				return true
			}
		default:
			down = true
		}
	}
	return false
}
