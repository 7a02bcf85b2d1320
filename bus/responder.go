package bus

import (
	"context"
	"net/http"
	"runtime/debug"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// answerRoom is what headers and protocol add to the body of an answer.
const answerRoom = 8 << 10

// pool runs requests at once, each in a goroutine of its own, up to a bound.
type pool struct {
	slots   chan struct{}
	running sync.WaitGroup
	log     zerolog.Logger
}

func newPool(bound int, log zerolog.Logger) *pool {
	return &pool{slots: make(chan struct{}, bound), log: log}
}

// try starts work and reports whether there was room for it.
func (p *pool) try(work func()) bool {
	select {
	case p.slots <- struct{}{}:
	default:
		return false
	}
	p.running.Go(func() {
		defer func() { <-p.slots }()
		work()
	})
	return true
}

// wait starts work once there is room, false where ctx ended before.
func (p *pool) wait(ctx context.Context, work func()) bool {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	p.running.Go(func() {
		defer func() { <-p.slots }()
		work()
	})
	return true
}

func busy() *metav1.Status {
	return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, "too many requests at once; try again")
}

// answer is what a handler gives: a body with headers, or a refusal.
type answer struct {
	body   []byte
	header map[string][]string
	status *metav1.Status
}

// guarded runs a handler and makes a refusal of its panic, so that one bad
// request does not end the process.
func guarded(log zerolog.Logger, subject string, handle func() answer) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			log.Error().Interface("panic", p).Str("subject", subject).Str("stack", string(debug.Stack())).Msg("request handler panicked")
			a = answer{status: recovered(p)}
		}
	}()
	return handle()
}

// message makes the reply, within the payload limit.
func (a answer) message(reply string, limit int64) *nats.Msg {
	if a.status == nil && limit > 0 && int64(len(a.body))+answerRoom > limit {
		a.status = tooLargeAnswer(len(a.body), limit-answerRoom)
	}
	m := nats.NewMsg(reply)
	for k, v := range a.header {
		for _, one := range v {
			m.Header.Add(k, headerLine(one))
		}
	}
	m.Data = a.body
	if a.status != nil {
		body, code, text := encodeStatus(a.status)
		m.Data = body
		m.Header.Set(micro.ErrorHeader, text)
		m.Header.Set(micro.ErrorCodeHeader, code)
	}
	return m
}
