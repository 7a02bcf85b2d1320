package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/nodeagent/image"
	"gantry.dev/schemas"
)

const (
	maxUpload  = 16 << 30 // bytes of one archive
	maxUploads = 4        // at the same time
	staleAfter = time.Hour
)

// ImageStore is the node's store of images.
type ImageStore interface {
	Load(ctx context.Context, path string) ([]image.Image, error)
	List() []image.Image
}

// Images answers schemas.NodeMethodImagePut and schemas.NodeMethodImages.
type Images struct {
	store ImageStore
	dir   string
	mu    sync.Mutex // guards the directory's content and busy
	busy  map[string]bool
	// Loaded is called after images came in; nil for nothing.
	Loaded func()
}

// NewImages keeps unfinished uploads in dir, which it empties.
func NewImages(store ImageStore, dir string) (*Images, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("clear uploads: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of uploads: %w", err)
	}
	return &Images{store: store, dir: dir, busy: map[string]bool{}}, nil
}

// List answers with all images as JSON.
func (i *Images) List(context.Context, map[string][]string, []byte) ([]byte, map[string][]string, error) {
	images := i.store.List()
	if images == nil {
		images = []image.Image{}
	}
	body, err := json.Marshal(images)
	return body, nil, err
}

var uploadName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// piece is one part of an upload.
type piece struct {
	name   string
	offset int64
	last   bool
}

func pieceOf(header map[string][]string) (piece, error) {
	get := func(key string) string {
		if v := header[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	p := piece{name: get(schemas.HeaderUpload), last: get(schemas.HeaderLast) == "true"}
	if !uploadName.MatchString(p.name) {
		return piece{}, apierrors.NewBadRequest(fmt.Sprintf("header %s: %q is not 1 to 64 of [A-Za-z0-9_-]", schemas.HeaderUpload, p.name))
	}
	offset, err := strconv.ParseInt(get(schemas.HeaderOffset), 10, 64)
	if err != nil || offset < 0 {
		return piece{}, apierrors.NewBadRequest(fmt.Sprintf("header %s: %q is not a number of bytes", schemas.HeaderOffset, get(schemas.HeaderOffset)))
	}
	p.offset = offset
	return p, nil
}

// Put takes one piece. A piece may be sent again; one beyond what is there is
// refused. After the last one the archive is loaded, and the answer names its
// images as JSON; the others are answered with nothing.
func (i *Images) Put(ctx context.Context, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	p, err := pieceOf(header)
	if err != nil {
		return nil, nil, err
	}
	if err := i.claim(p.name); err != nil {
		return nil, nil, err
	}
	defer i.release(p.name)
	path := filepath.Join(i.dir, p.name+".part")
	if err := i.write(path, p, body); err != nil {
		return nil, nil, err
	}
	if !p.last {
		return nil, nil, nil
	}
	images, err := i.store.Load(ctx, path)
	if rm := os.Remove(path); err == nil && rm != nil {
		err = fmt.Errorf("remove upload: %w", rm)
	}
	if err != nil {
		return nil, nil, refusal(err)
	}
	if i.Loaded != nil {
		i.Loaded()
	}
	answer, err := json.Marshal(images)
	return answer, nil, err
}

func (i *Images) claim(name string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.busy[name] {
		return apierrors.NewConflict(schema.GroupResource{Resource: "uploads"}, name, errors.New("another piece is being taken in"))
	}
	entries, err := os.ReadDir(i.dir)
	if err != nil {
		return fmt.Errorf("list uploads: %w", err)
	}
	others := 0
	for _, e := range entries {
		if e.Name() == name+".part" {
			continue
		}
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) > staleAfter && !i.busy[e.Name()[:max(len(e.Name())-len(".part"), 0)]] {
			if err := os.Remove(filepath.Join(i.dir, e.Name())); err == nil {
				continue
			}
		}
		others++
	}
	if others >= maxUploads {
		return apierrors.NewTooManyRequests("too many uploads at once", 1)
	}
	i.busy[name] = true
	return nil
}

func (i *Images) release(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.busy, name)
}

func (i *Images) write(path string, p piece, body []byte) (err error) {
	if p.offset > maxUpload-int64(len(body)) {
		_ = os.Remove(path) // what is there can never become an image
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("an upload may have %d bytes", int64(maxUpload)))
	}
	// Only the first piece makes the file: what is refused must not leave one,
	// which would count as an upload for an hour.
	flags := os.O_WRONLY
	if p.offset == 0 {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return apierrors.NewBadRequest(fmt.Sprintf("upload %s has 0 bytes, the piece begins at %d", p.name, p.offset))
	}
	if err != nil {
		return fmt.Errorf("take in upload: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("take in upload: %w", err)
	}
	if p.offset > info.Size() {
		return apierrors.NewBadRequest(fmt.Sprintf("upload %s has %d bytes, the piece begins at %d", p.name, info.Size(), p.offset))
	}
	if _, err := f.WriteAt(body, p.offset); err != nil {
		return fmt.Errorf("take in upload: %w", err)
	}
	return nil
}

// refusal says whose fault a failed load is.
func refusal(err error) error {
	switch {
	case errors.Is(err, image.ErrCorrupt), errors.Is(err, image.ErrUnsafe), errors.Is(err, image.ErrBadReference), errors.Is(err, image.ErrNotFound):
		return apierrors.NewBadRequest(err.Error())
	case errors.Is(err, image.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(err.Error())
	case errors.Is(err, fs.ErrNotExist):
		return apierrors.NewBadRequest("the upload has no content")
	}
	return err
}
