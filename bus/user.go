package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// UserConn is the connection of a person or program that drives the cluster.
type UserConn struct {
	link  *link
	names schemas.Names
}

// Reply is what the API answered.
type Reply struct {
	Body   []byte
	Header map[string][]string
}

// RawList is a list whose items are left as JSON.
type RawList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []json.RawMessage `json:"items"`
}

// ErrCredentials says that credentials cannot be used, whatever the server.
var ErrCredentials = errors.New("the credentials are damaged")

// ConnectUser connects, or fails within seconds. The error wraps ErrCredentials
// where no server was asked, and ErrForbidden where one does not know the key.
func ConnectUser(ctx context.Context, creds schemas.UserCredentials) (*UserConn, error) {
	key, err := nkeys.FromSeed(trimSeed([]byte(creds.Seed)))
	if err != nil {
		return nil, fmt.Errorf("connect as %s: %w: read seed: %w", creds.User, ErrCredentials, err)
	}
	l, err := dial(ctx, dialOptions{
		name: "gantry user " + creds.User, urls: creds.URLs, ca: creds.CA, key: key, log: zerolog.Nop(),
	})
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("connect as %s: %w: %w", creds.User, ErrForbidden, err)
	case err != nil:
		return nil, fmt.Errorf("connect as %s: %w", creds.User, err)
	}
	return &UserConn{link: l, names: schemas.Names{Prefix: creds.Prefix}}, nil
}

// Close ends the connection.
func (u *UserConn) Close() { u.link.nc.Close() }

// MaxPayload is the largest message in bytes that the bus takes.
func (u *UserConn) MaxPayload() int64 { return u.link.nc.MaxPayload() }

const userTimeout = 35 * time.Second

// Request calls the API. What it refuses comes back as an error that carries
// its metav1.Status, for apimachinery's errors.IsNotFound and its siblings;
// ErrNoAnswer means that no control plane listens. Without a deadline in ctx
// it takes at most 35 s.
func (u *UserConn) Request(ctx context.Context, verb, resource, namespace, name string, body []byte) (Reply, error) {
	return u.RequestWith(ctx, verb, resource, namespace, name, nil, body)
}

// RequestWith is Request with headers, which may be nil. A write without
// schemas.HeaderRequest is given an id; while its answer is lost it is asked
// again, as long as ctx allows, and happens once.
func (u *UserConn) RequestWith(ctx context.Context, verb, resource, namespace, name string, header map[string][]string, body []byte) (Reply, error) {
	if err := checkTokens(verb, resource, orToken(namespace)); err != nil {
		return Reply{}, &apierrors.StatusError{ErrStatus: *newStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())}
	}
	m := nats.NewMsg(u.names.API(verb, resource, namespace, name))
	m.Data = body
	for k, v := range header {
		m.Header[k] = v
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, userTimeout)
		defer cancel()
	}
	ask := u.link.request
	switch {
	case writes(verb):
		ask = u.write
	case verb == schemas.VerbWatch:
		ask = u.attempt // it waits long, and need not for an answer that cannot come
	}
	reply, err := ask(ctx, m)
	if errors.Is(err, ErrNoAnswer) {
		return Reply{}, fmt.Errorf("the control plane does not answer (%s): is it running? %w", m.Subject, ErrNoAnswer)
	}
	if err != nil {
		return Reply{}, err
	}
	if err := refusal(reply); err != nil {
		return Reply{}, err
	}
	return Reply{Body: reply.Data, Header: reply.Header}, nil
}

func orToken(namespace string) string {
	if namespace == "" {
		return schemas.AllNamespaces
	}
	return namespace
}

// checkTokens refuses what would become other tokens of a subject.
func checkTokens(tokens ...string) error {
	for _, t := range tokens {
		if t == "" || strings.ContainsAny(t, ".*> \t\r\n") {
			return fmt.Errorf("%q is not one token of a subject", t)
		}
	}
	return nil
}

// NodeRequest asks a node directly; see Conn.NodeRequest.
func (u *UserConn) NodeRequest(ctx context.Context, node, method string, header map[string][]string, body []byte) ([]byte, map[string][]string, error) {
	return u.link.nodeRequest(ctx, u.names, node, method, header, body)
}

