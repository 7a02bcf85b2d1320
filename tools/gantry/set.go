package main

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gantry.dev/schemas"
)

// setOptions are what the commands under "set" share.
type setOptions struct {
	selection  selection
	containers string
	w          writing
}

func (a *app) setCommand() *cobra.Command {
	c := &cobra.Command{Use: "set", Short: "Change one thing of what objects run"}
	c.AddCommand(a.setImageCommand(), a.setEnvCommand(), a.setResourcesCommand())
	return c
}

func (a *app) setFlags(c *cobra.Command, o *setOptions) {
	o.selection.flags(c)
	a.writeFlags(c, &o.w)
}

func (o *setOptions) containerFlag(c *cobra.Command) {
	c.Flags().StringVarP(&o.containers, "containers", "c", "*", "names of the containers that are meant; * and ? stand for any letters")
}

// podSpec finds the description of the pods in an object.
func podSpec(u *unstructured.Unstructured) (map[string]any, error) {
	at := map[string][]string{
		"Pod": {"spec"}, "PodTemplate": {"template", "spec"}, "CronJob": {"spec", "jobTemplate", "spec", "template", "spec"},
	}[u.GetKind()]
	if at == nil {
		at = []string{"spec", "template", "spec"}
	}
	spec, ok, err := unstructured.NestedFieldNoCopy(u.Object, at...)
	m, isMap := spec.(map[string]any)
	if err != nil || !ok || !isMap {
		return nil, fmt.Errorf("%s %q runs no containers: it has no %s", u.GetKind(), u.GetName(), strings.Join(at, "."))
	}
	return m, nil
}

