package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestPlaces(t *testing.T) {
	for spec, want := range map[string]place{
		"file":               {"", "", "file"},
		"/tmp/a:b":           {"", "", "/tmp/a:b"},
		"./a:b":              {"", "", "./a:b"},
		"../a:b":             {"", "", "../a:b"},
		"web:/tmp":           {"", "web", "/tmp"},
		"web:tmp/a:b":        {"", "web", "tmp/a:b"},
		"shop/web:/tmp":      {"shop", "web", "/tmp"},
		"/web:/tmp":          {"", "", "/web:/tmp"},
		"shop/web/x:/tmp":    {},
		":/tmp":              {},
		"web:":               {},
		"":                   {},
		"shop/:/tmp":         {"", "shop", "/tmp"},
		"web.example:/a b c": {"", "web.example", "/a b c"},
	} {
		got, err := readPlace(spec)
		if want == (place{}) {
			if err == nil {
				t.Errorf("%q was read as %+v", spec, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", spec, got, err, want)
		}
	}
}

func TestPorts(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
		{Name: "http", ContainerPort: 8080}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
	}}}}}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "front"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{
		{Name: "web", Port: 80, TargetPort: intstr.FromString("http")}, {Name: "plain", Port: 81},
		{Name: "number", Port: 82, TargetPort: intstr.FromInt32(9000)}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
		{Name: "lost", Port: 83, TargetPort: intstr.FromString("none")},
	}}}
	headless := service.DeepCopy()
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	for _, tt := range []struct {
		spec    string
		service *corev1.Service
		want    forwarded
		says    string
	}{
		{"8080", nil, forwarded{8080, 8080}, ""},
		{"9000:8080", nil, forwarded{9000, 8080}, ""},
		{":8080", nil, forwarded{0, 8080}, ""},
		{"0:8080", nil, forwarded{0, 8080}, ""},
		{"http", nil, forwarded{8080, 8080}, ""},
		{":http", nil, forwarded{0, 8080}, ""},
		{"80", service, forwarded{80, 8080}, ""},
		{"web", service, forwarded{80, 8080}, ""},
		{"7:plain", service, forwarded{7, 81}, ""},
		{"82", service, forwarded{82, 9000}, ""},
		{"82", headless, forwarded{82, 82}, ""},
		{"dns", nil, forwarded{}, `pod web does not have a named port "dns"`},
		{"53", service, forwarded{}, "only TCP is forwarded"},
		{"83", service, forwarded{}, `pod web does not have a named port "none"`},
		{"84", service, forwarded{}, "service front does not have a service port 84"},
		{"", nil, forwarded{}, "remote port"},
		{"80:", nil, forwarded{}, "remote port"},
		{"0", nil, forwarded{}, "remote port"},
		{"80:80:80", nil, forwarded{}, "named port"},
		{"-1:80", nil, forwarded{}, "error parsing local port"},
		{"65536", nil, forwarded{}, "named port"},
	} {
		got, err := readPort(tt.spec, pod, tt.service)
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q: want %q: %v", tt.spec, tt.says, err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%q: got %+v, %v, want %+v", tt.spec, got, err, tt.want)
		}
	}
}

// stream makes a tar stream; a file's content is its link name.
func stream(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		h.Mode, h.ModTime = 0o755, time.Unix(1_700_000_000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func dirEntry(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name + "/"} }

func fileEntry(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content}
}

