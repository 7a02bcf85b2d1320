package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"gantry.dev/schemas"
)

// What a configuration says it is.
const (
	configVersion = "gantry.dev/v1"
	configKind    = "Config"
)

// config is the file that says which clusters there are. It is written by
// `gantry config` and may be written by hand.
type config struct {
	APIVersion     string           `json:"apiVersion,omitempty"`
	Kind           string           `json:"kind,omitempty"`
	CurrentContext string           `json:"current-context,omitempty"`
	Contexts       []clusterContext `json:"contexts,omitempty"`
}

// clusterContext is a cluster, who one is there, and where one looks.
type clusterContext struct {
	Name string `json:"name"`
	// Namespace is where commands look that name none; empty means "default".
	Namespace string `json:"namespace,omitempty"`
	// CredentialsFile is relative to the directory of the configuration.
	CredentialsFile string `json:"credentials-file,omitempty"`
	// Credentials stand here instead of in a file of their own.
	Credentials *schemas.UserCredentials `json:"credentials,omitempty"`
}

// configFile finds the configuration. named says that the user chose it: then
// it has to exist.
func (a *app) configFile() (path string, named bool) {
	if a.config != "" {
		return a.config, true
	}
	if path := os.Getenv("GANTRY_CONFIG"); path != "" {
		return path, true
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", false // no home, no configuration
	}
	return filepath.Join(dir, "gantry", "config.yaml"), false
}

// readConfig reads a configuration; one that does not exist is empty, and its
// error fs.ErrNotExist.
func readConfig(path string) (config, error) {
	var c config
	if path == "" {
		return c, fmt.Errorf("no configuration: neither --config nor $GANTRY_CONFIG names one, and there is no home directory: %w", fs.ErrNotExist)
	}
	f, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("cannot read the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return c, fmt.Errorf("cannot read the configuration: %w", err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return c, fmt.Errorf("cannot read the configuration: %w", err)
	}
	if err := readStrictly(data, &c); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	for _, k := range c.Contexts {
		// The mode of the file that was opened, not of one that took its place.
		if mode := info.Mode().Perm(); k.Credentials != nil && mode&0o077 != 0 {
			return c, fmt.Errorf("configuration %s holds the secret of context %q and others may read or write it (mode %04o): run chmod 600 %s",
				path, k.Name, mode, path)
		}
	}
	return c, nil
}

// readStrictly reads YAML or JSON and refuses fields that are not known, by
// their path. Its errors repeat no value: there may be a secret among them.
func readStrictly(data []byte, into any) error {
	data, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	unknown, err := kjson.UnmarshalStrict(data, into)
	return errors.Join(append(unknown, err)...)
}

// check finds what contradicts itself. It never repeats a secret.
func (c config) check() error {
	if c.APIVersion != "" && c.APIVersion != configVersion || c.Kind != "" && c.Kind != configKind {
		return fmt.Errorf("apiVersion %q, kind %q: this program reads %s, %s", c.APIVersion, c.Kind, configVersion, configKind)
	}
	seen := map[string]bool{}
	for i, k := range c.Contexts {
		switch {
		case k.Name == "":
			return fmt.Errorf("contexts[%d]: a context needs a name", i)
		case seen[k.Name]:
			return fmt.Errorf("contexts[%d]: there are two contexts with the name %q: rename one", i, k.Name)
		case k.Credentials != nil && k.CredentialsFile != "":
			return fmt.Errorf("context %q has credentials and credentials-file: leave one out", k.Name)
		}
		seen[k.Name] = true
		if k.Credentials == nil {
			continue
		}
		if err := checkCredentials(*k.Credentials); err != nil {
			return fmt.Errorf("context %q: credentials: %w", k.Name, err)
		}
	}
	return nil
}

func checkCredentials(c schemas.UserCredentials) error {
	switch {
	case c.User == "":
		return errors.New("user is missing")
	case len(c.URLs) == 0:
		return errors.New("urls are missing: the servers of the cluster, such as nats://127.0.0.1:4222")
	case !strings.HasPrefix(c.Seed, "SU"):
		return errors.New("seed is not the secret key of a user: such a key begins with SU")
	}
	return nil
}

func (c config) find(name string) (clusterContext, bool) {
	i := slices.IndexFunc(c.Contexts, func(k clusterContext) bool { return k.Name == name })
	if i < 0 {
		return clusterContext{}, false
	}
	return c.Contexts[i], true
}

// put replaces a context, or adds it. existed says which.
func (c *config) put(k clusterContext) (existed bool) {
	i := slices.IndexFunc(c.Contexts, func(old clusterContext) bool { return old.Name == k.Name })
	if i >= 0 {
		c.Contexts[i] = k
		return true
	}
	c.Contexts = append(c.Contexts, k)
	return false
}

func (c config) names() []string {
	out := make([]string, len(c.Contexts))
	for i, k := range c.Contexts {
		out[i] = k.Name
	}
	return out
}

// noContext words that a context is not there, and what is.
func (c config) noContext(name, path string) error {
	there := "it has none; see gantry config import --help"
	if len(c.Contexts) > 0 {
		there = "it has " + strings.Join(c.names(), ", ")
	}
	return fmt.Errorf("no context exists with the name: %q in %s: %s", name, path, there)
}

// updateConfig reads the configuration, lets change alter it, and writes it
// back. Two programs that do so at once come one after the other.
func updateConfig(path string, change func(*config) error) error {
	if path == "" {
		return errors.New("no place for the configuration: there is no home directory; name a file with --config or $GANTRY_CONFIG")
	}
	// A link stays a link: what it leads to is replaced.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot write the configuration: %w", err)
	}
	// The directory is locked and not the file, which is another one afterwards.
	lock, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot write the configuration: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	c, err := readConfig(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := change(&c); err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	c.APIVersion, c.Kind = configVersion, configKind
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("cannot write the configuration %s: %w", path, err)
	}
	return replaceFile(path, data, lock)
}

// replaceFile writes a file that only its owner may read: whoever reads it
// finds the old content or the new.
func replaceFile(path string, data []byte, dir *os.File) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return dir.Sync()
}

// redacted is a configuration that may be shown.
func (c config) redacted() config {
	c.Contexts = slices.Clone(c.Contexts)
	for i, k := range c.Contexts {
		if k.Credentials != nil {
			creds := *k.Credentials
			creds.Seed = "REDACTED"
			c.Contexts[i].Credentials = &creds
		}
	}
	return c
}
