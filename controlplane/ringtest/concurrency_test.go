package ringtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// users are connections of their own, which live through restarts.
func (r *ring) users(n int) []*bus.UserConn {
	r.Helper()
	creds, err := bus.ReadUserCredentials(r.plane.AdminCredentials())
	if err != nil {
		r.Fatal(err)
	}
	var all []*bus.UserConn
	for range n {
		u, err := bus.ConnectUser(r.Context(), creds)
		if err != nil {
			r.Fatal(err)
		}
		r.Cleanup(u.Close)
		all = append(all, u)
	}
	return all
}

func configMap(name, value string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"n":%q}}`, name, value)
}

func counted(ctx context.Context, u *bus.UserConn, name string) (*corev1.ConfigMap, int, error) {
	reply, err := u.Request(ctx, schemas.VerbGet, schemas.ConfigMaps, "default", name, nil)
	if err != nil {
		return nil, 0, err
	}
	var cm corev1.ConfigMap
	if err := json.Unmarshal(reply.Body, &cm); err != nil {
		return nil, 0, err
	}
	n, err := strconv.Atoi(cm.Data["n"])
	return &cm, n, err
}

// TestIncrements: 64 clients count in one object, and in many, by reading and
// replacing what they read. No increment is lost, none counts twice, and each
// conflict says at which revision the object is.
func TestIncrements(t *testing.T) {
	for _, tt := range []struct {
		desc             string
		objects, each, u int
	}{{"one object", 1, 3, 64}, {"many objects", 16, 5, 64}} {
		t.Run(tt.desc, func(t *testing.T) {
			r := begin(t)
			users := r.users(8)
			for i := range tt.objects {
				if _, err := users[0].Request(t.Context(), schemas.VerbCreate, schemas.ConfigMaps, "default", fmt.Sprintf("c%d", i), configMap(fmt.Sprintf("c%d", i), "0")); err != nil {
					t.Fatal(err)
				}
			}
			var conflicts atomic.Int64
			g, ctx := errgroup.WithContext(t.Context())
			for client := range tt.u {
				g.Go(func() error {
					u := users[client%len(users)]
					for i := range tt.each {
						name := fmt.Sprintf("c%d", (client+i)%tt.objects)
						for {
							cm, n, err := counted(ctx, u, name)
							if err != nil {
								return err
							}
							cm.Data["n"] = strconv.Itoa(n + 1)
							body, err := json.Marshal(cm)
							if err != nil {
								return err
							}
							_, err = u.Request(ctx, schemas.VerbUpdate, schemas.ConfigMaps, "default", name, body)
							if err == nil {
								break
							}
							if !apierrors.IsConflict(err) {
								return err
							}
							conflicts.Add(1)
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			total := 0
			for i := range tt.objects {
				_, n, err := counted(t.Context(), users[0], fmt.Sprintf("c%d", i))
				if err != nil {
					t.Fatal(err)
				}
				total += n
			}
			if want := tt.u * tt.each; total != want {
				t.Errorf("%d increments are left of %d", total, want)
			}
			if tt.objects == 1 && conflicts.Load() == 0 {
				t.Error("no client met another: the test shows nothing")
			}
		})
	}
}

// seen is what a watcher was told, in order.
type seen struct {
	from   uint64
	events []string
}

func event(kind string, o metav1.Object) string {
	return fmt.Sprintf("%s %s %s", kind, o.GetName(), o.GetResourceVersion())
}

const lastObject = "zz-the-end"

// TestWatchersThroughRestarts: 200 watchers that begin at revisions of the
// past are each told every change after it, once and in order, while the
// control plane that serves them is restarted.
func TestWatchersThroughRestarts(t *testing.T) {
	const watchers, lives, restarts = 200, 60, 2
	r := begin(t)
	users := r.users(10)
	first, err := users[0].List(t.Context(), schemas.ConfigMaps, "", metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	start, err := strconv.ParseUint(first.ResourceVersion, 10, 64)
	if err != nil {
		t.Fatal(err)
	}

	// Revisions that a watcher may begin at, as far as they have come.
	var mu sync.Mutex
	past := []uint64{start}
	remember := func(body []byte) error {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(body, &o); err != nil || o.ResourceVersion == "" {
			return err
		}
		n, err := strconv.ParseUint(o.ResourceVersion, 10, 64)
		mu.Lock()
		defer mu.Unlock()
		past = append(past, n)
		return err
	}
	random := rand.New(rand.NewPCG(7, 7))
	pick := func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return past[random.IntN(len(past))]
	}

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var g errgroup.Group
	told := make([]seen, watchers)
	watch := func(i int) {
		told[i].from = pick()
		g.Go(func() error {
			errEnd := errors.New("that was the last")
			err := users[i%len(users)].Watch(ctx, schemas.ConfigMaps, "default", metav1.ListOptions{ResourceVersion: fmt.Sprint(told[i].from)}, func(e metav1.WatchEvent) error {
				var o metav1.PartialObjectMetadata
				if err := json.Unmarshal(e.Object.Raw, &o); err != nil {
					return err
				}
				told[i].events = append(told[i].events, event(e.Type, &o))
				if o.Name == lastObject {
					return errEnd
				}
				return nil
			})
			if !errors.Is(err, errEnd) {
				return fmt.Errorf("watcher %d from %d, after %d events: %w", i, told[i].from, len(told[i].events), err)
			}
			return nil
		})
	}

	// While it is down nobody answers: clients are told at once, and ask again.
	write := func(u *bus.UserConn, verb, name string, body []byte) ([]byte, error) {
		for {
			reply, err := u.Request(ctx, verb, schemas.ConfigMaps, "default", name, body)
			if !errors.Is(err, bus.ErrNoAnswer) {
				return reply.Body, err
			}
			select {
			case <-time.After(20 * time.Millisecond): // between two questions
			case <-ctx.Done():
				return nil, err
			}
		}
	}
	// Writers: each life is an object that comes, changes and goes.
	var writing errgroup.Group
	var done atomic.Int64
	wrote := make(chan struct{}, 1)
	for w := range 4 {
		u := users[w]
		writing.Go(func() error {
			for life := range lives / 4 {
				name := fmt.Sprintf("w%d-%d", w, life)
				for i := range 6 {
					body, err := write(u, schemas.VerbApply, name, configMap(name, fmt.Sprint(i)))
					if err != nil {
						return err
					}
					if err := remember(body); err != nil {
						return err
					}
				}
				if life%3 == 0 {
					if _, err := write(u, schemas.VerbDelete, name, nil); err != nil {
						return err
					}
				}
				done.Add(1)
				select {
				case wrote <- struct{}{}:
				default:
				}
			}
			return nil
		})
	}
	// Watchers join and the control plane restarts as the writing goes on.
	joined := 0
	for part := range restarts + 1 {
		share := watchers * (part + 1) / (restarts + 1)
		for ; joined < share; joined++ {
			watch(joined)
		}
		if part == restarts {
			break
		}
		for done.Load() < int64(lives*(part+1)/(restarts+2)) {
			select {
			case <-wrote:
			case <-ctx.Done():
				t.Fatalf("only %d of %d lives were written: %v", done.Load(), lives, ctx.Err())
			}
		}
		r.stopPlane()
		r.startPlane()
	}
	if err := writing.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := users[0].Request(ctx, schemas.VerbCreate, schemas.ConfigMaps, "default", lastObject, configMap(lastObject, "")); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	// What was to be told, from the store itself.
	changes, _, err := r.plane.Store().ChangesSince(ctx, schemas.ConfigMaps, start, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range told {
		var want []string
		for _, c := range changes {
			if c.Revision <= s.from {
				continue
			}
			switch {
			case c.Old == nil:
				want = append(want, event("ADDED", c.New))
			case c.New == nil:
				want = append(want, fmt.Sprintf("DELETED %s %d", c.Old.GetName(), c.Revision))
			default:
				want = append(want, event("MODIFIED", c.New))
			}
		}
		if diff := cmp.Diff(want, s.events); diff != "" {
			t.Fatalf("watcher %d from %d (-happened +told):\n%s", i, s.from, diff)
		}
	}
}
