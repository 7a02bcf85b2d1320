package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

const (
	// defaultWatchWait answers before a plain request would time out (5 s in
	// the nats CLI).
	defaultWatchWait = 4 * time.Second
	longestWatchWait = 30 * time.Second
	// watchBatch bounds the changes that are looked at in one step.
	watchBatch = 500
)

func (a *Admission) watch(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	opts, err := readListOptions(body, call.Verb)
	if err != nil {
		return reply{}, err
	}
	sel, err := selectionOf(kind, call, &opts)
	if err != nil {
		return reply{}, err
	}
	out := watchReply{encoded: &a.encoded, kind: kind, bookmarks: opts.AllowWatchBookmarks}
	initial := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	begins := opts.ResourceVersion == "" || opts.ResourceVersion == "0"
	switch {
	case initial:
		if _, err := a.reach(ctx, kind, opts.ResourceVersion); err != nil {
			return reply{}, err
		}
		return a.present(kind, call, sel, out, true)
	case begins && opts.SendInitialEvents != nil:
		// Not the beginning but what comes after it.
		out.revision = bus.RevisionOf(a.store.View(), kind.Resource)
		return out.reply(), nil
	case begins:
		return a.present(kind, call, sel, out, false)
	}
	since, err := strconv.ParseUint(opts.ResourceVersion, 10, 64)
	if err != nil {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion: invalid resource version %q", opts.ResourceVersion))
	}
	wait := defaultWatchWait
	if s := opts.TimeoutSeconds; s != nil {
		wait = time.Duration(min(*s, int64(longestWatchWait/time.Second))) * time.Second
	}
	return a.changes(ctx, kind, sel, since, wait, out)
}

// present answers a watch without a revision: what there is now. With end a
// bookmark says that this was all.
func (a *Admission) present(kind schemas.Kind, call schemas.Call, sel selection, out watchReply, end bool) (reply, error) {
	out.revision = bus.RevisionOf(a.store.View(), kind.Resource)
	// As of that revision: what came since is the next answer's, and would be
	// told twice.
	all, err := a.store.ListAt(kind.Resource, call.Namespace, out.revision, bus.Place{})
	if errors.Is(err, bus.ErrTooOld) {
		return reply{}, expired(out.revision, err)
	}
	if err != nil {
		return reply{}, fmt.Errorf("watch %s: %w", kind.Resource, err)
	}
	for _, o := range all {
		if !sel.matches(o) {
			continue
		}
		if !out.add(watch.Added, o) {
			return reply{}, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf(
				"the %s that match do not fit into one answer: list them page by page, then watch from the list's resourceVersion", kind.Resource))
		}
	}
	out.initial = end
	return out.reply(), nil
}

// changes waits until something happens to what is selected, or time is up.
func (a *Admission) changes(ctx context.Context, kind schemas.Kind, sel selection, since uint64, wait time.Duration, out watchReply) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		batch, reached, err := a.store.ChangesSince(ctx, kind.Resource, since, watchBatch)
		switch {
		case errors.Is(err, bus.ErrTooOld):
			return reply{}, expired(since, err)
		case err != nil:
			return reply{}, fmt.Errorf("watch %s: %w", kind.Resource, err)
		}
		for _, c := range batch {
			event, o := sel.event(c)
			if o != nil && !out.add(event, o) {
				// What did not fit is the next answer's.
				reached = since
				break
			}
			since = c.Revision
		}
		since = max(since, reached)
		if len(out.events) > 0 || len(batch) == 0 {
			break
		}
	}
	out.revision = since
	return out.reply(), nil
}

func expired(since uint64, cause error) error {
	err := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%v); list again and watch from there", since, cause))
	err.ErrStatus.Code = http.StatusGone
	return err
}

// event says what a change means to who sees only what is selected: an object
// that begins to match is added, one that ceases to is deleted.
func (s selection) event(c bus.Change) (watch.EventType, schemas.Object) {
	was, is := s.matches(c.Old), s.matches(c.New)
	switch {
	case is && was:
		return watch.Modified, c.New
	case is:
		return watch.Added, c.New
	case was:
		// The last state that was selected, as Kubernetes does, at the revision of
		// its end: a watch goes on from there.
		o := c.Old.DeepCopyObject().(schemas.Object)
		o.SetResourceVersion(strconv.FormatUint(c.Revision, 10))
		return watch.Deleted, o
	}
	return "", nil
}

// watchReply is a schemas.WatchReply that knows its size; its objects are JSON
// already.
type watchReply struct {
	encoded  *encoded
	kind     schemas.Kind
	events   []byte // the elements of Items, with commas between
	revision uint64
	last     string // resourceVersion of the last event
	// bookmarks says that the caller wants to be told of revisions at which
	// nothing happened that it sees.
	bookmarks bool
	initial   bool // these were the events with which a watch begins
}

// add says whether the event still fits.
func (w *watchReply) add(event watch.EventType, o schemas.Object) bool {
	var data []byte
	var err error
	if event == watch.Deleted {
		data, err = json.Marshal(o) // not in the view: nobody will ask for it again
	} else {
		data, err = w.encoded.of(o)
	}
	if err != nil {
		return true // cannot happen: it was decoded from JSON
	}
	if len(w.events) > 0 && len(w.events)+len(data) > maxReply {
		return false
	}
	if len(w.events) > 0 {
		w.events = append(w.events, ',')
	}
	w.events = fmt.Appendf(w.events, `{"type":%q,"object":`, string(event))
	w.events = append(append(w.events, data...), '}')
	w.last = o.GetResourceVersion()
	return true
}

func (w *watchReply) reply() reply {
	revision := strconv.FormatUint(w.revision, 10)
	if w.bookmarks && (w.initial || w.last != revision) {
		w.bookmark(revision)
	}
	body := append(make([]byte, 0, len(w.events)+64), `{"items":[`...)
	body = append(body, w.events...)
	return reply{body: fmt.Appendf(body, `],"resourceVersion":"%s"}`, revision)}
}

// bookmark ends the events with one that carries nothing but the revision.
func (w *watchReply) bookmark(revision string) {
	if len(w.events) > 0 {
		w.events = append(w.events, ',')
	}
	annotations := ""
	if w.initial {
		annotations = fmt.Sprintf(`,"annotations":{%q:"true"}`, metav1.InitialEventsAnnotationKey)
	}
	w.events = fmt.Appendf(w.events, `{"type":%q,"object":{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":%q%s}}}`,
		string(watch.Bookmark), w.kind.GVK.Kind, w.kind.GVK.GroupVersion().String(), revision, annotations)
}
