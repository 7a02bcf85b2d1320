package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"gantry.dev/schemas"
)

type topOptions struct {
	name, selector, sortBy string // name is empty for all
	containers, noHeaders  bool
}

func (a *app) topCommand() *cobra.Command {
	c := &cobra.Command{Use: "top", Short: "What nodes and pods use now"}
	var nodes, pods topOptions
	node := &cobra.Command{
		Use: "node [NAME]", Aliases: []string{"nodes", "no"}, Short: "CPU and memory of nodes",
		Example: "  gantry top node --sort-by cpu",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runTop(cmd.Context(), nodes, schemas.Nodes, args, a.topNodes)
		},
	}
	pod := &cobra.Command{
		Use: "pod [NAME]", Aliases: []string{"pods", "po"}, Short: "CPU and memory of pods",
		Example: `  gantry top pod -A --sort-by memory
  gantry top pod web-1 --containers`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runTop(cmd.Context(), pods, schemas.Pods, args, a.topPods)
		},
	}
	for sub, o := range map[*cobra.Command]*topOptions{node: &nodes, pod: &pods} {
		f := sub.Flags()
		f.StringVarP(&o.selector, "selector", "l", "", "those with these labels")
		f.StringVar(&o.sortBy, "sort-by", "", "most of it first: cpu or memory; otherwise by name")
		f.BoolVar(&o.noHeaders, "no-headers", false, "without the first line")
	}
	pod.Flags().BoolVar(&pods.containers, "containers", false, "each container apart")
	a.allNamespacesFlag(pod)
	c.AddCommand(node, pod)
	return c
}

// used is one line.
type used struct {
	namespace, pod, name string
	cpu, memory          resource.Quantity
	known                bool
	node                 *corev1.Node
}

func (a *app) runTop(ctx context.Context, o topOptions, res string, args []string, show func(context.Context, topOptions, []json.RawMessage) (lines []used, heading []string, err error)) error {
	if o.sortBy != "" && o.sortBy != "cpu" && o.sortBy != "memory" {
		return fmt.Errorf("--sort-by accepts only cpu or memory, not %q", o.sortBy)
	}
	if o.selector != "" && len(args) > 0 {
		return errors.New("only one of NAME or --selector can be provided")
	}
	if len(args) > 0 {
		o.name = args[0]
	}
	items, err := a.metricItems(ctx, o, res)
	if err != nil {
		return err
	}
	lines, heading, err := show(ctx, o, items)
	if err != nil {
		return err
	}
	if len(lines) == 0 {
		switch {
		case res == schemas.Pods && !a.allNamespaces:
			fmt.Fprintf(a.err, "No resources found in %s namespace.\n", a.namespace)
		default:
			fmt.Fprintln(a.err, "No resources found")
		}
		return nil
	}
	sortUsed(lines, o.sortBy)
	// Not the printer of tables: it would write CPU(CORES).
	w := printers.GetNewTabWriter(a.out)
	if !o.noHeaders {
		fmt.Fprintln(w, strings.Join(heading, "\t"))
	}
	for _, l := range lines {
		fmt.Fprintln(w, strings.Join(a.topCells(l, res, o), "\t"))
	}
	return w.Flush()
}

// metricItems asks for what is used, as many pages as it takes.
func (a *app) metricItems(ctx context.Context, o topOptions, res string) ([]json.RawMessage, error) {
	k, err := kindOf(res)
	if err != nil {
		return nil, err
	}
	resource := res + "/" + schemas.SubMetrics
	if o.name != "" {
		reply, err := a.request(ctx, schemas.VerbGet, resource, a.scope(k), o.name, nil)
		if err != nil {
			return nil, err
		}
		return []json.RawMessage{reply.Body}, nil
	}
	opts := metav1.ListOptions{LabelSelector: o.selector}
	var items []json.RawMessage
	for {
		body, err := json.Marshal(opts)
		if err != nil {
			return nil, err
		}
		reply, err := a.request(ctx, schemas.VerbList, resource, a.scope(k), "", body)
		if err != nil {
			return nil, err
		}
		var page struct {
			Metadata metav1.ListMeta   `json:"metadata"`
			Items    []json.RawMessage `json:"items"`
		}
		if err := json.Unmarshal(reply.Body, &page); err != nil {
			return nil, fmt.Errorf("read metrics from the server: %w", err)
		}
		items = append(items, page.Items...)
		if opts.Continue = page.Metadata.Continue; opts.Continue == "" {
			return items, nil
		}
	}
}

