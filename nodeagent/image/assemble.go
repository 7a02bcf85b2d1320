package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// draft is an image that is known but not yet on the node, wherever it comes from.
type draft struct {
	ref        string
	id         string
	repoDigest string
	digests    []string
	config     *v1.ConfigFile
	sources    []source // lowest first
}

// source is where one layer can be read.
type source struct {
	diffID string // of the uncompressed archive
	digest string // of the bytes that open gives; empty where nothing says
	size   int64  // of those bytes; -1 where nothing says
	open   func() (io.ReadCloser, error)
}

// configure takes the configuration in; id is the digest that it must have.
func (d *draft) configure(raw []byte, id string) error {
	sum, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if id != "" && id != sum.String() {
		return fmt.Errorf("%w: configuration: digest is %s, announced was %s", ErrCorrupt, sum, id)
	}
	d.id = sum.String()
	d.config, err = v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("%w: configuration: %w", ErrCorrupt, err)
	}
	return nil
}

// platform refuses an image whose programs cannot run here: better said now
// than by an exec format error.
func (d *draft) platform(opt Options) error {
	c := d.config
	if (c.OS != "" && c.OS != opt.OS) || (c.Architecture != "" && c.Architecture != opt.Architecture) {
		return fmt.Errorf("%w: it is made for %s/%s, this node is %s/%s", ErrNotFound, c.OS, c.Architecture, opt.OS, opt.Architecture)
	}
	return nil
}

// matchLayers gives each source the diff ID that the configuration has for it.
func (d *draft) matchLayers() error {
	ids := d.config.RootFS.DiffIDs
	if len(ids) != len(d.sources) {
		return fmt.Errorf("%w: the configuration lists %d layers, the manifest %d", ErrCorrupt, len(ids), len(d.sources))
	}
	for i, id := range ids {
		if id.Algorithm != "sha256" || len(id.Hex) != 64 || strings.Trim(id.Hex, "0123456789abcdef") != "" {
			return fmt.Errorf("%w: diff ID %q of layer %d is not a SHA-256 digest", ErrCorrupt, id, i)
		}
		d.sources[i].diffID = id.String()
	}
	return nil
}

// budget is how many bytes an image may still unpack.
type budget struct{ left atomic.Int64 }

func (b *budget) take(n int64) bool { return b.left.Add(-n) >= 0 }
func (b *budget) give(n int64)      { b.left.Add(n) }

// meter counts what a pull has done and tells it now and then.
type meter struct {
	tell func(Progress)

	mu   sync.Mutex
	p    Progress
	last time.Time
}

func (m *meter) add(bytes int64, layers int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Bytes += bytes
	m.p.LayersDone += layers
	if layers == 0 && time.Since(m.last) < 100*time.Millisecond {
		return
	}
	m.last = time.Now()
	m.tell(m.p)
}

// assemble brings the layers onto the disk and then says so in a record.
func (s *Store) assemble(ctx context.Context, d draft, tell func(Progress)) (Image, error) {
	if len(d.sources) > s.opt.Limits.Layers {
		return Image{}, fmt.Errorf("%w: it has %d layers, at most %d are taken", ErrTooLarge, len(d.sources), s.opt.Limits.Layers)
	}
	if img, ok := s.already(d); ok {
		return img, nil
	}
	names := make([]string, len(d.sources))
	for i, src := range d.sources {
		names[i] = layerName(src.diffID)
	}
	s.pin(names...)
	err := s.room(d)
	var img Image
	if err == nil {
		// Variants of layers come on top; build pins them.
		img, err = s.build(ctx, d, &names, tell)
	}
	s.unpin(names...)
	if errors.Is(err, ErrNoSpace) {
		s.dropUnnamed(names)
	}
	return img, err
}

func (s *Store) build(ctx context.Context, d draft, pinned *[]string, tell func(Progress)) (Image, error) {
	layers, err := s.fetchAll(ctx, d, tell)
	if err != nil {
		return Image{}, err
	}
	layers, err = s.settle(layers, pinned)
	if err != nil {
		return Image{}, unpackError(fmt.Errorf("prepare layers: %w", err))
	}
	rec := record{Image: d.image(), Digests: d.digests, Layers: layers, Boot: s.boot}
	if s.boot == "" {
		if err := s.syncLayers(); err != nil {
			return Image{}, unpackError(err)
		}
	}
	for _, l := range layers {
		rec.Image.Size += l.Size
	}
	img, err := s.commit(rec)
	if err != nil {
		return Image{}, unpackError(err)
	}
	s.wakeFlusher()
	return img, nil
}

// already answers a pull of what is here: the tag still means the same.
func (s *Store) already(d draft) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.records[recordKey(d.ref)]
	if !ok || rec.Image.ID != d.id || !s.complete(rec) {
		return Image{}, false
	}
	for _, digest := range d.digests {
		if !slices.Contains(rec.Digests, digest) {
			return Image{}, false // write the record anew with them
		}
	}
	return s.image(rec), true
}

// room refuses early what cannot fit: unpacked layers are rarely smaller than
// packed ones.
func (s *Store) room(d draft) error {
	var need int64
	s.mu.Lock()
	for _, src := range d.sources {
		if _, ok := s.layers[layerName(src.diffID)]; !ok && src.size > 0 {
			need += src.size
		}
	}
	s.mu.Unlock()
	free, err := s.free()
	if err != nil {
		return fmt.Errorf("look at the free space: %w", err)
	}
	if need > free {
		return fmt.Errorf("%w: its layers have %s packed, %s has %s left", ErrNoSpace, size(need), s.dir, size(free))
	}
	return nil
}

func (s *Store) fetchAll(ctx context.Context, d draft, tell func(Progress)) ([]layer, error) {
	b := &budget{}
	b.left.Store(s.opt.Limits.UnpackedBytes)
	m := &meter{tell: tell, p: Progress{Layers: len(d.sources)}}
	for _, src := range d.sources {
		m.p.TotalBytes += max(src.size, 0)
	}
	layers := make([]layer, len(d.sources))
	g, ctx := errgroup.WithContext(ctx)
	for i, src := range d.sources {
		g.Go(func() (err error) {
			layers[i], err = s.layer(ctx, src, b, m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var total int64
	for _, l := range layers {
		total += l.Size
	}
	if limit := s.opt.Limits.UnpackedBytes; total > limit {
		return nil, fmt.Errorf("%w: it unpacks to %s, at most %s are taken", ErrTooLarge, size(total), size(limit))
	}
	return layers, nil
}

func (d *draft) image() Image {
	c := d.config.Config
	img := Image{
		Ref: d.ref, ID: d.id, RepoDigest: d.repoDigest, Loaded: time.Now().UTC(),
		Config: Config{
			Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User,
			WorkingDir: c.WorkingDir, StopSignal: c.StopSignal,
		},
	}
	for p := range c.ExposedPorts {
		img.Config.ExposedPorts = append(img.Config.ExposedPorts, p)
	}
	slices.Sort(img.Config.ExposedPorts)
	return img
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
