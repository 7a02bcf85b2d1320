package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
)

// fetchAttempts is how often one layer is tried when its download breaks off.
const fetchAttempts = 3

// layerName is the directory of a layer.
func layerName(diffID string) string {
	_, hex, _ := strings.Cut(diffID, ":")
	return hex
}

// layer returns the layer of src, from the disk or from its source. Images
// that miss the same layer at the same time fetch it once.
func (s *Store) layer(ctx context.Context, src source, b *budget, m *meter) (layer, error) {
	name := layerName(src.diffID)
	for {
		if l, ok := s.known(name); ok {
			m.add(max(src.size, 0), 1)
			return l, nil
		}
		l, joined, err := s.fetches.do(ctx, name, nil, func(ctx context.Context, _ func(Progress)) (layer, error) {
			// It may have come between the look above and here.
			if l, ok := s.known(name); ok {
				return l, nil
			}
			return s.fetch(ctx, src, b, m)
		})
		switch {
		case err == nil:
			if joined {
				m.add(max(src.size, 0), 0)
			}
			m.add(0, 1)
			return l, nil
		case !joined || ctx.Err() != nil:
			return layer{}, err
		}
		// Another image's source, credentials or size limit failed: that says
		// nothing about ours.
	}
}

func (s *Store) known(name string) (layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.layers[name]
	if !ok {
		return layer{}, false
	}
	if _, err := os.Lstat(s.layerPath(name)); err != nil {
		delete(s.layers, name) // removed by hand
		return layer{}, false
	}
	return l, true
}

func (s *Store) fetch(ctx context.Context, src source, b *budget, m *meter) (layer, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return layer{}, ctx.Err()
	}
	var err error
	for attempt := range fetchAttempts {
		if attempt > 0 {
			s.log.Warn().Err(err).Str("layer", src.diffID).Msg("trying a layer again")
			if serr := sleep(ctx, time.Duration(attempt)*300*time.Millisecond); serr != nil {
				return layer{}, serr
			}
		}
		var l layer
		l, err = s.unpack(ctx, src, b, m)
		if err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return layer{}, ctx.Err()
		}
		var broken brokenDownload
		if !errors.As(err, &broken) {
			break
		}
	}
	return layer{}, fmt.Errorf("layer %s: %w", src.name(), err)
}

// name is how the layer is called in messages: as the registry knows it.
func (s source) name() string {
	if s.digest != "" {
		return s.digest
	}
	return s.diffID
}

// unpack reads src once: download, digest, decompression, diff ID and files in
// one stream, into a temporary directory that becomes the layer at the end.
func (s *Store) unpack(ctx context.Context, src source, b *budget, m *meter) (l layer, err error) {
	tmp, err := os.MkdirTemp(s.path("tmp"), "layer-")
	if err != nil {
		return layer{}, unpackError(err)
	}
	defer func() {
		if rerr := os.RemoveAll(tmp); rerr != nil && err == nil {
			err = rerr
		}
	}()
	root := filepath.Join(tmp, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return layer{}, unpackError(err)
	}
	if err := os.Chmod(root, 0o755); err != nil { // whatever the umask
		return layer{}, err
	}

	g := newGuard(root, s.opt.Limits, b, src.size)
	if err := s.stream(ctx, src, root, g, m); err != nil {
		g.refund()
		return layer{}, unpackError(err)
	}
	l = layer{Name: layerName(src.diffID), DiffID: src.diffID, Size: g.bytes, Implied: g.implied(), Opaque: g.opaque}
	return l, s.keep(root, l)
}

// stream writes the files of src below root and checks both digests.
func (s *Store) stream(ctx context.Context, src source, root string, g *guard, m *meter) error {
	body, err := src.open()
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	p := startPipe(ctx, body, src, s.opt.Limits, func(n int64) { m.add(n, 0) })
	defer p.stop()
	_, err = archive.Apply(ctx, root, p, archive.WithFilter(g.filter), archive.WithConvertWhiteout(g.whiteout))
	if err != nil {
		// A stream that broke looks like a bad archive; what broke it says more.
		if perr := p.failure(); perr != nil {
			return perr
		}
		return err
	}
	if err := p.finish(); err != nil {
		return err
	}
	return g.finish()
}

// keep puts a finished directory in its place.
func (s *Store) keep(root string, l layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.layers[l.Name]; ok {
		return nil // somebody else was faster; theirs is as good
	}
	target := s.layerPath(l.Name)
	err := os.Rename(root, target)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		// Nobody vouches for what is there.
		if err := s.discard(l.Name); err != nil {
			return err
		}
		err = os.Rename(root, target)
	}
	if err != nil {
		return unpackError(fmt.Errorf("keep layer %s: %w", l.DiffID, err))
	}
	s.layers[l.Name] = l
	return nil
}
