package image

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// An image may be used as soon as its files are in the page cache: writing them
// to the disk takes longer than unpacking them, and only a power cut can tell
// the difference. So the record of a new image carries the boot ID of the
// machine, which makes it void after a reboot, until all has been written.
// Syncing before the record was the road not taken: it makes the first start
// of a pod wait for the disk, and for whatever else is being written to it.

// bootID is drawn by the kernel when it starts.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // every image is then synced before its record
	}
	return strings.TrimSpace(string(data))
}

func (s *Store) wakeFlusher() {
	select {
	case s.flush <- struct{}{}:
	default:
	}
}

// flusher brings images to the disk until Close. What is left then is done by
// the next process, or void after a reboot.
func (s *Store) flusher() {
	for {
		select {
		case <-s.closed:
			return
		case <-s.flush:
			if err := s.flushRecords(); err != nil {
				s.log.Error().Err(err).Msg("images are not safe from a power cut yet")
			}
		}
	}
}

func (s *Store) flushRecords() error {
	s.mu.Lock()
	pending := map[string]uint64{}
	for key, rec := range s.records {
		if rec.Boot != "" {
			pending[key] = rec.written
		}
	}
	s.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	if err := s.syncLayers(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, written := range pending {
		rec, ok := s.records[key]
		if !ok || rec.written != written {
			continue // another image since
		}
		rec.Boot = ""
		if err := s.putRecord(key, rec); err != nil {
			return err
		}
	}
	return nil
}

// syncLayers makes all layers survive a power cut.
func (s *Store) syncLayers() error {
	d, err := os.Open(s.path("layers"))
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("write layers to disk: %w", err)
	}
	return nil
}
