package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/printers"
)

// watcher shows one kind, or one object, as it changes.
type watcher struct {
	app     *app
	options getOptions
	target  target
	show    *printer // nil for tables
	table   printers.ResourcePrinter
	out     flusher // aligns the tables; later lines keep to the width of earlier ones
	// shown holds the version of each object that was printed last: after a gap
	// only what is news is printed.
	shown map[string]string
}

// runWatch shows what is there and then what changes, until interrupted.
func (a *app) runWatch(ctx context.Context, o getOptions, show *printer, targets []target, spaces []string) error {
	if len(targets) != 1 {
		return errors.New("you may only watch one kind or one object at a time")
	}
	if err := a.connect(ctx); err != nil {
		return err
	}
	t, namespace := targets[0], spaces[0]
	w := &watcher{app: a, options: o, target: t, show: show, table: a.tablePrinter(o, t.kind, o.showKind), out: printers.GetNewTabWriter(a.out), shown: map[string]string{}}
	opts := o.listOptions(t.name)
	for first := true; ; first = false {
		list, err := a.list(ctx, t.kind, namespace, opts)
		if err != nil {
			return err
		}
		if t.name != "" && first && len(list.Items) == 0 {
			return apierrors.NewNotFound(groupResource(t.kind), t.name)
		}
		if err := w.listed(list.Items, !first || !o.watchOnly); err != nil {
			return err
		}
		from := opts
		from.Limit, from.ResourceVersion = 0, list.ResourceVersion
		err = a.conn.Watch(ctx, t.kind.Resource, namespace, from, w.changed)
		if apierrors.IsResourceExpired(err) {
			continue
		}
		if ctx.Err() != nil || errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		return err
	}
}

// listed takes in what is there: at the start, and after a gap.
func (w *watcher) listed(items []json.RawMessage, print bool) error {
	before := w.shown
	w.shown = make(map[string]string, len(items))
	var rows []row
	for _, raw := range items {
		uid, version := versionOf(raw)
		w.shown[uid] = version
		was, known := before[uid]
		r := row{w.target.kind, raw}
		switch {
		case !print || known && was == version:
		case known && w.options.watchEvents:
			if err := w.print(string(watch.Modified), r); err != nil {
				return err
			}
		default:
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return w.print(string(watch.Added), rows...)
}

func (w *watcher) changed(e metav1.WatchEvent) error {
	uid, version := versionOf(e.Object.Raw)
	switch watch.EventType(e.Type) {
	case watch.Bookmark, watch.Error:
		return nil
	case watch.Deleted:
		delete(w.shown, uid)
	default:
		w.shown[uid] = version
	}
	return w.print(e.Type, row{w.target.kind, e.Object.Raw})
}

// print shows objects to which the same happened.
func (w *watcher) print(what string, rows ...row) error {
	if w.show == nil {
		return w.printTable(what, rows)
	}
	for _, r := range rows {
		var err error
		if w.options.watchEvents {
			err = w.show.event(w.app.out, what, r.kind, r.raw)
		} else {
			err = w.show.object(w.app.out, r.kind, r.raw)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) printTable(what string, rows []row) error {
	t, err := tableOf(group{w.target.kind, rows}, time.Now())
	if err != nil {
		return err
	}
	var o runtime.Object = t
	if w.options.watchEvents {
		o = &metav1.WatchEvent{Type: what, Object: runtime.RawExtension{Object: t}}
	}
	if err := w.table.PrintObj(o, w.out); err != nil {
		return err
	}
	return w.out.Flush()
}

func versionOf(raw []byte) (uid, version string) {
	var o struct {
		Metadata struct {
			UID             string `json:"uid"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return "", ""
	}
	return o.Metadata.UID, o.Metadata.ResourceVersion
}
