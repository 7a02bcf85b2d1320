package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// kinds is every kind that a returned error may have.
var kinds = []error{
	ErrNotFound, ErrUnauthorized, ErrUnavailable, ErrCorrupt, ErrUnsafe,
	ErrTooLarge, ErrBadReference, ErrNoSpace, ErrNotPresent,
}

func typed(err error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// registryError gives an error of a conversation with a registry its kind and
// says what can be done about it. object is what was asked for, such as
// "manifest" or "layer sha256:...".
func registryError(r reference, object string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case typed(err):
		return err
	}
	var status *transport.Error
	if errors.As(err, &status) {
		return statusError(r, object, status)
	}
	var plain plainHTTPError
	if errors.As(err, &plain) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if mismatch(err) {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, object, err)
	}
	return fmt.Errorf("%w: %s of %s: %w", ErrUnavailable, object, r.registry, err)
}

func statusError(r reference, object string, e *transport.Error) error {
	reason := e.Error()
	if len(reason) > 300 {
		reason = reason[:300] + "…" // some servers answer with a web page
	}
	switch {
	case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: %s: check the name and the pull secret for %s: %s", ErrUnauthorized, object, r.registry, reason)
	case e.StatusCode == http.StatusNotFound && object == "manifest":
		return fmt.Errorf("%w: %s has no such repository, tag or digest: %s", ErrNotFound, r.registry, reason)
	case e.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: the registry names %s but does not have it: push the image again: %s", ErrCorrupt, object, reason)
	case e.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s: %s allows no more pulls for now: %s", ErrUnavailable, object, r.registry, reason)
	}
	return fmt.Errorf("%w: %s: %s", ErrUnavailable, object, reason)
}

// mismatch recognises the library's own digest and size checks, which have no
// exported type.
func mismatch(err error) bool {
	text := err.Error()
	return strings.Contains(text, "error verifying") || strings.Contains(text, "does not match expected size") ||
		strings.Contains(text, "does not match requested digest") ||
		strings.Contains(text, "unsupported MediaType") || strings.Contains(text, "unsupported media type")
}

// unpackError gives an error met while a layer was written its kind. Without
// one it is the machine's fault, such as a broken disk.
func unpackError(err error) error {
	switch {
	case err == nil, typed(err):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrCRCMismatch), errors.Is(err, zstd.ErrReservedBlockType),
		errors.Is(err, zstd.ErrUnexpectedBlockSize), errors.Is(err, zstd.ErrFrameSizeMismatch):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EMLINK), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist):
		// The directory is ours alone and was empty: only the layer itself can
		// make these.
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case strings.Contains(err.Error(), "flate: corrupt input"), strings.Contains(err.Error(), "invalid archive"), strings.Contains(err.Error(), "unhandled tar header"):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}
