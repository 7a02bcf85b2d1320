package admission

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/schemas"
)

// TestIncrementsAreNotLost has many clients count one number up: by reading,
// adding one and writing at the revision that was read; and without a
// revision, by patches that the server computes again.
func TestIncrementsAreNotLost(t *testing.T) {
	w := newWorld(t)
	w.ok(schemas.VerbCreate, "configmaps", "default", "c", fmt.Sprintf(configMap, `"n":"0"`))
	const clients, times = 64, 3
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for done := 0; done < times; {
				c := decode[corev1.ConfigMap](t, w.ok(schemas.VerbGet, "configmaps", "default", "c", nil))
				n, err := strconv.Atoi(c.Data["n"])
				if err != nil {
					t.Error(err)
					return
				}
				c.Data["n"] = strconv.Itoa(n + 1)
				_, _, st := w.call(schemas.VerbUpdate, "configmaps", "default", "c", c)
				switch {
				case st == nil:
					done++
				case st.Code != 409:
					t.Error(st.Message)
					return
				}
			}
			_, _, st := w.call(schemas.VerbPatch, "configmaps", "default", "c", fmt.Sprintf(`{"data":{"by%d":"1"}}`, i))
			if st != nil {
				t.Errorf("patch without a revision: %s", st.Message)
			}
		})
	}
	running.Wait()
	c := decode[corev1.ConfigMap](t, w.ok(schemas.VerbGet, "configmaps", "default", "c", nil))
	if c.Data["n"] != strconv.Itoa(clients*times) || len(c.Data) != clients+1 {
		t.Errorf("counted to %s of %d, and %d of %d patches", c.Data["n"], clients*times, len(c.Data)-1, clients)
	}
}
