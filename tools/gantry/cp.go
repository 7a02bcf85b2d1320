package main

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

type cpOptions struct {
	container  string
	noPreserve bool
}

func (a *app) cpCommand() *cobra.Command {
	var o cpOptions
	c := &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files and directories from a pod and to one",
		Long: `Copy files and directories. One of SRC and DST is here, the other one in a pod:
[NAMESPACE/]POD:PATH. Where DST is a directory, the copy is put into it under the
name that it has; otherwise DST is what the copy is called. No program is needed in
the container. Links are copied as links; devices, FIFOs and sockets are left out.
A local path that holds a colon is written with ./ before it.`,
		Example: `  gantry cp site.conf web-1:/etc/site.conf
  gantry cp shop/web-1:/var/log/app ./logs
  gantry cp ./static deployment-pod:/srv -c web`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("source and destination are required")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.runCp(cmd.Context(), o, args[0], args[1]) },
	}
	f := c.Flags()
	f.StringVarP(&o.container, "container", "c", "", "which container; otherwise the one that the annotation "+defaultContainer+" names, or the first")
	f.BoolVar(&o.noPreserve, "no-preserve", false, "give what is copied to whom the destination belongs, with ordinary permissions")
	return c
}

// place is one side of a copy.
type place struct {
	namespace, pod string // pod is empty for a path here
	path           string
}

func readPlace(spec string) (place, error) {
	i := strings.IndexByte(spec, ':')
	here := i < 0 || strings.HasPrefix(spec, "/") || strings.HasPrefix(spec, "./") || strings.HasPrefix(spec, "../")
	if here {
		if spec == "" {
			return place{}, errors.New("filepath can not be empty")
		}
		return place{path: spec}, nil
	}
	p := place{path: spec[i+1:]}
	p.namespace, p.pod, _ = strings.Cut(spec[:i], "/")
	if p.pod == "" {
		p.namespace, p.pod = "", p.namespace
	}
	if p.pod == "" || strings.Contains(p.pod, "/") {
		return p, fmt.Errorf("%q: filespec must match the canonical format: [[namespace/]pod:]file/path", spec)
	}
	if p.path == "" {
		return p, fmt.Errorf("%q: filepath can not be empty", spec)
	}
	return p, nil
}

func (a *app) runCp(ctx context.Context, o cpOptions, from, to string) error {
	src, err := readPlace(from)
	if err != nil {
		return err
	}
	dst, err := readPlace(to)
	if err != nil {
		return err
	}
	if (src.pod == "") == (dst.pod == "") {
		return errors.New("one of src or dest must be a local file specification, and the other one name a pod")
	}
	remote := src
	if src.pod == "" {
		remote = dst
	}
	if remote.namespace != "" {
		a.namespace = remote.namespace
	}
	pod, err := a.sessionPod(ctx, remote.pod)
	if err != nil {
		return err
	}
	c := &copier{app: a, pod: pod, container: a.chooseContainer(pod, o.container, false), o: o}
	if src.pod != "" {
		return lostSession(c.fetch(ctx, src.path, dst.path))
	}
	return lostSession(c.put(ctx, src.path, dst.path))
}

// copier copies between here and one container.
type copier struct {
	app       *app
	pod       *corev1.Pod
	container string
	o         cpOptions
}

func (c *copier) open(ctx context.Context, path string, write bool) (*bus.Session, error) {
	return c.app.conn.Copy(ctx, c.pod.Namespace, c.pod.Name, schemas.CopyRequest{
		UID: c.pod.UID, Container: c.container, Path: path, Write: write,
	})
}

func (c *copier) warn(format string, args ...any) {
	// It holds names that a container chose.
	fmt.Fprintln(c.app.err, printers.EscapeTerminal("warning: "+fmt.Sprintf(format, args...)))
}

// warnings writes what the node says of a copy.
type warnings struct{ c *copier }

func (w warnings) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		w.c.warn("%s", strings.TrimSuffix(line, "\n"))
	}
	return len(b), nil
}

// fetch copies from the container to here.
func (c *copier) fetch(ctx context.Context, from, to string) error {
	s, err := c.open(ctx, from, false)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	pumped := make(chan error, 1)
	go func() {
		_, err := s.Pump(ctx, bus.Streams{Out: w, Err: warnings{c}})
		w.CloseWithError(err) // nil is the end
		pumped <- err
	}()
	if err = unpack(r, from, to, c.o.noPreserve, c.warn); err != nil {
		_ = r.CloseWithError(err) // Pump ends when it cannot write
	} else {
		_, _ = io.Copy(io.Discard, r) // what fills the last block
	}
	// The session failed because of err, or err is what it failed with.
	return cmp.Or(err, <-pumped)
}

// put copies from here into the container.
func (c *copier) put(ctx context.Context, from, to string) error {
	info, err := os.Stat(from) // what the user named is followed where it is a link
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file nor a directory", from)
	}
	dir, name := path.Dir(to), path.Base(to)
	owner, err := c.look(ctx, to)
	switch {
	case err == nil && owner.Typeflag == tar.TypeDir:
		dir = to
		if name, err = baseName(from); err != nil {
			return err
		}
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a file in the container, and %s a directory", to, from)
	case err == nil:
	case strings.HasSuffix(to, "/"), !notThere(err):
		return err
	}
	if c.o.noPreserve && (owner == nil || owner.Typeflag != tar.TypeDir) {
		if owner, err = c.look(ctx, dir); err != nil {
			return err
		}
	}
	s, err := c.open(ctx, dir, true)
	if err != nil {
		return err
	}
	p := &packer{warn: c.warn, buf: make([]byte, 64<<10)}
	if c.o.noPreserve {
		p.owner = owner
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		// Whole pieces: a request for each header of a small file would cost more
		// than the file.
		pieces := bufio.NewWriterSize(w, schemas.MaxSessionPiece)
		err := p.pack(pieces, from, name)
		if err == nil {
			err = pieces.Flush()
		}
		w.CloseWithError(err)
		packed <- err
	}()
	_, err = s.Pump(ctx, bus.Streams{In: r, Err: warnings{c}})
	_ = r.CloseWithError(io.ErrClosedPipe)
	if failed := <-packed; failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		return failed
	}
	return err
}

// look says what is at a path of the container.
func (c *copier) look(ctx context.Context, path string) (*tar.Header, error) {
	s, err := c.open(ctx, path, false)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		_, err := s.Pump(ctx, bus.Streams{Out: w})
		w.CloseWithError(err)
	}()
	h, err := tar.NewReader(r).Next()
	_ = r.Close() // the rest is of no interest: that ends the session
	<-pumped
	return h, err
}

// notThere says that a copy failed because its path does not exist. The node
// says why a session ended in words alone.
func notThere(err error) bool {
	return strings.Contains(err.Error(), "no such file or directory in the container")
}

// baseName is what a local path is called.
func baseName(name string) (string, error) {
	full, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if base := filepath.Base(full); base != "/" {
		return base, nil
	}
	return ".", nil
}
