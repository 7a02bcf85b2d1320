//go:build linux

package copy

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var day = time.Unix(1_700_000_000, 0)

// world is a container's root in a directory, beside a secret that is not in it.
type world struct {
	*testing.T
	dir  string // the root
	root *Root
	said []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root (CI does)")
	}
	host := t.TempDir()
	w := &world{T: t, dir: filepath.Join(host, "root")}
	w.must(os.Mkdir(w.dir, 0o755))
	w.must(os.WriteFile(filepath.Join(host, "secret"), []byte("the host's secret"), 0o600))
	var err error
	w.root, err = openRoot(w.dir)
	w.must(err)
	t.Cleanup(func() { _ = w.root.Close() })
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) at(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) {
	w.Helper()
	w.must(os.MkdirAll(filepath.Dir(w.at(name)), 0o755))
	w.must(os.WriteFile(w.at(name), []byte(content), 0o644))
}

func (w *world) options() Options {
	w.said = nil
	return Options{Warn: func(s string) { w.said = append(w.said, s) }}
}

// thing is one entry of a stream.
type thing struct {
	Kind     byte
	Mode     int64
	Uid, Gid int
	Time     int64
	Link     string
	Content  string
}

func (w *world) read(name string) (map[string]thing, error) {
	w.Helper()
	var buf bytes.Buffer
	count, err := w.root.Read(w.Context(), name, &buf, w.options())
	if err != nil {
		return nil, err
	}
	out, bytes := map[string]thing{}, int64(0)
	for t := tar.NewReader(&buf); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		w.must(err)
		content, err := io.ReadAll(t)
		w.must(err)
		bytes += int64(len(content))
		out[h.Name] = thing{h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), h.Linkname, string(content)}
	}
	if count.Entries != int64(len(out)) || count.Bytes != bytes {
		w.Errorf("counted %+v for %d entries with %d bytes", count, len(out), bytes)
	}
	return out, nil
}

// pack makes a stream of headers; what a file holds is in its PAX comment.
func pack(t testing.TB, headers ...tar.Header) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		content := h.PAXRecords["comment"]
		h.PAXRecords = nil
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.ModTime = day
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil && h.Size > 0 {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, PAXRecords: map[string]string{"comment": content}}
}

