package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// kubernetesUID is what the oracle gives every object before it validates.
const kubernetesUID types.UID = "00000000-0000-4000-8000-000000000001"

// kubernetesAnswer is what tools/oracle writes of one case.
type kubernetesAnswer struct {
	Case     string            `json:"case"`
	Object   json.RawMessage   `json:"object"`
	Prepared json.RawMessage   `json:"prepared"`
	Errors   []kubernetesFault `json:"errors"`
}

type kubernetesFault struct {
	Type   string `json:"type"`
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

// A knownDifference says why Gantry and Kubernetes do not agree about a case;
// it stands in <case>.differences.yaml by the case's name. Only is "detail"
// where the errors agree but for their words, "object" where the errors are
// the same and the defaulted object is not; empty lets everything differ.
type knownDifference struct {
	Reason string `json:"reason"`
	Only   string `json:"only"`
}

// TestAsKubernetes holds Default, Validate and ValidateUpdate against what
// Kubernetes' own code says of the same manifests (`task oracle`).
func TestAsKubernetes(t *testing.T) {
	files, err := filepath.Glob("testdata/kubernetes/*/*.golden.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, golden := range files {
		resource := filepath.Base(filepath.Dir(golden))
		base := strings.TrimSuffix(golden, ".golden.json")
		t.Run(resource+"/"+filepath.Base(base), func(t *testing.T) {
			k, ok := KindByResource(resource)
			if !ok {
				t.Fatalf("no kind %q", resource)
			}
			compareFile(t, k, base)
		})
	}
}

func compareFile(t *testing.T, k Kind, base string) {
	var answers []kubernetesAnswer
	if err := json.Unmarshal(mustRead(t, base+".golden.json"), &answers); err != nil {
		t.Fatal(err)
	}
	known := map[string]knownDifference{}
	if data, err := os.ReadFile(base + ".differences.yaml"); err == nil {
		if err := yaml.UnmarshalStrict(data, &known); err != nil {
			t.Fatal(err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	old, manifests := readCases(t, base)
	if len(manifests) != len(answers) {
		t.Fatalf("%d cases and %d answers: run task oracle", len(manifests), len(answers))
	}
	for i, want := range answers {
		c := manifests[i]
		if c.name != want.Case {
			t.Fatalf("case %d is %q here and %q in the answers: run task oracle", i+1, c.name, want.Case)
		}
		t.Run(c.name, func(t *testing.T) {
			d, listed := known[c.name]
			delete(known, c.name)
			if listed && d.Reason == "" {
				t.Error("a difference needs a reason")
			}
			diff := compareCase(t, k, c.manifest, old, want, "")
			switch {
			case diff == "" && listed:
				t.Errorf("listed as different (%s), but is the same", d.Reason)
			case listed && d.Only == "":
				return
			case listed:
				diff = compareCase(t, k, c.manifest, old, want, d.Only)
			}
			if diff != "" {
				t.Errorf("not as Kubernetes (-kubernetes +gantry):\n%s", diff)
			}
		})
	}
	for name := range known {
		t.Errorf("%s.differences.yaml names no case: %q", base, name)
	}
}

// compareCase describes how Gantry's answer differs, leaving out what tolerate
// names ("detail", "object" or nothing).
func compareCase(t *testing.T, k Kind, manifest, old []byte, want kubernetesAnswer, tolerate string) string {
	t.Helper()
	o, decodeErr := decodeAs(k, manifest)
	if len(want.Errors) > 0 && want.Errors[0].Type == "Decode" {
		if decodeErr == nil {
			return "Kubernetes cannot decode it: " + want.Errors[0].Detail
		}
		return ""
	}
	if decodeErr != nil {
		return "cannot decode it: " + decodeErr.Error()
	}
	var errs field.ErrorList
	var read Object // what Default made of it
	if old == nil {
		o.SetUID(kubernetesUID)
		Default(o)
		read = o.DeepCopyObject().(Object)
		Derive(o)
		errs = Validate(o)
	} else {
		before, err := decodeAs(k, old)
		if err != nil {
			t.Fatalf("the old object: %v", err)
		}
		before.SetUID(kubernetesUID)
		Default(before)
		if o.GetUID() == "" {
			o.SetUID(kubernetesUID)
		}
		Default(o)
		read = o.DeepCopyObject().(Object)
		DeriveUpdate(o, before)
		errs = ValidateUpdate(o, before)
	}
	var faults []kubernetesFault
	for _, e := range errs {
		faults = append(faults, kubernetesFault{string(e.Type), e.Field, e.Detail})
	}
	wanted := append([]kubernetesFault(nil), want.Errors...)
	if tolerate == "detail" {
		for _, list := range [][]kubernetesFault{faults, wanted} {
			for i := range list {
				list[i].Detail = ""
			}
		}
	}
	sortFaults(faults)
	sortFaults(wanted)
	if d := cmp.Diff(wanted, faults); d != "" || len(faults) > 0 || tolerate == "object" {
		return d
	}
	return compareObject(t, read, o, old != nil, want)
}

func sortFaults(l []kubernetesFault) {
	sort.SliceStable(l, func(i, j int) bool {
		return fmt.Sprint(l[i].Field, "\x00", l[i].Type, "\x00", l[i].Detail) < fmt.Sprint(l[j].Field, "\x00", l[j].Type, "\x00", l[j].Detail)
	})
}

// compareObject compares what Default made of the manifest. Where the server
// changes the spec before it validates, Derive must have done the same.
func compareObject(t *testing.T, read, derived Object, update bool, want kubernetesAnswer) string {
	t.Helper()
	read.SetUID("")
	got := jsonValue(t, read)
	var object any
	if err := json.Unmarshal(want.Object, &object); err != nil {
		t.Fatal(err)
	}
	expected := object.(map[string]any)
	if m, ok := expected["metadata"].(map[string]any); ok {
		delete(m, "uid")
	}
	if len(want.Prepared) > 0 && !update {
		expected = nil
		if err := json.Unmarshal(want.Prepared, &expected); err != nil {
			t.Fatal(err)
		}
		got = jsonValue(t, derived)
		delete(got, "metadata")
		delete(got, "status")
		if s, ok := got["spec"].(map[string]any); ok && KindOf(derived).Resource == Pods {
			// The server's Priority plugin, which the oracle does not run, sets them.
			delete(s, "priority")
			delete(s, "preemptionPolicy")
		}
	}
	return cmp.Diff(expected, got)
}

func jsonValue(t *testing.T, o any) map[string]any {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// decodeAs is strict, as Decode, and takes kinds that admission refuses.
func decodeAs(k Kind, manifest []byte) (Object, error) {
	o := k.New()
	strict, err := kjson.UnmarshalStrict(manifest, o)
	return o, errors.Join(append(strict, err)...)
}

func mustRead(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type kubernetesCase struct {
	name     string
	manifest []byte // JSON
}

// readCases reads a case file as the oracle does: the first comment of each
// document names its case, and a document without a kind is a merge patch onto
// the old object, or else onto the first document.
func readCases(t *testing.T, base string) (old []byte, cases []kubernetesCase) {
	t.Helper()
	if data, err := os.ReadFile(base + ".old.yaml"); err == nil {
		if old, err = yaml.YAMLToJSON(data); err != nil {
			t.Fatal(err)
		}
	}
	onto := old
	for doc := range bytes.SplitSeq(append([]byte("\n"), mustRead(t, base+".yaml")...), []byte("\n---")) {
		var c kubernetesCase
		for l := range bytes.Lines(doc) {
			if after, ok := bytes.CutPrefix(bytes.TrimSpace(l), []byte("#")); ok {
				c.name = string(bytes.TrimSpace(after))
				break
			}
		}
		var err error
		if c.manifest, err = yaml.YAMLToJSONStrict(doc); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var value map[string]any
		if err := json.Unmarshal(c.manifest, &value); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if _, whole := value["kind"]; !whole {
			var b any
			if err := json.Unmarshal(onto, &b); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if c.manifest, err = json.Marshal(mergeJSON(b, value)); err != nil {
				t.Fatal(err)
			}
		} else if onto == nil {
			onto = c.manifest
		}
		cases = append(cases, c)
	}
	return old, cases
}

// mergeJSON is RFC 7396.
func mergeJSON(base, change any) any {
	c, ok := change.(map[string]any)
	if !ok {
		return change
	}
	b, ok := base.(map[string]any)
	if !ok {
		b = map[string]any{}
	}
	for k, v := range c {
		if v == nil {
			delete(b, k)
			continue
		}
		b[k] = mergeJSON(b[k], v)
	}
	return b
}
