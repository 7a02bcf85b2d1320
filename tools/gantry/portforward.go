package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

func (a *app) portForwardCommand() *cobra.Command {
	var addresses []string
	c := &cobra.Command{
		Use:   "port-forward (POD | KIND/NAME) [LOCAL:]REMOTE...",
		Short: "Reach ports of a pod from here",
		Long: `Listen here, and carry each connection to a port of a pod, made from within the
pod. LOCAL may be left out, which takes the same number, or be empty, which takes
any that is free. REMOTE may be a port's name. Of a service, it is the service's
port; the connection goes to one of its pods.`,
		Example: `  gantry port-forward web-1 8080
  gantry port-forward service/web 8080:80
  gantry port-forward --address 0.0.0.0 deployment/web :http`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("TYPE/NAME and list of ports are required for port-forward")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runPortForward(cmd.Context(), addresses, args[0], args[1:])
		},
	}
	c.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "addresses to listen on")
	return c
}

// forwarded is one port.
type forwarded struct {
	local  uint16 // 0: any
	remote uint16
}

func (a *app) runPortForward(ctx context.Context, addresses []string, arg string, specs []string) error {
	t, err := sessionTarget(arg)
	if err != nil {
		return err
	}
	pod, err := a.podBehind(ctx, t)
	if err != nil {
		return err
	}
	var service *corev1.Service
	if t.kind.Resource == schemas.Services {
		o, err := a.get(ctx, t.kind, a.namespace, t.name)
		if err != nil {
			return err
		}
		service, _ = o.(*corev1.Service)
	}
	if pod.Status.Phase != corev1.PodRunning {
		return fmt.Errorf("unable to forward port because pod is not running. Current status=%v", pod.Status.Phase)
	}
	var ports []forwarded
	for _, spec := range specs {
		p, err := readPort(spec, pod, service)
		if err != nil {
			return err
		}
		ports = append(ports, p)
	}
	return a.forward(ctx, pod, ports, addresses)
}

// readPort reads [LOCAL:]REMOTE.
func readPort(spec string, pod *corev1.Pod, service *corev1.Service) (forwarded, error) {
	local, remote, both := strings.Cut(spec, ":")
	if !both {
		remote = local
	}
	var f forwarded
	wanted, remotePort, err := remotePort(remote, pod, service)
	if err != nil {
		return f, fmt.Errorf("port %q: %w", spec, err)
	}
	f.remote = remotePort
	switch {
	case !both:
		f.local = wanted
	case local != "":
		n, err := strconv.ParseUint(local, 10, 16)
		if err != nil {
			return f, fmt.Errorf("port %q: error parsing local port %q: want 0 to 65535", spec, local)
		}
		f.local = uint16(n)
	}
	return f, nil
}

// remotePort is the number that the user wrote or meant, and the pod's own,
// which differs where a service stands between.
func remotePort(text string, pod *corev1.Pod, service *corev1.Service) (wanted, own uint16, err error) {
	n, err := strconv.ParseUint(text, 10, 16)
	number := err == nil
	if number && n == 0 || text == "" {
		return 0, 0, errors.New("remote port must be 1 to 65535, or a name")
	}
	if service == nil {
		if number {
			return uint16(n), uint16(n), nil
		}
		own, err := containerPort(text, pod)
		return own, own, err
	}
	for _, p := range service.Spec.Ports {
		if number && p.Port != int32(n) || !number && p.Name != text {
			continue
		}
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			return 0, 0, fmt.Errorf("%s port %s of service %s: only TCP is forwarded", p.Protocol, text, service.Name)
		}
		switch {
		case service.Spec.ClusterIP == corev1.ClusterIPNone: // there is no mapping
			return uint16(p.Port), uint16(p.Port), nil
		case p.TargetPort.StrVal != "":
			own, err := containerPort(p.TargetPort.StrVal, pod)
			return uint16(p.Port), own, err
		case p.TargetPort.IntVal != 0:
			return uint16(p.Port), uint16(p.TargetPort.IntVal), nil
		}
		return uint16(p.Port), uint16(p.Port), nil
	}
	return 0, 0, fmt.Errorf("service %s does not have a service port %s", service.Name, text)
}

func containerPort(name string, pod *corev1.Pod) (uint16, error) {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == name && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				return uint16(p.ContainerPort), nil
			}
		}
	}
	return 0, fmt.Errorf("pod %s does not have a named port %q", pod.Name, name)
}

