package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// headroom is counted by the collector as if it were in use, and never is:
	// no page of it exists. A small cluster's heap is some ten MiB, and would be
	// collected for every five that a burst of pods allocates, at a tenth of the
	// processor time; with it that is every thirteen. A large heap hardly notices.
	headroom  = 16 << 20
	gcPercent = 50
	// After a burst that allocated more than burst, what it took is given back
	// once less than calm is allocated from one look to the next. Of a large heap
	// they are shares: with hundreds of nodes something is always allocated, and
	// to give back is a collection.
	burst      = 16 << 20
	calm       = 1 << 20
	burstShare = 2
	calmShare  = 10
	lookTime   = 20 * time.Second
	// startPercent is the collector's while a view loads: nearly all that is
	// allocated then stays.
	startPercent = 400
)

// tuneMemory sets when the collector runs, unless GOGC does, and returns what
// must be kept alive for that.
func tuneMemory() []byte {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	debug.SetGCPercent(startPercent)
	return make([]byte, headroom)
}

// started sets the collector to what holds from then on.
func started() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// giveBack returns memory to the machine when a burst of work is over, until
// ctx ends. The runtime would keep it, as if the next burst were near.
func giveBack(ctx context.Context) {
	t := time.NewTicker(lookTime)
	defer t.Stop()
	var last, returned uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, heap := allocated()
		if now-last < max(calm, heap/calmShare) && now-returned > max(burst, heap/burstShare) {
			debug.FreeOSMemory()
			now, _ = allocated()
			returned = now
		}
		last = now
	}
}

// allocated is how many bytes the heap has given out since the start, and how
// many are in use.
func allocated() (total, inUse uint64) {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64(), sample[1].Value.Uint64()
}
