package report

import (
	"context"
	"time"

	"gantry.dev/schemas"
)

// nodeEvery is how often the node's own report is repeated unchanged.
const nodeEvery = 5 * time.Minute

// Node takes in the newest truth about the node itself.
func (r *Reporter) Node(h schemas.NodeHealth) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node0, r.nodeDue = &h, true
	poke(r.nodes)
}

func (r *Reporter) runNode(ctx context.Context) {
	ticker := time.NewTicker(nodeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.nodes:
		case <-ticker.C:
			r.mu.Lock()
			r.nodeDue = r.node0 != nil
			r.mu.Unlock()
		}
		for ctx.Err() == nil && r.sendNode(ctx) {
		}
	}
}

// sendNode sends what is due and reports whether there may be more.
func (r *Reporter) sendNode(ctx context.Context) bool {
	r.mu.Lock()
	if !r.nodeDue {
		r.mu.Unlock()
		return false
	}
	r.nodeDue = false
	h := *r.node0
	h.Node, h.Seq, h.ObservedAt = r.node, r.next(), r.now().UTC()
	r.mu.Unlock()
	if err := r.try(ctx, func(ctx context.Context) error { return r.to.ReportNode(ctx, h) }); err != nil {
		r.mu.Lock()
		r.nodeDue = true
		r.mu.Unlock()
	}
	return true
}

// Stopping tells, as far as ctx allows, that the agent is about to end.
func (r *Reporter) Stopping(ctx context.Context) {
	r.mu.Lock()
	if r.node0 == nil {
		r.mu.Unlock()
		return
	}
	h := *r.node0
	h.Node, h.Seq, h.ObservedAt, h.Stopping = r.node, r.next(), r.now().UTC(), true
	r.mu.Unlock()
	if err := r.to.ReportNode(ctx, h); err != nil {
		r.log.Debug().Err(err).Msg("cannot tell that the agent stops")
	}
}
