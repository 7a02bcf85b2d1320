package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	chunkSize = 256 << 10
	// chunksAhead bounds the memory of one layer: what was decompressed but
	// not yet written.
	chunksAhead = 8
	// ratioFrom is how many bytes may come out before the ratio to those that
	// went in counts: small archives of zeros are common and harmless.
	ratioFrom = 64 << 20
	// zstdWindow is the largest window that a layer may ask us to hold.
	zstdWindow = 64 << 20
)

// brokenDownload marks an error after which trying again makes sense.
type brokenDownload struct{ cause error }

func (b brokenDownload) Error() string { return b.cause.Error() }
func (b brokenDownload) Unwrap() error { return b.cause }

// pipe decompresses and verifies in one goroutine while another writes files:
// on two cores a layer is on the disk in the longer of both times, not their sum.
type pipe struct {
	ctx    context.Context // lives as long as one call
	cancel context.CancelFunc
	chunks chan []byte
	spare  chan []byte
	rest   []byte // of the chunk being read
	whole  []byte

	done sync.WaitGroup
	mu   sync.Mutex
	err  error // of the producer; io.EOF when all was good
}

func startPipe(ctx context.Context, body io.Reader, src source, limits Limits, count func(int64)) *pipe {
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe{ctx: ctx, cancel: cancel, chunks: make(chan []byte, chunksAhead), spare: make(chan []byte, chunksAhead+2)}
	p.done.Add(1)
	go func() {
		defer p.done.Done()
		defer close(p.chunks)
		in := &packed{inner: body, hash: sha256.New(), count: count}
		err := p.produce(in, src, limits)
		if err == nil {
			err = io.EOF
		}
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
	}()
	return p
}

// packed counts and hashes what comes over the wire.
type packed struct {
	inner io.Reader
	hash  hash.Hash
	n     int64
	count func(int64)
	err   error // the first other than io.EOF
}

func (c *packed) Read(p []byte) (int, error) {
	n, err := c.inner.Read(p)
	c.hash.Write(p[:n])
	c.n += int64(n)
	c.count(int64(n))
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (p *pipe) produce(in *packed, src source, limits Limits) error {
	err := p.pump(in, src, limits)
	if err == nil {
		return nil
	}
	// What the wire said comes before what the decompressor made of it.
	if in.err != nil {
		err = in.err
		if mismatch(err) {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return brokenDownload{fmt.Errorf("%w: it ended after %d of %d bytes", ErrCorrupt, in.n, src.size)}
		}
		if typed(err) {
			return err
		}
		return brokenDownload{fmt.Errorf("%w: after %d of %d bytes: %w", ErrUnavailable, in.n, src.size, err)}
	}
	return err
}

func (p *pipe) pump(in *packed, src source, limits Limits) error {
	plain, closer, err := decompress(in)
	if err != nil {
		return err
	}
	defer closer()
	sum := sha256.New()
	var total int64
	for {
		buf, err := p.buffer()
		if err != nil {
			return err
		}
		n, rerr := fill(plain, buf)
		sum.Write(buf[:n])
		total += int64(n)
		if err := checkRatio(total, in.n, limits); err != nil {
			return err
		}
		if n > 0 {
			select {
			case p.chunks <- buf[:n]:
			case <-p.ctx.Done():
				return p.ctx.Err()
			}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	// The decompressor stops at its own end; the digest is over all bytes.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if src.size >= 0 && in.n != src.size {
		return fmt.Errorf("%w: it has %d bytes, announced were %d", ErrCorrupt, in.n, src.size)
	}
	if got := digestOf(in.hash); src.digest != "" && got != src.digest {
		return fmt.Errorf("%w: digest is %s, announced was %s", ErrCorrupt, got, src.digest)
	}
	if got := digestOf(sum); got != src.diffID {
		return fmt.Errorf("%w: diff ID is %s, the configuration says %s", ErrCorrupt, got, src.diffID)
	}
	return nil
}

// fill is io.ReadFull without its ErrUnexpectedEOF, which cannot be told from
// that of a stream that broke.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

func checkRatio(unpacked, packed int64, l Limits) error {
	if unpacked > l.UnpackedBytes+ratioFrom { // headers and padding come on top of the files
		return fmt.Errorf("%w: the archive is larger than %s", ErrTooLarge, size(l.UnpackedBytes))
	}
	if unpacked > ratioFrom && unpacked/l.LayerRatio > packed {
		return fmt.Errorf("%w: %s came out of %s, more than %d times as much", ErrTooLarge, size(unpacked), size(packed), l.LayerRatio)
	}
	return nil
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// decompress recognises gzip and zstd by their first bytes: media types are
// wrong more often than magic numbers.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		gz, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return gz, func() { _ = gz.Close() }, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return zr, zr.Close, nil
	}
	return br, func() {}, nil
}

func (p *pipe) buffer() ([]byte, error) {
	select {
	case b := <-p.spare:
		return b, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	default:
		return make([]byte, chunkSize), nil
	}
}

// Read gives the plain archive. io.EOF comes only after all digests matched.
func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.whole != nil {
			select {
			case p.spare <- p.whole[:cap(p.whole)]:
			default:
			}
			p.whole = nil
		}
		chunk, ok := <-p.chunks
		if !ok {
			p.mu.Lock()
			defer p.mu.Unlock()
			return 0, p.err
		}
		p.whole, p.rest = chunk, chunk
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// finish reads what follows the archive's end, which the digests cover too.
func (p *pipe) finish() error {
	_, err := io.Copy(io.Discard, p)
	return err
}

// failure is why the stream ended early; nil where it did not.
func (p *pipe) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.err, io.EOF) {
		return nil
	}
	return p.err
}

func (p *pipe) stop() {
	p.cancel()
	p.done.Wait()
}
