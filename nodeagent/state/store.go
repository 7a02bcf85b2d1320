// Package state keeps on disk what the agent must know without the control
// plane: what it is to run and to route, and what it remembers of its pods.
// It is one append-only log of checksummed records that is rewritten when it
// has grown; a damaged record is skipped and costs only itself.
package state

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
)

// ErrLocked says that another agent works in the directory.
var ErrLocked = errors.New("another agent uses this state directory")

const (
	logName      = "state.log"
	lockName     = "lock"
	instanceName = "instance"
	// compactAt is how much dead weight the log may carry besides as much again
	// as what is alive.
	compactAt = 1 << 20
	maxRecord = 8 << 20
)

// entry is one line of the log: a value for a key, or the end of the key.
type entry struct {
	Key    string          `json:"k"`
	Value  json.RawMessage `json:"v,omitempty"`
	Delete bool            `json:"d,omitempty"`
}

// place is where the newest line of a key lies.
type place struct {
	offset int64
	length int64
}

// log is a map on disk. Put returns when the value survives the death of the
// process; a power cut may take the newest moments, which the next sync with
// the control plane brings back.
type log struct {
	mu     sync.Mutex
	dir    string
	file   *os.File
	size   int64
	live   int64
	places map[string]place
	dirty  chan struct{} // capacity 1: wakes the syncer
	done   chan struct{}
	log    zerolog.Logger
}

// openLog reads the log and calls visit for each live value, in no order.
func openLog(dir string, l zerolog.Logger, visit func(key string, value json.RawMessage)) (*log, error) {
	path := filepath.Join(dir, logName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	s := &log{
		dir: dir, file: file, places: map[string]place{},
		dirty: make(chan struct{}, 1), done: make(chan struct{}), log: l,
	}
	values := map[string]json.RawMessage{}
	if err := s.read(values); err != nil {
		return nil, errors.Join(fmt.Errorf("read state: %w", err), file.Close())
	}
	for key, value := range values {
		visit(key, value)
	}
	go s.sync()
	return s, nil
}

// read takes in every whole line. A line that fails its checksum is skipped;
// an unfinished last line is cut off.
func (s *log) read(values map[string]json.RawMessage) error {
	r := bufio.NewReaderSize(s.file, 1<<16)
	var offset int64
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				s.log.Warn().Int64("offset", offset).Msg("the state's last record is unfinished: dropped")
				if err := s.file.Truncate(offset); err != nil {
					return err
				}
			}
			s.size = offset
			_, err := s.file.Seek(offset, io.SeekStart)
			return err
		}
		if err != nil {
			return err
		}
		length := int64(len(line))
		e, err := decode(line)
		if err != nil {
			s.log.Error().Err(err).Int64("offset", offset).Msg("a record of the state is damaged: skipped")
		} else {
			s.index(e, offset, length)
			if e.Delete {
				delete(values, e.Key)
			} else {
				values[e.Key] = e.Value
			}
		}
		offset += length
	}
}

func (s *log) index(e entry, offset, length int64) {
	s.live -= s.places[e.Key].length
	if e.Delete {
		delete(s.places, e.Key)
		return
	}
	s.places[e.Key] = place{offset, length}
	s.live += length
}

func encode(e entry) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(body) > maxRecord {
		return nil, fmt.Errorf("record of %d bytes is larger than %d", len(body), maxRecord)
	}
	line := make([]byte, 0, len(body)+10)
	line = fmt.Appendf(line, "%08x ", crc32.ChecksumIEEE(body))
	line = append(line, body...)
	return append(line, '\n'), nil
}

