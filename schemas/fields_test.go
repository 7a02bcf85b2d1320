package schemas

import (
	"reflect"
	"strings"
	"testing"
)

// TestEveryFieldHasARule walks the types: a field that Kubernetes adds must get
// a row in the table, with a reason where it is refused, before Gantry can be
// built with it.
func TestEveryFieldHasARule(t *testing.T) {
	for _, k := range Kinds {
		d := describer{rules: rulesOf(k.Resource)}
		var visit func(at typedField)
		visit = func(at typedField) {
			if rule, listed := d.rules[at.pattern]; listed && rule != nil {
				if (rule.Level == Refused || rule.Level == Ignored) && rule.Note == "" {
					t.Errorf("%s: %s is %s without a reason", k.Resource, at.pattern, rule.Level)
				}
				return // it holds for all below
			}
			items := itemPattern(at.pattern, at.t)
			if d.rules[items] != nil {
				return
			}
			elem := elemOf(at.t)
			if elem.Kind() != reflect.Struct || opaque(elem) {
				if _, leads := d.rules[at.pattern]; !leads {
					t.Errorf("%s: no row for %s", k.Resource, at.pattern)
				}
				return
			}
			if _, leads := d.rules[items]; !leads && at.pattern != "" {
				t.Errorf("%s: no row for %s", k.Resource, at.pattern)
				return
			}
			for name := range jsonFields(elem) {
				c, _ := d.child(at, name)
				visit(c)
			}
		}
		visit(typedField{t: reflect.TypeOf(k.New()).Elem()})
	}
}

func TestExplain(t *testing.T) {
	tests := []struct {
		resource string
		path     []string
		wantType string
		level    Level
		reason   string
	}{
		{"deployments", nil, "Deployment", Supported, ""},
		{"deployments", []string{"spec", "replicas"}, "integer", Supported, ""},
		{"deployments", []string{"spec", "template", "spec", "containers"}, "[]Container", Supported, ""},
		{"deployments", []string{"spec", "template", "spec", "containers", "image"}, "string", Supported, ""},
		{"deployments", []string{"spec", "template", "spec", "containers[]", "image"}, "string", Supported, ""},
		{"pods", []string{"spec", "tolerations", "key"}, "string", Ignored, "taints are not built yet, so there is nothing to tolerate"},
		{"pods", []string{"spec", "volumes", "nfs", "server"}, "string", Refused, "volumes are not built yet"},
		{"pods", []string{"status", "conditions", "type"}, "string", System, ""},
		{"pods", []string{"metadata", "labels"}, "map[string]string", Supported, ""},
		{"pods", []string{"spec", "containers", "resources", "limits"}, "map[string]Quantity", Refused, "only cpu and memory (and ephemeral-storage, without effect) are known"},
		{"secrets", []string{"data"}, "map[string]base64", Supported, ""},
		{"leases", []string{"spec", "renewTime"}, "MicroTime", Supported, ""},
		{"networkpolicies", []string{"spec", "ingress", "from", "podSelector", "matchLabels"}, "map[string]string", Supported, ""},
	}
	for _, tt := range tests {
		e, err := Explain(tt.resource, tt.path, false)
		if err != nil {
			t.Errorf("%s %v: %v", tt.resource, tt.path, err)
			continue
		}
		if e.Type != tt.wantType || e.Level != tt.level || e.Reason != tt.reason || e.Description == "" {
			t.Errorf("%s %v: got type %q, level %s, reason %q, description %q; want %q, %s, %q", tt.resource, tt.path,
				e.Type, e.Level, e.Reason, e.Description, tt.wantType, tt.level, tt.reason)
		}
	}
	for _, tt := range []struct {
		resource string
		path     []string
		want     string
	}{
		{"breads", nil, `there is no resource "breads"`},
		{"services", []string{"spec", "port"}, `services.spec has no field "port"; did you mean "ports"?`},
		{"services", []string{"spec", "type", "x"}, `services.spec.type is of type string: there is no field "x" below it`},
		{"configmaps", []string{"data", "x"}, `configmaps.data is of type map[string]string: there is no field "x" below it`},
	} {
		if _, err := Explain(tt.resource, tt.path, false); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s %v: got error %v, want %s", tt.resource, tt.path, err, tt.want)
		}
	}
	flat, err := Explain(Pods, []string{"spec"}, false)
	if err != nil {
		t.Fatal(err)
	}
	deep, err := Explain(Pods, []string{"spec"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(flat.Fields) != len(deep.Fields) {
		t.Fatalf("%d fields flat, %d deep", len(flat.Fields), len(deep.Fields))
	}
	for i, f := range flat.Fields {
		if len(f.Fields) > 0 {
			t.Errorf("%s has fields below though none were asked for", f.Path)
		}
		if f.Name == "containers" {
			if !f.Required || len(deep.Fields[i].Fields) == 0 {
				t.Errorf("containers: required %t, %d fields below", f.Required, len(deep.Fields[i].Fields))
			}
		}
	}
}

func TestAPIResources(t *testing.T) {
	seen := map[string]APIResource{}
	for _, r := range APIResources().Resources {
		seen[r.Name] = r
	}
	for _, k := range Kinds {
		r, ok := seen[k.Resource]
		if !ok {
			t.Errorf("%s is not listed", k.Resource)
			continue
		}
		if (len(r.Verbs) == 0) != (k.Refused != "") || r.Refused != k.Refused || r.Doc == "" {
			t.Errorf("%s: verbs %v, refused %q, doc %q", k.Resource, r.Verbs, r.Refused, r.Doc)
		}
	}
	if got := seen["deployments/scale"]; got.Kind != "Scale" || got.Group != "autoscaling" {
		t.Errorf("deployments/scale is %+v", got)
	}
	if _, ok := seen["configmaps/status"]; ok {
		t.Error("configmaps have no status")
	}
}
