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

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Say which clusters there are, and which one is meant",
		Long: `The configuration is ~/.config/gantry/config.yaml, or what $GANTRY_CONFIG or
--config names. A context in it has credentials, in place or in a file, and a
namespace. Which credentials a command uses, first to last: --credentials,
--context, $GANTRY_CREDENTIALS, the current context,
~/.config/gantry/credentials.json, those of the control plane on this machine.`,
	}
	c.AddCommand(
		a.getContextsCommand(), a.currentContextCommand(), a.useContextCommand(), a.setContextCommand(),
		a.renameContextCommand(), a.deleteContextCommand(), a.importContextCommand(), a.viewConfigCommand(),
	)
	return c
}

// changeConfig alters the configuration in use.
func (a *app) changeConfig(change func(c *config, path string) error) error {
	path, _ := a.configFile()
	return updateConfig(path, func(c *config) error { return change(c, path) })
}

// presentConfig reads the configuration in use; where there is none it is empty.
func (a *app) presentConfig() (config, string, error) {
	path, named := a.configFile()
	c, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		err = nil
	}
	return c, path, err
}

func (a *app) getContextsCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "get-contexts [NAME...]",
		Short: "Show the contexts",
		RunE: func(_ *cobra.Command, args []string) error {
			if output != "" && output != "name" {
				return fmt.Errorf("output %q: only name is taken; see config view for the rest", output)
			}
			c, path, err := a.presentConfig()
			if err != nil {
				return err
			}
			t := &metav1.Table{ColumnDefinitions: definitions("Current,Name,Server,User,Namespace")}
			for _, name := range args {
				if _, ok := c.find(name); !ok {
					a.report(c.noContext(name, path))
				}
			}
			for _, k := range c.Contexts {
				if len(args) > 0 && !slices.Contains(args, k.Name) {
					continue
				}
				if output == "name" {
					fmt.Fprintln(a.out, k.Name)
					continue
				}
				current := ""
				if k.Name == c.CurrentContext {
					current = "*"
				}
				server, user := k.whereAndWho(filepath.Dir(path))
				t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{current, k.Name, server, user, k.Namespace}})
			}
			if output == "name" {
				return nil
			}
			return a.writeTable(printers.NewTablePrinter(printers.PrintOptions{NoHeaders: a.show.noHeaders}), t)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "one of: name")
	c.Flags().BoolVar(&a.show.noHeaders, "no-headers", false, "no line with the columns' names")
	return c
}

// whereAndWho reads what a table says of a context.
func (k clusterContext) whereAndWho(dir string) (server, user string) {
	if k.CredentialsFile != "" && !filepath.IsAbs(k.CredentialsFile) {
		k.CredentialsFile = filepath.Join(dir, k.CredentialsFile)
	}
	got, err := k.access()
	switch {
	case err != nil && k.CredentialsFile != "":
		return "<cannot read " + k.CredentialsFile + ">", ""
	case err != nil:
		return none, none
	}
	return strings.Join(got.creds.URLs, ","), got.creds.User
}

func (a *app) currentContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "current-context",
		Short: "Show which context is in use",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, path, err := a.presentConfig()
			if err != nil {
				return err
			}
			if c.CurrentContext == "" {
				return fmt.Errorf("current-context is not set in %s: choose one with gantry config use-context", path)
			}
			fmt.Fprintln(a.out, c.CurrentContext)
			return nil
		},
	}
}

func (a *app) useContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "use-context NAME",
		Aliases: []string{"use"},
		Short:   "Choose the context that commands use",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.changeConfig(func(c *config, path string) error {
				if _, ok := c.find(args[0]); !ok {
					return c.noContext(args[0], path)
				}
				c.CurrentContext = args[0]
				return nil
			})
			if err == nil {
				fmt.Fprintf(a.out, "Switched to context %q.\n", args[0])
			}
			return err
		},
	}
}

