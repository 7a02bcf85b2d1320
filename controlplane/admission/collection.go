package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

const (
	// collectionPiece bounds the objects that one deletecollection looks after;
	// its answer says where to go on.
	collectionPiece = 500
	// collectionAtOnce are deleted side by side: the store writes to disk once for
	// all that come at the same time.
	collectionAtOnce = 32
	// collectionReserve is the time that is left for the answer.
	collectionReserve = 2 * time.Second
)

// deleteCollection deletes what a selection names and answers the list of it:
// each object as it is now where it has yet to go, else as it was last. What
// may not be deleted, or does not let itself, is left out with a warning. It
// may be repeated at will.
func (a *Admission) deleteCollection(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if call.Name != "" {
		return reply{}, apierrors.NewBadRequest("deletecollection takes no name; delete one object by its name")
	}
	if err := mayDelete(kind, ""); err != nil {
		return reply{}, err
	}
	opts, err := readDeleteOptions(body)
	if err != nil {
		return reply{}, err
	}
	if opts.Preconditions != nil {
		return reply{}, apierrors.NewBadRequest("read DeleteOptions: preconditions: are of one object, not of a collection")
	}
	which, err := readListOptions([]byte(headerOf(header, schemas.HeaderOptions)), call.Verb)
	if err != nil {
		return reply{}, err
	}
	if which.ResourceVersion != "" || which.TimeoutSeconds != nil {
		return reply{}, apierrors.NewBadRequest("read ListOptions: resourceVersion, timeoutSeconds: a deletecollection looks at what there is now, for as long as a call may take")
	}
	sel, err := selectionOf(kind, call, &which)
	if err != nil {
		return reply{}, err
	}
	w, err := write{kind: kind, call: call, dryRun: len(opts.DryRun) > 0}.withID(header, body)
	if err != nil {
		return reply{}, err
	}
	page, out, err := a.collection(kind, call, sel, which)
	if err != nil {
		return reply{}, err
	}
	return a.deletePage(ctx, w, opts, page, out)
}

// collection is what one call is to delete, and the head of its answer.
func (a *Admission) collection(kind schemas.Kind, call schemas.Call, sel selection, which metav1.ListOptions) ([]schemas.Object, listReply, error) {
	view := a.store.View()
	out := newList(kind, bus.RevisionOf(view, kind.Resource))
	all := view.List(kind.Resource, call.Namespace)
	if which.Continue != "" {
		from, err := readToken(which.Continue)
		if err != nil {
			return nil, out, err
		}
		all = after(all, from)
	}
	most := int64(collectionPiece)
	if which.Limit > 0 {
		most = min(most, which.Limit)
	}
	var page []schemas.Object
	for _, o := range all {
		if !sel.matches(o) {
			continue
		}
		if int64(len(page)) == most {
			return page, out, out.goOn(o)
		}
		page = append(page, o)
	}
	return page, out, nil
}

// deletePage deletes the objects side by side, as many as time allows and one
// answer holds.
func (a *Admission) deletePage(ctx context.Context, w write, opts metav1.DeleteOptions, page []schemas.Object, out listReply) (reply, error) {
	until := time.Now().Add(time.Minute)
	if deadline, ok := ctx.Deadline(); ok {
		until = deadline.Add(-collectionReserve)
	}
	var warnings []string
	size := 0
	for len(page) > 0 {
		n := min(len(page), collectionAtOnce)
		items := make([][]byte, n)
		says := make([]string, n)
		var running sync.WaitGroup
		for i, o := range page[:n] {
			running.Go(func() { items[i], says[i] = a.deleteItem(ctx, w, o, opts) })
		}
		running.Wait()
		for i := range n {
			if items[i] != nil {
				size += len(items[i]) + 1
				out.items = append(out.items, items[i])
			}
			if says[i] != "" {
				warnings = append(warnings, says[i])
			}
		}
		page = page[n:]
		// The next round's objects are known; their size as JSON nearly so.
		for _, o := range page[:min(len(page), collectionAtOnce)] {
			if data, err := a.encoded.of(o); err == nil {
				size += len(data)
			}
		}
		if len(page) > 0 && (time.Now().After(until) || size > maxReply-collectionAtOnce<<10) {
			if err := out.goOn(page[0]); err != nil {
				return reply{}, err
			}
			break
		}
		size = 0
		for _, item := range out.items {
			size += len(item) + 1
		}
	}
	const mostWarnings = 20
	if more := len(warnings) - mostWarnings; more > 0 {
		warnings = append(warnings[:mostWarnings], fmt.Sprintf("and %d more were not deleted", more))
	}
	data, err := out.encode()
	return reply{body: data, warnings: warnings}, err
}

// deleteItem deletes one object of a collection: its JSON, or what stood in
// the way. One that is gone meanwhile is neither.
func (a *Admission) deleteItem(ctx context.Context, w write, o schemas.Object, opts metav1.DeleteOptions) (item []byte, warning string) {
	w.call.Namespace, w.call.Name = o.GetNamespace(), o.GetName()
	uid := o.GetUID()
	opts.Preconditions = &metav1.Preconditions{UID: &uid}
	w.answer = func(now schemas.Object, _ bool) (reply, error) {
		if now == nil {
			now = o
		}
		data, err := json.Marshal(now)
		return reply{body: data}, err
	}
	r, err := a.deleteWith(ctx, w, opts)
	switch {
	case apierrors.IsNotFound(err):
		return nil, ""
	case err != nil:
		return nil, err.Error()
	}
	return r.body, ""
}

// newList is a list without items yet.
func newList(kind schemas.Kind, revision uint64) listReply {
	return listReply{
		Kind: kind.GVK.Kind + "List", APIVersion: kind.GVK.GroupVersion().String(),
		Metadata: metav1.ListMeta{ResourceVersion: strconv.FormatUint(revision, 10)},
		revision: revision,
	}
}

// goOn says that the next page begins with an object.
func (l *listReply) goOn(o schemas.Object) (err error) {
	l.Metadata.Continue, err = position{Revision: l.revision, Namespace: o.GetNamespace(), Name: o.GetName()}.token()
	return err
}

// after is the part of a list that begins at a position.
func after(all []schemas.Object, from position) []schemas.Object {
	return all[sort.Search(len(all), func(i int) bool {
		ns, name := all[i].GetNamespace(), all[i].GetName()
		return ns > from.Namespace || ns == from.Namespace && name >= from.Name
	}):]
}