// runContainers are the containers of an object, those that go first last.
func runContainers(u *unstructured.Unstructured) ([]map[string]any, error) {
	spec, err := podSpec(u)
	if err != nil {
		return nil, err
	}
	var out []map[string]any
	for _, field := range []string{"containers", "initContainers"} {
		all, _ := spec[field].([]any)
		for _, c := range all {
			if m, ok := c.(map[string]any); ok {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

// matching are the containers whose names match a pattern.
func matching(u *unstructured.Unstructured, pattern string) ([]map[string]any, error) {
	all, err := runContainers(u)
	if err != nil {
		return nil, err
	}
	var out []map[string]any
	for _, c := range all {
		name, _ := c["name"].(string)
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, fmt.Errorf("--containers %q: %w", pattern, err)
		}
		if ok {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("unable to find container named %q in %s %q", pattern, u.GetKind(), u.GetName())
	}
	return out, nil
}

// setEach changes each object that is meant, and says so where it was another
// one before.
func (a *app) setEach(ctx context.Context, o *setOptions, args []string, what string, edit func(*unstructured.Unstructured) error) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	for _, t := range objects {
		raw, changed, err := a.change(ctx, &o.w, t, "", edit)
		if err != nil {
			a.report(err)
			continue
		}
		if changed || o.w.show != nil {
			if err := a.said(&o.w, t.kind, t.name, what+" updated", raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutWishes tells objects from what is wished of them, which comes last.
func cutWishes(args []string, isWish func(string) bool) (objects, wishes []string, err error) {
	from := slices.IndexFunc(args, isWish)
	if from < 0 {
		return args, nil, nil
	}
	for _, arg := range args[from:] {
		if !isWish(arg) {
			return nil, nil, fmt.Errorf("all resources must be specified before the changes: %s", arg)
		}
	}
	return args[:from], args[from:], nil
}

func hasEquals(s string) bool { return strings.Contains(s, "=") }

func (a *app) setImageCommand() *cobra.Command {
	var o setOptions
	c := &cobra.Command{
		Use:   "image KIND/NAME | KIND NAME | KIND -l SELECTOR | -f FILE CONTAINER=IMAGE...",
		Short: "Set the images of containers",
		Example: `  gantry set image deployment/web app=registry.example/web:2
  gantry set image deployments --all '*=registry.example/web:2'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, words, err := cutWishes(args, hasEquals)
			if err != nil {
				return err
			}
			images, err := pairs("image", words)
			if err != nil {
				return err
			}
			if len(images) == 0 {
				return fmt.Errorf("at least one image update is required: CONTAINER=IMAGE, or *=IMAGE for all containers")
			}
			return a.setEach(cmd.Context(), &o, args, "image", func(u *unstructured.Unstructured) error { return setImages(u, images) })
		},
	}
	a.setFlags(c, &o)
	return c
}

func setImages(u *unstructured.Unstructured, images [][2]string) error {
	for _, image := range images {
		// A name holds no pattern: * alone means all.
		if image[0] != "*" && strings.ContainsAny(image[0], `*?[\`) {
			return fmt.Errorf("unable to find container named %q: only * alone stands for all containers", image[0])
		}
		cs, err := matching(u, image[0])
		if err != nil {
			return err
		}
		for _, c := range cs {
			c["image"] = image[1]
		}
	}
	return nil
}

func (a *app) setEnvCommand() *cobra.Command {
	var o setOptions
	var list bool
	var overwrite bool
	var env []string
	isWish := func(s string) bool { return hasEquals(s) || strings.HasSuffix(s, "-") }
	c := &cobra.Command{
		Use:   "env KIND/NAME | KIND NAME | KIND -l SELECTOR | -f FILE NAME=VALUE... NAME-...",
		Short: "Set and take out environment variables of containers",
		Example: `  gantry set env deployment/web MODE=fast DEBUG-
  gantry set env deployment/web -c app --list`,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, words, err := cutWishes(args, isWish)
			if err != nil {
				return err
			}
			words = append(words, env...)
			switch {
			case list && len(words) > 0:
				return fmt.Errorf("--list shows variables and takes no changes: %s", words[0])
			case list:
				return a.listEnv(cmd.Context(), &o, args)
			case len(words) == 0:
				return fmt.Errorf("at least one environment variable must be provided: NAME=VALUE sets one, NAME- takes one out")
			}
			return a.setEach(cmd.Context(), &o, args, "env", func(u *unstructured.Unstructured) error {
				cs, err := matching(u, o.containers)
				if err != nil {
					return err
				}
				for _, c := range cs {
					if err := setEnv(c, words, overwrite); err != nil {
						return fmt.Errorf("%s %q: %w", u.GetKind(), u.GetName(), err)
					}
				}
				return nil
			})
		},
	}
	a.setFlags(c, &o)
	o.containerFlag(c)
	c.Flags().BoolVar(&list, "list", false, "show the variables")
	c.Flags().BoolVar(&overwrite, "overwrite", true, "change variables that are there already")
	c.Flags().StringArrayVarP(&env, "env", "e", nil, "NAME=VALUE, as an argument would say it")
	return c
}

// setEnv carries out NAME=VALUE and NAME- on one container.
func setEnv(c map[string]any, words []string, overwrite bool) error {
	env, _ := c["env"].([]any)
	env = slices.Clone(env)
	for _, word := range words {
		name, value, sets := strings.Cut(word, "=")
		if !sets {
			name = strings.TrimSuffix(word, "-")
		}
		if name == "" || !sets && name == word {
			return fmt.Errorf("environment variable %q is neither NAME=VALUE nor NAME-", word)
		}
		at := slices.IndexFunc(env, func(v any) bool { m, ok := v.(map[string]any); return ok && m["name"] == name })
		entry := map[string]any{"name": name, "value": value}
		switch {
		case !sets && at >= 0:
			env = slices.Delete(env, at, at+1)
		case !sets:
		case at < 0:
			env = append(env, entry)
		case !overwrite && env[at].(map[string]any)["value"] != value:
			return fmt.Errorf("container %v: '%s' already has a value, and --overwrite is false", c["name"], name)
		default:
			env[at] = entry
		}
	}
	if c["env"] = env; len(env) == 0 {
		delete(c, "env")
	}
	return nil
}

func (a *app) listEnv(ctx context.Context, o *setOptions, args []string) error {
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	for _, t := range objects {
		reply, err := a.request(ctx, schemas.VerbGet, t.resource(), t.namespace, t.name, nil)
		if err != nil {
			a.report(err)
			continue
		}
		u, err := loose(reply.Body)
		if err != nil {
			return err
		}
		cs, err := matching(u, o.containers)
		if err != nil {
			a.report(err)
			continue
		}
		for _, c := range cs {
			fmt.Fprintf(a.out, "# %s %s, container %v\n", u.GetKind(), u.GetName(), c["name"])
			env, _ := c["env"].([]any)
			for _, v := range env {
				m, ok := v.(map[string]any)
				switch {
				case ok && m["valueFrom"] != nil:
					fmt.Fprintf(a.out, "# %v is taken from elsewhere: %v\n", m["name"], m["valueFrom"])
				case ok:
					fmt.Fprintf(a.out, "%v=%v\n", m["name"], orNothing(m["value"]))
				}
			}
		}
	}
	return nil
}

func orNothing(v any) any {
	if v == nil {
		return ""
	}
	return v
}

func (a *app) setResourcesCommand() *cobra.Command {
	var o setOptions
	var limits, requests string
	c := &cobra.Command{
		Use:     "resources KIND/NAME | KIND NAME | KIND -l SELECTOR | -f FILE [--limits=...] [--requests=...]",
		Short:   "Set what containers get at most and at least",
		Example: "  gantry set resources deployment/web -c app --limits=cpu=200m,memory=128Mi --requests=cpu=100m",
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted := map[string]map[string]any{}
			for field, text := range map[string]string{"limits": limits, "requests": requests} {
				if text == "" {
					continue
				}
				amounts, err := quantitiesOf(field, text)
				if err != nil {
					return err
				}
				wanted[field] = amounts
			}
			if len(wanted) == 0 {
				return fmt.Errorf("you must specify an update to requests or limits (in the form of --requests/--limits)")
			}
			return a.setEach(cmd.Context(), &o, args, "resource requirements", func(u *unstructured.Unstructured) error {
				cs, err := matching(u, o.containers)
				if err != nil {
					return err
				}
				for _, c := range cs {
					setResources(c, wanted)
				}
				return nil
			})
		},
	}
	a.setFlags(c, &o)
	o.containerFlag(c)
	c.Flags().StringVar(&limits, "limits", "", "the most that a container gets: cpu=100m,memory=64Mi; 0 takes a limit off")
	c.Flags().StringVar(&requests, "requests", "", "what a container gets at least: cpu=100m,memory=64Mi; 0 takes a request off")
	return c
}

func quantitiesOf(flag, text string) (map[string]any, error) {
	words, err := pairs("--"+flag, strings.Split(text, ","))
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, w := range words {
		if _, err := resource.ParseQuantity(w[1]); err != nil {
			return nil, fmt.Errorf("--%s %s: %q is no amount: write 100m, 0.5 or 64Mi", flag, w[0], w[1])
		}
		out[w[0]] = w[1]
	}
	return out, nil
}

func setResources(c map[string]any, wanted map[string]map[string]any) {
	have, _ := c["resources"].(map[string]any)
	have = maps.Clone(have)
	if have == nil {
		have = map[string]any{}
	}
	for field, amounts := range wanted {
		old, _ := have[field].(map[string]any)
		now := maps.Clone(old)
		if now == nil {
			now = map[string]any{}
		}
		for name, amount := range amounts {
			if now[name] = amount; amount == "0" {
				delete(now, name)
			}
		}
		have[field] = now
	}
	c["resources"] = have
}
