package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

const (
	apiClients = 64
	apiListed  = 1000
	apiRounds  = 5 // of each measurement, interleaved
)

// api measures calls of the API over the bus: with one client and with 64 that
// each ask again as soon as they are answered, which keeps the server and the
// machine busy. Every write is synced to the disk before it is acknowledged.
func api(ctx context.Context, e *Env) (samples []Sample, err error) {
	err = e.withControl(ctx, "", nil, func(c *control) error {
		users, closeAll, err := c.connections(ctx, apiClients)
		if err != nil {
			return err
		}
		defer closeAll()
		if err := fillConfigMaps(ctx, users); err != nil {
			return err
		}
		load := &apiLoad{users: users}
		var series latencies
		for round := range apiRounds {
			for _, op := range []struct {
				name string
				n    int // calls by one client alone; by each of many
				many int
				call func(ctx context.Context, u *bus.UserConn, client, i int) error
			}{
				{"get", 1000, 500, load.get},
				{"list1000", 10, 2, load.list},
				{"apply", 100, 40, load.apply},
			} {
				load.round = round
				if err := series.measure(ctx, "api."+op.name, users[:1], op.n, op.call); err != nil {
					return err
				}
				if err := series.measure(ctx, "api."+op.name, users, op.many, op.call); err != nil {
					return err
				}
			}
			for _, watchers := range []int{1, apiClients} {
				if err := series.deliveries(ctx, users[0], users[:watchers], round); err != nil {
					return err
				}
			}
		}
		samples = series.samples()
		return nil
	})
	return samples, err
}

// apiMetrics are the names of what api measures.
func apiMetrics() (names []string) {
	for _, op := range []string{"api.get", "api.list1000", "api.apply", "watch.delivery"} {
		for _, q := range []string{".p50", ".p99"} {
			names = append(names, op+q, op+q+".one")
		}
	}
	return names
}

