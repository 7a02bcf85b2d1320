package image

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"gantry.dev/nodeagent/image/imagetest"
)

// BenchmarkPull is the whole way of an image of four gzip layers, 1,500 files
// and 24 MiB each, from a registry in this process.
func BenchmarkPull(b *testing.B) {
	var layers []imagetest.Layer
	var total int64
	for l := range 4 {
		var entries []imagetest.Entry
		for f := range 1500 {
			body := make([]byte, 16<<10)
			state := uint32(l*1500 + f + 1)
			for i := range body {
				if i%8 < 3 { // about as well packed as programs are
					state = state*1664525 + 1013904223
				}
				body[i] = byte(state >> 24)
			}
			entries = append(entries, imagetest.Entry{Name: fmt.Sprintf("usr/lib/d%d/%d/f%d", l, f%30, f), Body: string(body)})
			total += int64(len(body))
		}
		layers = append(layers, imagetest.Gzip(b, imagetest.Tar(b, entries...)))
	}
	reg := imagetest.NewRegistry(b)
	ref := reg.Push(b, "bench:1", imagetest.Image(b, layers...))
	b.SetBytes(total)
	for i := 0; b.Loop(); i++ {
		s, err := Open(Options{Dir: filepath.Join(b.TempDir(), fmt.Sprint(i)), Architecture: "amd64", InsecureRegistries: []string{reg.Host}}, zerolog.Nop())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Pull(context.Background(), ref, nil, nil); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
