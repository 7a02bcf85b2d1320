package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

type deleteOptions struct {
	files          files
	selector       string
	fieldSelector  string
	all            bool
	wait           bool
	force          bool
	now            bool
	grace          int64
	timeout        time.Duration
	ignoreNotFound bool
	cascade        string
	output         string
	dry            writing
}

func (a *app) deleteCommand() *cobra.Command {
	var o deleteOptions
	c := &cobra.Command{
		Use:   "delete KIND NAME... | KIND/NAME... | KIND -l SELECTOR | -f FILE",
		Short: "Delete objects, and wait until they are gone",
		Example: `  gantry delete pod web-1
  gantry delete -f web.yaml
  gantry delete pods -l app=web --grace-period 1`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runDelete(cmd.Context(), o, args) },
	}
	f := c.Flags()
	o.files.flags(c)
	f.StringVarP(&o.selector, "selector", "l", "", "labels that objects must have")
	f.StringVar(&o.fieldSelector, "field-selector", "", "fields that objects must have")
	f.BoolVar(&o.all, "all", false, "all objects of the kind in the namespace")
	f.BoolVar(&o.wait, "wait", true, "wait until the objects are gone")
	f.BoolVar(&o.force, "force", false, "do not wait for the node to confirm that a pod has ended")
	f.BoolVar(&o.now, "now", false, "give pods one second to end (the same as --grace-period=1)")
	f.Int64Var(&o.grace, "grace-period", -1, "seconds that pods get to end; -1 is what each says itself, 0 only with --force")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait; 0 waits as long as it takes")
	f.BoolVar(&o.ignoreNotFound, "ignore-not-found", false, "no error where an object does not exist")
	f.StringVar(&o.cascade, "cascade", "background", "background, foreground or orphan: what becomes of the objects that these own")
	f.StringVarP(&o.output, "output", "o", "", "name: print names only")
	o.dry.dryRunFlag(c)
	a.allNamespacesFlag(c)
	return c
}

// victim is one object to delete.
type victim struct {
	kind            schemas.Kind
	namespace, name string
	doing           string // for errors
}

func (o *deleteOptions) body() ([]byte, error) {
	var d metav1.DeleteOptions
	switch {
	case o.now && o.grace >= 0:
		return nil, errors.New("--now and --grace-period cannot be specified together")
	case o.now:
		o.grace = 1
	case o.grace == 0 && !o.force:
		o.grace = 1 // as kubectl: 0 would not wait for the node
	case o.force && o.grace < 0:
		o.grace = 0
	}
	if o.force && o.grace > 0 {
		return nil, errors.New("--force and --grace-period greater than 0 cannot be specified together")
	}
	if o.grace >= 0 {
		d.GracePeriodSeconds = &o.grace
	}
	policy, ok := map[string]metav1.DeletionPropagation{
		"background": metav1.DeletePropagationBackground, "foreground": metav1.DeletePropagationForeground,
		"orphan": metav1.DeletePropagationOrphan, "true": metav1.DeletePropagationBackground, "false": metav1.DeletePropagationOrphan,
	}[o.cascade]
	if !ok {
		return nil, fmt.Errorf("invalid cascade value (%s): must be background, foreground or orphan", o.cascade)
	}
	d.PropagationPolicy = &policy
	if o.dry.dryRun == dryServer {
		d.DryRun = []string{metav1.DryRunAll}
	}
	return json.Marshal(d)
}

func (a *app) runDelete(ctx context.Context, o deleteOptions, args []string) error {
	if err := a.prepare(&o.dry); err != nil {
		return err
	}
	body, err := o.body()
	if err != nil {
		return err
	}
	if o.output != "" && o.output != "name" {
		return fmt.Errorf("unexpected -o output mode: %s; only name is taken", o.output)
	}
	victims, err := a.victims(ctx, o, args)
	if err != nil {
		return err
	}
	if len(victims) == 0 {
		if !a.failed && o.output == "" {
			fmt.Fprintln(a.out, "No resources found")
		}
		return nil
	}
	if o.force && o.output == "" && !o.dry.rehearsal() {
		fmt.Fprintln(a.err, "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.")
	}
	if err := a.connect(ctx); err != nil {
		return err
	}
	waitCtx, cancel := ctx, context.CancelFunc(func() {})
	if o.timeout > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, o.timeout)
	}
	defer cancel()
	return a.deleteAll(waitCtx, o, victims, body)
}

