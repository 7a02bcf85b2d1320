package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"

	"gantry.dev/schemas"
)

// keyring holds the secret seeds of a server under one directory. A key is
// drawn once, on first use, and found again after every restart; deleting its
// file is how it is revoked for good.
type keyring struct{ dir string }

func openKeyring(dir string) (keyring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return keyring{}, fmt.Errorf("create key directory: %w", err)
	}
	// The directory may be older than this code and its mode looser.
	if err := os.Chmod(dir, 0o700); err != nil {
		return keyring{}, fmt.Errorf("protect key directory: %w", err)
	}
	return keyring{dir: dir}, nil
}

func (k keyring) path(name string) string { return filepath.Join(k.dir, name+".nk") }

// pair returns the key of that name and makes it with draw where there is none.
func (k keyring) pair(name string, draw func() (nkeys.KeyPair, error)) (nkeys.KeyPair, error) {
	path := k.path(name)
	seed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k.draw(path, draw)
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	kp, err := nkeys.FromSeed(trimSeed(seed))
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	return kp, nil
}

func (k keyring) draw(path string, draw func() (nkeys.KeyPair, error)) (nkeys.KeyPair, error) {
	kp, err := draw()
	if err != nil {
		return nil, fmt.Errorf("draw key %s: %w", path, err)
	}
	seed, err := kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("draw key %s: %w", path, err)
	}
	if err := writeFileAtomic(path, append(seed, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("keep key: %w", err)
	}
	return kp, nil
}

// forget removes a key; one that is not there is as good as removed.
func (k keyring) forget(name string) error {
	if err := os.Remove(k.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove key: %w", err)
	}
	return nil
}

func trimSeed(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r' || b[len(b)-1] == ' ') {
		b = b[:len(b)-1]
	}
	return b
}

// writeFileAtomic writes a file so that a reader, or a crash, sees the old
// content or the new, never a part. The directory is synced too: a rename that
// a power cut undoes would leave a server with other keys than its nodes have.
func writeFileAtomic(path string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeFileAtomic(path, append(data, '\n'), 0o600)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read credentials: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read credentials %s: %w", path, err)
	}
	return nil
}

// ReadNodeCredentials reads what WriteNodeCredentials wrote.
func ReadNodeCredentials(path string) (schemas.NodeCredentials, error) {
	var c schemas.NodeCredentials
	return c, readJSON(path, &c)
}

// ReadUserCredentials reads what WriteAdminCredentials wrote.
func ReadUserCredentials(path string) (schemas.UserCredentials, error) {
	var c schemas.UserCredentials
	return c, readJSON(path, &c)
}

// AdminCredentials lets a person drive the cluster and read all of the bus.
func (s *Server) AdminCredentials() (schemas.UserCredentials, error) {
	seed, err := s.admin.Seed()
	if err != nil {
		return schemas.UserCredentials{}, fmt.Errorf("admin credentials: %w", err)
	}
	return schemas.UserCredentials{
		User: "admin", URLs: s.URLs(), Websockets: s.WebsocketURLs(), Seed: string(seed), Prefix: s.opts.Names.Prefix, CA: s.ca,
	}, nil
}

// WriteAdminCredentials writes AdminCredentials as JSON, for our own tools.
func (s *Server) WriteAdminCredentials(path string) error {
	c, err := s.AdminCredentials()
	if err != nil {
		return err
	}
	return writeJSON(path, c)
}

// NodeCredentials are those of a node that AddNode made known. They carry the
// cluster's id once Open has been called with this server.
func (s *Server) NodeCredentials(node string) (schemas.NodeCredentials, error) {
	s.mu.Lock()
	n, ok := s.nodes[node]
	clusterID := s.clusterID
	s.mu.Unlock()
	if !ok {
		return schemas.NodeCredentials{}, fmt.Errorf("credentials of node %q: %w", node, ErrNotFound)
	}
	seed, err := n.key.Seed()
	if err != nil {
		return schemas.NodeCredentials{}, fmt.Errorf("credentials of node %q: %w", node, err)
	}
	return schemas.NodeCredentials{
		Node: node, ClusterID: clusterID, URLs: s.URLs(), Seed: string(seed),
		Signer: s.signer.public, Prefix: s.opts.Names.Prefix, CA: s.ca,
	}, nil
}

// WriteNodeCredentials writes NodeCredentials as JSON.
func (s *Server) WriteNodeCredentials(node, path string) error {
	c, err := s.NodeCredentials(node)
	if err != nil {
		return err
	}
	return writeJSON(path, c)
}

// WriteNATSContext writes the two files that the nats command needs to be the
// admin: <dir>/<name>.nk and <dir>/<name>.json. The second is a context in the
// format of `nats context`; used as `nats --context <dir>/<name>.json`, or
// from anywhere by its name once it lies in ~/.config/nats/context.
func (s *Server) WriteNATSContext(dir, name string) (contextFile string, err error) {
	c, err := s.AdminCredentials()
	if err != nil {
		return "", err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("write nats context: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("write nats context: %w", err)
	}
	keyFile := filepath.Join(dir, name+".nk")
	if err := writeFileAtomic(keyFile, []byte(c.Seed+"\n"), 0o600); err != nil {
		return "", err
	}
	settings := map[string]string{
		"description": "Gantry administrator",
		"url":         firstOr(c.URLs, ""),
		"nkey":        keyFile,
	}
	if c.CA != "" {
		caFile := filepath.Join(dir, name+".ca.pem")
		if err := writeFileAtomic(caFile, []byte(c.CA), 0o600); err != nil {
			return "", err
		}
		settings["ca"] = caFile
	}
	contextFile = filepath.Join(dir, name+".json")
	return contextFile, writeJSON(contextFile, settings)
}

func firstOr(s []string, otherwise string) string {
	if len(s) > 0 {
		return s[0]
	}
	return otherwise
}
