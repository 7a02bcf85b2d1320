package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progress is a line on a terminal that says what is being waited for. Where
// the output is no terminal it says nothing.
type progress struct {
	out   io.Writer
	mu    sync.Mutex
	text  string
	since time.Time
	stop  chan struct{}
	done  sync.WaitGroup
}

func (a *app) progress(text string) *progress {
	f, ok := a.err.(*os.File)
	if !ok {
		return &progress{}
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return &progress{}
	}
	p := &progress{out: f, text: text, since: time.Now(), stop: make(chan struct{})}
	p.done.Go(p.run)
	return p
}

func (p *progress) run() {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			fmt.Fprint(p.out, "\r\x1b[K")
			return
		case <-tick.C:
			p.mu.Lock()
			fmt.Fprintf(p.out, "\r\x1b[K%s (%s)", p.text, time.Since(p.since).Round(time.Second))
			p.mu.Unlock()
		}
	}
}

func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = fmt.Sprintf(format, args...)
}

// end takes the line away.
func (p *progress) end() {
	if p.stop != nil {
		close(p.stop)
		p.done.Wait()
		p.stop = nil
	}
}
