package admission

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

const (
	// statsNodes bounds how many nodes are asked at once by one call.
	statsNodes = 32
	// statsPatience is how long a node has to answer: it may have to measure
	// first, which takes it a quarter of a second.
	statsPatience = 5 * time.Second
)

// metrics answers get and list of what pods or nodes use now. Nothing is
// collected beforehand: the nodes are asked, and one that does not answer is
// left out with a warning.
func (a *Admission) metrics(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if kind.Resource != schemas.Pods && kind.Resource != schemas.Nodes {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("%s have no metrics; pods and nodes do", kind.Resource))
	}
	switch call.Verb {
	case schemas.VerbGet:
		if call.Name == "" {
			return reply{}, apierrors.NewBadRequest(fmt.Sprintf("get %s/metrics: the subject names no object", kind.Resource))
		}
		return a.metricsOf(ctx, kind, call)
	case schemas.VerbList:
		return a.listMetrics(ctx, kind, call, body)
	}
	return reply{}, methodNotAllowed(kind, call)
}

// methodNotAllowed is the answer to a verb that a subresource does not have.
func methodNotAllowed(kind schemas.Kind, call schemas.Call) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: metav1.StatusReasonMethodNotAllowed,
		Message: fmt.Sprintf("%s/%s can be got and listed only, not %s", kind.Resource, call.Subresource, call.Verb),
		Details: &metav1.StatusDetails{Name: call.Name, Group: kind.GVK.Group, Kind: kind.Resource},
	}}
}

func (a *Admission) metricsOf(ctx context.Context, kind schemas.Kind, call schemas.Call) (reply, error) {
	o, err := a.current(kind, call.Namespace, call.Name)
	if err != nil {
		return reply{}, err
	}
	node := nodeOf(o)
	if node == "" {
		return reply{}, noMetrics(call.Name, "it is on no node yet")
	}
	stats, err := a.stats(ctx, node)
	if err != nil {
		return reply{}, apierrors.NewServiceUnavailable(fmt.Sprintf("metrics of %s %q: node %s does not say what it uses: %v", kind.Singular, call.Name, node, err))
	}
	item, ok := metricsItem(o, stats)
	if !ok {
		return reply{}, noMetrics(call.Name, "none of its containers runs")
	}
	out, err := json.Marshal(item)
	return reply{body: out}, err
}

func noMetrics(name, why string) error {
	err := apierrors.NewNotFound(schemas.MetricsVersion.WithResource(schemas.Pods).GroupResource(), name)
	err.ErrStatus.Message += ": " + why
	return err
}

// listMetrics has no revision: what is used now was never stored.
func (a *Admission) listMetrics(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	var opts metav1.ListOptions
	if err := decodeOptions(body, &opts, "ListOptions"); err != nil {
		return reply{}, err
	}
	sel, err := selectionOf(kind, call, &opts)
	if err != nil {
		return reply{}, err
	}
	var from position
	if opts.Continue != "" {
		if from, err = readToken(opts.Continue); err != nil {
			return reply{}, err
		}
	}
	var chosen []schemas.Object
	nodes := map[string]bool{}
	for _, o := range a.store.View().List(kind.Resource, call.Namespace) {
		before := cmp.Or(strings.Compare(o.GetNamespace(), from.Namespace), strings.Compare(o.GetName(), from.Name)) < 0
		if node := nodeOf(o); node != "" && !before && sel.matches(o) {
			chosen = append(chosen, o)
			nodes[node] = true
		}
	}
	stats, warnings := a.allStats(ctx, nodes)
	out := listReply{
		Kind: metricsKind(kind) + "List", APIVersion: schemas.MetricsVersion.String(),
	}
	size := 0
	for _, o := range chosen {
		s, answered := stats[nodeOf(o)]
		if !answered {
			continue
		}
		value, ok := metricsItem(o, s)
		if !ok {
			continue
		}
		item, err := json.Marshal(value)
		if err != nil {
			return reply{}, fmt.Errorf("encode metrics of %s: %w", o.GetName(), err)
		}
		if opts.Limit > 0 && int64(len(out.items)) == opts.Limit || len(out.items) > 0 && size+len(item) > maxReply {
			if out.Metadata.Continue, err = (position{Namespace: o.GetNamespace(), Name: o.GetName()}).token(); err != nil {
				return reply{}, err
			}
			break
		}
		size += len(item) + 1
		out.items = append(out.items, item)
	}
	data, err := out.encode()
	return reply{body: data, warnings: warnings}, err
}

