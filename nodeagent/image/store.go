package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Store is the images of one node. A directory holds
//
//	lock                  held while a store is open
//	images/<key>.json     one record per reference: the truth, written last
//	layers/<diff ID hex>  one unpacked layer, ready to be a lower directory
//	tmp/                  whatever is not finished; emptied at Open
//
// A layer is complete only if a record names it. Whatever no record names is
// removed at Open, and so is an image that had not reached the disk when the
// machine stopped: neither kill -9 nor a power cut leaves anything to repair.
type Store struct {
	dir  string
	opt  Options
	log  zerolog.Logger
	gate *gate
	lock *os.File

	boot    string        // of this run of the machine; empty where it is not known
	slots   chan struct{} // one per layer that is fetched
	pulls   flight[Image]
	fetches flight[layer]

	mu      sync.Mutex
	records map[string]record // by recordKey
	layers  map[string]layer  // complete layers, by name
	pins    map[string]int    // layers that an unfinished pull counts on

	flush   chan struct{} // capacity 1: something is not on the disk yet
	flushed sync.WaitGroup
	closed  chan struct{}
	close   sync.Once
	writes  uint64 // counts records written; under mu
}

// layer is one unpacked layer.
type layer struct {
	// Name is the directory below layers/: the hex part of the diff ID, with a
	// suffix where directories had to take their attributes from lower layers.
	Name string `json:"name"`
	// DiffID is the digest of the uncompressed archive.
	DiffID string `json:"diffID"`
	Size   int64  `json:"size"` // bytes of the files in it
	// Implied are directories that entries of the layer are in, but that the
	// layer itself does not describe. What they look like is for the layers below to say.
	Implied []string `json:"implied,omitempty"`
	// Opaque layers hide all layers below. Overlayfs cannot say that of a root
	// directory, so the layers below are left out instead.
	Opaque bool `json:"opaque,omitempty"`
}

func (o Options) withDefaults() Options {
	l := &o.Limits
	l.UnpackedBytes = cmp.Or(l.UnpackedBytes, 20<<30)
	l.LayerRatio = cmp.Or(l.LayerRatio, 200)
	l.Entries = cmp.Or(l.Entries, 500_000)
	l.PathDepth = cmp.Or(l.PathDepth, 128)
	l.Layers = cmp.Or(l.Layers, 127)
	o.OS = cmp.Or(o.OS, "linux")
	o.Architecture = cmp.Or(o.Architecture, runtime.GOARCH)
	o.Parallel = cmp.Or(o.Parallel, 3)
	return o
}

// Open takes the store in o.Dir into use and clears what a crash may have left
// there. It fails where another process has the store open.
func Open(o Options, log zerolog.Logger) (*Store, error) {
	o = o.withDefaults()
	if o.Dir == "" {
		return nil, errors.New("open image store: no directory given")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{
		dir: dir, opt: o, log: log, gate: newGate(o.InsecureRegistries),
		slots:   make(chan struct{}, o.Parallel),
		records: map[string]record{},
		layers:  map[string]layer{},
		pins:    map[string]int{},
		boot:    bootID(), flush: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if err := s.open(); err != nil {
		s.unlock()
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	s.flushed.Go(s.flusher)
	s.wakeFlusher() // for what an earlier process left
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another process is using it")
		}
		return fmt.Errorf("lock it: %w", err)
	}
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return err
	}
	for _, d := range []string{"tmp", "images", "layers"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := s.readRecords(); err != nil {
		return err
	}
	return s.clearUnnamed()
}

// clearUnnamed removes the layers that no record names: they may be incomplete.
func (s *Store) clearUnnamed() error {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := s.layers[e.Name()]; ok {
			continue
		}
		if err := s.discard(e.Name()); err != nil {
			return err
		}
		s.log.Info().Str("layer", e.Name()).Msg("removed a layer that no image names")
	}
	return nil
}

// Close ends all pulls and gives the store free for another process.
func (s *Store) Close() error {
	s.pulls.stop()
	s.fetches.stop()
	s.close.Do(func() { close(s.closed) })
	s.flushed.Wait()
	s.gate.close()
	s.unlock()
	return nil
}

func (s *Store) unlock() {
	if s.lock != nil {
		_ = s.lock.Close() // closing also unlocks
		s.lock = nil
	}
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) layerPath(name string) string { return s.path("layers", name) }