// UploadPiece gives a node one piece of an image archive. Pieces of one upload
// share an id and come in order; the last one is answered when the image is in
// the node's store.
func (u *UserConn) UploadPiece(ctx context.Context, node, upload string, offset int64, last bool, piece []byte) ([]byte, map[string][]string, error) {
	return u.NodeRequest(ctx, node, schemas.NodeMethodImagePut, map[string][]string{
		schemas.HeaderUpload: {upload},
		schemas.HeaderOffset: {strconv.FormatInt(offset, 10)},
		schemas.HeaderLast:   {strconv.FormatBool(last)},
	}, piece)
}

// List returns all objects of a resource, as many pages as it takes. Items are
// of one moment: the resourceVersion of the first page. Where that moment is
// forgotten between two pages it begins again, once.
func (u *UserConn) List(ctx context.Context, resource, namespace string, opts metav1.ListOptions) (RawList, error) {
	all, err := u.listPages(ctx, resource, namespace, opts)
	if len(all.Items) > 0 && opts.Continue == "" && apierrors.IsResourceExpired(err) {
		all, err = u.listPages(ctx, resource, namespace, opts)
	}
	return all, err
}

func (u *UserConn) listPages(ctx context.Context, resource, namespace string, opts metav1.ListOptions) (RawList, error) {
	var all RawList
	for {
		body, err := json.Marshal(opts)
		if err != nil {
			return all, fmt.Errorf("list %s: %w", resource, err)
		}
		reply, err := u.Request(ctx, schemas.VerbList, resource, namespace, "", body)
		if err != nil {
			return all, err
		}
		var page RawList
		if err := json.Unmarshal(reply.Body, &page); err != nil {
			return all, fmt.Errorf("list %s: decode answer: %w", resource, err)
		}
		items := append(all.Items, page.Items...)
		if all.ResourceVersion == "" {
			all = page
		}
		all.Items = items
		if page.Continue == "" {
			all.Continue = ""
			return all, nil
		}
		opts.Continue = page.Continue
		// The token says of which moment.
		opts.ResourceVersion, opts.ResourceVersionMatch = "", ""
	}
}

// watchPiece is how long one request of a watch waits for news.
const watchPiece = 25

// Watch calls fn for every change after opts.ResourceVersion until ctx ends
// (then it returns nil), fn fails, or the API refuses: errors.IsResourceExpired
// means that the caller must list again. It outlives restarts of the control
// plane. resource and namespace are as in List; opts.FieldSelector picks one object.
func (u *UserConn) Watch(ctx context.Context, resource, namespace string, opts metav1.ListOptions, fn func(metav1.WatchEvent) error) error {
	for ctx.Err() == nil {
		reply, err := u.watchOnce(ctx, resource, namespace, opts)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (unanswered(err) || errors.Is(err, errLost) || errors.Is(err, nats.ErrConnectionClosed) || apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err)):
			if errors.Is(err, nats.ErrConnectionClosed) {
				return err
			}
			if wait(ctx, time.Second) != nil {
				return nil
			}
			continue
		case err != nil:
			return err
		}
		for _, event := range reply.Items {
			if err := fn(event); err != nil {
				return err
			}
		}
		opts.ResourceVersion = reply.ResourceVersion
		// Only the beginning begins with what there is.
		opts.SendInitialEvents, opts.ResourceVersionMatch = nil, ""
	}
	return nil
}

func (u *UserConn) watchOnce(ctx context.Context, resource, namespace string, opts metav1.ListOptions) (schemas.WatchReply, error) {
	var reply schemas.WatchReply
	if opts.TimeoutSeconds == nil {
		seconds := int64(watchPiece)
		opts.TimeoutSeconds = &seconds
	}
	body, err := json.Marshal(opts)
	if err != nil {
		return reply, fmt.Errorf("watch %s: %w", resource, err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(*opts.TimeoutSeconds+10)*time.Second)
	defer cancel()
	answer, err := u.Request(ctx, schemas.VerbWatch, resource, namespace, "", body)
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(answer.Body, &reply); err != nil {
		return reply, fmt.Errorf("watch %s: decode answer: %w", resource, err)
	}
	return reply, nil
}
