package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Annotations by which layouts name their images.
const (
	annotationName    = "io.containerd.image.name"          // a whole reference
	annotationRefName = "org.opencontainers.image.ref.name" // a whole reference or a tag
)

// metadataLimit bounds the JSON documents of an archive, which are held in memory.
const metadataLimit = 16 << 20

// Load takes in all images of a docker archive, an OCI archive (both may be
// packed with gzip or zstd) or an OCI layout directory. An image that does not
// say what it is called gets the name of the file or directory. It returns the
// images that were loaded, also beside an error.
func (s *Store) Load(ctx context.Context, file string) ([]Image, error) {
	b, err := s.openBundle(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("load image %s: %w", file, unpackError(err))
	}
	defer b.close()
	drafts, err := readDrafts(b, nameFromPath(file), s.opt)
	if err != nil {
		return nil, fmt.Errorf("load image %s: %w", file, unpackError(err))
	}
	var images []Image
	var errs []error
	for _, d := range drafts {
		img, err := s.loadOne(ctx, d)
		if err != nil {
			errs = append(errs, fmt.Errorf("load image %s from %s: %w", d.ref, file, err))
			continue
		}
		images = append(images, img)
	}
	return images, errors.Join(errs...)
}

func (s *Store) loadOne(ctx context.Context, d draft) (Image, error) {
	if err := d.platform(s.opt); err != nil {
		return Image{}, err
	}
	img, err := s.assemble(ctx, d, func(Progress) {})
	if err == nil {
		s.log.Info().Str("image", d.ref).Str("id", img.ID).Msg("loaded image")
	}
	return img, err
}

// nameFromPath is what an image without a name is called; empty where the file
// name makes none. An upload has a name that nobody chose.
func nameFromPath(p string) string {
	base := filepath.Base(p)
	if filepath.Ext(base) == ".part" {
		return ""
	}
	for _, ext := range []string{".gz", ".tgz", ".zst", ".tar", ".oci", ".docker"} {
		base = strings.TrimSuffix(base, ext)
	}
	base = strings.ToLower(base)
	if _, err := Normalize(base); err != nil {
		return ""
	}
	return base
}

// readDrafts finds the images of a bundle. Docker's list is taken where there
// is one: archives that have both put the names there.
func readDrafts(b bundle, fallback string, opt Options) ([]draft, error) {
	data, err := readAll(b, "manifest.json")
	if err == nil {
		return dockerDrafts(b, data, fallback)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	data, err = readAll(b, "index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has neither manifest.json (docker archive) nor index.json (OCI layout)", ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	return ociDrafts(b, data, fallback, opt)
}

type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func dockerDrafts(b bundle, manifest []byte, fallback string) ([]draft, error) {
	var entries []dockerEntry
	if err := json.Unmarshal(manifest, &entries); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", ErrCorrupt, err)
	}
	var out []draft
	for i, e := range entries {
		config, err := readAll(b, e.Config)
		if err != nil {
			return nil, fmt.Errorf("%w: configuration of image %d: %w", ErrCorrupt, i, err)
		}
		var d draft
		if err := d.configure(config, ""); err != nil {
			return nil, err
		}
		for _, name := range e.Layers {
			size, err := b.size(name)
			if err != nil {
				return nil, fmt.Errorf("%w: layer %q of image %d: %w", ErrCorrupt, name, i, err)
			}
			d.sources = append(d.sources, source{size: size, open: func() (io.ReadCloser, error) { return b.open(name) }})
		}
		if err := d.matchLayers(); err != nil {
			return nil, err
		}
		tags := e.RepoTags
		if len(tags) == 0 && fallback != "" {
			tags = []string{fallback}
		}
		named, err := d.named(tags)
		if err != nil {
			return nil, err
		}
		out = append(out, named...)
	}
	return out, nil
}

// named is one draft for each reference of the same image.
func (d draft) named(refs []string) ([]draft, error) {
	if len(refs) == 0 {
		return nil, fmt.Errorf("%w: image %s has no name in the archive: save it under one", ErrBadReference, d.id)
	}
	var out []draft
	for _, ref := range refs {
		n, err := Normalize(ref)
		if err != nil {
			return nil, err
		}
		one := d
		one.ref = n
		out = append(out, one)
	}
	return out, nil
}

func ociDrafts(b bundle, index []byte, fallback string, opt Options) ([]draft, error) {
	idx, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return nil, fmt.Errorf("%w: index.json: %w", ErrCorrupt, err)
	}
	var out []draft
	for _, desc := range idx.Manifests {
		if !desc.MediaType.IsImage() && !desc.MediaType.IsIndex() {
			continue
		}
		ref := layoutName(desc.Annotations, fallback)
		if ref == "" {
			return nil, fmt.Errorf("%w: image %s has no name in the layout: save it under one", ErrBadReference, desc.Digest)
		}
		r, err := parseReference(ref)
		if err != nil {
			return nil, err
		}
		d := draft{ref: r.ref, repoDigest: r.repository + "@" + desc.Digest.String()}
		d.digests = []string{d.repoDigest}
		chosen, err := chooseInLayout(b, desc, opt, indexDepth)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", r.ref, err)
		}
		if chosen.Digest != desc.Digest {
			d.digests = append(d.digests, r.repository+"@"+chosen.Digest.String())
		}
		if err := d.fromLayout(b, chosen); err != nil {
			return nil, fmt.Errorf("image %s: %w", r.ref, err)
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: the layout's index names no image", ErrCorrupt)
	}
	return out, nil
}

