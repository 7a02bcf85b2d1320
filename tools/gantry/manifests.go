package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/schemas"
)

// manifest is one object of a file.
type manifest struct {
	file      string
	kind      schemas.Kind
	namespace string // empty for cluster-scoped kinds
	name      string
	json      []byte // as written
}

// what words an error about it.
func (m manifest) what(doing string) string {
	return fmt.Sprintf("error when %s %q", doing, m.file)
}

// files are the flags -f and -R, and -k, which is refused.
type files struct {
	names     []string
	recursive bool
	kustomize string
}

func (f *files) flags(c *cobra.Command) {
	c.Flags().StringSliceVarP(&f.names, "filename", "f", nil, "file or directory with manifests, or - for standard input")
	c.Flags().BoolVarP(&f.recursive, "recursive", "R", false, "directories in directories as well")
	c.Flags().StringVarP(&f.kustomize, "kustomize", "k", "", "refused: build the kustomization first, and pipe it into -f -")
	if err := c.Flags().MarkHidden("kustomize"); err != nil {
		panic(err) // the flag was added the line before
	}
}

// given says whether files were named.
func (f *files) given() bool { return len(f.names) > 0 || f.kustomize != "" }

// suffixes are those of files that are taken from a directory.
var suffixes = []string{".json", ".yaml", ".yml"}

// paths lists the files behind what was named.
func (f *files) paths() ([]string, error) {
	if f.kustomize != "" {
		return nil, fmt.Errorf("-k %s: gantry builds no kustomizations; build it first, for example with: kustomize build %s | gantry apply -f -", f.kustomize, f.kustomize)
	}
	var out []string
	for _, name := range f.names {
		if name == "-" {
			out = append(out, name)
			continue
		}
		if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
			return nil, fmt.Errorf("%s: download it first and give the file, or pipe it into -f -", name)
		}
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the path %q does not exist", name)
		}
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			out = append(out, name)
			continue
		}
		found, err := f.inDirectory(name)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("no manifests in %s: recognized file extensions are %s", name, strings.Join(suffixes, " "))
		}
		out = append(out, found...)
	}
	return out, nil
}

func (f *files) inDirectory(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir && !f.recursive:
			return filepath.SkipDir
		case !d.IsDir() && slices.Contains(suffixes, filepath.Ext(path)):
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

// manifests reads all files. What is broken is reported and left out, so that
// each object gets an answer of its own.
func (a *app) manifests(f *files) ([]manifest, error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	var out []manifest
	seen := 0
	for _, path := range paths {
		var data []byte
		if path == "-" {
			path = "STDIN"
			data, err = io.ReadAll(a.in)
		} else {
			data, err = os.ReadFile(path)
		}
		if err != nil {
			return nil, err
		}
		docs := schemas.DecodeAll(data)
		seen += len(docs)
		for _, d := range docs {
			m, err := a.manifest(path, d)
			if err != nil {
				a.report(err)
				continue
			}
			out = append(out, m)
		}
	}
	if seen == 0 {
		return nil, errors.New("no objects passed in")
	}
	return out, nil
}

// manifest finds out where an object goes. The server judges it: what is wrong
// inside is told by one side only.
func (a *app) manifest(file string, d schemas.Document) (manifest, error) {
	if d.JSON == nil {
		return manifest{}, fmt.Errorf("error parsing %s: %w", file, d.Err)
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
			Namespace    string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(d.JSON, &head); err != nil {
		return manifest{}, fmt.Errorf("error parsing %s: %w", file, errors.Join(d.Err, err))
	}
	k, ok := schemas.KindByGVK(head.APIVersion, head.Kind)
	if !ok {
		return manifest{}, fmt.Errorf("unable to recognize %q: %w", file, orNoKind(d.Err, head.APIVersion, head.Kind))
	}
	m := manifest{file: file, kind: k, name: head.Metadata.Name, json: d.JSON}
	if k.Namespaced {
		m.namespace = head.Metadata.Namespace
		switch {
		case m.namespace == "":
			m.namespace = a.namespace
		case a.givenNamespace != "" && a.givenNamespace != m.namespace:
			return manifest{}, fmt.Errorf("%s: the namespace from the provided object %q does not match the namespace %q: pass '--namespace=%s', or none",
				file, m.namespace, a.givenNamespace, m.namespace)
		}
	}
	return m, nil
}

func orNoKind(err error, apiVersion, kind string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("no matches for kind %q in version %q", kind, apiVersion)
}

// key tells objects apart.
func (m manifest) key() string { return schemas.ObjectKey(m.kind.Resource, m.namespace, m.name) }

// batches groups what may be sent at once: an object waits for an earlier one
// of the same name and for all Namespaces before it. Each write waits for a
// disk, so a hundred one after another would take a hundred times as long.
func batches(ms []manifest) [][]manifest {
	var out [][]manifest
	var now []manifest
	seen := map[string]bool{}
	flush := func() {
		if len(now) > 0 {
			out = append(out, now)
		}
		now, seen = nil, map[string]bool{}
	}
	for _, m := range ms {
		alone := m.kind.Resource == schemas.Namespaces
		if alone || seen[m.key()] {
			flush()
		}
		now = append(now, m)
		seen[m.key()] = true
		if alone {
			flush()
		}
	}
	flush()
	return out
}
