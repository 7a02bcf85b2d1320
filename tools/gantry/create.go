package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

func (a *app) createCommand() *cobra.Command {
	var f files
	var w writing
	c := &cobra.Command{
		Use:   "create -f FILE|DIRECTORY|- | create KIND NAME",
		Short: "Create what manifests describe, or an object of a common kind; what exists is an error",
		Example: `  gantry create -f web.yaml
  gantry create deployment web --image=registry.example/web:1 --replicas=2
  gantry create configmap settings --from-literal=mode=fast --from-file=app.conf`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return noCreate(args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !f.given() {
				return errors.New("must specify one of -f and -")
			}
			if err := a.prepare(&w); err != nil {
				return err
			}
			ms, err := a.manifests(&f)
			if err != nil {
				return err
			}
			return a.writeAll(cmd.Context(), &w, "creating", ms, a.creator(&w))
		},
	}
	f.flags(c)
	a.writeFlags(c, &w)
	w.validateFlag(c)
	c.AddCommand(a.createNamespaceCommand(), a.createDeploymentCommand(), a.createServiceCommand(), a.createConfigMapCommand())
	// The shortcuts of kubectl that are missing here are refused whatever their flags.
	for _, word := range []string{"clusterrole", "clusterrolebinding", "cronjob", "ingress", "job", "poddisruptionbudget", "pdb",
		"priorityclass", "pc", "quota", "role", "rolebinding", "secret", "serviceaccount", "sa", "token"} {
		c.AddCommand(refusedCommand(word, func() error { return noCreate(word) }))
	}
	return c
}

// refusedCommand is one that only says why it is none.
func refusedCommand(word string, why func() error) *cobra.Command {
	return &cobra.Command{
		Use: word, Short: "refused", Hidden: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error { return why() },
	}
}

// noCreate says why there is no shortcut for a kind.
func noCreate(word string) error {
	alias := map[string]string{"quota": schemas.ResourceQuotas}[word]
	k, err := kindOf(orText(alias, word))
	switch {
	case err != nil:
		return fmt.Errorf("gantry create knows no %q: it creates namespace, deployment, service and configmap, and what a manifest describes with -f FILE", word)
	case k.Refused != "":
		return fmt.Errorf("%s is not supported by Gantry yet: %s", k.GVK.Kind, k.Refused)
	case k.SystemOnly:
		return fmt.Errorf("%s cannot be created: Gantry alone writes them", k.Resource)
	}
	return fmt.Errorf("gantry create has no shortcut for %s: write a manifest, and create it with -f FILE", k.Resource)
}

// creator creates; a dry run of the client's shows what would be sent.
func (a *app) creator(w *writing) sender {
	return func(ctx context.Context, m manifest) (bus.Reply, string, error) {
		if w.dryRun == dryClient {
			return bus.Reply{Body: m.json}, "created", nil
		}
		header, err := w.header("", false)
		if err != nil {
			return bus.Reply{}, "", err
		}
		reply, err := a.ask(ctx, schemas.VerbCreate, m.kind.Resource, m.namespace, m.name, header, m.json)
		return reply, "created", err
	}
}

// createMade creates an object that this program made.
func (a *app) createMade(ctx context.Context, w *writing, o schemas.Object) error {
	k := schemas.KindOf(o)
	m := manifest{kind: k, namespace: o.GetNamespace(), name: o.GetName()}
	if k.Namespaced && m.namespace == "" {
		// A manifest that is printed goes anywhere, unless a place was asked for.
		o.SetNamespace(a.givenNamespace)
		m.namespace = a.namespace
	}
	var err error
	if m.json, err = asManifest(o); err != nil {
		return err
	}
	if w.dryRun != dryClient {
		if err := a.connect(ctx); err != nil {
			return err
		}
	}
	reply, how, err := a.creator(w)(ctx, m)
	if err != nil {
		return refused{"failed to create " + k.Singular, err}
	}
	a.warn(reply)
	return a.said(w, k, m.name, how, reply.Body)
}

// madeCommand is a command that makes one object of a name.
func (a *app) madeCommand(c *cobra.Command, build func(name string, rest []string) (schemas.Object, error)) *cobra.Command {
	var w writing
	a.writeFlags(c, &w)
	if c.Args == nil {
		c.Args = func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("exactly one NAME is required, got %d", len(args))
			}
			return nil
		}
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.prepare(&w); err != nil {
			return err
		}
		o, err := build(args[0], args[1:])
		if err != nil {
			return err
		}
		return a.createMade(cmd.Context(), &w, o)
	}
	return c
}

func (a *app) createNamespaceCommand() *cobra.Command {
	return a.madeCommand(&cobra.Command{
		Use: "namespace NAME", Aliases: []string{"ns"}, Short: "Create a namespace",
		Example: "  gantry create namespace shop",
	}, func(name string, _ []string) (schemas.Object, error) {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil
	})
}

