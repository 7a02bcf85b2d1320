package bus

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/micro"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

const (
	apiRequests   = 256  // answered at once, watches and logs apart
	apiLongPolls  = 4096 // watches and logs that wait at once
	apiPatience   = 30 * time.Second
	watchPatience = 60 * time.Second
)

// APIHandler answers one call of the API: with a body and headers, or with a
// Status that refuses it. The request's header may be nil.
type APIHandler func(ctx context.Context, call schemas.Call, header map[string][]string, body []byte) (answer []byte, answerHeader map[string][]string, refused *metav1.Status)

// apiService is the NATS service "api" while it lasts.
type apiService struct {
	conn   *Conn
	fn     APIHandler
	ctx    context.Context
	short  *pool
	long   *pool
	counts map[string]*apiCount // by verb
}

// apiCount is what `nats micro stats` shows beside its own numbers. Those time
// the handler's return, and ours returns before the work is done.
type apiCount struct {
	running, refused atomic.Int64
	answered, nanos  atomic.Int64
}

// ServeAPI answers API calls of these verbs until ctx ends; it returns once
// they are heard. Any number of control planes may serve: each call goes to
// one of them. Calls run at once; watches and logs, which wait, have a bound
// of their own and starve nobody. Beyond the bounds calls are refused (429).
func (c *Conn) ServeAPI(ctx context.Context, verbs []string, fn APIHandler) error {
	a := &apiService{
		conn: c, fn: fn, ctx: ctx, counts: map[string]*apiCount{},
		short: newPool(apiRequests, c.log), long: newPool(apiLongPolls, c.log),
	}
	for _, verb := range verbs {
		a.counts[verb] = &apiCount{}
	}
	name := "api"
	if c.names.Prefix != "" {
		name = c.names.Prefix + "-api"
	}
	svc, err := micro.AddService(c.link.nc, micro.Config{
		Name: name, Version: "1.0.0", Description: "Gantry API: api.<verb>.<resource>.<namespace or _>[.<name>]",
		StatsHandler: a.stats,
	})
	if err != nil {
		return fmt.Errorf("serve api: %w", err)
	}
	stop := func() {
		if err := svc.Stop(); err != nil {
			c.log.Debug().Err(err).Msg("stop api service")
		}
	}
	for _, verb := range verbs {
		handler := micro.HandlerFunc(func(r micro.Request) { a.request(verb, r) })
		if err := svc.AddEndpoint(verb, handler, micro.WithEndpointSubject(c.names.APIVerb(verb))); err != nil {
			stop()
			return fmt.Errorf("serve api verb %s: %w", verb, err)
		}
	}
	context.AfterFunc(ctx, stop)
	if err := c.link.nc.FlushWithContext(flushContext(ctx)); err != nil {
		return fmt.Errorf("serve api: %w", err)
	}
	return nil
}

func (a *apiService) stats(e *micro.Endpoint) any {
	n := a.counts[e.Name]
	if n == nil {
		return nil
	}
	out := map[string]int64{"running": n.running.Load(), "refused": n.refused.Load(), "answered": n.answered.Load()}
	if out["answered"] > 0 {
		out["average_ns"] = n.nanos.Load() / out["answered"]
	}
	return out
}

func (a *apiService) request(verb string, r micro.Request) {
	count, pool, patience := a.counts[verb], a.short, apiPatience
	if schemas.Waits(verb) {
		pool, patience = a.long, watchPatience
	}
	ok := pool.try(func() {
		start := time.Now()
		count.running.Add(1)
		ctx, cancel := context.WithTimeout(a.ctx, patience)
		defer cancel()
		a.respond(r, count, guarded(a.conn.log, r.Subject(), func() answer { return a.call(ctx, verb, r) }))
		count.running.Add(-1)
		count.answered.Add(1)
		count.nanos.Add(int64(time.Since(start)))
	})
	if !ok {
		a.respond(r, count, answer{status: busy()})
	}
}

func (a *apiService) call(ctx context.Context, verb string, r micro.Request) answer {
	call, err := a.conn.names.ParseAPI(r.Subject())
	if err != nil || call.Verb != verb {
		return answer{status: newStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, fmt.Sprintf("bad subject: %v", err))}
	}
	body, header, refused := a.fn(ctx, call, r.Headers(), r.Data())
	return answer{body: body, header: header, status: refused}
}

func (a *apiService) respond(r micro.Request, count *apiCount, out answer) {
	m := out.message(r.Reply(), a.conn.MaxPayload())
	if m.Header.Get(micro.ErrorHeader) != "" {
		count.refused.Add(1)
	}
	if r.Reply() == "" {
		return
	}
	if err := a.conn.link.nc.PublishMsg(m); err != nil {
		a.conn.log.Debug().Err(err).Str("subject", r.Subject()).Msg("answer api call")
	}
}
