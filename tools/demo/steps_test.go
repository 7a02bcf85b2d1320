package main

import (
	"strings"
	"testing"

	"gantry.dev/tools/cluster"
)

// TestHintsAreTrueOfAnyPlace: gantry and `task down` look at the default place
// alone, and whoever chose another was told that they need nothing.
func TestHintsAreTrueOfAnyPlace(t *testing.T) {
	usual := &cluster.Cluster{Options: cluster.Options{StateDir: cluster.DefaultStateDir, RunDir: cluster.DefaultRunDir}}
	if got := howRemoved(usual); got != "task down" {
		t.Errorf("removed with %q", got)
	}
	if got := howFound(usual); !strings.Contains(got, "without flags") {
		t.Errorf("found: %q", got)
	}
	elsewhere := &cluster.Cluster{Options: cluster.Options{StateDir: "/srv/s", RunDir: "/srv/r"}}
	if got, want := howRemoved(elsewhere), "task down -- --state-dir=/srv/s --run-dir=/srv/r"; got != want {
		t.Errorf("removed with %q, want %q", got, want)
	}
	if got, want := howFound(elsewhere), "gantry is told: export GANTRY_CREDENTIALS="+elsewhere.Credentials(); got != want {
		t.Errorf("found: %q, want %q", got, want)
	}
}