func (a *app) setContextCommand() *cobra.Command {
	var current bool
	c := &cobra.Command{
		Use:   "set-context NAME|--current [--namespace=NAMESPACE] [--credentials=FILE]",
		Short: "Make a context, or change one",
		Example: `  gantry config set-context --current --namespace=shop
  gantry config set-context staging --credentials=staging.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if current == (len(args) == 1) {
				return errors.New("name a context, or use --current")
			}
			existed := false
			var name string
			err := a.changeConfig(func(c *config, path string) error {
				if name = c.CurrentContext; !current {
					name = args[0]
				} else if name == "" {
					return fmt.Errorf("no current context is set in %s: choose one with gantry config use-context", path)
				}
				k, _ := c.find(name)
				k.Name = name
				if cmd.Flag("namespace").Changed {
					k.Namespace = a.givenNamespace
				}
				if a.credentials != "" {
					file, err := filepath.Abs(a.credentials)
					if err != nil {
						return err
					}
					if _, err := bus.ReadUserCredentials(file); err != nil {
						return err
					}
					k.CredentialsFile, k.Credentials = file, nil
				}
				existed = c.put(k)
				return nil
			})
			if err != nil {
				return err
			}
			how := "created"
			if existed {
				how = "modified"
			}
			fmt.Fprintf(a.out, "Context %q %s.\n", name, how)
			return nil
		},
	}
	c.Flags().BoolVar(&current, "current", false, "the context that is in use")
	return c
}

func (a *app) renameContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rename-context OLD NEW",
		Short: "Give a context another name",
		Args:  cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.changeConfig(func(c *config, path string) error {
				i := slices.Index(c.names(), args[0])
				if i < 0 {
					return c.noContext(args[0], path)
				}
				if _, ok := c.find(args[1]); ok {
					return fmt.Errorf("cannot rename the context %q, the context %q already exists in %s", args[0], args[1], path)
				}
				if args[1] == "" {
					return fmt.Errorf("cannot rename the context %q: the new name is empty", args[0])
				}
				c.Contexts[i].Name = args[1]
				if c.CurrentContext == args[0] {
					c.CurrentContext = args[1]
				}
				return nil
			})
			if err == nil {
				fmt.Fprintf(a.out, "Context %q renamed to %q.\n", args[0], args[1])
			}
			return err
		},
	}
}

func (a *app) deleteContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete-context NAME",
		Short: "Forget a context; a file of credentials stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			active := false
			file := ""
			err := a.changeConfig(func(c *config, path string) error {
				file = path
				i := slices.Index(c.names(), args[0])
				if i < 0 {
					return c.noContext(args[0], path)
				}
				c.Contexts = slices.Delete(c.Contexts, i, i+1)
				// A name that leads nowhere would fail every command from here on.
				if active = c.CurrentContext == args[0]; active {
					c.CurrentContext = ""
				}
				return nil
			})
			if err != nil {
				return err
			}
			if active {
				fmt.Fprintln(a.err, "warning: this removed your active context, use \"gantry config use-context\" to select a different one")
			}
			fmt.Fprintf(a.out, "deleted context %s from %s\n", args[0], file)
			return nil
		},
	}
}

func (a *app) importContextCommand() *cobra.Command {
	var name string
	var use bool
	c := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Make a context of a file with credentials, which is then no longer needed",
		Example: `  gantry config import admin.json --name=home
  ssh host cat /var/lib/gantry/controlplane/credentials/admin.json | gantry config import - --name=host`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			creds, err := a.importedCredentials(args[0])
			if err != nil {
				return err
			}
			if name == "" {
				name = strings.TrimSuffix(filepath.Base(args[0]), filepath.Ext(args[0]))
			}
			if name == "-" {
				return errors.New("--name is needed: standard input has none")
			}
			err = a.changeConfig(func(c *config, path string) error {
				if _, ok := c.find(name); ok {
					return fmt.Errorf("context %q exists in %s: choose another name with --name, or delete-context it first", name, path)
				}
				c.put(clusterContext{Name: name, Namespace: a.givenNamespace, Credentials: &creds})
				if use = use || c.CurrentContext == ""; use {
					c.CurrentContext = name
				}
				return nil
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "Context %q created.\n", name)
			if use {
				fmt.Fprintf(a.out, "Switched to context %q.\n", name)
			}
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the context; by default that of the file")
	c.Flags().BoolVar(&use, "use", false, "choose it (as happens where none is chosen)")
	return c
}

func (a *app) importedCredentials(file string) (schemas.UserCredentials, error) {
	var creds schemas.UserCredentials
	var data []byte
	var err error
	if file == "-" {
		file = "standard input"
		data, err = io.ReadAll(a.in)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return creds, fmt.Errorf("read credentials: %w", err)
	}
	if err := readStrictly(data, &creds); err != nil {
		return creds, fmt.Errorf("%s holds no credentials of a user: %w", file, err)
	}
	if err := checkCredentials(creds); err != nil {
		return creds, fmt.Errorf("%s holds no credentials of a user: %w", file, err)
	}
	return creds, nil
}

func (a *app) viewConfigCommand() *cobra.Command {
	var output string
	var raw, minify bool
	c := &cobra.Command{
		Use:   "view",
		Short: "Show the configuration, without its secrets",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			show, err := a.printerFor(output)
			if err != nil {
				return err
			}
			if show == nil || show.names {
				return fmt.Errorf("output %q: a configuration is no table; use yaml, json, jsonpath or go-template", output)
			}
			c, path, err := a.presentConfig()
			if err != nil {
				return err
			}
			if minify {
				k, ok := c.find(orText(a.context, c.CurrentContext))
				if !ok {
					return c.noContext(orText(a.context, c.CurrentContext), path)
				}
				c.Contexts, c.CurrentContext = []clusterContext{k}, k.Name
			}
			if !raw {
				c = c.redacted()
			}
			c.APIVersion, c.Kind = configVersion, configKind
			return a.showValue(show, c)
		},
	}
	a.outputFlags(c, &output)
	output = "yaml"
	c.Flags().Lookup("output").DefValue = output
	c.Flags().BoolVar(&raw, "raw", false, "with the secrets")
	c.Flags().BoolVar(&minify, "minify", false, "only the context in use")
	return c
}

// whoamiCommand says who the cluster takes this program for.
func (a *app) whoamiCommand() *cobra.Command {
	c := &cobra.Command{Use: "auth", Short: "Who one is"}
	c.AddCommand(&cobra.Command{
		Use:   "whoami",
		Short: "Show as whom, where and by which credentials one is connected",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			got, err := a.access()
			if err != nil {
				return err
			}
			t := &metav1.Table{ColumnDefinitions: definitions("Attribute,Value")}
			for _, row := range [][]any{
				{"Username", got.creds.User}, {"Server", strings.Join(got.creds.URLs, ",")},
				{"Credentials", got.from}, {"Namespace", a.namespace},
			} {
				t.Rows = append(t.Rows, metav1.TableRow{Cells: row})
			}
			return a.writeTable(printers.NewTablePrinter(printers.PrintOptions{}), t)
		},
	})
	return c
}
