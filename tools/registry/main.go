// Command registry runs an image registry until it is interrupted. It prints
// the address once it answers.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"gantry.dev/tools/registry/server"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run() error {
	users := map[string]string{}
	o := server.Options{Users: users, Log: os.Stderr}
	flag.StringVar(&o.Listen, "listen", "127.0.0.1:5000", "address; port 0 takes a free one")
	flag.StringVar(&o.Dir, "dir", "", "directory that keeps the images (required)")
	flag.StringVar(&o.Kind, "kind", "", "docker-registry or embedded; the first where it is installed")
	flag.Func("user", "name:password that is asked for; may be repeated", func(v string) error {
		name, password, ok := strings.Cut(v, ":")
		if !ok || name == "" {
			return fmt.Errorf("%q is not name:password", v)
		}
		users[name] = password
		return nil
	})
	flag.Parse()
	if o.Dir == "" {
		return fmt.Errorf("--dir says where to keep the images")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := server.Start(ctx, o)
	if err != nil {
		return err
	}
	fmt.Println(s.Addr)
	<-s.Done()
	return s.Err()
}
