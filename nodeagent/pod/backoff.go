package pod

import "time"

// Back-off that users of Kubernetes know.
const (
	backOffFirst = 10 * time.Second
	backOffMax   = 5 * time.Minute
	// backOffForgive is how long a run must last for earlier ends to be forgotten.
	backOffForgive = 10 * time.Minute
	// pullErrorShown is how long ErrImagePull is shown before ImagePullBackOff.
	pullErrorShown = 3 * time.Second
	// retryFirst and retryMax bound the retries of the agent's own deeds.
	retryFirst = time.Second
	retryMax   = time.Minute
	// killPatience is how long a killed container has to vanish before the
	// sandbox is taken down over its head.
	killPatience = 5 * time.Second
)

// doubling is first, 2*first, 4*first... for n = 1, 2, 3..., at most limit; 0 for n < 1.
func doubling(n int, first, limit time.Duration) time.Duration {
	if n < 1 {
		return 0
	}
	d := first
	for range n - 1 {
		if d >= limit {
			break
		}
		d *= 2
	}
	return min(d, limit)
}

// streakAfter counts the ends in a row, that of the run included.
func streakAfter(before int, end RunEnd) int {
	if !end.Started.IsZero() && end.Finished.Sub(end.Started) >= backOffForgive {
		return 1
	}
	return before + 1
}

// restartDelay is how long after its end a container rests. The first restart
// of one that ran is immediate; one that could not even start gains nothing
// from an immediate second try.
func restartDelay(streak int, end RunEnd) time.Duration {
	if end.Started.IsZero() && end.Reason != reasonUnknown {
		return doubling(streak, backOffFirst, backOffMax)
	}
	return doubling(streak-1, backOffFirst, backOffMax)
}

// retryAt is when a deed that failed may be tried again.
func (f Failure) retryAt() time.Time {
	if f.Count == 0 {
		return time.Time{}
	}
	if f.Reason != "" {
		return f.At.Add(doubling(f.Count, backOffFirst, backOffMax))
	}
	return f.At.Add(doubling(f.Count, retryFirst, retryMax))
}

// retryAt is when the next pull may begin.
func (i ImageSeen) retryAt() time.Time {
	if i.Failures == 0 {
		return time.Time{}
	}
	return i.FailedAt.Add(doubling(i.Failures, backOffFirst, backOffMax))
}