func configMap(name, value string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"labels":{"bench":"api"}},"data":{"value":%q,"text":"%0400d"}}`, name, value, 7)
}

func fillConfigMaps(ctx context.Context, users []*bus.UserConn) error {
	g, ctx := errgroup.WithContext(ctx)
	for client, u := range users {
		g.Go(func() error {
			for i := client; i < apiListed; i += len(users) {
				name := "listed-" + strconv.Itoa(i)
				if _, err := u.Request(ctx, schemas.VerbCreate, schemas.ConfigMaps, "default", name, configMap(name, "")); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

type apiLoad struct {
	users []*bus.UserConn
	round int
}

func (l *apiLoad) get(ctx context.Context, u *bus.UserConn, client, i int) error {
	name := "listed-" + strconv.Itoa((client*131+i)%apiListed)
	_, err := u.Request(ctx, schemas.VerbGet, schemas.ConfigMaps, "default", name, nil)
	return err
}

func (l *apiLoad) list(ctx context.Context, u *bus.UserConn, _, _ int) error {
	list, err := u.List(ctx, schemas.ConfigMaps, "default", metav1.ListOptions{LabelSelector: "bench=api"})
	if err == nil && len(list.Items) < apiListed {
		err = fmt.Errorf("the list has %d objects, not %d", len(list.Items), apiListed)
	}
	return err
}

// apply changes an object of the client's own each time.
func (l *apiLoad) apply(ctx context.Context, u *bus.UserConn, client, i int) error {
	name := "applied-" + strconv.Itoa(client)
	_, err := u.Request(ctx, schemas.VerbApply, schemas.ConfigMaps, "default", name, configMap(name, fmt.Sprintf("%d.%d.%d", l.round, len(l.users), i)))
	return err
}

// latencies are seconds by metric and number of clients, and the calls per
// second of each round.
type latencies struct {
	keys  []latencyKey
	times map[latencyKey][]float64
	rates map[latencyKey][]float64
	p50   map[latencyKey][]float64 // of each round
	p99   map[latencyKey][]float64
}

type latencyKey struct {
	metric  string
	clients int
}

func (s *latencies) add(k latencyKey, times []float64, took time.Duration) {
	if s.times == nil {
		s.times, s.rates = map[latencyKey][]float64{}, map[latencyKey][]float64{}
		s.p50, s.p99 = map[latencyKey][]float64{}, map[latencyKey][]float64{}
	}
	if s.times[k] == nil {
		s.keys = append(s.keys, k)
	}
	slices.Sort(times)
	s.times[k] = append(s.times[k], times...)
	s.rates[k] = append(s.rates[k], float64(len(times))/took.Seconds())
	s.p50[k] = append(s.p50[k], at(times, 0.50)*1e3)
	s.p99[k] = append(s.p99[k], at(times, 0.99)*1e3)
}

// at is a quantile of sorted values.
func at(sorted []float64, q float64) float64 {
	return sorted[min(int(float64(len(sorted))*q), len(sorted)-1)]
}

func (s *latencies) measure(ctx context.Context, metric string, users []*bus.UserConn, n int, call func(ctx context.Context, u *bus.UserConn, client, i int) error) error {
	var mu sync.Mutex
	var all []float64
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for client, u := range users {
		g.Go(func() error {
			times := make([]float64, 0, n)
			for i := range n {
				start := time.Now()
				if err := call(ctx, u, client, i); err != nil {
					return err
				}
				times = append(times, time.Since(start).Seconds())
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%s with %d clients: %w", metric, len(users), err)
	}
	s.add(latencyKey{metric, len(users)}, all, time.Since(began))
	return nil
}

// deliveries has one writer change one object a hundred times while others
// watch, and times each from the acknowledgement of the write until each
// watcher has been told. What is told before the acknowledgement took no time.
func (s *latencies) deliveries(ctx context.Context, writer *bus.UserConn, watchers []*bus.UserConn, round int) error {
	const changes = 100
	name := "watched"
	first, err := writer.Request(ctx, schemas.VerbApply, schemas.ConfigMaps, "default", name, configMap(name, fmt.Sprintf("%d.%d.begin", round, len(watchers))))
	if err != nil {
		return err
	}
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(first.Body, &object); err != nil {
		return err
	}
	type told struct {
		value string
		at    time.Time
	}
	heard := make(chan told, changes*len(watchers))
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	watching, stop := context.WithCancel(ctx)
	var g errgroup.Group
	for _, u := range watchers {
		g.Go(func() error {
			return u.Watch(watching, schemas.ConfigMaps, "default", metav1.ListOptions{
				ResourceVersion: object.ResourceVersion, FieldSelector: "metadata.name=" + name,
			}, func(e metav1.WatchEvent) error {
				now := time.Now()
				var o struct {
					Data map[string]string `json:"data"`
				}
				if err := json.Unmarshal(e.Object.Raw, &o); err != nil {
					return err
				}
				heard <- told{o.Data["value"], now}
				return nil
			})
		})
	}
	var times []float64
	began := time.Now()
	for i := range changes {
		value := fmt.Sprintf("%d.%d.%d", round, len(watchers), i)
		if _, err := writer.Request(ctx, schemas.VerbApply, schemas.ConfigMaps, "default", name, configMap(name, value)); err != nil {
			stop()
			return errors.Join(err, g.Wait())
		}
		acknowledged := time.Now()
		for range watchers {
			select {
			case t := <-heard:
				if t.value != value {
					stop()
					return errors.Join(fmt.Errorf("a watcher was told of %q, not of %q", t.value, value), g.Wait())
				}
				times = append(times, max(0, t.at.Sub(acknowledged).Seconds()))
			case <-ctx.Done():
				stop()
				return errors.Join(errors.New("a watcher was not told"), g.Wait())
			}
		}
	}
	took := time.Since(began)
	stop()
	if err := g.Wait(); err != nil {
		return err
	}
	s.add(latencyKey{"watch.delivery", len(watchers)}, times, took)
	return nil
}

// samples are the quantiles over all calls; min and max are those of single rounds.
func (s *latencies) samples() []Sample {
	var out []Sample
	for _, k := range s.keys {
		times := slices.Clone(s.times[k])
		slices.Sort(times)
		for _, q := range []struct {
			name   string
			q      float64
			rounds []float64
		}{{"p50", 0.50, s.p50[k]}, {"p99", 0.99, s.p99[k]}} {
			name := k.metric + "." + q.name
			if k.clients == 1 {
				name += ".one"
			}
			sample := summary(name, q.rounds)
			sample.Value = at(times, q.q) * 1e3
			sample.Note = fmt.Sprintf("%d clients, %d calls, %.0f per second; min and max of %d rounds", k.clients, len(times), summary("", s.rates[k]).Value, apiRounds)
			out = append(out, sample)
		}
	}
	return out
}
