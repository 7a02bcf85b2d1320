package main

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

// nodeImage is how a node tells of an image.
type nodeImage struct {
	Ref    string    `json:"ref"`
	ID     string    `json:"id"`
	Size   int64     `json:"size"`
	Loaded time.Time `json:"loaded"`
}

const (
	pieceTime = time.Minute      // one piece of an upload
	loadTime  = 15 * time.Minute // the last one, which unpacks the image
	// pieceRoom is left in a message for its headers.
	pieceRoom = 16 << 10
)

func (a *app) imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Images on the nodes"}
	var nodes []string
	load := &cobra.Command{
		Use:   "load FILE|DIRECTORY",
		Short: "Bring images to the nodes without a registry",
		Long: `Bring the images of a docker archive (docker save), an OCI archive or an OCI
layout directory into the stores of the nodes. Archives may be packed with gzip.`,
		Example: "  gantry image load web.tar --node node-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachNode(cmd.Context(), nodes, func(ctx context.Context, node string) error { return a.loadImage(ctx, node, args[0]) })
		},
	}
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Show the images of the nodes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Node"}, {Name: "Image"}, {Name: "ID"}, {Name: "Size"}, {Name: "Age"}}}
			err := a.eachNode(cmd.Context(), nodes, func(ctx context.Context, node string) error { return a.listImages(ctx, node, t) })
			if err != nil {
				return err
			}
			return printers.NewTablePrinter(printers.PrintOptions{}).PrintObj(t, a.out)
		},
	}
	for _, sub := range []*cobra.Command{load, list} {
		sub.Flags().StringSliceVar(&nodes, "node", nil, "only these nodes; otherwise all that are ready")
		c.AddCommand(sub)
	}
	return c
}

// eachNode calls fn for the nodes that were named, or for all that are ready.
func (a *app) eachNode(ctx context.Context, names []string, fn func(context.Context, string) error) error {
	if err := a.connect(ctx); err != nil {
		return err
	}
	if len(names) == 0 {
		k, err := kindOf(schemas.Nodes)
		if err != nil {
			return err
		}
		objects, _, err := a.objects(ctx, k, "", metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, o := range objects {
			if n, ok := o.(*corev1.Node); ok && strings.HasPrefix(nodeStatus(n), "Ready") {
				names = append(names, n.Name)
			}
		}
	}
	if len(names) == 0 {
		return errors.New("no node is ready")
	}
	for _, node := range names {
		if err := fn(ctx, node); err != nil {
			a.report(refused{"node " + node, err})
		}
	}
	return nil
}

func (a *app) listImages(ctx context.Context, node string, t *metav1.Table) error {
	ctx, cancel := context.WithTimeout(ctx, pieceTime)
	defer cancel()
	body, _, err := a.conn.NodeRequest(ctx, node, schemas.NodeMethodImages, nil, nil)
	if err != nil {
		return err
	}
	var images []nodeImage
	if err := json.Unmarshal(body, &images); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	for _, i := range images {
		_, id, _ := strings.Cut(i.ID, ":")
		t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{node, i.Ref, id[:min(12, len(id))], megabytes(i.Size), age(i.Loaded, time.Now())}})
	}
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.1fMB", float64(n)/1e6) }

// loadImage sends an archive to a node in pieces.
func (a *app) loadImage(ctx context.Context, node, path string) error {
	archive, total, err := openArchive(path)
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	p := a.progress("sending to " + node)
	defer p.end()
	body, err := a.upload(ctx, node, hex.EncodeToString(id[:]), archive, func(sent int64) {
		if total > 0 {
			p.say("sending to %s: %d%%", node, sent*100/total)
		} else {
			p.say("sending to %s: %s", node, megabytes(sent))
		}
	})
	if err != nil {
		return err
	}
	var images []nodeImage
	if err := json.Unmarshal(body, &images); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	p.end()
	for _, i := range images {
		fmt.Fprintf(a.out, "node/%s loaded %s\n", node, i.Ref)
	}
	return nil
}

// upload sends r piece by piece and returns what the node says to the last one.
func (a *app) upload(ctx context.Context, node, id string, r io.Reader, sent func(int64)) ([]byte, error) {
	size := min(max(a.conn.MaxPayload()-pieceRoom, 4<<10), 1<<20)
	this, next := make([]byte, size), make([]byte, size)
	n, err := io.ReadFull(r, this)
	for offset := int64(0); ; {
		if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		// Only by looking ahead is the last piece known as such.
		last := err != nil
		m := 0
		var nextErr error
		if !last {
			m, nextErr = io.ReadFull(r, next)
			last = m == 0 && errors.Is(nextErr, io.EOF)
		}
		limit := pieceTime
		if last {
			limit = loadTime
		}
		pieceCtx, cancel := context.WithTimeout(ctx, limit)
		body, _, sendErr := a.conn.UploadPiece(pieceCtx, node, id, offset, last, this[:n])
		cancel()
		if sendErr != nil || last {
			return body, sendErr
		}
		offset += int64(n)
		sent(offset)
		this, next, n, err = next, this, m, nextErr
	}
}

// openArchive opens a file, or packs a layout directory on the way.
func openArchive(path string) (io.ReadCloser, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.IsDir() {
		f, err := os.Open(path)
		return f, info.Size(), err
	}
	if _, err := os.Stat(filepath.Join(path, "index.json")); err != nil {
		return nil, 0, fmt.Errorf("%s is not an OCI layout: it has no index.json", path)
	}
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		err := tw.AddFS(regularFiles{os.DirFS(path)})
		w.CloseWithError(errors.Join(err, tw.Close()))
	}()
	return r, 0, nil
}

// regularFiles is a directory without what a layout does not have.
type regularFiles struct{ fs.FS }

func (r regularFiles) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(r.FS, name)
	var out []fs.DirEntry
	for _, e := range entries {
		if e.IsDir() || e.Type().IsRegular() {
			out = append(out, e)
		}
	}
	return out, err
}