// forward listens until it is interrupted or the pod is gone.
func (a *app) forward(ctx context.Context, pod *corev1.Pod, ports []forwarded, addresses []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var accepting sync.WaitGroup
	defer accepting.Wait()
	f := &forwarder{app: a, pod: pod, lost: cancel}
	for _, p := range ports {
		listeners, err := f.listen(p, addresses)
		for _, l := range listeners {
			accepting.Go(func() { f.accept(ctx, l, p) })
			context.AfterFunc(ctx, func() { _ = l.Close() })
		}
		if err != nil {
			cancel(nil)
			return err
		}
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) {
		return nil // interrupted: that is how it ends
	}
	return cause
}

type forwarder struct {
	app  *app
	pod  *corev1.Pod
	lost context.CancelCauseFunc
	mu   sync.Mutex // a line is written in one piece
}

func (f *forwarder) say(w io.Writer, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(w, format+"\n", args...)
}

// listen listens on every address. Of localhost, one of two is enough.
func (f *forwarder) listen(p forwarded, addresses []string) ([]net.Listener, error) {
	var out []net.Listener
	open := func(ip string) error {
		port := p.local
		if port == 0 && len(out) > 0 { // the same for all addresses
			port = uint16(out[0].Addr().(*net.TCPAddr).Port)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
		if err != nil {
			return fmt.Errorf("unable to listen on port %d: %w", port, err)
		}
		out = append(out, l)
		f.say(f.app.out, "Forwarding from %s -> %d", l.Addr(), p.remote)
		return nil
	}
	for _, address := range addresses {
		if address != "localhost" {
			if net.ParseIP(address) == nil {
				return out, fmt.Errorf("--address: %q is not a valid IP address or localhost", address)
			}
			if err := open(address); err != nil {
				return out, err
			}
			continue
		}
		if err := open("127.0.0.1"); err != nil {
			return out, err
		}
		_ = open("::1") // a machine may have no IPv6
	}
	return out, nil
}

func (f *forwarder) accept(ctx context.Context, l net.Listener, p forwarded) {
	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				f.lost(fmt.Errorf("accept a connection: %w", err))
			}
			return
		}
		local := l.Addr().(*net.TCPAddr).Port
		f.say(f.app.out, "Handling connection for %d", local)
		connections.Go(func() {
			defer func() { _ = c.Close() }()
			if err := f.carry(ctx, c.(*net.TCPConn), p.remote); err != nil && ctx.Err() == nil {
				f.say(f.app.err, "an error occurred forwarding %d -> %d: %v", local, p.remote, describeError(err))
				if apierrors.IsNotFound(err) || apierrors.IsGone(err) {
					f.lost(errors.New("lost connection to pod"))
				}
			}
		})
	}
}

// open waits for a while where the pod has as many sessions as it may: programs
// open more connections at once than they use for long.
func (f *forwarder) open(ctx context.Context, port uint16) (*bus.Session, error) {
	const patience, pause = 15 * time.Second, 200 * time.Millisecond
	for begin := time.Now(); ; {
		s, err := f.app.conn.PortForward(ctx, f.pod.Namespace, f.pod.Name, schemas.PortForwardRequest{UID: f.pod.UID, Port: port})
		if err == nil || !apierrors.IsTooManyRequests(err) || time.Since(begin) > patience {
			return s, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// carry is the life of one connection.
func (f *forwarder) carry(ctx context.Context, c *net.TCPConn, port uint16) error {
	s, err := f.open(ctx, port)
	if err != nil {
		return err
	}
	// The local side may close both halves while the pod says nothing: then the
	// next thing that the pod says cannot be written, and that ends it.
	_, err = s.Pump(ctx, bus.Streams{In: resets{c}, Out: c})
	// Said what came from the pod before the connection goes: what is closed
	// with bytes unread takes them from the other side, too.
	if c.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, c)
	}
	var broken net.Error
	if errors.As(err, &broken) {
		return nil // it was the local side that went away
	}
	return err
}

// resets takes a local connection that breaks for one that ends.
type resets struct{ *net.TCPConn }

func (r resets) Read(b []byte) (int, error) {
	n, err := r.TCPConn.Read(b)
	if err != nil {
		err = io.EOF
	}
	return n, err
}
