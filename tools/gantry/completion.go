package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// completionTime bounds what a person waits for after the tab key. What was
// found by then is offered.
const completionTime = 2 * time.Second

// complete gives every command and flag what a shell can offer for it. It is
// said here for all of them, so that none is forgotten with its command.
func (a *app) complete(root *cobra.Command) {
	arguments := a.argumentCompletions()
	flags := a.flagCompletions()
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), root.Name()+" ")
		if fn := arguments[path]; fn != nil && c.ValidArgsFunction == nil {
			c.ValidArgsFunction = beginning(fn)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			fn := flags[f.Name]
			if own := flags[path+" "+f.Name]; own != nil {
				fn = own
			}
			if _, there := c.GetFlagCompletionFunc(f.Name); fn == nil || there {
				return
			}
			if err := c.RegisterFlagCompletionFunc(f.Name, beginning(fn)); err != nil {
				panic(err) // the flag is there, and has none yet
			}
		})
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
}

// beginning keeps of what a function offers what begins as it was typed.
func beginning(fn cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		words, directive := fn(c, args, text)
		if directive&cobra.ShellCompDirectiveFilterFileExt != 0 {
			return words, directive // they are ends of names
		}
		return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !strings.HasPrefix(w, text) }), directive
	}
}

// argumentCompletions are those of commands, by their path.
func (a *app) argumentCompletions() map[string]cobra.CompletionFunc {
	any := a.completeObjects(nil)
	of := func(resources ...string) cobra.CompletionFunc { return a.completeObjects(resources) }
	rollout := of(schemas.Deployments)
	workloads := of(schemas.Deployments, schemas.ReplicaSets, schemas.Pods)
	contexts := a.completeContexts(1)
	return map[string]cobra.CompletionFunc{
		"get": any, "describe": any, "delete": any, "wait": any, "edit": any, "patch": any, "label": any, "annotate": any,
		"scale":          of(schemas.Deployments, schemas.ReplicaSets),
		"rollout status": rollout, "rollout history": rollout, "rollout undo": rollout, "rollout pause": rollout,
		"rollout resume": rollout, "rollout restart": rollout,
		"set image": workloads, "set env": workloads, "set resources": workloads,
		"expose":       of(schemas.Deployments, schemas.ReplicaSets, schemas.Pods, schemas.Services),
		"logs":         a.completePod(true),
		"exec":         a.completePod(false),
		"attach":       a.completePod(false),
		"port-forward": a.completePod(false),
		"top pod":      a.completeNames(schemas.Pods, 1), "top pods": a.completeNames(schemas.Pods, 1),
		"top node": a.completeNames(schemas.Nodes, 1), "top nodes": a.completeNames(schemas.Nodes, 1),
		"cordon": a.completeNames(schemas.Nodes, -1), "uncordon": a.completeNames(schemas.Nodes, -1), "drain": a.completeNames(schemas.Nodes, -1),
		"explain":               a.completeFields,
		"config use-context":    contexts,
		"config set-context":    contexts,
		"config rename-context": contexts,
		"config delete-context": contexts,
		"config get-contexts":   a.completeContexts(-1),
	}
}

// flagCompletions are those of flags, by name, or by command and name where
// one means something else.
func (a *app) flagCompletions() map[string]cobra.CompletionFunc {
	fixed := func(words ...string) cobra.CompletionFunc {
		directive := cobra.ShellCompDirectiveNoFileComp
		if slices.ContainsFunc(words, func(w string) bool { return strings.HasSuffix(w, "=") }) {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return words, directive
		}
	}
	return map[string]cobra.CompletionFunc{
		"namespace": a.completeNames(schemas.Namespaces, -1),
		"context":   a.completeContexts(-1),
		"container": a.completeContainers,
		"node":      a.completeNames(schemas.Nodes, -1),
		"output":    completeOutputs,
		"filename": func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"json", "yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		"subresource": fixed(schemas.SubStatus, schemas.SubScale),
		"cascade":     fixed("background", "foreground", "orphan"),
		"dry-run":     fixed("none", "client", "server"),
		"types":       fixed("Normal", "Warning"),
		"wait for":    fixed("condition=", "create", "delete", "jsonpath="),
		"events for":  a.completeObjects(nil),
	}
}