func linkEntry(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func hardEntry(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// TestUnpackStaysWithin: a pod that is not what it seems to be sends what it
// likes. Nothing beside the destination is ever touched.
func TestUnpackStaysWithin(t *testing.T) {
	for desc, tt := range map[string]struct {
		headers []tar.Header
		says    string // empty: it is taken, and something left out
	}{
		"up":                        {[]tar.Header{dirEntry("src"), fileEntry("src/../../planted", "x")}, "may lead out of the destination"},
		"up at once":                {[]tar.Header{fileEntry("../planted", "x")}, "refuse what"},
		"up by name":                {[]tar.Header{dirEntry("..")}, "refuse what"},
		"absolute":                  {[]tar.Header{dirEntry("src"), fileEntry("/planted", "x")}, "does not lie below"},
		"absolute at once":          {[]tar.Header{fileEntry("/planted", "x")}, "refuse what"},
		"another name":              {[]tar.Header{dirEntry("src"), fileEntry("other/planted", "x")}, "does not lie below"},
		"empty name":                {[]tar.Header{dirEntry("src"), fileEntry("src//planted", "x")}, "may lead out"},
		"link that leads out":       {[]tar.Header{dirEntry("src"), linkEntry("src/out", "../.."), fileEntry("src/out/planted", "x")}, "no such file"},
		"another name at once":      {[]tar.Header{fileEntry("planted", "x")}, "refuse what"},
		"link out over one upwards": {[]tar.Header{dirEntry("src"), dirEntry("src/a"), linkEntry("src/a/top", ".."), linkEntry("src/a/out", "top/../../secret")}, ""},
		"absolute link":             {[]tar.Header{dirEntry("src"), linkEntry("src/out", "/tmp")}, ""},
		"file over a link":          {[]tar.Header{dirEntry("src"), dirEntry("src/d"), linkEntry("src/in", "d"), fileEntry("src/in/planted", "x")}, "in is no directory"},
		"directory over a link":     {[]tar.Header{dirEntry("src"), dirEntry("src/d"), linkEntry("src/in", "d"), dirEntry("src/in")}, "no directory"},
		"link by way of a link":     {[]tar.Header{dirEntry("src"), dirEntry("src/a"), linkEntry("src/a/up", "."), linkEntry("src/a/up/out", "../../x")}, "a/up is no directory"},
		"link there already":        {[]tar.Header{dirEntry("src"), fileEntry("src/there/planted", "x")}, "there is no directory"},
		"hard link out":             {[]tar.Header{dirEntry("src"), hardEntry("src/h", "src/../../secret")}, "may lead out"},
		"hard link of another name": {[]tar.Header{dirEntry("src"), hardEntry("src/h", "/etc/passwd")}, "does not lie below"},
		"device":                    {[]tar.Header{dirEntry("src"), {Typeflag: tar.TypeChar, Name: "src/null"}}, ""},
		"a link alone":              {[]tar.Header{linkEntry("src", "/etc")}, "neither a file nor a directory"},
		"nothing":                   {nil, "EOF"},
	} {
		t.Run(desc, func(t *testing.T) {
			host := t.TempDir()
			dst := filepath.Join(host, "dst")
			if err := errors.Join(os.MkdirAll(filepath.Join(dst, "src"), 0o755), os.Symlink("..", filepath.Join(dst, "src", "there"))); err != nil {
				t.Fatal(err)
			}
			var said []string
			err := unpack(stream(t, tt.headers...), "/src", dst, false, func(format string, args ...any) {
				said = append(said, fmt.Sprintf(format, args...))
			})
			if tt.says == "" && (err != nil || len(said) != 1) || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("want %q: %v, said %q", tt.says, err, said)
			}
			var found []string
			if err := filepath.WalkDir(host, func(path string, _ fs.DirEntry, err error) error {
				if name := filepath.Base(path); name == "planted" || name == "out" || name == "h" || name == "null" {
					found = append(found, path)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if len(found) > 0 {
				t.Errorf("there is now %q", found)
			}
		})
	}
}

func TestUnpackNames(t *testing.T) {
	tree := func() io.Reader {
		return stream(t, dirEntry("src"), dirEntry("src/d"), fileEntry("src/d/f", "in d"), linkEntry("src/l", "d/f"), hardEntry("src/h", "src/d/f"))
	}
	one := func() io.Reader { return stream(t, fileEntry("src", "one")) }
	for desc, tt := range map[string]struct {
		stream io.Reader
		to     string
		want   map[string]string
		says   string
	}{
		"into a directory":        {tree(), "dir", map[string]string{"dir/src/d/f": "in d", "dir/src/l": "in d", "dir/src/h": "in d"}, ""},
		"under a new name":        {tree(), "new", map[string]string{"new/d/f": "in d", "new/l": "in d", "new/h": "in d"}, ""},
		"a new name with a slash": {tree(), "new/", map[string]string{"new/d/f": "in d"}, ""},
		"a tree over a file":      {tree(), "file", nil, "is a file"},
		"one into a directory":    {one(), "dir", map[string]string{"dir/src": "one"}, ""},
		"one under a new name":    {one(), "a/b/new", map[string]string{"a/b/new": "one"}, ""},
		"one over a file":         {one(), "file", map[string]string{"file": "one"}, ""},
		"one with a slash":        {one(), "new/", nil, "no such directory"},
		"one over a directory":    {one(), "taken", nil, "is a directory"},
		"the root of a container": {stream(t, dirEntry("."), dirEntry("d"), fileEntry("d/f", "deep")), "dir", map[string]string{"dir/d/f": "deep"}, ""},
	} {
		t.Run(desc, func(t *testing.T) {
			host := t.TempDir()
			if err := errors.Join(os.Mkdir(filepath.Join(host, "dir"), 0o755), os.MkdirAll(filepath.Join(host, "taken/src"), 0o755),
				os.WriteFile(filepath.Join(host, "file"), []byte("a longer one"), 0o600)); err != nil {
				t.Fatal(err)
			}
			from := "/src"
			if strings.HasPrefix(desc, "the root") {
				from = "/"
			}
			err := unpack(tt.stream, from, host+"/"+tt.to, false, func(format string, args ...any) { t.Errorf(format, args...) })
			if tt.says != "" {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("want %q: %v", tt.says, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for name := range tt.want {
				text, err := os.ReadFile(filepath.Join(host, name))
				if err != nil {
					t.Error(err)
				}
				got[name] = string(text)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestPackAndUnpack: what goes in comes out, modes and times included.
func TestPackAndUnpack(t *testing.T) {
	host := t.TempDir()
	at := func(name string) string { return filepath.Join(host, name) }
	day := time.Unix(1_600_000_000, 0)
	err := errors.Join(
		os.MkdirAll(at("src/ro"), 0o755), os.WriteFile(at("src/ro/f"), []byte("text"), 0o640), os.Symlink("ro/f", at("src/l")),
		os.Chtimes(at("src/ro/f"), day, day), os.Chtimes(at("src/ro"), day, day), os.Chmod(at("src/ro"), 0o555), os.Symlink("src", at("named")),
	)
	if err != nil {
		t.Fatal(err)
	}
	warn := func(format string, args ...any) { t.Errorf(format, args...) }
	for _, owner := range []*tar.Header{nil, {Uid: 7, Gid: 8}} {
		var buf bytes.Buffer
		p := &packer{warn: warn, owner: owner, buf: make([]byte, 1000)}
		if err := p.pack(&buf, at("named"), "copy"); err != nil {
			t.Fatal(err)
		}
		dst := at(fmt.Sprint("dst", owner == nil))
		if err := unpack(&buf, "/copy", dst, false, warn); err != nil {
			t.Fatal(err)
		}
		file, err1 := os.Stat(filepath.Join(dst, "ro/f"))
		dir, err2 := os.Stat(filepath.Join(dst, "ro"))
		link, err3 := os.Readlink(filepath.Join(dst, "l"))
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		want := []fs.FileMode{0o640, 0o555}
		if owner != nil {
			want = []fs.FileMode{0o644, 0o755}
		}
		if diff := cmp.Diff(want, []fs.FileMode{file.Mode().Perm(), dir.Mode().Perm()}); diff != "" || link != "ro/f" {
			t.Errorf("modes (-want +got)\n%s, link %q", diff, link)
		}
		if !file.ModTime().Equal(day) || !dir.ModTime().Equal(day) {
			t.Errorf("times %v, %v", file.ModTime(), dir.ModTime())
		}
	}
}

// TestWarningsKeepTheTerminal: a container names its files as it likes.
func TestWarningsKeepTheTerminal(t *testing.T) {
	var said bytes.Buffer
	w := warnings{&copier{app: &app{err: &said}}}
	if _, err := w.Write([]byte("src/\x1b]0;taken\a: left out: it is a FIFO\nsrc/100%d: left out\n")); err != nil {
		t.Fatal(err)
	}
	if got, want := said.String(), "warning: src/^[]0;taken\a: left out: it is a FIFO\nwarning: src/100%d: left out\n"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}
