package main

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"gantry.dev/schemas"
)

// errTimedOut says that what was waited for did not come in time.
var errTimedOut = errors.New("timed out waiting for the condition")

var errEnough = errors.New("enough")

// follow calls fn with all objects of a place, first as they are and then
// after each change, until fn returns true or fails. errTimedOut means that
// ctx's time is up.
func (a *app) follow(ctx context.Context, k schemas.Kind, namespace string, opts metav1.ListOptions, fn func(map[types.UID]schemas.Object) (bool, error)) error {
	for {
		opts.ResourceVersion = ""
		objects, version, err := a.objects(ctx, k, namespace, opts)
		if err != nil {
			return timedOut(ctx, err)
		}
		present := map[types.UID]schemas.Object{}
		for _, o := range objects {
			present[o.GetUID()] = o
		}
		if done, err := fn(present); err != nil || done {
			return err
		}
		opts.ResourceVersion = version
		err = a.conn.Watch(ctx, k.Resource, namespace, opts, func(e metav1.WatchEvent) error {
			if e.Type == string(watch.Bookmark) || e.Type == string(watch.Error) {
				return nil
			}
			o, err := decode(k, e.Object.Raw)
			if err != nil {
				return err
			}
			if e.Type == string(watch.Deleted) {
				delete(present, o.GetUID())
			} else {
				present[o.GetUID()] = o
			}
			done, err := fn(present)
			if err == nil && done {
				return errEnough
			}
			return err
		})
		switch {
		case errors.Is(err, errEnough):
			return nil
		case apierrors.IsResourceExpired(err):
			continue
		case err == nil:
			return timedOut(ctx, ctx.Err())
		}
		return timedOut(ctx, err)
	}
}

func timedOut(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errTimedOut
	}
	return err
}
