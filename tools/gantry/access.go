package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// localCredentials is where a control plane on this machine leaves those of
// its administrator.
const localCredentials = "/var/lib/gantry/controlplane/credentials/admin.json"

// defaultNamespace is where commands look if nothing says otherwise.
const defaultNamespace = "default"

// access is how a cluster is reached.
type access struct {
	context string // its name, empty if credentials were named or found
	from    string // what the credentials were read from, for messages
	creds   schemas.UserCredentials
}

// settle finds out which context and which namespace are meant. What is wrong
// with the context is said by connect: commands that need no cluster need none.
func (a *app) settle(c *cobra.Command) error {
	a.chosen, a.chosenErr = a.choose()
	a.givenNamespace = a.namespace
	switch f := c.Flag("namespace"); {
	case c.HasParent() && c.Parent().Name() == "config":
		return nil // here it is a value and not a place
	case f != nil && f.Changed && a.namespace == "":
		return errors.New("--namespace is empty: name one, or use --all-namespaces where a command takes it")
	case f != nil && f.Changed:
		return nil
	}
	a.namespace = defaultNamespace
	if a.chosen != nil && a.chosen.Namespace != "" {
		a.namespace = a.chosen.Namespace
	}
	return nil
}

// choose finds the context in use; it is nil if there is none, or credentials
// were named.
func (a *app) choose() (*clusterContext, error) {
	if a.context != "" && a.credentials != "" {
		return nil, errors.New("--context and --credentials both say who you are: use one of them")
	}
	if a.context == "" && (a.credentials != "" || os.Getenv("GANTRY_CREDENTIALS") != "") {
		return nil, nil
	}
	path, named := a.configFile()
	c, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !named && a.context == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	name := orText(a.context, c.CurrentContext)
	if name == "" {
		return nil, nil
	}
	k, ok := c.find(name)
	if !ok {
		return nil, c.noContext(name, path)
	}
	if k.CredentialsFile != "" && !filepath.IsAbs(k.CredentialsFile) {
		k.CredentialsFile = filepath.Join(filepath.Dir(path), k.CredentialsFile)
	}
	return &k, nil
}

// access reads the credentials to use: those that are named, those of the
// context, or those that lie where they are looked for.
func (a *app) access() (access, error) {
	if a.chosenErr != nil {
		return access{}, a.chosenErr
	}
	if k := a.chosen; k != nil {
		return k.access()
	}
	file, err := a.credentialsFile()
	if err != nil {
		return access{}, err
	}
	creds, err := bus.ReadUserCredentials(file)
	return access{from: file, creds: creds}, err
}

func (k *clusterContext) access() (access, error) {
	out := access{context: k.Name, from: fmt.Sprintf("context %q", k.Name)}
	switch {
	case k.Credentials != nil:
		out.creds = *k.Credentials
		return out, nil
	case k.CredentialsFile == "":
		return out, fmt.Errorf("context %q has no credentials: run gantry config set-context %s --credentials=FILE", k.Name, k.Name)
	}
	var err error
	if out.creds, err = bus.ReadUserCredentials(k.CredentialsFile); err != nil {
		return out, fmt.Errorf("context %q: %w", k.Name, err)
	}
	return out, nil
}

// credentialsFile finds the file to use: the first that is named, or exists.
func (a *app) credentialsFile() (string, error) {
	if a.credentials != "" {
		return a.credentials, nil
	}
	if file := os.Getenv("GANTRY_CREDENTIALS"); file != "" {
		return file, nil
	}
	var tried []string
	if dir, err := os.UserConfigDir(); err == nil {
		tried = append(tried, filepath.Join(dir, "gantry", "credentials.json"))
	}
	tried = append(tried, localCredentials)
	for _, file := range tried {
		_, err := os.Stat(file)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot use the credentials %s: %w", file, err)
		}
	}
	return "", fmt.Errorf("no credentials: neither --credentials nor $GANTRY_CREDENTIALS names a file, no context is in use, and there is none at %s; is a control plane running on this machine?",
		strings.Join(tried, " or "))
}
