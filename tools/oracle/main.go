// Command oracle asks Kubernetes itself what it makes of a manifest: it runs
// the defaulting and the validation of its API server over the cases in
// schemas/testdata/kubernetes, and writes what they say beside them. It is a
// module of its own, so that nothing of Kubernetes' server enters Gantry's.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	dir := flag.String("dir", "../../schemas/testdata/kubernetes", "where the cases are, by resource")
	facts := flag.String("facts", "../../schemas/facts.json", "where to write what the API's description says of each type")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: oracle [-dir DIR] [resource[/case] ...]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := writeFacts(*facts); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
	if err := run(*dir, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

// run answers every case file, or those whose name begins with one of only.
func run(dir string, only []string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.yaml"))
	if err != nil {
		return err
	}
	asked := 0
	for _, f := range files {
		if strings.HasSuffix(f, ".old.yaml") || strings.HasSuffix(f, ".differences.yaml") || !chosen(dir, f, only) {
			continue
		}
		n, err := answerFile(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		asked += n
	}
	if asked == 0 {
		return fmt.Errorf("no case below %s", dir)
	}
	fmt.Printf("%d cases\n", asked)
	return nil
}

func chosen(dir, file string, only []string) bool {
	name, err := filepath.Rel(dir, file)
	if err != nil || len(only) == 0 {
		return err == nil
	}
	for _, o := range only {
		if strings.HasPrefix(name, o) {
			return true
		}
	}
	return false
}
