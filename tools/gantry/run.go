package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/schemas"
)

type runOptions struct {
	image, pullPolicy, restart, port string
	env, annotations                 []string
	labels                           string
	command, expose                  bool
	stdin, tty, attach, remove       bool
	leaveStdinOpen, quiet            bool
	startTimeout                     time.Duration
	w                                writing
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run NAME --image=IMAGE [-- ARGS...]",
		Short: "Run one pod of an image",
		Example: `  gantry run web --image=registry.example/web:1 --port=8080
  gantry run job --image=registry.example/tools:1 --restart=Never --command -- sh -c 'date'
  gantry run -it --rm shell --image=registry.example/tools:1 --restart=Never -- sh
  gantry run web --image=registry.example/web:1 --dry-run=client -o yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("NAME is required for run")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash > 1 || dash < 0 && len(args) > 1 {
				return fmt.Errorf("exactly one NAME is required, got %s; what the container is given follows --", strings.Join(args, " "))
			}
			return a.runRun(cmd.Context(), &o, args[0], args[1:])
		},
	}
	f := c.Flags()
	f.StringVar(&o.image, "image", "", "the image (required)")
	f.StringVar(&o.pullPolicy, "image-pull-policy", "", "Always, IfNotPresent or Never")
	f.StringVar(&o.restart, "restart", "Always", "Always, OnFailure or Never: whether the container is started again when it ends")
	f.StringVar(&o.port, "port", "", "the port that the container listens on")
	f.StringArrayVar(&o.env, "env", nil, "a variable: NAME=VALUE")
	f.StringArrayVar(&o.annotations, "annotations", nil, "an annotation: KEY=VALUE")
	f.StringVarP(&o.labels, "labels", "l", "", "labels, separated by commas: KEY=VALUE,...; run=NAME if none are given")
	f.BoolVar(&o.command, "command", false, "what follows -- is the command, and not its arguments")
	f.BoolVar(&o.expose, "expose", false, "create a service of the same name for --port")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "keep the standard input of the container open, and attach to it")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.BoolVar(&o.attach, "attach", false, "attach to the container once it runs")
	f.BoolVar(&o.remove, "rm", false, "delete the pod in the end; only with -i or --attach")
	f.BoolVar(&o.leaveStdinOpen, "leave-stdin-open", false, "keep the standard input of the container open when the first one who gave it some has gone")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing of its own")
	f.DurationVar(&o.startTimeout, "pod-running-timeout", time.Minute, "how long to wait for the container to start")
	a.writeFlags(c, &o.w)
	return c
}

func (a *app) runRun(ctx context.Context, o *runOptions, name string, args []string) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	attached, err := o.checkAttached()
	if err != nil {
		return err
	}
	p, err := o.pod(name, args)
	if err != nil {
		return err
	}
	switch {
	case o.expose && o.port == "":
		return errors.New("--port must be set when exposing a service")
	case o.expose && attached:
		return errors.New("--expose cannot be used with attached containers options (--attach, --stdin, or --tty)")
	}
	if attached {
		return a.runAttached(ctx, o, p)
	}
	if err := a.createMade(ctx, &o.w, p); err != nil || !o.expose {
		return err
	}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
	port := p.Spec.Containers[0].Ports[0].ContainerPort
	s.Spec.Selector = p.Labels
	s.Spec.Ports = []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: port, TargetPort: intstr.FromInt32(port)}}
	return a.createMade(ctx, &o.w, s)
}

// pod is the pod that the flags describe.
func (o *runOptions) pod(name string, args []string) (*corev1.Pod, error) {
	if o.image == "" {
		return nil, errors.New("--image is required")
	}
	c := corev1.Container{
		Name: name, Image: o.image, ImagePullPolicy: corev1.PullPolicy(o.pullPolicy),
		Stdin: o.stdin, StdinOnce: o.stdin && !o.leaveStdinOpen, TTY: o.tty,
	}
	switch corev1.PullPolicy(o.pullPolicy) {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return nil, fmt.Errorf("invalid image pull policy: %s; there are Always, IfNotPresent and Never", o.pullPolicy)
	}
	restart := corev1.RestartPolicy(o.restart)
	switch restart {
	case corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever:
	default:
		return nil, fmt.Errorf("invalid restart policy: %s; there are Always, OnFailure and Never", o.restart)
	}
	if o.command {
		if len(args) == 0 {
			return nil, errors.New("--command needs the command after --")
		}
		c.Command = args
	} else {
		c.Args = args
	}
	if o.port != "" {
		port, err := portNumber(o.port)
		if err != nil {
			return nil, fmt.Errorf("--port: %w", err)
		}
		c.Ports = []corev1.ContainerPort{{ContainerPort: port}}
	}
	env, err := pairs("--env", o.env)
	if err != nil {
		return nil, err
	}
	for _, e := range env {
		c.Env = append(c.Env, corev1.EnvVar{Name: e[0], Value: e[1]})
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"run": name}}}
	if o.labels != "" {
		if p.Labels, err = pairMap("--labels", strings.Split(o.labels, ",")); err != nil {
			return nil, err
		}
	}
	if p.Annotations, err = pairMap("--annotations", o.annotations); err != nil {
		return nil, err
	}
	p.Spec.Containers = []corev1.Container{c}
	p.Spec.RestartPolicy = restart
	return p, nil
}

// pairMap is nil where there are no words.
func pairMap(what string, words []string) (map[string]string, error) {
	ps, err := pairs(what, words)
	if err != nil || len(ps) == 0 {
		return nil, err
	}
	out := map[string]string{}
	for _, p := range ps {
		out[p[0]] = p[1]
	}
	return out, nil
}

type exposeOptions struct {
	selection                              selection
	name, port, target, protocol, selector string
	serviceType, clusterIP, labels         string
	w                                      writing
}

func (a *app) exposeCommand() *cobra.Command {
	var o exposeOptions
	c := &cobra.Command{
		Use:     "expose KIND/NAME | KIND NAME | -f FILE --port=PORT",
		Short:   "Create a service for the pods of an object",
		Example: "  gantry expose deployment/web --port=80 --target-port=8080",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runExpose(cmd.Context(), &o, args) },
	}
	f := c.Flags()
	o.selection.files.flags(c)
	f.StringVar(&o.name, "name", "", "name of the service; that of the object if not given")
	f.StringVar(&o.port, "port", "", "port of the service; the containers' ports if not given")
	f.StringVar(&o.target, "target-port", "", "port of the pods, by number or name; --port if not given")
	f.StringVar(&o.protocol, "protocol", "TCP", "TCP or UDP")
	f.StringVar(&o.selector, "selector", "", "labels of the pods, KEY=VALUE,...; those that the object has or selects if not given")
	f.StringVarP(&o.labels, "labels", "l", "", "labels of the service; those of the object if not given")
	f.StringVar(&o.serviceType, "type", "", "ClusterIP, the one type that there is so far")
	f.StringVar(&o.clusterIP, "cluster-ip", "", `the address; empty for any, "None" for a headless service`)
	a.writeFlags(c, &o.w)
	return c
}

func (a *app) runExpose(ctx context.Context, o *exposeOptions, args []string) error {
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	if o.serviceType != "" && o.serviceType != string(corev1.ServiceTypeClusterIP) {
		return fmt.Errorf("--type=%s: Gantry has Services of type ClusterIP alone so far", o.serviceType)
	}
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	if err := oneKind(objects, "be exposed", schemas.Pods, schemas.Services, schemas.Deployments, schemas.ReplicaSets); err != nil {
		return err
	}
	for _, t := range objects {
		obj, err := a.get(ctx, t.kind, t.namespace, t.name)
		if err == nil {
			var s *corev1.Service
			if s, err = o.service(obj); err == nil {
				err = a.createMade(ctx, &o.w, s)
			}
		}
		if err != nil {
			a.report(err)
			continue
		}
	}
	return nil
}

func (o *exposeOptions) service(obj schemas.Object) (*corev1.Service, error) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Name: orText(o.name, obj.GetName()), Namespace: obj.GetNamespace(), Labels: obj.GetLabels(),
	}}
	var err error
	if o.labels != "" {
		if s.Labels, err = pairMap("--labels", strings.Split(o.labels, ",")); err != nil {
			return nil, err
		}
	}
	selector, ports, err := exposed(obj)
	if o.selector != "" {
		selector, err = pairMap("--selector", strings.Split(o.selector, ","))
	}
	if err != nil {
		return nil, err
	}
	s.Spec.Selector, s.Spec.ClusterIP = selector, o.clusterIP
	if o.port != "" {
		ports = strings.Split(o.port, ",")
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("couldn't find port via --port flag or introspection: %s names no port of its containers, so give --port", obj.GetName())
	}
	for _, text := range ports {
		port, err := portNumber(text)
		if err != nil {
			return nil, fmt.Errorf("--port: %w", err)
		}
		p := corev1.ServicePort{Protocol: corev1.Protocol(strings.ToUpper(o.protocol)), Port: port, TargetPort: intstr.FromInt32(port)}
		if o.target != "" {
			if p.TargetPort, err = targetPort(o.target); err != nil {
				return nil, fmt.Errorf("--target-port: %w", err)
			}
		}
		if len(ports) > 1 {
			p.Name = "port-" + text
		}
		s.Spec.Ports = append(s.Spec.Ports, p)
	}
	return s, nil
}

// exposed are the labels by which the pods behind an object are found, and the
// ports that it names.
func exposed(obj schemas.Object) (selector map[string]string, ports []string, err error) {
	var spec corev1.PodSpec
	var query *metav1.LabelSelector
	switch o := obj.(type) {
	case *corev1.Service:
		for _, p := range o.Spec.Ports {
			ports = append(ports, fmt.Sprint(p.Port))
		}
		if len(o.Spec.Selector) == 0 {
			return nil, nil, fmt.Errorf("service %q selects no pods: give --selector", o.Name)
		}
		return o.Spec.Selector, ports, nil
	case *corev1.Pod:
		if len(o.Labels) == 0 {
			return nil, nil, fmt.Errorf("pod %q has no labels and cannot be exposed: give it one with gantry label", o.Name)
		}
		spec, selector = o.Spec, o.Labels
	default:
		switch o := o.(type) {
		case *appsv1.Deployment:
			spec, query = o.Spec.Template.Spec, o.Spec.Selector
		case *appsv1.ReplicaSet:
			spec, query = o.Spec.Template.Spec, o.Spec.Selector
		}
		if query == nil || len(query.MatchExpressions) > 0 {
			return nil, nil, fmt.Errorf("%s selects its pods by expressions, which a service cannot: give --selector", obj.GetName())
		}
		selector = query.MatchLabels
	}
	for _, c := range spec.Containers {
		for _, p := range c.Ports {
			ports = append(ports, fmt.Sprint(p.ContainerPort))
		}
	}
	return selector, ports, nil
}
