package bus

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"gantry.dev/schemas"
)

func TestReservationsAreGivenOutOnce(t *testing.T) {
	c := openTest(t, startTestServer(t, t.TempDir()))
	ctx := testContext(t)
	me, you := schemas.Reservation{Key: "services.default.a", UID: "1"}, schemas.Reservation{Key: "services.default.a", UID: "2"}
	const kind, ip = "clusterip", "10.96.0.7"

	if err := c.Release(ctx, kind, ip, me); err != nil {
		t.Errorf("release of what nobody has: %v", err)
	}
	for range 2 {
		if _, err := c.Reserve(ctx, kind, ip, me); err != nil {
			t.Fatal(err)
		}
	}
	held, err := c.Reserve(ctx, kind, ip, you)
	if !errors.Is(err, ErrExists) || held.Reservation != me || held.Since.IsZero() {
		t.Errorf("held by %+v, %v", held, err)
	}
	if err := c.Release(ctx, kind, ip, you); err != nil {
		t.Errorf("release by another: %v", err)
	}
	all, err := c.Reserved(ctx, kind)
	if err != nil || len(all) != 1 || all[0].Reservation != me || all[0].Value != ip {
		t.Errorf("reserved %+v, %v", all, err)
	}
	if err := c.Release(ctx, kind, ip, me); err != nil {
		t.Fatal(err)
	}
	if all, err = c.Reserved(ctx, kind); err != nil || len(all) != 0 {
		t.Errorf("after release %+v, %v", all, err)
	}
	if _, err := c.Reserve(ctx, kind, ip, you); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestReservationsUnderContention(t *testing.T) {
	c := openTest(t, startTestServer(t, t.TempDir()))
	ctx := testContext(t)
	var mu sync.Mutex
	var winners []string
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := schemas.Reservation{Key: fmt.Sprint("services.default.s", i), UID: "u"}
			_, err := c.Reserve(ctx, "clusterip", "10.96.0.9", r)
			if err != nil && !errors.Is(err, ErrExists) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				winners = append(winners, r.Key)
			}
		})
	}
	wg.Wait()
	all, err := c.Reserved(ctx, "clusterip")
	if err != nil || len(all) != 1 || !slices.Equal(winners, []string{all[0].Key}) {
		t.Errorf("winners %v, reserved %+v, %v", winners, all, err)
	}
}
