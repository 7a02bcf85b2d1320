package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"gantry.dev/bus"
)

// TestErrorsOfWrites: an error that is marked without a word of what was being
// done once described itself until the stack was full.
func TestErrorsOfWrites(t *testing.T) {
	late := fmt.Errorf("request api.delete.configmaps.default.a: %w", context.DeadlineExceeded)
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"late", refused{err: late}, "error: the server did not answer in time: request api.delete.configmaps.default.a: context deadline exceeded"},
		{"late, and what was done", refused{"deleting", late}, "error: deleting: the server did not answer in time: request api.delete.configmaps.default.a: context deadline exceeded"},
		{"another", refused{err: errors.New("broken")}, "error: broken"},
		{"twice", refused{"outside", refused{err: errors.New("broken")}}, "error: outside: error: broken"},
		{"a node's credentials", refused{err: fmt.Errorf("publish to api.list.pods.default: %w", bus.ErrForbidden)},
			"error: publish to api.list.pods.default: forbidden: these credentials do not allow it; gantry auth whoami shows which they are"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, "the description", tc.want, describeError(tc.err))
			expect(t, "the text", tc.want, tc.err.Error())
		})
	}
}

// TestConnectionsThatAreNone: who has the wrong credentials is not sent to look
// after the control plane.
func TestConnectionsThatAreNone(t *testing.T) {
	const stranger = "SUAM5ZK3CFATBLSPSK5SB6NKWAI67RGMDGH64DWLILTAQIV33HINRJ32QQ" // a key that no cluster knows
	l := newLab(t)
	server := l.plane.Server().URLs()[0]
	for _, tc := range []struct{ name, seed, url, says string }{
		{"damaged", "SUAAAA", server, "the credentials are damaged: read seed: "},
		{"of another cluster", stranger, server, "error: the server " + server + " does not know these credentials: they are of another cluster"},
		{"nobody there", stranger, "nats://127.0.0.1:1", "error: cannot connect to the server nats://127.0.0.1:1 - is the control plane running?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := write(t, "credentials.json", `{"user": "me", "urls": ["`+tc.url+`"], "seed": "`+tc.seed+`"}`)
			if err := os.Chmod(file, 0o600); err != nil {
				t.Fatal(err)
			}
			var out, stderr bytes.Buffer
			code := run(context.Background(), []string{"--credentials", file, "get", "pods"}, nil, &out, &stderr)
			if code != 1 || !strings.Contains(stderr.String(), tc.says) || !strings.Contains(stderr.String(), file) || strings.Contains(stderr.String(), tc.seed) {
				t.Errorf("code %d, want %q, got %s", code, tc.says, stderr.String())
			}
		})
	}
}
