package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// record is what images/<key>.json holds. An image whose reference was taken
// away or now means another image keeps a record without reference, because
// containers may still run from it.
type record struct {
	Version int   `json:"version"`
	Image   Image `json:"image"` // Layers is empty: directories follow from Layers below
	// Digests are the manifests (and the index that led there) as
	// repository@digest: references by digest that this image answers.
	Digests []string `json:"digests,omitempty"`
	Layers  []layer  `json:"layers"` // lowest first, without doubles
	// Boot is the run of the machine in which the image came, while it is not
	// known to be on the disk; empty afterwards.
	Boot string `json:"boot,omitempty"`

	written uint64 // tells two records of one key apart
}

const recordVersion = 1

// recordKey is the name of a record: references hold characters that file
// names cannot.
func recordKey(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return hex.EncodeToString(sum[:])
}

func untaggedKey(id string) string { return recordKey("untagged " + id) }

// image is called with s.mu held.
func (s *Store) image(rec record) Image {
	img := rec.Image
	img.Layers = make([]string, len(rec.Layers))
	for i, l := range rec.Layers {
		img.Layers[i] = s.layerPath(l.Name)
	}
	return img
}

// readRecords takes in all records. One that cannot be read or lacks a layer
// is removed: the image is pulled again when it is needed, which is better
// than an agent that does not start.
func (s *Store) readRecords() error {
	entries, err := os.ReadDir(s.path("images"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := s.path("images", e.Name())
		key, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			continue
		}
		rec, err := readRecord(path)
		if err == nil && !s.complete(rec) {
			err = errors.New("a layer is missing")
		}
		if err == nil && rec.Boot != "" && rec.Boot != s.boot {
			err = errors.New("the machine stopped before it was on the disk")
		}
		if err != nil {
			s.log.Warn().Err(err).Str("record", path).Str("image", rec.Image.Ref).Msg("forgetting an image that is not complete")
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		s.records[key] = rec
		for _, l := range rec.Layers {
			s.layers[l.Name] = l
		}
	}
	return nil
}

func readRecord(path string) (record, error) {
	var rec record
	data, err := os.ReadFile(path)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, err
	}
	if rec.Version != recordVersion {
		return rec, fmt.Errorf("version %d is not known", rec.Version)
	}
	for _, l := range rec.Layers {
		if l.Name == "" || l.Name != filepath.Base(l.Name) {
			return rec, fmt.Errorf("layer name %q", l.Name)
		}
	}
	return rec, nil
}

// commit makes rec the image of its reference; the image that the reference
// meant before stays without one.
func (s *Store) commit(rec record) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := recordKey(rec.Image.Ref)
	if old, ok := s.records[key]; ok && old.Image.ID != rec.Image.ID {
		if err := s.keepUntagged(old); err != nil {
			return Image{}, err
		}
	}
	if err := s.putRecord(key, rec); err != nil {
		return Image{}, err
	}
	return s.image(rec), nil
}

// keepUntagged is called with s.mu held.
func (s *Store) keepUntagged(rec record) error {
	rec.Image.Ref = ""
	rec.Digests = nil
	return s.putRecord(untaggedKey(rec.Image.ID), rec)
}

// putRecord is called with s.mu held. The fsync of a file of a few hundred
// bytes under the lock is accepted: there is one per image.
func (s *Store) putRecord(key string, rec record) error {
	rec.Version = recordVersion
	rec.Image.Layers = nil
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode image record: %w", err)
	}
	if err := writeFile(s.path("tmp", key+".json"), s.path("images", key+".json"), data, rec.Boot == ""); err != nil {
		return fmt.Errorf("write image record: %w", err)
	}
	s.writes++
	rec.written = s.writes
	s.records[key] = rec
	return nil
}

// dropRecord is called with s.mu held.
func (s *Store) dropRecord(key string) error {
	err := os.Remove(s.path("images", key+".json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(s.records, key)
	return nil
}

// writeFile puts data at path in one step, and where durable is set so that it
// survives a power cut.
func writeFile(tmp, path string, data []byte, durable bool) (err error) {
	defer func() {
		if err != nil {
			_ = os.Remove(tmp) // what matters is the error that led here
		}
	}()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil || !durable {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
