package bus

import (
	"testing"
	"time"
)

func TestReconnectDelayGrowsToItsBound(t *testing.T) {
	for _, c := range []struct {
		attempts       int
		least, longest time.Duration
	}{
		{0, 100 * time.Millisecond, 200 * time.Millisecond},
		{1, 100 * time.Millisecond, 200 * time.Millisecond},
		{3, 400 * time.Millisecond, 800 * time.Millisecond},
		{5, 1600 * time.Millisecond, 3200 * time.Millisecond},
		{6, 2500 * time.Millisecond, 5 * time.Second},
		{1 << 40, 2500 * time.Millisecond, 5 * time.Second},
	} {
		for range 100 {
			if d := reconnectDelay(c.attempts); d < c.least || d > c.longest {
				t.Errorf("attempt %d waits %v, want %v to %v", c.attempts, d, c.least, c.longest)
			}
		}
	}
}
