package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// look is what a directory looks like from outside.
type look struct {
	mode     uint32
	uid, gid uint32
}

// plain is what the library gives a directory that no entry describes.
var plain = look{mode: 0o755}

// settle makes the stack of directories that overlayfs takes out of layers
// that were each unpacked alone, lowest first:
//   - A layer that comes twice stays where it is highest. Overlayfs refuses
//     doubles, and the lower one cannot show through the higher one.
//   - Below an opaque root nothing counts.
//   - A directory that a layer uses without describing it keeps the look that
//     layers below gave it: overlayfs shows that of the highest. So such a
//     layer gets a variant whose files are hard links, which costs no space.
//
// Variants are pinned and their names appended to pinned.
func (s *Store) settle(layers []layer, pinned *[]string) (_ []layer, err error) {
	stack := distinct(layers)
	for i, l := range stack {
		looks := map[string]look{}
		for _, dir := range l.Implied {
			_, _, hides := lookIn(s.layerPath(l.Name), path.Dir(dir))
			if hides {
				continue
			}
			if have, found := s.lookBelow(stack[:i], dir); found && have != plain {
				looks[dir] = have
			}
		}
		if len(looks) == 0 {
			continue
		}
		name := variantName(l, looks)
		s.pin(name)
		*pinned = append(*pinned, name)
		if stack[i], err = s.variant(l, name, looks); err != nil {
			return nil, err
		}
	}
	return stack, nil
}

func distinct(layers []layer) []layer {
	var out []layer
	for i, l := range layers {
		if l.Opaque {
			out = nil
		}
		last := true
		for _, higher := range layers[i+1:] {
			last = last && higher.Name != l.Name
		}
		if last {
			out = append(out, l)
		}
	}
	return out
}

// lookBelow finds how the layers below show a directory.
func (s *Store) lookBelow(below []layer, dir string) (look, bool) {
	for i := len(below) - 1; i >= 0; i-- {
		l, found, hides := lookIn(s.layerPath(below[i].Name), dir)
		if found || hides {
			return l, found
		}
	}
	return look{}, false
}

// lookIn looks for a directory in one layer; hides means that layers below do
// not count. Links are not followed.
func lookIn(root, dir string) (l look, found, hides bool) {
	at := root
	if dir == "." {
		return l, true, false
	}
	for part := range strings.SplitSeq(dir, "/") {
		at = filepath.Join(at, part)
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return look{}, false, hides
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return look{}, false, true
		}
		var value [1]byte
		if n, err := unix.Lgetxattr(at, overlayOpaque, value[:]); err == nil && n == 1 && value[0] == 'y' {
			hides = true
		}
		l = look{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid}
	}
	return l, true, hides
}

// variantName follows from the looks, so images share variants too.
func variantName(l layer, looks map[string]look) string {
	h := sha256.New()
	for _, dir := range l.Implied { // sorted
		if k, ok := looks[dir]; ok {
			_, _ = fmt.Fprintf(h, "%q %o %d %d\n", dir, k.mode, k.uid, k.gid)
		}
	}
	return layerName(l.DiffID) + "-" + hex.EncodeToString(h.Sum(nil))[:16]
}

// variant returns a layer with the same files where some directories look
// different.
func (s *Store) variant(l layer, name string, looks map[string]look) (layer, error) {
	if have, ok := s.known(name); ok {
		return have, nil
	}
	v := l
	v.Name = name
	v.Size = 0 // hard links
	tmp, err := os.MkdirTemp(s.path("tmp"), "variant-")
	if err != nil {
		return layer{}, err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // emptied again at the next Open
	root := filepath.Join(tmp, "root")
	if err := linkTree(s.layerPath(l.Name), root); err != nil {
		return layer{}, fmt.Errorf("copy layer %s: %w", l.DiffID, err)
	}
	for dir, k := range looks {
		if err := setLook(root, dir, k); err != nil {
			return layer{}, fmt.Errorf("copy layer %s: %w", l.DiffID, err)
		}
	}
	return v, s.keep(root, v)
}

func setLook(root, dir string, k look) error {
	at := filepath.Join(root, filepath.FromSlash(dir))
	if _, found, _ := lookIn(root, dir); !found {
		return nil // the path went through a link, or was replaced later
	}
	if err := os.Lchown(at, int(k.uid), int(k.gid)); err != nil {
		return err
	}
	return unix.Chmod(at, k.mode)
}

// linkTree copies directories and links everything else.
func linkTree(from, to string) error {
	type stamp struct {
		path string
		at   time.Time
	}
	var dirs []stamp
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if !d.IsDir() {
			return os.Link(p, target)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		dirs = append(dirs, stamp{target, info.ModTime()})
		return copyDir(p, target)
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := os.Chtimes(dirs[i].path, dirs[i].at, dirs[i].at); err != nil {
			return err
		}
	}
	return nil
}

func copyDir(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, names)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return err
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		vn, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("read %s of %s: %w", name, path.Base(from), err)
		}
		if err := unix.Lsetxattr(to, name, value[:vn], 0); err != nil {
			return fmt.Errorf("set %s on %s: %w", name, path.Base(from), err)
		}
	}
	return nil
}
