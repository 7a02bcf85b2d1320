package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// configLimit bounds an image's configuration, which is held in memory.
const configLimit = 4 << 20

// Pull asks the registry for ref and brings what is missing onto the node. A
// reference by digest that is on the node already needs no request. Pulls of
// the same reference with the same credentials are one pull. auth may be nil;
// progress may be nil and is called from other goroutines, one call at a time.
//
// The error names the reference and has one of the kinds in this package,
// unless ctx ended or the machine itself failed.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth, progress func(Progress)) (Image, error) {
	r, err := s.parse(ref)
	if err != nil {
		return Image{}, err
	}
	if r.digest != "" {
		if img, ok := s.Get(ref); ok {
			return img, nil
		}
	}
	key := r.ref
	if auth != nil {
		sum := sha256.Sum256([]byte(auth.Username + "\x00" + auth.Password))
		key += "\x00" + hex.EncodeToString(sum[:])
	}
	img, _, err := s.pulls.do(ctx, key, progress, func(ctx context.Context, tell func(Progress)) (Image, error) {
		return s.pull(ctx, r, auth, tell)
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", r.ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, r reference, auth *Auth, tell func(Progress)) (Image, error) {
	started := time.Now()
	d, err := s.resolve(ctx, r, auth)
	if err != nil {
		return Image{}, err
	}
	img, err := s.assemble(ctx, d, tell)
	if err != nil {
		return Image{}, err
	}
	s.log.Info().Str("image", r.ref).Str("id", img.ID).Int("layers", len(img.Layers)).
		Dur("took", time.Since(started)).Msg("pulled image")
	return img, nil
}

// resolve asks what ref means on this platform.
func (s *Store) resolve(ctx context.Context, r reference, auth *Auth) (draft, error) {
	seen := &manifestDigest{}
	puller, err := remote.NewPuller(s.remoteOptions(ctx, auth)...)
	if err != nil {
		return draft{}, fmt.Errorf("prepare pull: %w", err)
	}
	desc, err := puller.Get(context.WithValue(ctx, manifestDigestKey{}, seen), r.name)
	if err != nil {
		return draft{}, registryError(r, "manifest", err)
	}
	if said := seen.first; said != "" && said != desc.Digest.String() {
		return draft{}, fmt.Errorf("%w: manifest: the registry announced %s and sent %s", ErrCorrupt, said, desc.Digest)
	}
	d := draft{ref: r.ref, digests: []string{r.repository + "@" + desc.Digest.String()}}
	img, err := s.choose(desc)
	if err != nil {
		return draft{}, registryError(r, "manifest", err)
	}
	digest, err := img.Digest()
	if err != nil {
		return draft{}, registryError(r, "manifest", err)
	}
	if chosen := r.repository + "@" + digest.String(); chosen != d.digests[0] {
		d.digests = append(d.digests, chosen)
	}
	d.repoDigest = d.digests[0]
	manifest, err := img.Manifest()
	if err != nil {
		return draft{}, registryError(r, "manifest", err)
	}
	if manifest.Config.Size > configLimit {
		return draft{}, fmt.Errorf("%w: the configuration has %d bytes, at most %d are taken", ErrTooLarge, manifest.Config.Size, configLimit)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return draft{}, registryError(r, "configuration "+manifest.Config.Digest.String(), err)
	}
	if err := d.configure(config, manifest.Config.Digest.String()); err != nil {
		return draft{}, err
	}
	if err := d.platform(s.opt); err != nil {
		return draft{}, err
	}
	for _, l := range manifest.Layers {
		d.sources = append(d.sources, source{
			digest: l.Digest.String(),
			size:   l.Size,
			open:   func() (io.ReadCloser, error) { return openLayer(r, img, l.Digest) },
		})
	}
	return d, d.matchLayers()
}

func openLayer(r reference, img v1.Image, digest v1.Hash) (io.ReadCloser, error) {
	l, err := img.LayerByDigest(digest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	body, err := l.Compressed()
	if err != nil {
		return nil, registryError(r, "layer "+digest.String(), err)
	}
	return body, nil
}

func (s *Store) remoteOptions(ctx context.Context, auth *Auth) []remote.Option {
	opts := []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(s.gate),
		remote.WithUserAgent("gantry"),
		remote.WithJobs(s.opt.Parallel),
		// Whoever asked retries with a back-off of minutes; here it is about a
		// server that restarts just now.
		remote.WithRetryBackoff(remote.Backoff{Duration: 300 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	}
	if auth != nil {
		opts = append(opts, remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: auth.Username, Password: auth.Password})))
	}
	return opts
}
