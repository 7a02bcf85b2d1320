package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"gantry.dev/schemas"
)

func (a *app) createConfigMapCommand() *cobra.Command {
	var literals, fromFiles, envFiles []string
	c := &cobra.Command{
		Use: "configmap NAME [--from-literal=KEY=VALUE] [--from-file=[KEY=]FILE|DIRECTORY] [--from-env-file=FILE]", Aliases: []string{"cm"},
		Short: "Create a configmap of values and files",
		Example: `  gantry create configmap settings --from-literal=mode=fast --from-literal=level=3
  gantry create configmap files --from-file=app.conf --from-file=motd=/etc/motd
  gantry create configmap variables --from-env-file=app.env`,
	}
	c.Flags().StringArrayVar(&literals, "from-literal", nil, "a key and its value")
	c.Flags().StringSliceVar(&fromFiles, "from-file", nil, "a file, under its own name or a key, or all files of a directory")
	c.Flags().StringSliceVar(&envFiles, "from-env-file", nil, "a file of lines KEY=VALUE, one key each")
	return a.madeCommand(c, func(name string, _ []string) (schemas.Object, error) {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if len(envFiles) > 0 && len(literals)+len(fromFiles) > 0 {
			return nil, errors.New("from-env-file cannot be combined with from-file or from-literal")
		}
		b := filling{cm}
		for _, l := range literals {
			key, value, ok := strings.Cut(l, "=")
			if !ok || key == "" {
				return nil, fmt.Errorf("invalid literal source %q, expected key=value", l)
			}
			if err := b.add("--from-literal", key, []byte(value)); err != nil {
				return nil, err
			}
		}
		for _, f := range fromFiles {
			if err := b.addPath(f); err != nil {
				return nil, err
			}
		}
		for _, f := range envFiles {
			if err := b.addEnv(f); err != nil {
				return nil, err
			}
		}
		return cm, nil
	})
}

// filling is a ConfigMap that is being filled.
type filling struct{ *corev1.ConfigMap }

// add puts text into data and everything else into binaryData.
func (b filling) add(from, key string, value []byte) error {
	if problems := validation.IsConfigMapKey(key); len(problems) > 0 {
		return fmt.Errorf("%s: %q is not a valid key name for a ConfigMap: %s", from, key, problems[0])
	}
	_, text := b.Data[key]
	_, binary := b.BinaryData[key]
	if text || binary {
		return fmt.Errorf("%s: cannot add key %q, another key by that name already exists in ConfigMap %q", from, key, b.Name)
	}
	if utf8.Valid(value) {
		if b.Data == nil {
			b.Data = map[string]string{}
		}
		b.Data[key] = string(value)
		return nil
	}
	if b.BinaryData == nil {
		b.BinaryData = map[string][]byte{}
	}
	b.BinaryData[key] = value
	return nil
}

// addPath reads [KEY=]FILE, or a directory's files whose names are keys.
func (b filling) addPath(source string) error {
	key, path, hasKey := strings.Cut(source, "=")
	if !hasKey {
		path, key = source, filepath.Base(source)
	}
	if key == "" || path == "" {
		return fmt.Errorf("--from-file=%s: want FILE, DIRECTORY or KEY=FILE", source)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("error reading %s: %w", path, err)
	}
	if !info.IsDir() {
		return b.addFile(key, path)
	}
	if hasKey {
		return fmt.Errorf("--from-file=%s: cannot give a key name for a directory path", source)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("error listing files in %s: %w", path, err)
	}
	for _, e := range entries {
		// Links, devices and directories in a directory were not meant by name.
		if e.Type().IsRegular() {
			if err := b.addFile(e.Name(), filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b filling) addFile(key, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("error reading %s: %w", path, err)
	}
	return b.add("--from-file="+path, key, data)
}

// addEnv reads lines KEY=VALUE; a KEY alone takes its value from this
// program's environment, and is left out where that has none.
func (b filling) addEnv(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("error reading %s: %w", path, err)
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("--from-env-file=%s: not valid UTF-8", path)
	}
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	lines.Buffer(nil, len(data)+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if problems := validation.IsEnvVarName(key); len(problems) > 0 {
			return fmt.Errorf("--from-env-file=%s: line %d: %q is not a valid key name: %s", path, n, key, problems[0])
		}
		if !ok {
			if value, ok = os.LookupEnv(key); !ok {
				continue
			}
		}
		if err := b.add(fmt.Sprintf("--from-env-file=%s: line %d", path, n), key, []byte(value)); err != nil {
			return err
		}
	}
	return lines.Err()
}
