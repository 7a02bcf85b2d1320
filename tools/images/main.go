// Command images builds sample images from Go programs of this repository and
// brings them where they are needed. The same source gives the same digests.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gantry.dev/tools/images/build"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "images", Short: "Build and push sample images", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(buildCommand(), pushCommand(), saveCommand(), rootfsCommand())
	return root
}

func buildCommand() *cobra.Command {
	var dir, tag string
	c := &cobra.Command{
		Use:     "build -o DIR PROGRAM",
		Short:   "Build the image of a program as an OCI layout",
		Example: "  go run ./tools/images build -o .cache/web web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := build.Image(cmd.Context(), args[0], tag)
			if err != nil {
				return err
			}
			if err := build.WriteLayout(dir, args[0]+":"+tag, img); err != nil {
				return err
			}
			digest, err := img.Digest()
			if err != nil {
				return err
			}
			fmt.Printf("%s:%s@%s in %s\n", args[0], tag, digest, dir)
			return nil
		},
	}
	c.Flags().StringVarP(&dir, "output", "o", "", "directory of the layout; it is replaced")
	c.Flags().StringVar(&tag, "tag", "latest", "tag, which the program also tells as its version")
	if err := c.MarkFlagRequired("output"); err != nil {
		panic(err)
	}
	return c
}

func pushCommand() *cobra.Command {
	var insecure bool
	var user string
	c := &cobra.Command{
		Use:     "push LAYOUT REFERENCE",
		Short:   "Push a layout's image to a registry",
		Example: "  go run ./tools/images push .cache/web 127.0.0.1:5000/web:latest --insecure",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := build.ReadLayout(args[0])
			if err != nil {
				return err
			}
			digest, err := build.Push(cmd.Context(), img, args[1], build.PushOptions{Insecure: insecure, User: user})
			if err != nil {
				return err
			}
			fmt.Println(digest)
			return nil
		},
	}
	c.Flags().BoolVar(&insecure, "insecure", false, "allow plain HTTP")
	c.Flags().StringVar(&user, "user", "", "name:password")
	return c
}

func saveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "save LAYOUT FILE REFERENCE",
		Short:   "Write a layout's image as a docker archive, as docker save does",
		Example: "  go run ./tools/images save .cache/web web.tar web:latest",
		Args:    cobra.ExactArgs(3),
		RunE: func(_ *cobra.Command, args []string) error {
			img, err := build.ReadLayout(args[0])
			if err != nil {
				return err
			}
			return build.Save(img, args[2], args[1])
		},
	}
}

func rootfsCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "rootfs -o DIR PROGRAM",
		Short: "Write the files of a program's image, for runtimes that take a directory",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return build.RootFS(cmd.Context(), args[0], dir)
		},
	}
	c.Flags().StringVarP(&dir, "output", "o", "", "directory; it may exist")
	if err := c.MarkFlagRequired("output"); err != nil {
		panic(err)
	}
	return c
}
