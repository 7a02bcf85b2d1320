package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Entry is one entry of a layer. Type defaults to a directory where Name ends
// in a slash, else to a regular file. Mode defaults to 0755.
type Entry struct {
	Name     string
	Type     byte
	Body     string
	Link     string
	Mode     int64
	UID, GID int
	Xattrs   map[string]string
	Major    int64
	Minor    int64
}

// Epoch is the time of everything that this package makes.
var Epoch = time.Unix(1_700_000_000, 0).UTC()

// Tar writes an archive of the entries.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.Name, Typeflag: e.Type, Linkname: e.Link, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
			ModTime: Epoch, Devmajor: e.Major, Devminor: e.Minor, Format: tar.FormatPAX,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if len(e.Name) > 0 && e.Name[len(e.Name)-1] == '/' {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.Body))
		}
		for k, v := range e.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("write header of %q: %v", e.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.Body); err != nil {
				t.Fatalf("write %q: %v", e.Name, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatalf("close archive: %v", err)
	}
	return buf.Bytes()
}

// SparseTar is an archive of one file that claims realSize bytes and holds
// 512 (GNU format 1.0, which archive/tar reads but does not write).
func SparseTar(name string, realSize int64) []byte {
	record := func(k, v string) string {
		body := " " + k + "=" + v + "\n"
		n := len(body)
		for len(fmt.Sprint(n))+len(body) != n {
			n = len(fmt.Sprint(n)) + len(body)
		}
		return fmt.Sprint(n) + body
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", name) + record("GNU.sparse.realsize", fmt.Sprint(realSize))
	var out bytes.Buffer
	out.Write(rawHeader("pax", 'x', len(pax)))
	out.Write(pad([]byte(pax)))
	data := append(pad(fmt.Appendf(nil, "1\n%d\n512\n", realSize-512)), bytes.Repeat([]byte{'x'}, 512)...)
	out.Write(rawHeader("GNUSparseFile.0/"+name, '0', len(data)))
	out.Write(data)
	out.Write(make([]byte, 1024))
	return out.Bytes()
}

func pad(b []byte) []byte {
	if rest := len(b) % 512; rest != 0 {
		b = append(b, make([]byte, 512-rest)...)
	}
	return b
}

func rawHeader(name string, typeflag byte, size int) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], "00000000000\x00")
	copy(h[148:], "        ")
	h[156] = typeflag
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// Layer is a layer of given bytes; it can lie about its digests.
type Layer struct {
	Bytes   []byte
	Diff    v1.Hash
	Sum     v1.Hash
	Type    types.MediaType
	Claimed int64 // size in the manifest; that of Bytes where 0
}

var _ v1.Layer = Layer{}

// Digest, DiffID, Compressed, Uncompressed, Size and MediaType are v1.Layer's.
func (l Layer) Digest() (v1.Hash, error)            { return l.Sum, nil }
func (l Layer) DiffID() (v1.Hash, error)            { return l.Diff, nil }
func (l Layer) MediaType() (types.MediaType, error) { return l.Type, nil }
func (l Layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.Bytes)), nil
}
func (l Layer) Uncompressed() (io.ReadCloser, error) { return nil, fmt.Errorf("not kept") }
func (l Layer) Size() (int64, error) {
	if l.Claimed != 0 {
		return l.Claimed, nil
	}
	return int64(len(l.Bytes)), nil
}

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// Plain is an uncompressed layer.
func Plain(archive []byte) Layer {
	return Layer{Bytes: archive, Diff: hashOf(archive), Sum: hashOf(archive), Type: types.OCIUncompressedLayer}
}

// Gzip is a layer packed with gzip.
func Gzip(t testing.TB, archive []byte) Layer {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return Layer{Bytes: buf.Bytes(), Diff: hashOf(archive), Sum: hashOf(buf.Bytes()), Type: types.OCILayer}
}

// Zstd is a layer packed with zstd.
func Zstd(t testing.TB, archive []byte) Layer {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := w.EncodeAll(archive, nil)
	return Layer{Bytes: packed, Diff: hashOf(archive), Sum: hashOf(packed), Type: types.OCILayerZStd}
}

// Files is a gzip layer of regular files by name.
func Files(t testing.TB, nameAndBody ...string) Layer {
	t.Helper()
	var entries []Entry
	for i := 0; i+1 < len(nameAndBody); i += 2 {
		entries = append(entries, Entry{Name: nameAndBody[i], Body: nameAndBody[i+1]})
	}
	return Gzip(t, Tar(t, entries...))
}

// Image puts layers together, lowest first, for linux/amd64.
func Image(t testing.TB, layers ...Layer) v1.Image {
	t.Helper()
	return ImageFor(t, "linux", "amd64", layers...)
}

// ImageFor is Image for another platform.
func ImageFor(t testing.TB, os, arch string, layers ...Layer) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: l.Type})
		if err != nil {
			t.Fatalf("append layer: %v", err)
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = os, arch
	cfg.Created = v1.Time{Time: Epoch}
	cfg.Config = v1.Config{
		Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"A=b"}, User: "1000:1000",
		WorkingDir: "/srv", StopSignal: "SIGINT", ExposedPorts: map[string]struct{}{"8080/tcp": {}, "53/udp": {}},
	}
	img, err = mutate.ConfigFile(img, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Index puts images for several platforms ("linux/arm64") together.
func Index(t testing.TB, images map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for platform, img := range images {
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	return idx
}
