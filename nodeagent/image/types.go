// Package image keeps container images on a node: it pulls them over the
// registry protocol or loads them from archives, verifies every digest, and
// unpacks each layer once for all images that share it.
package image

import (
	"errors"
	"time"
)

// Errors of the store; matched with errors.Is. What is returned wraps one of
// them and names the reference.
var (
	ErrNotFound     = errors.New("image not found") // the registry has no such name or tag
	ErrUnauthorized = errors.New("registry refused access")
	ErrUnavailable  = errors.New("registry unavailable")     // cannot be reached, or answers 5xx
	ErrCorrupt      = errors.New("image content is corrupt") // digest or size does not match
	ErrUnsafe       = errors.New("image is unsafe")          // a path or link leaves the root
	ErrTooLarge     = errors.New("image exceeds a limit")
	ErrBadReference = errors.New("invalid image reference")
	ErrNoSpace      = errors.New("no space left for images")
	ErrNotPresent   = errors.New("image is not present on the node") // pull policy Never
)

// Image is one image that is complete on the node.
type Image struct {
	// Ref is as asked for, normalised (docker.io/library/x:latest where nothing is said).
	Ref string `json:"ref"`
	// ID is the digest of the configuration, RepoDigest name@digest of the
	// manifest (empty for a loaded image without one).
	ID         string    `json:"id"`
	RepoDigest string    `json:"repoDigest,omitempty"`
	Layers     []string  `json:"layers"` // unpacked directories, lowest first
	Size       int64     `json:"size"`   // bytes unpacked
	Loaded     time.Time `json:"loaded"`
	Config     Config    `json:"config"`
}

// Config is what an image says about how to run it.
type Config struct {
	Entrypoint   []string `json:"entrypoint,omitempty"`
	Cmd          []string `json:"cmd,omitempty"`
	Env          []string `json:"env,omitempty"`
	User         string   `json:"user,omitempty"`
	WorkingDir   string   `json:"workingDir,omitempty"`
	StopSignal   string   `json:"stopSignal,omitempty"`
	ExposedPorts []string `json:"exposedPorts,omitempty"`
}

// Limits bound what one image may cost. Zero fields take the defaults.
type Limits struct {
	UnpackedBytes int64 // all layers together; default 20 GiB
	LayerRatio    int64 // unpacked / compressed bytes of one layer; default 200, checked above 64 MiB
	Entries       int64 // files in one layer; default 500,000
	PathDepth     int   // default 128
	Layers        int   // default 127
}

// Options of a Store.
type Options struct {
	// Dir holds blobs, layers and metadata; created with mode 0700.
	Dir    string
	Limits Limits
	// InsecureRegistries are host[:port] that may be reached over plain HTTP or
	// with an unverified certificate. Loopback is not implied.
	InsecureRegistries []string
	// Platform defaults to that of this build.
	OS, Architecture string
	// Parallel is how many layers are fetched at once; default 3.
	Parallel int
}

// Progress is told now and then while an image is pulled.
type Progress struct {
	Layers, LayersDone int
	Bytes, TotalBytes  int64
}

// Auth is a user name and password for one registry; nil means anonymous.
type Auth struct {
	Username, Password string
}
