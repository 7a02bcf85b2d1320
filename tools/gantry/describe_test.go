package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"gantry.dev/schemas"
)

// described writes what describe says of an object without events.
func described(t *testing.T, alias, raw string) string {
	t.Helper()
	k, err := kindOf(alias)
	if err != nil {
		t.Fatal(err)
	}
	o, err := decode(k, []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	d := &description{now: time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)}
	if err := d.object(k, o, nil); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := d.flush(&out); err != nil {
		t.Fatal(err)
	}
	// The zone is that of whoever looks.
	return regexp.MustCompile(`[A-Z][a-z]{2}, \d.*? \(`).ReplaceAllString(out.String(), "TIME (")
}

func TestDescribeTheKindsThatWereAdded(t *testing.T) {
	const meta = `"metadata":{"name":"x","namespace":"default","creationTimestamp":"2026-01-05T09:00:00Z"}`
	const head = `
Name:         x
Namespace:    default
Created:      TIME (60m ago)
Labels:       <none>
Annotations:  <none>
`
	for _, tc := range []struct{ desc, alias, raw, want string }{
		{"a config map keeps lines and tabs, and drives no terminal", "cm", `{` + meta + `,"data":{"a":"one\ttwo\nthree\u001b[31m\n","b":""},"binaryData":{"c":"AAECAw=="}}`,
			head + "\nData\n====\na:\n----\none\ttwo\nthree^[[31m\n\nb:\n----\n\n\nBinaryData\n====\nc: 4 bytes\n\n"},
		{"a secret shows sizes", "secret", `{` + meta + `,"type":"Opaque","data":{"key":"aHVzaA=="},"stringData":{"other":"hush!"}}`,
			head + "Type:         Opaque\n\nData\n====\nkey:    4 bytes\nother:  5 bytes\n\n"},
		{"a template", "podtemplate", `{` + meta + `,"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"c","image":"i:1"}]}}}`,
			head + "Pod Template:\n  Labels:  app=web\n  c:\n    Image:  i:1\n    Ports:  <none>\n"},
		{"a revision", "controllerrevision", `{` + meta + `,"revision":7,"data":{"spec":{"a":1}}}`,
			head + "Revision:     7\nData:\n  spec:\n    a: 1\n"},
		{"a lease", "lease", `{` + meta + `,"spec":{"holderIdentity":"me","leaseDurationSeconds":15,"renewTime":"2026-01-05T09:59:00.000000Z","leaseTransitions":2}}`,
			head + "Holder Identity:    me\nLease Duration:     15s\nRenew Time:         TIME (60s ago)\nLease Transitions:  2\n"},
		{"any other kind", "limits", `{` + meta + `,"spec":{"limits":[{"type":"Pod","max":{"cpu":"2"}}]}}`,
			head + "spec:\n  limits:\n  - max:\n      cpu: \"2\"\n    type: Pod\n"},
	} {
		// Labels and values that are neighbours share a column, so only what is
		// said is compared, and the columns by the first of them.
		want, got := strings.TrimPrefix(tc.want, "\n"), described(t, tc.alias, tc.raw)
		if tc.alias == "lease" {
			want, got = strings.ReplaceAll(plain(want), "60s ago", "AGE ago"), plain(got)
		}
		expect(t, tc.desc, want, got)
	}
}

// TestNothingDescribesASecret: neither the values, nor the manifest that an
// apply left in the annotations.
func TestNothingDescribesASecret(t *testing.T) {
	raw := `{"metadata":{"name":"x","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"hush"}},"data":{"key":"aHVzaA=="}}`
	k, err := kindOf("secret")
	if err != nil {
		t.Fatal(err)
	}
	o, err := decode(k, []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	out := described(t, "secret", raw)
	for _, row := range table(k, []schemas.Object{o}, time.Now()).Rows {
		for _, c := range row.Cells {
			if s, ok := c.(string); ok {
				out += s
			}
		}
	}
	if strings.Contains(out, "hush") || strings.Contains(out, "aHVzaA") {
		t.Errorf("the secret is shown:\n%s", out)
	}
}

func TestDescribeShowsEvents(t *testing.T) {
	l := newLab(t)
	l.ok(strings.Join([]string{configMap, lease, mould, revision1}, "---\n"), "apply", "-f", "-")
	for _, kind := range []string{"cm", "lease", "podtemplate", "controllerrevision"} {
		if out := l.ok("", "describe", kind); !strings.HasPrefix(out, "Name:") || !strings.HasSuffix(plain(out), "Events:|<none>\n") {
			t.Errorf("describe %s:\n%s", kind, out)
		}
	}
}
