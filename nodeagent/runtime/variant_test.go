//go:build linux

package runtime

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func XTestVariants(t *testing.T) {
	n := newNode(t)
	b := &testing.B{}
	_ = b
	variants := []struct {
		name string
		edit func(*Container)
	}{
		{"base", func(c *Container) {}},
		{"noseccomp", func(c *Container) { c.Seccomp = "Unconfined" }},
		{"privileged", func(c *Container) { c.Privileged = true }},
		{"failearly", func(c *Container) { c.Layers = []string{"/nope"} }},
		{"failuser", func(c *Container) { c.User = "nope" }},
		{"notfound", func(c *Container) { c.Args = []string{"nope"} }},
	}
	sum := map[string]time.Duration{}
	sb := time.Duration(0)
	const rounds = 15
	for range rounds {
		for _, v := range variants {
			ctx := context.Background()
			c0 := n.cpu(t)
			s := n.pod()
			time.Sleep(20 * time.Millisecond)
			c1 := n.cpu(t)
			sb += c1 - c0
			c := n.container(s, "exit", "0")
			v.edit(&c)
			n.start(c)
			for uid := range n.rt.Wakes() {
				st, _, _ := n.rt.Sandbox(uid)
				if uid == s.UID && len(st.Containers) == 1 && st.Containers[0].Phase.Ended() {
					break
				}
			}
			sum[v.name] += n.cpu(t) - c1
			must(t, n.rt.RemoveSandbox(ctx, s.UID))
		}
	}
	fmt.Println("sandbox", float64(sb)/float64(rounds*len(variants))/1e6)
	for _, v := range variants {
		fmt.Println(v.name, float64(sum[v.name])/rounds/1e6)
	}
}
