package feed

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// position is how far one feed was heard without a gap.
type position struct {
	pos schemas.FeedPos
	// ahead are numbers beyond a gap that a snapshot may yet close.
	ahead map[uint64]bool
	epoch string // of ahead
	// again asks for a snapshot although nothing was missed.
	again bool
}

// maxAhead bounds what is remembered beyond a gap; more than that is heard
// again through the snapshot.
const maxAhead = 4096

// ask is the position to sync from.
func (p *position) ask() schemas.FeedPos {
	if p.again {
		return schemas.FeedPos{}
	}
	return p.pos
}

// heard takes in the place of one record and reports whether it follows on
// from what was heard before.
func (p *position) heard(at schemas.FeedPos) bool {
	if at.Epoch == p.pos.Epoch && p.pos.Epoch != "" {
		if at.Seq <= p.pos.Seq {
			return true
		}
		if at.Seq == p.pos.Seq+1 {
			p.pos.Seq++
			p.close()
			return true
		}
	}
	if p.epoch != at.Epoch || len(p.ahead) >= maxAhead {
		p.epoch, p.ahead = at.Epoch, nil
	}
	if p.ahead == nil {
		p.ahead = map[uint64]bool{}
	}
	p.ahead[at.Seq] = true
	return false
}

// close goes over numbers that came early.
func (p *position) close() {
	if p.epoch != p.pos.Epoch {
		return
	}
	for p.ahead[p.pos.Seq+1] {
		p.pos.Seq++
		delete(p.ahead, p.pos.Seq)
	}
	maps.DeleteFunc(p.ahead, func(seq uint64, _ bool) bool { return seq <= p.pos.Seq })
}

// reached takes in a snapshot's position and reports whether its epoch is new.
func (p *position) reached(pos schemas.FeedPos) bool {
	fresh := pos.Epoch != p.pos.Epoch
	if fresh || pos.Seq > p.pos.Seq {
		p.pos = pos
	}
	p.again = false
	p.close()
	return fresh
}

// gate keeps a control plane that lost its memory from emptying the node: a
// removal of most pods at once is believed only when it is said twice.
type gate struct {
	absent []types.UID
	since  time.Time
}

// pass reports whether the absent pods may be removed now.
func (g *gate) pass(absent []types.UID, known int, now time.Time, heartbeat time.Duration) bool {
	const few = 2
	if len(absent) <= few || 2*len(absent) <= known {
		g.absent = nil
		return true
	}
	absent = slices.Sorted(slices.Values(absent))
	if g.absent == nil || !slices.Equal(g.absent, absent) {
		g.absent, g.since = absent, now
		return false
	}
	if now.Sub(g.since) < heartbeat {
		return false
	}
	g.absent = nil
	return true
}
