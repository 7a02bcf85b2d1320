package main

import (
	"strings"
	"testing"

	"gantry.dev/schemas"
)

func TestAPIResources(t *testing.T) {
	a := newAlone(t)
	all := plain(a.ok("", "api-resources"))
	for _, line := range []string{"NAME|SHORTNAMES|APIVERSION|NAMESPACED|KIND\n", "\npods|po|v1|true|Pod\n", "\nnodes|no|v1|false|Node\n", "\ndeployments|deploy|apps/v1|true|Deployment\n"} {
		if !strings.Contains("\n"+all, line) {
			t.Errorf("api-resources lacks %q:\n%s", line, all)
		}
	}
	wide := plain(a.ok("", "api-resources", "-o", "wide", "--api-group=apps", "--categories=all"))
	if !strings.Contains(wide, "deployments|deploy|apps/v1|true|Deployment|create,delete,deletecollection,get,list,patch,update,watch|all\n") || strings.Contains(wide, "controllerrevisions") {
		t.Errorf("-o wide:\n%s", wide)
	}
	names := a.ok("", "api-resources", "-o", "name")
	refused := plain(a.ok("", "api-resources", "--refused"))
	for _, k := range schemas.Kinds {
		name := "\n" + k.Resource
		if k.GVK.Group != "" {
			name += "." + k.GVK.Group
		}
		served := strings.Contains("\n"+names, name+"\n")
		reason := strings.Contains(refused, "|"+k.GVK.Kind+"|"+k.Refused+"\n")
		if served != (k.Refused == "") || k.Refused != "" && !reason {
			t.Errorf("%s: served %t, refused with its reason %t", k.Resource, served, reason)
		}
	}
	expect(t, "what cannot be made", "endpointslices.discovery.k8s.io\nevents\nnodes\n", func() string {
		all := strings.Split(a.ok("", "api-resources", "-o", "name", "--sort-by=name"), "\n")
		made := a.ok("", "api-resources", "-o", "name", "--verbs=create,get")
		var out string
		for _, n := range all {
			if n != "" && !strings.Contains("\n"+made, "\n"+n+"\n") {
				out += n + "\n"
			}
		}
		return out
	}())
	expect(t, "outside namespaces", "namespaces   ns    v1    false   Namespace\nnodes        no    v1    false   Node\n",
		a.ok("", "api-resources", "--namespaced=false", "--no-headers"))
	if out := a.ok("", "api-versions"); !strings.Contains(out, "apps/v1\n") || !strings.HasSuffix(out, "v1\n") || strings.Count(out, "\nv1\n") != 1 {
		t.Errorf("api-versions:\n%s", out)
	}
	for want, args := range map[string]string{
		"--output json is not available: use wide or name": "-o json",
		`--sort-by accepts only name or kind, not "age"`:   "--sort-by=age",
	} {
		if stderr := a.fails("", append([]string{"api-resources"}, strings.Fields(args)...)...); !strings.Contains(stderr, want) {
			t.Errorf("%s: %s", args, stderr)
		}
	}
}

func TestVersionAsData(t *testing.T) {
	a := newAlone(t)
	if out := a.ok("", "version", "--client", "-o", "jsonpath={.clientVersion.platform}"); !strings.Contains(out, "/") {
		t.Errorf("platform = %q", out)
	}
	if stderr := a.fails("", "version", "--client", "-o", "wide"); !strings.Contains(stderr, "versions are no table") {
		t.Errorf("stderr: %s", stderr)
	}
}
