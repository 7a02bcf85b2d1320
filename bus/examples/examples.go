// Package examples reads the examples in docs/bus.md, so that tests can replay
// them. An example is a fenced block whose first line is
// "```json <verb> <argument>...".
package examples

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// Example is one block.
type Example struct {
	Verb string   // what the block is: kv, message, request, reply, api, ...
	Args []string // what follows on the same line
	Body string
	Line int // where it begins, from 1
}

// Read returns the examples of a file in order.
func Read(path string) ([]Example, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read examples: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	var out []Example
	var body []string
	var open *Example
	other := false // within a block that is no example
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		fence := strings.HasPrefix(line, "```")
		switch {
		case fence && open != nil:
			open.Body = strings.Join(body, "\n")
			out = append(out, *open)
			open, body = nil, nil
		case fence && other:
			other = false
		case fence:
			words := strings.Fields(strings.TrimPrefix(line, "```"))
			if len(words) > 1 && words[0] == "json" {
				open = &Example{Verb: words[1], Args: words[2:], Line: n}
			} else {
				other = true
			}
		case open != nil:
			body = append(body, line)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read examples: %w", err)
	}
	if open != nil || other {
		return nil, fmt.Errorf("read examples: %s ends within a block", path)
	}
	return out, nil
}

// Headers are the arguments of the form NAME=VALUE that follow the first.
func (e Example) Headers() map[string][]string {
	out := map[string][]string{}
	for _, arg := range e.Args[min(1, len(e.Args)):] {
		if name, value, ok := strings.Cut(arg, "="); ok {
			out[name] = append(out[name], value)
		}
	}
	return out
}

// Missing says what of want is not in got, both decoded JSON: fields that want
// leaves out do not matter, lists must be of one length. It is empty where
// nothing is missing.
func Missing(want, got any) string { return missing("", want, got) }

func missing(path string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for k, v := range w {
			if diff := missing(path+"."+k, v, g[k]); diff != "" {
				return diff
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("has not %d entries at %s", len(w), path)
		}
		for i := range w {
			if diff := missing(fmt.Sprintf("%s[%d]", path, i), w[i], g[i]); diff != "" {
				return diff
			}
		}
	default:
		if want != got {
			return fmt.Sprintf("has %v at %s, not %v", got, path, want)
		}
	}
	return ""
}