// completeOutputs offers what the flag's own text lists.
func completeOutputs(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, ok := strings.CutPrefix(c.Flag("output").Usage, "one of: ")
	if !ok {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return strings.Split(list, ", "), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeObjects offers KIND NAME... and KIND/NAME..., of some resources or,
// with nil, of all that are served.
func (a *app) completeObjects(resources []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		word, _, pair := strings.Cut(text, "/")
		switch {
		case pair:
			k, err := kindOf(word)
			if err != nil {
				return nil, none
			}
			return prefixed(word+"/", a.namesOf(c, k, nil)), none
		case len(args) > 0 && !strings.Contains(args[0], "/"):
			kinds, err := kindsOf(args[0])
			if err != nil {
				return nil, none
			}
			var out []string
			for _, k := range kinds {
				out = append(out, a.namesOf(c, k, args[1:])...)
			}
			return out, none
		case len(args) > 0:
			return prefixed("", kindWords(resources, "/")), none | cobra.ShellCompDirectiveNoSpace
		}
		before := text[:strings.LastIndex(text, ",")+1]
		return prefixed(before, kindWords(resources, "")), none
	}
}

// kindWords are the plurals of kinds that are served.
func kindWords(resources []string, suffix string) []string {
	var out []string
	for _, k := range schemas.Kinds {
		if k.Refused == "" && (resources == nil || slices.Contains(resources, k.Resource)) {
			out = append(out, k.Resource+suffix)
		}
	}
	slices.Sort(out)
	return out
}

func prefixed(prefix string, words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = prefix + w
	}
	return out
}

// completeNames offers names of one resource, for at most so many arguments
// (-1 for any number).
func (a *app) completeNames(resource string, most int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		k, err := kindOf(resource)
		if err != nil || most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.namesOf(c, k, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// completePod offers pods, and other objects as KIND/NAME; for logs the
// container as a second argument.
func (a *app) completePod(container bool) cobra.CompletionFunc {
	objects := a.completeObjects([]string{schemas.Pods, schemas.Deployments, schemas.ReplicaSets, schemas.Services})
	return func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) == 1 && container:
			return a.completeContainers(c, args, text)
		case len(args) > 0:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case strings.Contains(text, "/"):
			return objects(c, nil, text)
		}
		k, err := kindOf(schemas.Pods)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.namesOf(c, k, nil), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFields offers kinds and, after a dot, their fields.
func (a *app) completeFields(_ *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	end := strings.LastIndex(text, ".")
	if end < 0 {
		var out []string
		for _, k := range schemas.Kinds {
			out = append(out, k.Resource)
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	kind, path := explained(text[:end])
	k, err := kindOf(kind)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	e, err := schemas.Explain(k.Resource, path, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, f := range e.Fields {
		out = append(out, text[:end+1]+f.Name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func (a *app) completeContexts(most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		c, _, err := a.presentConfig()
		if err != nil || most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.names(), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeContainers offers the containers of the pod, or of the template,
// that the first argument names.
func (a *app) completeContainers(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	if len(args) == 0 {
		return nil, none
	}
	arg := args[0]
	if !strings.Contains(arg, "/") {
		arg = schemas.Pods + "/" + arg
	}
	targets, err := parsePairs([]string{arg})
	if err != nil {
		return nil, none
	}
	ctx, cancel, err := a.completing(c)
	defer cancel()
	if err != nil {
		return nil, none
	}
	t := targets[0]
	reply, err := a.conn.Request(ctx, schemas.VerbGet, t.kind.Resource, a.scope(t.kind), t.name, nil)
	if err != nil {
		return nil, none
	}
	type podSpec struct {
		Containers []struct {
			Name string `json:"name"`
		} `json:"containers"`
	}
	var o struct {
		Spec struct {
			podSpec
			Template struct {
				Spec podSpec `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(reply.Body, &o); err != nil {
		return nil, none
	}
	var out []string
	for _, c := range append(o.Spec.Containers, o.Spec.Template.Spec.Containers...) {
		out = append(out, c.Name)
	}
	return out, none
}

// completing connects for a completion. What goes wrong is said by the command
// itself when it is run; here it only means that there is nothing to offer.
func (a *app) completing(c *cobra.Command) (context.Context, context.CancelFunc, error) {
	parent := c.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTime)
	if err := a.settle(c); err != nil {
		return ctx, cancel, err
	}
	return ctx, cancel, a.connect(ctx)
}

// namesOf lists the objects of a kind that are not among those given already.
func (a *app) namesOf(c *cobra.Command, k schemas.Kind, given []string) []string {
	ctx, cancel, err := a.completing(c)
	defer cancel()
	if err != nil {
		return nil
	}
	var out []string
	var opts metav1.ListOptions
	for {
		body, err := json.Marshal(opts)
		if err != nil {
			return out
		}
		reply, err := a.conn.Request(ctx, schemas.VerbList, k.Resource, a.scope(k), "", body)
		if err != nil {
			return out
		}
		var page metav1.PartialObjectMetadataList
		if err := json.Unmarshal(reply.Body, &page); err != nil {
			return out
		}
		for _, o := range page.Items {
			if !slices.Contains(given, o.Name) {
				out = append(out, o.Name)
			}
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			return out
		}
	}
}
