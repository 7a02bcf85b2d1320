package schemas

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestLinesOfManyKeys: what is wrong is found by its line, and among keys
// without end by that of all of them.
func TestLinesOfManyKeys(t *testing.T) {
	for keys, want := range map[int]int{100: 105, 60_000: 4} {
		var b strings.Builder
		b.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n")
		for i := range keys {
			fmt.Fprintf(&b, "  k%d: x\n", i)
		}
		b.WriteString("  wrong: 1\n")
		_, err := Decode([]byte(b.String()))
		var d *DecodeError
		if !errors.As(err, &d) || len(d.Problems) != 1 || d.Problems[0].Path != "data[wrong]" || d.Problems[0].Line != want {
			t.Errorf("%d keys: %.200v", keys, err)
		}
	}
}