func TestThereAndBack(t *testing.T) {
	w := newWorld(t)
	w.write("src/sub/file", "text")
	w.must(os.Chown(w.at("src/sub/file"), 1234, 567))
	w.must(os.Chmod(w.at("src/sub/file"), 0o750|os.ModeSetuid))
	w.must(os.Link(w.at("src/sub/file"), w.at("src/sub/same")))
	w.must(os.Symlink("/etc/anything", w.at("src/link")))
	w.must(os.Lchown(w.at("src/link"), 12, 34))
	w.must(os.Mkdir(w.at("src/empty"), 0o511))
	w.must(unix.Mkfifo(w.at("src/fifo"), 0o666))
	w.must(unix.Mknod(w.at("src/dev"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	for _, name := range []string{"src/sub/file", "src/sub", "src/empty", "src"} {
		w.must(os.Chtimes(w.at(name), day, day))
	}
	w.must(unix.Lutimes(w.at("src/link"), []unix.Timeval{{Sec: day.Unix()}, {Sec: day.Unix()}}))

	want := map[string]thing{
		"src/":       {tar.TypeDir, 0o755, 0, 0, day.Unix(), "", ""},
		"src/sub/":   {tar.TypeDir, 0o755, 0, 0, day.Unix(), "", ""},
		"src/empty/": {tar.TypeDir, 0o511, 0, 0, day.Unix(), "", ""},
		"src/link":   {tar.TypeSymlink, 0o777, 12, 34, day.Unix(), "/etc/anything", ""},
	}
	check := func(got map[string]thing, prefix string) {
		t.Helper()
		// Which of two names comes first is the file system's choice.
		a, b := got[prefix+"src/sub/file"], got[prefix+"src/sub/same"]
		if a.Kind == tar.TypeLink {
			a, b = b, a
		}
		full := thing{tar.TypeReg, 0o4750, 1234, 567, day.Unix(), "", "text"}
		if a != full || b.Kind != tar.TypeLink || !strings.HasPrefix(b.Link, prefix+"src/sub/") {
			t.Errorf("two names of one file: %+v, %+v", a, b)
		}
		rest := map[string]thing{}
		for name, th := range got {
			if !strings.HasPrefix(name, prefix+"src/sub/") || name == prefix+"src/sub/" {
				rest[strings.TrimPrefix(name, prefix)] = th
			}
		}
		delete(rest, "")
		if diff := cmp.Diff(want, rest); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	got, err := w.read("/src")
	w.must(err)
	check(got, "")
	if len(w.said) != 2 || !strings.Contains(strings.Join(w.said, "\n"), "src/fifo: left out: it is a FIFO") ||
		!strings.Contains(strings.Join(w.said, "\n"), "src/dev: left out: it is a device") {
		t.Errorf("said %q", w.said)
	}

	var stream bytes.Buffer
	_, err = w.root.Read(t.Context(), "src", &stream, Options{}) // relative: to the root
	w.must(err)
	w.must(os.Mkdir(w.at("dst"), 0o755))
	count, err := w.root.Write(t.Context(), "/dst", &stream, w.options())
	w.must(err)
	if count.Entries != 6 || count.Bytes != 4 || len(w.said) > 0 {
		t.Errorf("counted %+v, said %q", count, w.said)
	}
	again, err := w.read("/dst")
	w.must(err)
	delete(again, "dst/")
	check(again, "dst/")
}

func TestReadFollowsWithinTheRootOnly(t *testing.T) {
	w := newWorld(t)
	w.write("inside", "inside")
	w.write("secret", "the container's own")
	for link, to := range map[string]string{
		"absolute": "/inside", "up": "../../../../secret", "updir": "../..", "host": "/proc/1/root", "loop": "loop",
		"dir/deep": "../../inside",
	} {
		w.must(os.MkdirAll(filepath.Dir(w.at(link)), 0o755))
		w.must(os.Symlink(to, w.at(link)))
	}
	for name, want := range map[string]string{
		"absolute": "inside", "up": "the container's own", "updir/secret": "the container's own",
		"../../../secret": "the container's own", "dir/deep": "inside", "/dir/../inside": "inside",
	} {
		got, err := w.read(name)
		w.must(err)
		th, ok := got[base(name)]
		if !ok || th.Content != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, says := range map[string]string{
		"host": "no such file", "loop": "symbolic link", "none": "none: no such file or directory in the container",
		"inside/x": "no directory", "": "not a path", "a\x00b": "not a path", strings.Repeat("x/", 4000): "too long",
	} {
		if got, err := w.read(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.20q: want %q: %v, %v", name, says, got, err)
		}
	}
}

// TestMagicLinks: the links of /proc lead anywhere, whoever reads them.
func TestMagicLinks(t *testing.T) {
	w := newWorld(t)
	w.must(os.Mkdir(w.at("proc"), 0o755))
	w.must(unix.Mount("proc", w.at("proc"), "proc", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(w.at("proc"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mine := fmt.Sprintf("/proc/%d/", os.Getpid()) // whose links the reader may follow
	w.must(os.Symlink(mine+"root/etc", w.at("etc")))
	for _, name := range []string{mine + "root", mine + "root/etc/hostname", "/proc/self/cwd", "etc", "/proc/thread-self/fd/0"} {
		if _, err := w.read(name); !errors.Is(err, unix.ELOOP) {
			t.Errorf("read %s: %v", name, err)
		}
		if _, err := w.root.Write(t.Context(), name, pack(t, file("planted", "x")), Options{}); !errors.Is(err, unix.ELOOP) {
			t.Errorf("write %s: %v", name, err)
		}
	}
	got, err := w.read("/")
	w.must(err)
	if _, ok := got["./"]; !ok || len(got) != 2 || !strings.Contains(strings.Join(w.said, ""), "proc: left out") {
		t.Errorf("read /: %v, said %q", got, w.said)
	}
}

func TestReadRefuses(t *testing.T) {
	w := newWorld(t)
	w.must(unix.Mkfifo(w.at("fifo"), 0o666))
	w.must(unix.Mknod(w.at("dev"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	deep := "deep"
	for range maxDepth + 1 {
		deep += "/d"
	}
	w.must(os.MkdirAll(w.at(deep), 0o755))
	for name, says := range map[string]string{
		"fifo": "it is a FIFO", "dev": "it is a device", "deep": "nested deeper than 200 levels",
	} {
		if _, err := w.read(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: want %q: %v", name, says, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.write("file", "x")
	if _, err := w.root.Read(ctx, "file", io.Discard, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// swap calls change while a copy runs: when it comes to the first byte.
type swap struct {
	io.Writer
	once   sync.Once
	change func()
}

func (s *swap) Write(b []byte) (int, error) {
	s.once.Do(s.change)
	return s.Writer.Write(b)
}

func TestFileThatChangesWhileItIsRead(t *testing.T) {
	for desc, tt := range map[string]struct {
		size int64
		says string
		want string
	}{
		"grows":   {2 << 20, "", strings.Repeat("x", 1<<20)},
		"shrinks": {1 << 10, "it shrank by", strings.Repeat("x", 1<<10) + strings.Repeat("\x00", 1<<20-1<<10)},
	} {
		t.Run(desc, func(t *testing.T) {
			w := newWorld(t)
			w.write("file", strings.Repeat("x", 1<<20))
			w.write("next", "next")
			var buf bytes.Buffer
			out := &swap{Writer: &buf, change: func() { w.must(os.Truncate(w.at("file"), tt.size)) }}
			_, err := w.root.Read(t.Context(), "/file", out, w.options())
			w.must(err)
			r := tar.NewReader(&buf)
			h, err := r.Next()
			w.must(err)
			content, err := io.ReadAll(r)
			w.must(err)
			if h.Size != 1<<20 || string(content) != tt.want {
				t.Errorf("%d bytes, said %q", len(content), w.said)
			}
			if got := strings.Join(w.said, "\n"); (tt.says == "") != (got == "") || !strings.Contains(got, tt.says) {
				t.Errorf("said %q, want %q", got, tt.says)
			}
		})
	}
}

// TestSwappedForLinks has a process of the container put links to the host
// where files and directories are, over and over, while they are copied. What
// comes out is never what lies outside.
func TestSwappedForLinks(t *testing.T) {
	w := newWorld(t)
	w.write("src/dir/secret", "ours")
	w.write("src/secret", "ours")
	outside := filepath.Dir(w.dir)
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// What fails is of no matter: some of it has to succeed.
			_ = os.Symlink(outside, w.at("src/evil"))
			_ = unix.Renameat2(unix.AT_FDCWD, w.at("src/dir"), unix.AT_FDCWD, w.at("src/evil"), unix.RENAME_EXCHANGE)
			_ = os.Symlink(filepath.Join(outside, "secret"), w.at("src/evil2"))
			_ = unix.Renameat2(unix.AT_FDCWD, w.at("src/secret"), unix.AT_FDCWD, w.at("src/evil2"), unix.RENAME_EXCHANGE)
		}
	})
	plain := 0
	for i := range 300 {
		got, err := w.read("/src")
		w.must(err)
		for name, th := range got {
			if strings.Contains(th.Content, "host") {
				t.Fatalf("%s holds what lies outside", name)
			}
			if th.Content == "ours" {
				plain++
			}
		}
		_, err = w.root.Write(t.Context(), "/src", pack(t, file("dir/planted", fmt.Sprint(i)), file("secret", "planted")), Options{})
		if err != nil && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) {
			t.Fatal(err)
		}
		if i%10 == 0 { // the write above replaced it
			w.write("fresh", "ours")
			w.must(os.Rename(w.at("fresh"), w.at("src/secret")))
		}
	}
	close(stop)
	swapper.Wait()
	if plain == 0 {
		t.Error("nothing was ever read")
	}
	if _, err := os.Lstat(filepath.Join(outside, "planted")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written outside: %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(data) != "the host's secret" {
		t.Errorf("what lies outside is now %q, %v", data, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	for desc, tt := range map[string]struct {
		headers []tar.Header
		says    string
	}{
		"up":                     {[]tar.Header{file("../planted", "x")}, "leads out of the destination"},
		"up in the middle":       {[]tar.Header{file("a/../../planted", "x")}, "leads out of the destination"},
		"absolute":               {[]tar.Header{file("/planted", "x")}, "begins at the root"},
		"over its own link":      {[]tar.Header{link("out", "/"), file("out/planted", "x")}, "symbolic link is in the way"},
		"over a link up":         {[]tar.Header{link("out", ".."), file("out/planted", "x")}, "symbolic link is in the way"},
		"directory over a link":  {[]tar.Header{link("out", "/"), dir("out")}, "symbolic link is in the way"},
		"over a link there":      {[]tar.Header{file("there/planted", "x")}, "symbolic link is in the way"},
		"hard link up":           {[]tar.Header{hard("h", "../../secret")}, "leads out of the destination"},
		"hard link over a link":  {[]tar.Header{link("out", "/"), hard("h", "out/outside")}, "symbolic link is in the way"},
		"hard link to nothing":   {[]tar.Header{hard("h", "none")}, "no such file"},
		"hard link to directory": {[]tar.Header{hard("h", ".")}, "a hard link to a directory"},
		"file over directory":    {[]tar.Header{dir("d"), file("d", "x")}, "a directory is in its place"},
		"link over directory":    {[]tar.Header{dir("d"), link("d", "x")}, "a directory is in its place"},
		"directory over file":    {[]tar.Header{file("f", "x"), dir("f")}, "no directory"},
		"deep":                   {[]tar.Header{file(strings.Repeat("d/", maxDepth)+"f", "x")}, "nested deeper"},
	} {
		t.Run(desc, func(t *testing.T) {
			w := newWorld(t)
			w.write("outside", "kept")
			w.must(os.Mkdir(w.at("dst"), 0o755))
			w.must(os.Symlink("/", w.at("dst/there")))
			_, err := w.root.Write(t.Context(), "/dst", pack(t, tt.headers...), Options{})
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("want %q: %v", tt.says, err)
			}
			for _, name := range []string{"planted", "../planted", "h"} {
				if _, err := os.Lstat(w.at(name)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is there: %v", name, err)
				}
			}
			w.noTemporaries("dst")
		})
	}
}

func (w *world) noTemporaries(dir string) {
	w.Helper()
	w.must(filepath.WalkDir(w.at(dir), func(path string, _ os.DirEntry, err error) error {
		if strings.Contains(path, ".gantry-") {
			w.Errorf("left behind: %s", path)
		}
		return err
	}))
}

func TestWriteReplaces(t *testing.T) {
	w := newWorld(t)
	w.write("dst/file", "old")
	w.write("elsewhere", "kept")
	w.must(os.Link(w.at("dst/file"), w.at("dst/second")))
	w.must(os.Symlink("/elsewhere", w.at("dst/link")))
	w.must(unix.Mkfifo(w.at("dst/fifo"), 0o666))
	w.must(os.Mkdir(w.at("dst/dir"), 0o700))
	count, err := w.root.Write(t.Context(), "/dst", pack(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o777}, file("file", "new"), file("link", "no link"), file("fifo", "no fifo"),
		tar.Header{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o777, Uid: 5}, file("made/on/the/way", "x"),
		tar.Header{Typeflag: tar.TypeLink, Name: "third", Linkname: "file"}, tar.Header{Typeflag: tar.TypeLink, Name: "third", Linkname: "file"},
		tar.Header{Typeflag: tar.TypeFifo, Name: "another"},
	), w.options())
	w.must(err)
	got := map[string]string{}
	for _, name := range []string{"dst/file", "dst/second", "dst/link", "dst/fifo", "dst/third", "elsewhere", "dst/made/on/the/way"} {
		data, err := os.ReadFile(w.at(name))
		w.must(err)
		got[name] = string(data)
	}
	want := map[string]string{"dst/file": "new", "dst/second": "old", "dst/link": "no link", "dst/fifo": "no fifo", "dst/third": "new",
		"elsewhere": "kept", "dst/made/on/the/way": "x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, mode := range map[string]os.FileMode{"dst": 0o755, "dst/dir": 0o700} {
		info, err := os.Stat(w.at(name))
		w.must(err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s was there and is now %v", name, info.Mode())
		}
	}
	if count.Entries != 7 || len(w.said) != 1 || !strings.Contains(w.said[0], "another: left out") {
		t.Errorf("counted %+v, said %q", count, w.said)
	}
	w.noTemporaries("dst")
}

func TestWriteOfABrokenStream(t *testing.T) {
	var whole bytes.Buffer
	if _, err := io.Copy(&whole, pack(t, file("file", strings.Repeat("x", 10_000)))); err != nil {
		t.Fatal(err)
	}
	for desc, tt := range map[string]struct {
		stream string
		says   string
	}{
		"cut short":  {whole.String()[:5000], "unexpected EOF"},
		"no tar":     {strings.Repeat("no tar at all ", 100), "invalid tar header"},
		"half block": {whole.String()[:100], "unexpected EOF"},
	} {
		t.Run(desc, func(t *testing.T) {
			w := newWorld(t)
			w.must(os.Mkdir(w.at("dst"), 0o755))
			if _, err := w.root.Write(t.Context(), "dst", strings.NewReader(tt.stream), Options{}); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("want %q: %v", tt.says, err)
			}
			left, err := os.ReadDir(w.at("dst"))
			w.must(err)
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// block is one entry of a tar stream, made by hand: what Go does not write.
func block(name string, kind byte, body string) string {
	h := make([]byte, 512)
	copy(h, name)
	for at, text := range map[int]string{100: "0000644", 108: "0000000", 116: "0000000", 124: fmt.Sprintf("%011o", len(body)), 136: "00000000000", 148: "        ", 257: "ustar\x0000"} {
		copy(h[at:], text)
	}
	h[156] = kind
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(h) + body + strings.Repeat("\x00", (512-len(body)%512)%512)
}

// TestSparseEntries: a kilobyte of stream that stands for a terabyte of zeros
// fills no disk.
func TestSparseEntries(t *testing.T) {
	records := ""
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=bomb", "GNU.sparse.realsize=1099511627776"} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r)
	}
	stream := block("pax", tar.TypeXHeader, records) + block("bomb", tar.TypeReg, "1\n1099511627775\n1\n"+strings.Repeat("\x00", 512-18)+"x") + strings.Repeat("\x00", 1024)
	h, err := tar.NewReader(strings.NewReader(stream)).Next()
	if err != nil || h.Size != 1<<40 {
		t.Fatalf("the stream is not what it is meant to be: %+v, %v", h, err)
	}
	w := newWorld(t)
	w.must(os.Mkdir(w.at("dst"), 0o755))
	if _, err := w.root.Write(t.Context(), "dst", strings.NewReader(stream), Options{}); err == nil || !strings.Contains(err.Error(), `refuse entry "bomb": it is sparse`) {
		t.Errorf("it was taken: %v", err)
	}
	if left, err := os.ReadDir(w.at("dst")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestWriteWhereItCannot(t *testing.T) {
	w := newWorld(t)
	w.write("file", "x")
	w.must(os.Mkdir(w.at("ro"), 0o755))
	w.must(unix.Mount("tmpfs", w.at("ro"), "tmpfs", unix.MS_RDONLY, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(w.at("ro"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w.must(os.Mkdir(w.at("small"), 0o755))
	w.must(unix.Mount("tmpfs", w.at("small"), "tmpfs", 0, "size=64k"))
	t.Cleanup(func() {
		if err := unix.Unmount(w.at("small"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for name, says := range map[string]string{
		"none": "none: no such file or directory in the container", "file": "it is a file, not a directory",
		"ro": "the container's file system is read-only there", "small": "the disk is full",
	} {
		_, err := w.root.Write(t.Context(), name, pack(t, file("planted", strings.Repeat("x", 100_000))), Options{})
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: want %q: %v", name, says, err)
		}
	}
	w.noTemporaries("small")
}

// TestKernelFileSystemsAreNotRead: the agent would read there with its own
// rights, whoever the container runs as.
func TestKernelFileSystemsAreNotRead(t *testing.T) {
	root, err := OpenRoot(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	for _, name := range []string{"/proc", "/proc/version", "/sys/kernel"} {
		if _, err := root.Read(t.Context(), name, io.Discard, Options{}); err == nil || !strings.Contains(err.Error(), "of the kernel's own") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestContainerEndsUnderACopy: what is mounted into a container goes away with
// it, and what is written there then is lost. Neither may look like a success.
func TestContainerEndsUnderACopy(t *testing.T) {
	w := newWorld(t)
	w.write("src/file", "text")
	open := func() (root *Root, end func()) {
		cmd := exec.Command("cat")
		in, err := cmd.StdinPipe()
		w.must(err)
		w.must(cmd.Start())
		root, err = OpenRoot(cmd.Process.Pid)
		w.must(err)
		end = sync.OnceFunc(func() {
			_ = in.Close()
			w.must(cmd.Wait())
		})
		t.Cleanup(func() {
			end()
			w.must(root.Close())
		})
		return root, end
	}
	var stream bytes.Buffer
	root, end := open()
	if _, err := root.Read(t.Context(), w.at("src"), &stream, Options{}); err != nil || root.Ended() {
		t.Errorf("while it lives: %v", err)
	}
	end()
	out := bytes.Buffer{}
	if _, err := root.Read(t.Context(), w.at("src"), &out, Options{}); !errors.Is(err, ErrEnded) {
		t.Errorf("read: %v", err)
	}
	if bytes.HasSuffix(out.Bytes(), make([]byte, 1024)) {
		t.Error("the stream looks complete")
	}
	w.must(os.Mkdir(w.at("dst"), 0o755))
	root, end = open()
	in := readerFunc(func(b []byte) (int, error) { end(); return stream.Read(b) })
	if _, err := root.Write(t.Context(), w.at("dst"), in, Options{}); !errors.Is(err, ErrEnded) {
		t.Errorf("write: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// TestMemoryOfNamesIsBounded: a container can give a million files two names of
// 50 KiB each, and the agent is for all pods.
func TestMemoryOfNamesIsBounded(t *testing.T) {
	var m memory
	held, long := 0, strings.Repeat("n", 50<<10)
	for range 100_000 {
		if m.holds(long) {
			held += len(long)
		}
	}
	if held == 0 || held > maxRemembered {
		t.Errorf("%d bytes of names are held", held)
	}
	w := newWorld(t)
	w.write("one", "x")
	w.must(os.Link(w.at("one"), w.at("two")))
	var buf bytes.Buffer
	r := &reader{ctx: t.Context(), tar: tar.NewWriter(&buf), links: map[inode]string{}, buf: make([]byte, 64<<10), kept: maxRemembered}
	w.must(r.entry(w.root.dir, nil, ".", 0))
	w.must(r.tar.Close())
	for in := tar.NewReader(&buf); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		w.must(err)
		if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeReg && h.Size != 1 {
			t.Errorf("%s: type %c with %d bytes, want the file itself", h.Name, h.Typeflag, h.Size)
		}
	}
}