func layoutName(annotations map[string]string, fallback string) string {
	if n := annotations[annotationName]; n != "" {
		return n
	}
	n := annotations[annotationRefName]
	switch {
	case n == "":
		return fallback
	case strings.ContainsAny(n, "/:@"):
		return n
	case fallback == "":
		return ""
	}
	return fallback + ":" + n
}

func chooseInLayout(b bundle, desc v1.Descriptor, opt Options, depth int) (v1.Descriptor, error) {
	if desc.MediaType.IsImage() {
		return desc, nil
	}
	if depth == 0 {
		return desc, fmt.Errorf("%w: an index inside an index, %d deep", ErrCorrupt, indexDepth)
	}
	raw, err := readBlob(b, desc)
	if err != nil {
		return desc, err
	}
	idx, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return desc, fmt.Errorf("%w: index %s: %w", ErrCorrupt, desc.Digest, err)
	}
	best, err := pick(idx.Manifests, opt)
	if err != nil {
		return desc, err
	}
	return chooseInLayout(b, best, opt, depth-1)
}

func (d *draft) fromLayout(b bundle, desc v1.Descriptor) error {
	raw, err := readBlob(b, desc)
	if err != nil {
		return err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("%w: manifest %s: %w", ErrCorrupt, desc.Digest, err)
	}
	config, err := readBlob(b, m.Config)
	if err != nil {
		return err
	}
	if err := d.configure(config, m.Config.Digest.String()); err != nil {
		return err
	}
	for _, l := range m.Layers {
		d.sources = append(d.sources, source{
			digest: l.Digest.String(), size: l.Size,
			open: func() (io.ReadCloser, error) {
				body, err := b.open(blobPath(l.Digest))
				if err != nil {
					return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
				}
				return body, nil
			},
		})
	}
	return d.matchLayers()
}

func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// readBlob reads a small blob and checks its digest.
func readBlob(b bundle, desc v1.Descriptor) ([]byte, error) {
	raw, err := readAll(b, blobPath(desc.Digest))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	sum, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	if sum != desc.Digest {
		return nil, fmt.Errorf("%w: blob %s has the digest %s", ErrCorrupt, desc.Digest, sum)
	}
	return raw, nil
}

func readAll(b bundle, name string) ([]byte, error) {
	n, err := b.size(name)
	if err != nil {
		return nil, err
	}
	if n > metadataLimit {
		return nil, fmt.Errorf("%w: %s has %s, at most %s are taken", ErrTooLarge, name, size(n), size(metadataLimit))
	}
	f, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, n))
}
