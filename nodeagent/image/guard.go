package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	overlayOpaque  = "trusted.overlay.opaque"

	pathLimit = 4096
	nameLimit = 255
	linkHops  = 40
)

// guard looks at each entry of a layer before it is written. The library
// already keeps everything below the root; the guard says by name what tried
// to leave it, and bounds what a layer may cost.
type guard struct {
	root   string
	limits Limits
	budget *budget
	packed int64 // bytes of the layer as transferred; -1 where unknown

	entries int64
	bytes   int64
	taken   int64
	opaque  bool

	dirs      map[string]bool   // directories by path; true where the layer describes them
	links     map[string]string // symbolic links by path
	whiteouts map[string]string // path that was whited out: where that is on the disk
}

func newGuard(root string, l Limits, b *budget, packed int64) *guard {
	return &guard{
		root: root, limits: l, budget: b, packed: packed,
		dirs: map[string]bool{".": true}, links: map[string]string{}, whiteouts: map[string]string{},
	}
}

// refund gives back what a layer took that was not kept.
func (g *guard) refund() {
	g.budget.give(g.taken)
	g.taken = 0
}

// filter says whether the library shall write an entry. hdr.Name is clean
// already and may be changed.
func (g *guard) filter(hdr *tar.Header) (bool, error) {
	name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
	if name == "" {
		name = "."
	}
	if err := g.count(hdr); err != nil {
		return false, err
	}
	if err := g.checkName(hdr, name); err != nil {
		return false, err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo:
	case tar.TypeLink:
		if err := g.checkHardLink(hdr); err != nil {
			return false, err
		}
	case tar.TypeChar, tar.TypeBlock:
		// The runtime fills /dev itself. A device from an image could only
		// serve to reach what the container must not.
		return false, nil
	case tar.TypeXGlobalHeader:
		return false, nil
	default:
		return false, fmt.Errorf("%w: entry %q is of type %q, which layers do not have", ErrCorrupt, hdr.Name, hdr.Typeflag)
	}
	for key := range hdr.PAXRecords {
		// Overlayfs would take these as its own: redirects lead anywhere.
		if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok &&
			(strings.HasPrefix(attr, "trusted.") || strings.HasPrefix(attr, "user.overlay.")) {
			delete(hdr.PAXRecords, key)
		}
	}
	if err := g.uncover(name); err != nil {
		return false, err
	}
	g.remember(hdr, name)
	return true, nil
}

func (g *guard) count(hdr *tar.Header) error {
	if g.entries++; g.entries > g.limits.Entries {
		return fmt.Errorf("%w: it has more than %d entries, the first one too many is %q", ErrTooLarge, g.limits.Entries, hdr.Name)
	}
	if hdr.Size <= 0 {
		return nil
	}
	// The size of a sparse file is in its header only; the library would write
	// all of its holes.
	g.bytes += hdr.Size
	if g.bytes < 0 || g.bytes > g.limits.UnpackedBytes || !g.budget.take(hdr.Size) {
		if g.bytes > 0 && g.bytes <= g.limits.UnpackedBytes {
			g.taken += hdr.Size
		}
		return fmt.Errorf("%w: with %q (%s) it unpacks to more than %s", ErrTooLarge, hdr.Name, size(hdr.Size), size(g.limits.UnpackedBytes))
	}
	g.taken += hdr.Size
	if g.packed >= 0 && g.bytes > ratioFrom && g.bytes/g.limits.LayerRatio > g.packed {
		return fmt.Errorf("%w: with %q (%s) it unpacks to %s, more than %d times its %s", ErrTooLarge,
			hdr.Name, size(hdr.Size), size(g.bytes), g.limits.LayerRatio, size(g.packed))
	}
	return nil
}

func (g *guard) checkName(hdr *tar.Header, name string) error {
	if climbs(hdr.Name) {
		return fmt.Errorf("%w: entry %q leaves the root", ErrUnsafe, hdr.Name)
	}
	if len(name) >= pathLimit {
		return fmt.Errorf("%w: the path of entry %.64q… has %d bytes, at most %d are taken", ErrTooLarge, name, len(name), pathLimit-1)
	}
	if depth := strings.Count(name, "/") + 1; depth > g.limits.PathDepth {
		return fmt.Errorf("%w: entry %.64q… is %d directories deep, at most %d are taken", ErrTooLarge, name, depth, g.limits.PathDepth)
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		if len(part) > nameLimit {
			return fmt.Errorf("%w: entry %.64q… has a name of %d bytes, at most %d are taken", ErrTooLarge, name, len(part), nameLimit)
		}
		if strings.HasPrefix(part, whiteoutPrefix) && i < len(parts)-1 {
			return fmt.Errorf("%w: entry %q is inside of a whiteout", ErrCorrupt, hdr.Name)
		}
	}
	if base, ok := strings.CutPrefix(parts[len(parts)-1], whiteoutPrefix); ok && (base == "" || base == "." || base == "..") {
		return fmt.Errorf("%w: whiteout %q does not name an entry of its directory", ErrUnsafe, hdr.Name)
	}
	return g.checkParents(name, fmt.Sprintf("entry %q", hdr.Name))
}

func (g *guard) checkHardLink(hdr *tar.Header) error {
	what := fmt.Sprintf("hard link %q to %q", hdr.Name, hdr.Linkname)
	if climbs(path.Clean(hdr.Linkname)) {
		return fmt.Errorf("%w: %s leaves the root", ErrUnsafe, what)
	}
	target := strings.TrimPrefix(path.Clean("/"+hdr.Linkname), "/")
	return g.checkParents(target, what)
}

