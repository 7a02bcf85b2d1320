package image

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// indexDepth bounds indexes that hold indexes.
const indexDepth = 4

// choose finds the image for the node's platform behind a manifest or index.
func (s *Store) choose(desc *remote.Descriptor) (v1.Image, error) {
	switch {
	case desc.MediaType.IsImage():
		return desc.Image()
	case desc.MediaType.IsIndex():
		idx, err := desc.ImageIndex()
		if err != nil {
			return nil, err
		}
		return chooseFrom(idx, s.opt, indexDepth)
	case desc.MediaType == types.DockerManifestSchema1, desc.MediaType == types.DockerManifestSchema1Signed:
		return nil, fmt.Errorf("%w: the manifest has Docker's format of 2015 (schema 1), which nothing verifies: push the image again with a current tool", ErrCorrupt)
	}
	return nil, fmt.Errorf("%w: %s is not an image", ErrCorrupt, desc.MediaType)
}

func chooseFrom(idx v1.ImageIndex, opt Options, depth int) (v1.Image, error) {
	if depth == 0 {
		return nil, fmt.Errorf("%w: an index inside an index, %d deep", ErrCorrupt, indexDepth)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	best, err := pick(m.Manifests, opt)
	if err != nil {
		return nil, err
	}
	if best.MediaType.IsIndex() {
		inner, err := idx.ImageIndex(best.Digest)
		if err != nil {
			return nil, err
		}
		return chooseFrom(inner, opt, depth-1)
	}
	return idx.Image(best.Digest)
}

// pick takes the entry of an index that fits best: the first one for the
// platform, else the only one that does not say what it is for.
func pick(entries []v1.Descriptor, opt Options) (v1.Descriptor, error) {
	var silent []v1.Descriptor
	var have []string
	for _, e := range entries {
		if !e.MediaType.IsImage() && !e.MediaType.IsIndex() {
			continue
		}
		switch p := e.Platform; {
		case p == nil:
			silent = append(silent, e)
		case p.OS == opt.OS && p.Architecture == opt.Architecture:
			return e, nil
		case p.OS != "unknown": // attestations say unknown/unknown
			have = append(have, p.OS+"/"+p.Architecture)
		}
	}
	if len(silent) > 0 {
		return silent[0], nil
	}
	slices.Sort(have)
	return v1.Descriptor{}, fmt.Errorf("%w: it is not made for %s/%s; it has %s", ErrNotFound, opt.OS, opt.Architecture,
		orNone(strings.Join(slices.Compact(have), ", ")))
}

func orNone(s string) string {
	if s == "" {
		return "no image at all"
	}
	return s
}
