package bus

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// answerRoom is what headers and protocol add to the body of an answer.
const answerRoom = 8 << 10

// answerRest is the part of it for the protocol, a refusal's headers, and the
// word that there are more warnings.
const answerRest = 2 << 10

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

// message makes the reply, within the payload limit: one that is larger could
// not be sent, and who asked would wait in vain.
func (a answer) message(reply string, limit int64) *nats.Msg {
	if a.status == nil && limit > 0 && int64(len(a.body))+answerRoom > limit {
		a.status = tooLargeAnswer(len(a.body), limit-answerRoom)
	}
	m := nats.NewMsg(reply)
	room := answerRoom - answerRest
	for k, v := range a.header {
		if k != schemas.HeaderWarning {
			for _, one := range v {
				m.Header.Add(k, headerLine(one))
				room -= len(k) + len(one)
			}
		}
	}
	// Of warnings there may be any number: they take what room is left.
	for i, one := range a.header[schemas.HeaderWarning] {
		line := headerLine(one)
		if room -= len(schemas.HeaderWarning) + len(": \r\n") + len(line); room < 0 {
			m.Header.Add(schemas.HeaderWarning, fmt.Sprintf("and %d warnings more", len(a.header[schemas.HeaderWarning])-i))
			break
		}
		m.Header.Add(schemas.HeaderWarning, line)
	}
	m.Data = a.body
	if a.status != nil {
		body, code, text := encodeStatus(a.status)
		if limit > 0 && int64(len(body))+answerRoom > limit {
			body, code, text = encodeStatus(shortStatus(a.status, int(limit-answerRoom)))
		}
		m.Data = body
		m.Header.Set(micro.ErrorHeader, text)
		m.Header.Set(micro.ErrorCodeHeader, code)
	}
	return m
}

// shortStatus is what of a refusal fits into a body: a byte of text takes up to
// six as JSON.
func shortStatus(s *metav1.Status, limit int) *metav1.Status {
	const longest = 8 << 10
	n := min(len(s.Message), longest, max(limit-longest, 0)/6)
	out := newStatus(int(s.Code), s.Reason, strings.ToValidUTF8(s.Message[:n], "")+"...")
	out.Message = fmt.Sprintf("%s (of a refusal that is larger than the bus takes)", out.Message)
	return out
}
