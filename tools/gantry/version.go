package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// version may be set by the linker.
var version = ""

func clientVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value[:min(12, len(s.Value))]
		}
	}
	return orText(v, "unknown")
}

// versions is what `gantry version` prints as data.
type versions struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Client     clientInfo      `json:"clientVersion"`
	Nodes      []nodeOfVersion `json:"nodes,omitempty"`
}

type clientInfo struct {
	Version   string `json:"gitVersion"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

type nodeOfVersion struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Status  string `json:"status"`
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the nodes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show, err := a.printerFor(output)
			switch {
			case err != nil:
				return err
			case output != "" && (show == nil || show.names):
				return fmt.Errorf("output %q: versions are no table; use json, yaml, jsonpath or go-template", output)
			}
			v := versions{APIVersion: configVersion, Kind: "Versions", Client: clientInfo{clientVersion(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}}
			if show == nil {
				// Said at once: the server may take its time, or not be there.
				fmt.Fprintf(a.out, "Client Version: %s (%s %s)\n", v.Client.Version, v.Client.GoVersion, v.Client.Platform)
			}
			if !clientOnly {
				if v.Nodes, err = a.nodeVersions(cmd.Context()); err != nil {
					return err
				}
			}
			if show != nil {
				return a.showValue(show, v)
			}
			for _, n := range v.Nodes {
				fmt.Fprintf(a.out, "Node %s: %s (%s)\n", n.Name, n.Version, n.Status)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "of this program only; asks no server")
	a.outputFlags(c, &output)
	return c
}

func (a *app) nodeVersions(ctx context.Context) ([]nodeOfVersion, error) {
	k, err := kindOf(schemas.Nodes)
	if err != nil {
		return nil, err
	}
	objects, _, err := a.objects(ctx, k, "", metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []nodeOfVersion
	for _, o := range objects {
		if n, ok := o.(*corev1.Node); ok {
			out = append(out, nodeOfVersion{n.Name, orText(n.Status.NodeInfo.KubeletVersion, "unknown"), nodeStatus(n)})
		}
	}
	return out, nil
}
