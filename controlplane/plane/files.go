package plane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrLocked says that another control plane uses the state directory.
var ErrLocked = errors.New("another control plane uses this state directory")

// lockDir makes the state directory this process's own until the file is
// closed, which the kernel does however the process ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		closed := f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w (pid %s)", path, ErrLocked, strings.TrimSpace(string(holder))), closed)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), closed)
	}
	// The pid is for people alone: what counts is the lock.
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
		if err == nil {
			return f, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("lock %s: cannot write to it", path), f.Close())
}

func (p *Plane) readyPath() string { return filepath.Join(p.options.StateDir, "ready") }

// CredentialsDir is where the files are that let people and nodes in.
func (p *Plane) CredentialsDir() string { return filepath.Join(p.options.StateDir, "credentials") }

// AdminCredentials is the file of the administrator.
func (p *Plane) AdminCredentials() string { return filepath.Join(p.CredentialsDir(), "admin.json") }

// NodeCredentials is the file of a node.
func (p *Plane) NodeCredentials(node string) string {
	return filepath.Join(p.CredentialsDir(), "node-"+node+".json")
}

// NATSContext is the administrator's context for the nats command.
func (p *Plane) NATSContext() string { return filepath.Join(p.CredentialsDir(), "nats-context.json") }

func (p *Plane) writeCredentials() error {
	if err := p.server.WriteAdminCredentials(p.AdminCredentials()); err != nil {
		return err
	}
	for _, node := range p.options.Nodes {
		if err := p.server.WriteNodeCredentials(node, p.NodeCredentials(node)); err != nil {
			return err
		}
	}
	_, err := p.server.WriteNATSContext(p.CredentialsDir(), "nats-context")
	return err
}

// writeFile writes a file that is whole or not there.
func writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