// Get returns the image of a reference if all of it is on the node. A reference
// by digest is also answered by an image of the same repository that was
// pulled under a tag.
func (s *Store) Get(ref string) (Image, bool) {
	r, err := s.parse(ref)
	if err != nil {
		return Image{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.find(r)
	if !ok || !s.complete(rec) {
		return Image{}, false
	}
	img := s.image(rec)
	img.Ref = r.ref
	return img, true
}

// find is called with s.mu held.
func (s *Store) find(r reference) (record, bool) {
	if rec, ok := s.records[recordKey(r.ref)]; ok {
		return rec, true
	}
	if r.digest == "" {
		return record{}, false
	}
	for _, rec := range s.records {
		if slices.Contains(rec.Digests, r.repository+"@"+r.digest) {
			return rec, true
		}
	}
	return record{}, false
}

// complete says whether the layers are still there: somebody may have cleaned
// up by hand. It is called with s.mu held.
func (s *Store) complete(rec record) bool {
	for _, l := range rec.Layers {
		if fi, err := os.Lstat(s.layerPath(l.Name)); err != nil || !fi.IsDir() {
			return false
		}
	}
	return true
}

// List returns all images that have a reference, ordered by it.
func (s *Store) List() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Image
	for _, rec := range s.records {
		if rec.Image.Ref != "" {
			out = append(out, s.image(rec))
		}
	}
	slices.SortFunc(out, func(a, b Image) int { return cmp.Compare(a.Ref, b.Ref) })
	return out
}

// Remove takes the reference away. The image stays until Collect finds that
// nothing uses it. ErrNotPresent where there is no such reference.
func (s *Store) Remove(ref string) error {
	r, err := s.parse(ref)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.records[recordKey(r.ref)]
	if !ok {
		return fmt.Errorf("remove image %s: %w", r.ref, ErrNotPresent)
	}
	if err := s.keepUntagged(rec); err != nil {
		return fmt.Errorf("remove image %s: %w", r.ref, err)
	}
	if err := s.dropRecord(recordKey(r.ref)); err != nil {
		return fmt.Errorf("remove image %s: %w", r.ref, err)
	}
	return nil
}

// Collect removes images that no reference leads to any more and whose ID is
// not in use, and layers that no image needs. Images with a reference stay,
// used or not: they may have been loaded by hand onto a machine without a
// registry. It returns the bytes freed, also beside an error.
func (s *Store) Collect(inUse []string) (freed int64, err error) {
	s.mu.Lock()
	var errs []error
	for key, rec := range s.records {
		if rec.Image.Ref != "" || slices.Contains(inUse, rec.Image.ID) {
			continue
		}
		if err := s.dropRecord(key); err != nil {
			errs = append(errs, err)
		}
	}
	named := s.named()
	var gone []string
	for name, l := range s.layers {
		if named[name] || s.pins[name] > 0 {
			continue
		}
		delete(s.layers, name)
		aside, err := s.setAside(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, aside)
		freed += l.Size
	}
	s.mu.Unlock()
	for _, aside := range gone {
		if err := os.RemoveAll(aside); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return freed, fmt.Errorf("collect unused images: %w", err)
	}
	return freed, nil
}

// named is the layers that records name. It is called with s.mu held.
func (s *Store) named() map[string]bool {
	named := map[string]bool{}
	for _, rec := range s.records {
		for _, l := range rec.Layers {
			named[l.Name] = true
		}
	}
	return named
}

// discard removes a layer in one step, so that no half removed one is ever
// found under its name.
func (s *Store) discard(name string) error {
	aside, err := s.setAside(name)
	if err != nil {
		return err
	}
	return os.RemoveAll(aside)
}

func (s *Store) setAside(name string) (string, error) {
	aside, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err != nil {
		return "", err
	}
	err = os.Rename(s.layerPath(name), filepath.Join(aside, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return aside, nil
}

// pin keeps layers from being collected until they are unpinned.
func (s *Store) pin(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.pins[n]++
	}
}

func (s *Store) unpin(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if s.pins[n]--; s.pins[n] <= 0 {
			delete(s.pins, n)
		}
	}
}

// dropUnnamed removes those layers that no record names and no other pull
// counts on: after a full disk, what was unpacked must not stay and fill it.
func (s *Store) dropUnnamed(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := s.named()
	for _, name := range names {
		if _, ok := s.layers[name]; !ok || named[name] || s.pins[name] > 0 {
			continue
		}
		delete(s.layers, name)
		if err := s.discard(name); err != nil {
			s.log.Warn().Err(err).Str("layer", name).Msg("cannot remove a layer")
		}
	}
}

// free is the space left for layers.
func (s *Store) free() (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.path("layers"), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// sleep waits unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