// topNodes sets what nodes use against what they have for pods. Nodes that do
// not say what they use are shown without.
func (a *app) topNodes(ctx context.Context, o topOptions, items []json.RawMessage) ([]used, []string, error) {
	k, err := kindOf(schemas.Nodes)
	if err != nil {
		return nil, nil, err
	}
	nodes := map[string]*corev1.Node{}
	objects, _, err := a.objects(ctx, k, "", metav1.ListOptions{LabelSelector: o.selector})
	if err != nil {
		return nil, nil, err
	}
	for _, obj := range objects {
		if n, ok := obj.(*corev1.Node); ok {
			nodes[n.Name] = n
		}
	}
	var lines []used
	told := map[string]bool{}
	for _, raw := range items {
		var m schemas.NodeMetrics
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, nil, fmt.Errorf("read metrics from the server: %w", err)
		}
		told[m.Name] = true
		lines = append(lines, used{name: m.Name, cpu: m.Usage[corev1.ResourceCPU], memory: m.Usage[corev1.ResourceMemory], known: true, node: nodes[m.Name]})
	}
	for name, n := range nodes {
		if !told[name] && o.name == "" {
			lines = append(lines, used{name: name, node: n})
		}
	}
	return lines, []string{"NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"}, nil
}

func (a *app) topPods(_ context.Context, o topOptions, items []json.RawMessage) ([]used, []string, error) {
	var lines []used
	for _, raw := range items {
		var m schemas.PodMetrics
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, nil, fmt.Errorf("read metrics from the server: %w", err)
		}
		sum := used{namespace: m.Namespace, pod: m.Name, name: m.Name, known: true}
		for _, c := range m.Containers {
			cpu, memory := c.Usage[corev1.ResourceCPU], c.Usage[corev1.ResourceMemory]
			if o.containers {
				lines = append(lines, used{namespace: m.Namespace, pod: m.Name, name: c.Name, cpu: cpu, memory: memory, known: true})
			}
			sum.cpu.Add(cpu)
			sum.memory.Add(memory)
		}
		if !o.containers {
			lines = append(lines, sum)
		}
	}
	var heading []string
	if a.allNamespaces {
		heading = append(heading, "NAMESPACE")
	}
	if o.containers {
		heading = append(heading, "POD")
	}
	return lines, append(heading, "NAME", "CPU(cores)", "MEMORY(bytes)"), nil
}

func sortUsed(lines []used, by string) {
	slices.SortFunc(lines, func(x, y used) int {
		most := 0
		switch by {
		case "cpu":
			most = y.cpu.Cmp(x.cpu)
		case "memory":
			most = y.memory.Cmp(x.memory)
		}
		return cmp.Or(most, strings.Compare(x.namespace, y.namespace), strings.Compare(x.pod, y.pod), strings.Compare(x.name, y.name))
	})
}

func (a *app) topCells(l used, res string, o topOptions) []string {
	cpu, memory := fmt.Sprintf("%dm", l.cpu.MilliValue()), fmt.Sprintf("%dMi", l.memory.Value()>>20)
	if res == schemas.Nodes {
		if !l.known {
			const unknown = "<unknown>"
			return []string{l.name, unknown, unknown, unknown, unknown}
		}
		return []string{l.name, cpu, l.share(corev1.ResourceCPU, l.cpu), memory, l.share(corev1.ResourceMemory, l.memory)}
	}
	var cells []string
	if a.allNamespaces {
		cells = append(cells, l.namespace)
	}
	if o.containers {
		cells = append(cells, l.pod)
	}
	return append(cells, l.name, cpu, memory)
}

// share is how much of what a node has for pods is used.
func (l used) share(name corev1.ResourceName, is resource.Quantity) string {
	if l.node == nil {
		return "<unknown>"
	}
	all := l.node.Status.Allocatable[name]
	if all.MilliValue() == 0 {
		return "<unknown>"
	}
	return fmt.Sprintf("%d%%", int64(float64(is.MilliValue())/float64(all.MilliValue())*100))
}
