package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestEveryExampleIsACommand: those of the page about the command line, and
// those that the commands give themselves.
func TestEveryExampleIsACommand(t *testing.T) {
	page, err := os.ReadFile("../../docs/gantry.md")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	inside := false
	for line := range strings.Lines(string(page)) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.HasPrefix(line, "```sh")
		case inside:
			lines = append(lines, line)
		}
	}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		lines = append(lines, strings.Split(c.Example, "\n")...)
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).command())
	checked := 0
	for _, line := range lines {
		i := strings.Index(line, "gantry ")
		if i < 0 || strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		line = strings.TrimSpace(line[i:])
		if end := strings.IndexAny(line, "|)"); end > 0 && !strings.Contains(line, "'") {
			line = line[:end]
		}
		root := (&app{}).command()
		root.InitDefaultCompletionCmd()
		root.InitDefaultHelpCmd()
		c, args, err := root.Find(shellWords(line)[1:])
		if err != nil || c == root || !c.Runnable() {
			t.Errorf("%s: no such command: %v", line, err)
			continue
		}
		if err := c.ParseFlags(args); err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if err := c.ValidateArgs(c.Flags().Args()); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		checked++
	}
	if checked < 40 {
		t.Errorf("only %d examples were found", checked)
	}
}

// shellWords splits a line as a shell does, as far as examples need it.
func shellWords(line string) []string {
	var out []string
	var word strings.Builder
	var quote rune
	begun := false
	for _, c := range line {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, begun = c, true
		case quote == 0 && c == ' ':
			if begun {
				out = append(out, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if begun {
		out = append(out, word.String())
	}
	return out
}
