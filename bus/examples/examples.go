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
