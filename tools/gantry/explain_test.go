package main

import (
	"encoding/json"
	"strings"
	"testing"

	"gantry.dev/schemas"
)

func TestExplain(t *testing.T) {
	a := newAlone(t)
	expect(t, "a field", `
GROUP:      apps
KIND:       Deployment
VERSION:    v1

FIELD: replicas <integer>

DESCRIPTION:
    Number of desired pods. This is a pointer to distinguish between explicit
    zero and not specified. Defaults to 1.

`, a.ok("", "explain", "deploy.spec.replicas"))
	for _, same := range []string{"deployments.apps.spec.replicas", "deployment.spec.replicas", "Deployment.spec.replicas."} {
		expect(t, same, a.ok("", "explain", "deploy.spec.replicas"), a.ok("", "explain", same))
	}
	for arg, wants := range map[string][]string{
		"pods":                     {"KIND:       Pod\nVERSION:    v1\n\nDESCRIPTION:\n    Pod is a collection", "FIELDS:\n  apiVersion\t<string>\n    APIVersion defines", "  metadata\t<ObjectMeta>\n"},
		"pod.spec.restartPolicy":   {"FIELD: restartPolicy <string>\nENUM:\n    Always\n    Never\n    OnFailure\n\n"},
		"pod.spec.containers.name": {"FIELD: name <string>\n"},
		"pod.spec":                 {"FIELD: spec <PodSpec>\n", "containers\t<[]Container> -required-\n"},
		"deployments.apps":         {"KIND:       Deployment\n"},
		"pods --recursive":         {"  spec\t<PodSpec>\n    activeDeadlineSeconds\t<integer>", "\n    containers\t<[]Container> -required-\n      args\t<[]string>"},
		"pods --api-version=v1":    {"KIND:       Pod\n"},
	} {
		out := a.ok("", append([]string{"explain"}, strings.Fields(arg)...)...)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("explain %s lacks %q:\n%.2000s", arg, want, out)
			}
		}
	}
	var e schemas.Explanation
	if err := json.Unmarshal([]byte(a.ok("", "explain", "svc.spec.type", "-o", "json")), &e); err != nil || e.Path != "spec.type" {
		t.Errorf("as JSON: %+v, %v", e, err)
	}
}

// TestExplainSaysWhatIsNotSupported of each level that the table of fields has.
func TestExplainSaysWhatIsNotSupported(t *testing.T) {
	a := newAlone(t)
	seen := map[schemas.Level]bool{}
	var walk func(fields []schemas.Field, text string)
	walk = func(fields []schemas.Field, text string) {
		for _, f := range fields {
			seen[f.Level] = true
			if s := support(f); f.Level != schemas.Supported && (s == "" || !strings.Contains(text, "("+s+")\n")) {
				t.Errorf("%s: its support, %q, is not shown", f.Path, s)
			}
			walk(f.Fields, text)
		}
	}
	e, err := schemas.Explain(schemas.Pods, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	walk(e.Fields, a.ok("", "explain", "pods", "--recursive"))
	if !seen[schemas.Refused] || !seen[schemas.System] {
		t.Errorf("the table of fields no longer has what this test looks for: %v", seen)
	}
	for _, k := range schemas.Kinds {
		out := a.ok("", "explain", k.Resource)
		if k.Refused != "" && !strings.Contains(out, "REFUSED:    "+k.Refused+"\n") {
			t.Errorf("explain %s does not say that it is refused:\n%.300s", k.Resource, out)
		}
	}
}

func TestBadQuestionsToExplain(t *testing.T) {
	a := newAlone(t)
	for args, want := range map[string]string{
		"":                      "you must specify the type of resource to explain",
		"things":                `the server doesn't have a resource type "things"`,
		"pod.spec.contaners":    `did you mean "containers"?; it has `,
		"pod.metadata.name.x":   `there is no field "x" below it`,
		"pods --api-version=v2": `couldn't find resource "pods" in version "v2": there is v1`,
		"pods -o xml":           "unrecognized format: xml; use plaintext or json",
	} {
		if stderr := a.fails("", append([]string{"explain"}, strings.Fields(args)...)...); !strings.Contains(stderr, want) {
			t.Errorf("explain %s: %s, want %q", args, stderr, want)
		}
	}
}