func climbs(name string) bool { return name == ".." || strings.HasPrefix(name, "../") }

// checkParents refuses a path that goes through a symbolic link of this layer
// which leads outside. A link to an absolute path means one below the image's
// root; it passes where the layer itself made that directory, as archives of
// several parts do (var/run -> /run), and is refused where it can only be
// meant for the host.
func (g *guard) checkParents(name, what string) error {
	if len(g.links) == 0 {
		return nil
	}
	todo := strings.Split(name, "/")
	todo = todo[:len(todo)-1]
	var done []string
	hops := 0
	via, absolute := "", false
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) == 0 {
				return fmt.Errorf("%w: %s goes through the symbolic link %s, which leaves the root", ErrUnsafe, what, via)
			}
			done = done[:len(done)-1]
			continue
		}
		done = append(done, part)
		at := strings.Join(done, "/")
		target, ok := g.links[at]
		if !ok {
			continue
		}
		if hops++; hops > linkHops {
			return fmt.Errorf("%w: %s goes through more than %d symbolic links", ErrUnsafe, what, linkHops)
		}
		via = fmt.Sprintf("%q -> %q", at, target)
		done = done[:len(done)-1]
		if strings.HasPrefix(target, "/") {
			done, absolute = nil, true
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	if _, made := g.dirs[orDot(strings.Join(done, "/"))]; absolute && !made {
		return fmt.Errorf("%w: %s goes through the symbolic link %s, which leaves the root", ErrUnsafe, what, via)
	}
	return nil
}

func orDot(s string) string {
	if s == "" {
		return "."
	}
	return s
}

// remember notes what the entry does to the tree.
func (g *guard) remember(hdr *tar.Header, name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := g.dirs[dir]; ok {
			break
		}
		if _, ok := g.links[dir]; ok {
			break
		}
		g.dirs[dir] = false
	}
	delete(g.links, name)
	switch {
	case strings.HasPrefix(path.Base(name), whiteoutPrefix):
		return
	case hdr.Typeflag == tar.TypeDir:
		g.dirs[name] = true
		return
	case hdr.Typeflag == tar.TypeSymlink:
		g.links[name] = hdr.Linkname
	}
	if _, was := g.dirs[name]; was {
		g.forgetBelow(name)
	}
}

// forgetBelow follows the library, which removes a directory that another kind
// of entry replaces.
func (g *guard) forgetBelow(name string) {
	for dir := range g.dirs {
		if dir == name || strings.HasPrefix(dir, name+"/") {
			delete(g.dirs, dir)
		}
	}
	for link := range g.links {
		if strings.HasPrefix(link, name+"/") {
			delete(g.links, link)
		}
	}
}

// implied returns the directories that the layer uses but does not describe.
func (g *guard) implied() []string {
	var out []string
	for dir, described := range g.dirs {
		if !described {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

// whiteout turns the archive's marks for deleted files into overlayfs' own. It
// returns whether hdr is to be written as a file. place is where it would be,
// below the root.
func (g *guard) whiteout(hdr *tar.Header, place string) (bool, error) {
	dir, base := filepath.Split(place)
	switch {
	case base == whiteoutOpaque:
		dir = filepath.Clean(dir)
		if dir == g.root {
			g.opaque = true
			return false, nil
		}
		return false, setOpaque(dir)
	case strings.HasPrefix(base, whiteoutPrefix+whiteoutPrefix):
		return false, nil // bookkeeping of aufs
	case !strings.HasPrefix(base, whiteoutPrefix):
		return true, nil
	}
	target := filepath.Join(dir, strings.TrimPrefix(base, whiteoutPrefix))
	fi, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unix.Mknod(target, unix.S_IFCHR, 0); err != nil {
			return false, fmt.Errorf("white out %q: %w", hdr.Name, err)
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		g.whiteouts[path.Join(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix))] = target
		return false, nil
	case err != nil:
		return false, err
	case fi.IsDir():
		// Deleted below and made anew here.
		return false, setOpaque(target)
	}
	return false, nil // replaced here, which hides what is below anyway
}

func setOpaque(dir string) error {
	if err := unix.Lsetxattr(dir, overlayOpaque, []byte{'y'}, 0); err != nil {
		return fmt.Errorf("set %s on %s: %w", overlayOpaque, filepath.Base(dir), err)
	}
	return nil
}

// uncover makes way for an entry inside of a directory that was whited out
// before and that no entry makes anew.
func (g *guard) uncover(name string) error {
	if len(g.whiteouts) == 0 {
		return nil
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		place, ok := g.whiteouts[dir]
		if !ok {
			continue
		}
		delete(g.whiteouts, dir)
		fi, err := os.Lstat(place)
		if err != nil {
			return err
		}
		if fi.IsDir() {
			return setOpaque(place)
		}
		if fi.Mode()&fs.ModeCharDevice == 0 {
			return nil // replaced since
		}
		if err := os.Remove(place); err != nil {
			return err
		}
		if err := os.Mkdir(place, 0o755); err != nil {
			return err
		}
		g.dirs[dir] = true // it is a new one: what lower layers say of it is void
		return setOpaque(place)
	}
	return nil
}

// finish marks directories that were made after their whiteout: what is below
// them in lower layers must stay hidden.
func (g *guard) finish() error {
	for _, place := range g.whiteouts {
		fi, err := os.Lstat(place)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if fi.IsDir() {
			if err := setOpaque(place); err != nil {
				return err
			}
		}
	}
	return nil
}