// allStats asks nodes at once, a bounded number at a time.
func (a *Admission) allStats(ctx context.Context, nodes map[string]bool) (map[string]schemas.NodeStats, []string) {
	var (
		mu       sync.Mutex
		out      = map[string]schemas.NodeStats{}
		warnings []string
		asked    sync.WaitGroup
		slots    = make(chan struct{}, statsNodes)
	)
	for node := range nodes {
		slots <- struct{}{}
		asked.Go(func() {
			defer func() { <-slots }()
			stats, err := a.stats(ctx, node)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("node %s is left out: it does not say what it uses: %v", node, err))
				return
			}
			out[node] = stats
		})
	}
	asked.Wait()
	slices.Sort(warnings)
	const told = 10 // headers have little room
	if len(warnings) > told {
		warnings = append(warnings[:told], fmt.Sprintf("and %d nodes more", len(warnings)-told))
	}
	return out, warnings
}

func (a *Admission) stats(ctx context.Context, node string) (schemas.NodeStats, error) {
	ctx, cancel := context.WithTimeout(ctx, statsPatience)
	defer cancel()
	var stats schemas.NodeStats
	body, _, err := a.ask(ctx, node, schemas.NodeMethodStats, nil, nil)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", statsPatience)
		}
		return stats, err
	}
	if err := json.Unmarshal(body, &stats); err != nil {
		return stats, fmt.Errorf("read what it uses: %w", err)
	}
	return stats, nil
}

func nodeOf(o schemas.Object) string {
	switch o := o.(type) {
	case *corev1.Pod:
		return o.Spec.NodeName
	case *corev1.Node:
		return o.Name
	}
	return ""
}

func metricsKind(kind schemas.Kind) string { return kind.GVK.Kind + "Metrics" }

// metricsItem is what an object uses by what its node says. ok is false for a
// pod of which nothing runs.
func metricsItem(o schemas.Object, stats schemas.NodeStats) (item any, ok bool) {
	meta := metav1.ObjectMeta{
		Name: o.GetName(), Namespace: o.GetNamespace(), CreationTimestamp: stats.Time, Labels: o.GetLabels(),
	}
	window := metav1.Duration{Duration: time.Duration(stats.WindowSeconds * float64(time.Second)).Round(time.Millisecond)}
	typed := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{Kind: kind, APIVersion: schemas.MetricsVersion.String()}
	}
	if _, ok := o.(*corev1.Node); ok {
		return schemas.NodeMetrics{
			TypeMeta: typed("NodeMetrics"), ObjectMeta: meta, Timestamp: stats.Time, Window: window, Usage: usage(stats.Node),
		}, true
	}
	for _, p := range stats.Pods {
		if p.UID != o.GetUID() || len(p.Containers) == 0 {
			continue
		}
		m := schemas.PodMetrics{TypeMeta: typed("PodMetrics"), ObjectMeta: meta, Timestamp: stats.Time, Window: window}
		for name, u := range p.Containers {
			m.Containers = append(m.Containers, schemas.ContainerMetrics{Name: name, Usage: usage(u)})
		}
		slices.SortFunc(m.Containers, func(x, y schemas.ContainerMetrics) int { return strings.Compare(x.Name, y.Name) })
		return m, true
	}
	return nil, false
}

// usage is written as metrics-server does: nanocores, and Ki of memory.
func usage(u schemas.Usage) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(u.NanoCPUs), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(u.MemoryBytes>>10<<10), resource.BinarySI),
	}
}
