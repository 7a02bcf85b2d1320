package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"gantry.dev/schemas"
)

// logMargin is what a piece of a log may take beyond the time that it waits
// for lines.
const logMargin = 15 * time.Second

// Log reads one piece of a pod's log; the answer's header says by its cursor
// where the next one goes on. A piece may be read twice without harm, so while
// no control plane answers, or none reaches the node, it is asked for again,
// for as long as patience says. 0 asks once.
func (u *UserConn) Log(ctx context.Context, namespace, pod string, req schemas.LogRequest, patience time.Duration) (Reply, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return Reply{}, fmt.Errorf("log of pod %s: %w", pod, err)
	}
	limit := time.Duration(req.WaitSeconds)*time.Second + logMargin
	begin := time.Now()
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		var reply Reply
		err := u.whileConnected(ctx, limit, func(ctx context.Context) (err error) {
			reply, err = u.Request(ctx, schemas.VerbLog, schemas.Pods, namespace, pod, body)
			return err
		})
		switch {
		case err == nil:
			return reply, nil
		case ctx.Err() != nil:
			return Reply{}, context.Cause(ctx)
		case !passing(err) || time.Since(begin) > patience:
			return Reply{}, err
		}
		if wait(ctx, delay) != nil {
			return Reply{}, context.Cause(ctx)
		}
	}
}
