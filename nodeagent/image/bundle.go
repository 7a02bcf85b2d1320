package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// bundle is files by name: a layout directory, or an archive of one.
type bundle interface {
	// size and open fail with fs.ErrNotExist where there is no such file.
	size(name string) (int64, error)
	open(name string) (io.ReadCloser, error)
	close()
}

func (s *Store) openBundle(ctx context.Context, path string) (bundle, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, err
		}
		return dirBundle{root}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := s.openArchive(ctx, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return b, nil
}

// dirBundle never leaves its directory, whatever links are in it.
type dirBundle struct{ root *os.Root }

func (d dirBundle) size(name string) (int64, error) {
	fi, err := d.root.Stat(name)
	if err != nil {
		return 0, err
	}
	if !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: %s is not a file", ErrCorrupt, name)
	}
	return fi.Size(), nil
}

func (d dirBundle) open(name string) (io.ReadCloser, error) { return d.root.Open(name) }
func (d dirBundle) close()                                  { _ = d.root.Close() }

// tarBundle knows where each file is in the archive, so none is read twice.
type tarBundle struct {
	file  *os.File
	where map[string]extent
	links map[string]string
}

type extent struct{ at, size int64 }

// openArchive takes f over. A packed archive is unpacked to a file first: one
// cannot jump in it.
func (s *Store) openArchive(ctx context.Context, f *os.File) (bundle, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, fmt.Errorf("%w: it is not an archive", ErrCorrupt)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	packed := (head[0] == 0x1f && head[1] == 0x8b) || string(head) == "\x28\xb5\x2f\xfd"
	if packed {
		plain, err := s.inflate(ctx, f)
		if err != nil {
			return nil, err
		}
		_ = f.Close()
		f = plain
	}
	b, err := indexArchive(f, s.opt.Limits)
	if err != nil && packed {
		_ = f.Close()
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// inflate writes the plain archive to a file that has no name any more, so
// nothing is left of it whatever happens.
func (s *Store) inflate(ctx context.Context, f *os.File) (_ *os.File, err error) {
	out, err := os.CreateTemp(s.path("tmp"), "archive-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = out.Close()
		}
	}()
	if err := os.Remove(out.Name()); err != nil {
		return nil, err
	}
	counted := &countReader{inner: f}
	plain, closer, err := decompress(counted)
	if err != nil {
		return nil, err
	}
	defer closer()
	buf := make([]byte, chunkSize)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, rerr := fill(plain, buf)
		total += int64(n)
		if err := checkRatio(total, counted.n, s.opt.Limits); err != nil {
			return nil, err
		}
		if _, err := out.Write(buf[:n]); err != nil {
			return nil, err
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return nil, rerr
		}
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return out, nil
}

type countReader struct {
	inner io.Reader
	n     int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.inner.Read(p)
	c.n += int64(n)
	return n, err
}

func indexArchive(f *os.File, limits Limits) (*tarBundle, error) {
	b := &tarBundle{file: f, where: map[string]extent{}, links: map[string]string{}}
	tr := tar.NewReader(f)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: it is not a readable archive: %w", ErrCorrupt, err)
		}
		if int64(len(b.where)+len(b.links)) >= limits.Entries {
			return nil, fmt.Errorf("%w: the archive has more than %d entries", ErrTooLarge, limits.Entries)
		}
		name := path.Clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			if _, sparse := hdr.PAXRecords["GNU.sparse.major"]; sparse {
				return nil, fmt.Errorf("%w: entry %q is sparse", ErrCorrupt, hdr.Name)
			}
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			b.where[name] = extent{at, hdr.Size}
		case tar.TypeSymlink:
			// Old docker archives share layers by links such as ../<id>/layer.tar.
			b.links[name] = path.Join(path.Dir(name), hdr.Linkname)
		case tar.TypeLink:
			b.links[name] = path.Clean(hdr.Linkname)
		}
	}
}

func (b *tarBundle) find(name string) (extent, error) {
	at := path.Clean(name)
	for range linkHops {
		if e, ok := b.where[at]; ok {
			return e, nil
		}
		next, ok := b.links[at]
		if !ok {
			return extent{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		at = next
	}
	return extent{}, errors.New("links of " + name + " lead in a circle")
}

func (b *tarBundle) size(name string) (int64, error) {
	e, err := b.find(name)
	return e.size, err
}

func (b *tarBundle) open(name string) (io.ReadCloser, error) {
	e, err := b.find(name)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bufio.NewReaderSize(io.NewSectionReader(b.file, e.at, e.size), 64<<10)), nil
}

func (b *tarBundle) close() { _ = b.file.Close() }