func decode(line []byte) (entry, error) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	if len(line) < 9 || line[8] != ' ' {
		return entry{}, errors.New("record has no checksum")
	}
	var sum [4]byte
	if _, err := hex.Decode(sum[:], line[:8]); err != nil {
		return entry{}, fmt.Errorf("record has a bad checksum: %w", err)
	}
	want := uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	if got := crc32.ChecksumIEEE(line[9:]); got != want {
		return entry{}, fmt.Errorf("record's checksum is %08x, not %08x", got, want)
	}
	var e entry
	if err := json.Unmarshal(line[9:], &e); err != nil {
		return entry{}, fmt.Errorf("decode record: %w", err)
	}
	return e, nil
}

func (s *log) put(key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("save %s: %w", key, err)
	}
	return s.append(entry{Key: key, Value: raw})
}

func (s *log) delete(key string) error {
	s.mu.Lock()
	_, known := s.places[key]
	s.mu.Unlock()
	if !known {
		return nil
	}
	return s.append(entry{Key: key, Delete: true})
}

func (s *log) append(e entry) error {
	line, err := encode(e)
	if err != nil {
		return fmt.Errorf("save %s: %w", e.Key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return fmt.Errorf("save %s: %w", e.Key, fs.ErrClosed)
	}
	if _, err := s.file.WriteAt(line, s.size); err != nil {
		// A part of the line may be there; the next write goes over it.
		return fmt.Errorf("save %s: %w", e.Key, err)
	}
	s.index(e, s.size, int64(len(line)))
	s.size += int64(len(line))
	select {
	case s.dirty <- struct{}{}:
	default:
	}
	if s.size > 2*s.live+compactAt {
		if err := s.compact(); err != nil {
			// The old log is whole and goes on growing.
			s.log.Error().Err(err).Msg("cannot compact the state")
		}
	}
	return nil
}

// sync brings what was written to the platters, once for all writes that came
// meanwhile: waiting for it on each write would cost every pod start a disk
// flush, for records that the control plane can tell again.
func (s *log) sync() {
	defer close(s.done)
	for range s.dirty {
		s.mu.Lock()
		file := s.file
		s.mu.Unlock()
		if file == nil {
			return
		}
		if err := file.Sync(); err != nil && !errors.Is(err, fs.ErrClosed) {
			s.log.Error().Err(err).Msg("cannot flush the state")
		}
	}
}

// compact rewrites the log with what is alive. The caller holds the lock.
func (s *log) compact() error {
	path := filepath.Join(s.dir, logName)
	next, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	drop := func(err error) error { return errors.Join(err, next.Close(), os.Remove(path+".new")) }
	places := make(map[string]place, len(s.places))
	w := bufio.NewWriterSize(next, 1<<16)
	var size int64
	for key, p := range s.places {
		if _, err := io.Copy(w, io.NewSectionReader(s.file, p.offset, p.length)); err != nil {
			return drop(err)
		}
		places[key] = place{size, p.length}
		size += p.length
	}
	if err := errors.Join(w.Flush(), next.Sync()); err != nil {
		return drop(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return drop(err)
	}
	old := s.file
	s.file, s.places, s.size, s.live = next, places, size, size
	return errors.Join(old.Close(), syncDir(s.dir))
}

func (s *log) close() error {
	s.mu.Lock()
	file := s.file
	s.file = nil
	s.mu.Unlock()
	if file == nil {
		return nil
	}
	close(s.dirty)
	<-s.done
	return errors.Join(file.Sync(), file.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock takes the directory for this process; the kernel gives it back when the
// process ends, however it does.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// instance is drawn once per directory.
func instance(dir string) (string, error) {
	path := filepath.Join(dir, instanceName)
	if id, err := os.ReadFile(path); err == nil && len(bytes.TrimSpace(id)) == 32 {
		return string(bytes.TrimSpace(id)), nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read instance id: %w", err)
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	id := hex.EncodeToString(raw[:])
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("write instance id: %w", err)
	}
	_, err = f.WriteString(id + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("write instance id: %w", err)
	}
	if err := errors.Join(os.Rename(path+".new", path), syncDir(dir)); err != nil {
		return "", fmt.Errorf("write instance id: %w", err)
	}
	return id, nil
}