func (a *app) createDeploymentCommand() *cobra.Command {
	var images []string
	var replicas, port int32
	c := &cobra.Command{
		Use: "deployment NAME --image=IMAGE [-- COMMAND [ARGS...]]", Aliases: []string{"deploy"}, Short: "Create a deployment",
		Example: `  gantry create deployment web --image=registry.example/web:1 --replicas=3 --port=8080
  gantry create deployment sleeper --image=registry.example/tools:1 -- sleep infinity`,
		Args: cobra.MinimumNArgs(1),
	}
	c.Flags().StringSliceVar(&images, "image", nil, "the image; given several times, one container each (required)")
	c.Flags().Int32VarP(&replicas, "replicas", "r", 1, "how many pods")
	c.Flags().Int32Var(&port, "port", -1, "the port that the first container listens on")
	return a.madeCommand(c, func(name string, command []string) (schemas.Object, error) {
		switch {
		case len(images) == 0:
			return nil, errors.New("at least one image must be specified: --image=IMAGE")
		case len(command) > 0 && len(images) > 1:
			return nil, errors.New("cannot specify multiple --image options and a command: whose would it be?")
		case replicas < 0:
			return nil, fmt.Errorf("--replicas=%d: must be greater than or equal to 0", replicas)
		case port == 0 || port < -1 || port > 65535:
			return nil, fmt.Errorf("--port=%d: must be between 1 and 65535", port)
		}
		labels := map[string]string{"app": name}
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		d.Spec.Replicas = &replicas
		d.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		d.Spec.Template.Labels = labels
		taken := map[string]bool{}
		for i, image := range images {
			c := corev1.Container{Name: containerName(image, taken), Image: image}
			if i == 0 && port > 0 {
				c.Ports = []corev1.ContainerPort{{ContainerPort: port}}
			}
			if len(command) > 0 {
				c.Command = command
			}
			d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, c)
		}
		return d, nil
	})
}

// containerName names a container after its image, and differently from those
// that are taken already.
func containerName(image string, taken map[string]bool) string {
	name := image[strings.LastIndexByte(image, '/')+1:]
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(name, ":")
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, name)
	if len(name) > 60 {
		name = name[:60]
	}
	name = orText(strings.Trim(name, "-"), "app")
	unique := name
	for i := 2; taken[unique]; i++ {
		unique = name + "-" + strconv.Itoa(i)
	}
	taken[unique] = true
	return unique
}

func (a *app) createServiceCommand() *cobra.Command {
	none := func(word string) error {
		return fmt.Errorf("no service of type %q: Gantry has clusterip alone so far", word)
	}
	c := &cobra.Command{
		Use: "service clusterip NAME", Aliases: []string{"svc"}, Short: "Create a service",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return none(args[0])
			}
			return errors.New("which type of service? gantry create service clusterip NAME --tcp=PORT:TARGETPORT")
		},
	}
	c.AddCommand(a.createClusterIPCommand())
	for _, word := range []string{"nodeport", "loadbalancer", "externalname"} {
		c.AddCommand(refusedCommand(word, func() error { return none(word) }))
	}
	return c
}

func (a *app) createClusterIPCommand() *cobra.Command {
	var tcp []string
	var clusterIP string
	c := &cobra.Command{
		Use: "clusterip NAME --tcp=PORT[:TARGETPORT]", Short: "Create a service with an address within the cluster",
		Example: "  gantry create service clusterip web --tcp=80:8080",
	}
	c.Flags().StringSliceVar(&tcp, "tcp", nil, "a port of the service, and the pods' port behind it, by number or name")
	c.Flags().StringVar(&clusterIP, "clusterip", "", `the address; empty for any, "None" for a headless service`)
	return a.madeCommand(c, func(name string, _ []string) (schemas.Object, error) {
		if len(tcp) == 0 && clusterIP != corev1.ClusterIPNone {
			return nil, errors.New("at least one tcp port specifier must be provided: --tcp=PORT[:TARGETPORT]")
		}
		labels := map[string]string{"app": name}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		s.Spec.Selector, s.Spec.ClusterIP, s.Spec.Type = labels, clusterIP, corev1.ServiceTypeClusterIP
		for _, spec := range tcp {
			p, err := servicePort(spec)
			if err != nil {
				return nil, err
			}
			s.Spec.Ports = append(s.Spec.Ports, p)
		}
		return s, nil
	})
}

// servicePort reads PORT or PORT:TARGETPORT.
func servicePort(spec string) (corev1.ServicePort, error) {
	from, to, both := strings.Cut(spec, ":")
	port, err := portNumber(from)
	if err != nil {
		return corev1.ServicePort{}, fmt.Errorf("--tcp=%s: %w", spec, err)
	}
	p := corev1.ServicePort{Name: strings.ReplaceAll(spec, ":", "-"), Protocol: corev1.ProtocolTCP, Port: port, TargetPort: intstr.FromInt32(port)}
	if both {
		if p.TargetPort, err = targetPort(to); err != nil {
			return p, fmt.Errorf("--tcp=%s: %w", spec, err)
		}
	}
	return p, nil
}

func portNumber(s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %q is no number between 1 and 65535", s)
	}
	return int32(n), nil
}

// targetPort is a number, or the name of a container's port.
func targetPort(s string) (intstr.IntOrString, error) {
	if n, err := portNumber(s); err == nil {
		return intstr.FromInt32(n), nil
	}
	if problems := validation.IsValidPortName(s); len(problems) > 0 {
		return intstr.IntOrString{}, fmt.Errorf("target port %q is neither a number between 1 and 65535 nor the name of a port: %s", s, problems[0])
	}
	return intstr.FromString(s), nil
}
