package main

import "github.com/spf13/cobra"

// writingCommands are the commands that change the cluster.
func (a *app) writingCommands() []*cobra.Command {
	return []*cobra.Command{
		a.applyCommand(), a.createCommand(), a.deleteCommand(), a.scaleCommand(), a.rolloutCommand(),
	}
}