// victims lists what is to be deleted.
func (a *app) victims(ctx context.Context, o deleteOptions, args []string) ([]victim, error) {
	var out []victim
	if o.files.given() {
		ms, err := a.manifests(&o.files)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			out = append(out, victim{m.kind, m.namespace, m.name, m.what("deleting")})
		}
		return out, nil
	}
	targets, err := parseTargets(args)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		switch {
		case t.name != "" && a.allNamespaces:
			return nil, errors.New("a resource cannot be retrieved by name across all namespaces")
		case t.name != "" && (o.selector != "" || o.all || o.fieldSelector != ""):
			return nil, errors.New("name cannot be provided when a selector or --all is specified")
		case t.name != "":
			out = append(out, victim{t.kind, a.scope(t.kind), t.name, ""})
		case o.selector == "" && !o.all && o.fieldSelector == "":
			return nil, fmt.Errorf("resource(s) were provided, but no name was specified: give a name, a selector (-l) or --all to delete %s", t.kind.Resource)
		default:
			objects, _, err := a.objects(ctx, t.kind, a.scope(t.kind), metav1.ListOptions{LabelSelector: o.selector, FieldSelector: o.fieldSelector})
			if err != nil {
				return nil, err
			}
			for _, obj := range objects {
				out = append(out, victim{t.kind, obj.GetNamespace(), obj.GetName(), ""})
			}
		}
	}
	return out, nil
}

// deleteAll asks for all deletions at once, says so in order, and then waits.
func (a *app) deleteAll(ctx context.Context, o deleteOptions, victims []victim, body []byte) error {
	type answer struct {
		uid types.UID // of what has to go, empty where it is gone
		err error
	}
	answers := make([]answer, len(victims))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, v := range victims {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			verb, said := schemas.VerbDelete, body
			if o.dry.dryRun == dryClient {
				verb, said = schemas.VerbGet, nil
			}
			reply, err := a.ask(ctx, verb, v.kind.Resource, v.namespace, v.name, nil, said)
			answers[i] = answer{uidOf(reply.Body), err}
		})
	}
	wg.Wait()
	waiting := map[types.UID]victim{}
	for i, v := range victims {
		switch err := answers[i].err; {
		case apierrors.IsNotFound(err) && o.ignoreNotFound:
		case err != nil:
			a.report(refused{v.doing, err})
		default:
			a.sayDeleted(o, v)
			if answers[i].uid != "" {
				waiting[answers[i].uid] = v
			}
		}
	}
	if !o.wait || o.force || o.dry.rehearsal() {
		return nil
	}
	return a.awaitGone(ctx, waiting)
}

func (a *app) sayDeleted(o deleteOptions, v victim) {
	if o.output == "name" {
		fmt.Fprintln(a.out, label(v.kind, v.name))
		return
	}
	how := "deleted"
	if o.force {
		how = "force deleted"
	}
	kind := v.kind.Singular
	if v.kind.GVK.Group != "" {
		kind += "." + v.kind.GVK.Group
	}
	fmt.Fprintf(a.out, "%s %q %s%s\n", kind, v.name, how, o.dry.suffix())
}

// uidOf is the UID of an object that a deletion left for now; a Status has none.
func uidOf(raw []byte) types.UID {
	var o struct {
		Kind     string `json:"kind"`
		Metadata struct {
			UID types.UID `json:"uid"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &o); err != nil || o.Kind == "Status" {
		return ""
	}
	return o.Metadata.UID
}

// awaitGone waits until no object of these UIDs exists.
func (a *app) awaitGone(ctx context.Context, waiting map[types.UID]victim) error {
	if len(waiting) == 0 {
		return nil
	}
	p := a.progress("waiting for deletion")
	defer p.end()
	byPlace := map[string][]types.UID{}
	for uid, v := range waiting {
		byPlace[v.kind.Resource+" "+v.namespace] = append(byPlace[v.kind.Resource+" "+v.namespace], uid)
	}
	left := len(waiting)
	for _, uids := range byPlace {
		v := waiting[uids[0]]
		gone := map[types.UID]bool{}
		err := a.follow(ctx, v.kind, v.namespace, metav1.ListOptions{}, func(present map[types.UID]schemas.Object) (bool, error) {
			for _, uid := range uids {
				if _, there := present[uid]; !there && !gone[uid] {
					gone[uid] = true
					left--
				}
			}
			p.say("waiting until %d objects are gone", left)
			return len(gone) == len(uids), nil
		})
		if err != nil {
			for _, uid := range uids {
				if !gone[uid] && errors.Is(err, errTimedOut) {
					return fmt.Errorf("timed out waiting until %s is gone", label(waiting[uid].kind, waiting[uid].name))
				}
			}
			return err
		}
	}
	return nil
}
