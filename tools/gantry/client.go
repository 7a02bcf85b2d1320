package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

const connectTimeout = 5 * time.Second

// connect connects once; later calls return at once.
func (a *app) connect(ctx context.Context) error {
	if a.conn != nil {
		return nil
	}
	to, err := a.access()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	a.conn, err = bus.ConnectUser(ctx, to.creds)
	server := strings.Join(to.creds.URLs, ", ")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bus.ErrCredentials):
		return fmt.Errorf("%s: %w", to.from, err)
	case errors.Is(err, bus.ErrForbidden):
		return fmt.Errorf("the server %s does not know these credentials: they are of another cluster, or of one that was made anew (credentials: %s): %w",
			server, to.from, err)
	}
	return fmt.Errorf("cannot connect to the server %s - is the control plane running? (credentials: %s): %w", server, to.from, err)
}

func (a *app) request(ctx context.Context, verb, resource, namespace, name string, body []byte) (bus.Reply, error) {
	return a.requestWith(ctx, verb, resource, namespace, name, nil, body)
}

// requestWith is request with headers, which may be nil.
func (a *app) requestWith(ctx context.Context, verb, resource, namespace, name string, header map[string][]string, body []byte) (bus.Reply, error) {
	if err := a.connect(ctx); err != nil {
		return bus.Reply{}, err
	}
	reply, err := a.ask(ctx, verb, resource, namespace, name, header, body)
	if err == nil {
		a.warn(reply)
	}
	return reply, err
}

// ask is requestWith on the connection that is there, without a word about
// warnings: it may be called from several goroutines at once.
func (a *app) ask(ctx context.Context, verb, resource, namespace, name string, header map[string][]string, body []byte) (bus.Reply, error) {
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	return a.conn.RequestWith(ctx, verb, resource, namespace, name, header, body)
}

func (a *app) warn(reply bus.Reply) {
	for _, w := range reply.Header[schemas.HeaderWarning] {
		fmt.Fprintf(a.err, "Warning: %s\n", w)
	}
}

// list returns the raw objects of a kind and the revision to watch from.
func (a *app) list(ctx context.Context, k schemas.Kind, namespace string, opts metav1.ListOptions) (bus.RawList, error) {
	if err := a.connect(ctx); err != nil {
		return bus.RawList{}, err
	}
	return a.conn.List(ctx, k.Resource, namespace, opts)
}

// decode reads an object of a kind as the server wrote it.
func decode(k schemas.Kind, raw []byte) (schemas.Object, error) {
	o := k.New()
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("read %s from the server: %w", k.Singular, err)
	}
	return o, nil
}

// objects lists and decodes.
func (a *app) objects(ctx context.Context, k schemas.Kind, namespace string, opts metav1.ListOptions) ([]schemas.Object, string, error) {
	list, err := a.list(ctx, k, namespace, opts)
	if err != nil {
		return nil, "", err
	}
	out := make([]schemas.Object, 0, len(list.Items))
	for _, raw := range list.Items {
		o, err := decode(k, raw)
		if err != nil {
			return nil, "", err
		}
		out = append(out, o)
	}
	return out, list.ResourceVersion, nil
}

func (a *app) get(ctx context.Context, k schemas.Kind, namespace, name string) (schemas.Object, error) {
	reply, err := a.request(ctx, schemas.VerbGet, k.Resource, namespace, name, nil)
	if err != nil {
		return nil, err
	}
	return decode(k, reply.Body)
}

// refused marks an API error with what was being done.
type refused struct {
	doing string // "error when applying \"web.yaml\"", may be empty
	err   error
}

func (r refused) Error() string { return describeError(r) }
func (r refused) Unwrap() error { return r.err }

// describeError words an error as kubectl does.
func describeError(err error) string {
	doing := ""
	var r refused
	if errors.As(err, &r) {
		// What it wraps, always: its own text is made here.
		if err = r.err; r.doing != "" {
			doing = r.doing + ": "
		}
	}
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		s := status.Status()
		reason := string(s.Reason)
		if reason == "" || s.Reason == metav1.StatusReasonUnknown {
			return fmt.Sprintf("Error from server: %s%s", doing, s.Message)
		}
		return fmt.Sprintf("Error from server (%s): %s%s", reason, doing, s.Message)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("error: %sthe server did not answer in time: %v", doing, err)
	case errors.Is(err, bus.ErrForbidden):
		return fmt.Sprintf("error: %s%v: these credentials do not allow it; gantry auth whoami shows which they are", doing, err)
	}
	return fmt.Sprintf("error: %s%v", doing, err)
}
