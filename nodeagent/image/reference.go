package image

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// reference is an image reference taken apart.
type reference struct {
	ref        string // normalised: docker.io/library/x:latest
	repository string // docker.io/library/x
	registry   string // docker.io
	digest     string // sha256:..., empty for a tag
	name       name.Reference
}

// Normalize writes a reference out in full: docker.io/library/x:latest for x.
// It fails with ErrBadReference.
func Normalize(ref string) (string, error) {
	r, err := parseReference(ref)
	return r.ref, err
}

func parseReference(ref string, opts ...name.Option) (reference, error) {
	n, err := name.ParseReference(strings.TrimSpace(ref), opts...)
	if err != nil {
		// The library's text says what is wrong with it, at length; keep the first line.
		reason, _, _ := strings.Cut(err.Error(), "\n")
		return reference{}, fmt.Errorf("%w %q: %s", ErrBadReference, ref, reason)
	}
	for part := range strings.SplitSeq(n.Context().Name(), "/") {
		if strings.Trim(part, ".") == "" {
			return reference{}, fmt.Errorf("%w %q: %q is not a part of a name", ErrBadReference, ref, part)
		}
	}
	r := reference{
		ref:        dockerHub(n.Name()),
		repository: dockerHub(n.Context().Name()),
		registry:   dockerHub(n.Context().RegistryStr()),
		name:       n,
	}
	if d, ok := n.(name.Digest); ok {
		r.digest = d.DigestStr()
	}
	return r, nil
}

func (s *Store) parse(ref string) (reference, error) {
	r, err := parseReference(ref)
	if err != nil || !s.gate.insecure(r.name.Context().RegistryStr()) {
		return r, err
	}
	return parseReference(ref, name.Insecure)
}

// dockerHub gives Docker Hub the name that people know; the library uses that
// of its server.
func dockerHub(n string) string {
	if rest, ok := strings.CutPrefix(n, name.DefaultRegistry); ok {
		return "docker.io" + rest
	}
	return n
}
