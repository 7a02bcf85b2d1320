package schemas

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// apiTestdata is where the module k8s.io/api keeps an object of every kind.
var apiTestdata = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	return filepath.Join(strings.TrimSpace(string(out)), "testdata", "HEAD"), err
})

// apiFile is the JSON of a kind in apiTestdata.
func apiFile(k Kind) string {
	group := k.GVK.Group
	if group == "" {
		group = "core"
	}
	return fmt.Sprintf("%s.%s.%s.json", group, k.GVK.Version, k.GVK.Kind)
}

const apiVerdicts = "testdata/api-testdata.txt"

// TestAPITestdata reads every object that the module k8s.io/api keeps of every
// kind of Kubernetes, as JSON and as YAML, and compares what becomes of each
// with the list in testdata: kept whole, or refused with a reason. Protobuf is
// not read.
func TestAPITestdata(t *testing.T) {
	dir, err := apiTestdata()
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var verdicts []string
	kinds := map[string]bool{}
	for _, f := range files {
		if filepath.Ext(f.Name()) == ".pb" {
			continue
		}
		data := mustRead(t, filepath.Join(dir, f.Name()))
		kind, verdict := apiVerdict(t, f.Name(), data)
		kinds[kind] = true
		verdicts = append(verdicts, f.Name()+": "+verdict)
	}
	for _, k := range Kinds {
		if !kinds[k.Resource] {
			t.Errorf("k8s.io/api has no file of %s", k.Resource)
		}
	}
	sort.Strings(verdicts)
	got := strings.Join(verdicts, "\n") + "\n"
	if *update {
		if err := os.WriteFile(apiVerdicts, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(string(mustRead(t, apiVerdicts)), got); d != "" {
		t.Errorf("%s is not what happens (-update writes it):\n%s", apiVerdicts, d)
	}
}

// apiVerdict says what becomes of one file, and of which of our resources it is.
func apiVerdict(t *testing.T, file string, data []byte) (resource, verdict string) {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var head struct{ APIVersion, Kind string }
	if err := json.Unmarshal(asJSON, &head); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	_, decodeErr := Decode(data)
	k, ok := KindByGVK(head.APIVersion, head.Kind)
	if !ok {
		return "", refusedByName(t, file, head.Kind, decodeErr)
	}
	// A kind that is refused is nevertheless read whole.
	o, err := decodeAs(k, asJSON)
	if err != nil {
		t.Errorf("%s: %v", file, err)
		return k.Resource, "broken"
	}
	stored, err := json.Marshal(o)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	again := k.New()
	if err := json.Unmarshal(stored, again); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var want any
	if err := json.Unmarshal(asJSON, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, any(jsonValue(t, again))); d != "" {
		t.Errorf("%s: loses something on its way through the store (-file +read back):\n%s", file, d)
		return k.Resource, "changed"
	}
	if k.Refused != "" {
		return k.Resource, "kept, and " + refusedByName(t, file, head.Kind, decodeErr)
	}
	if decodeErr != nil {
		t.Errorf("%s: %v", file, decodeErr)
	}
	refused, _ := Unsupported(o)
	if len(refused) == 0 {
		return k.Resource, "kept"
	}
	return k.Resource, "kept, and admission refuses fields of it"
}

// refusedByName wants an error that names the kind, and shortens it to its reason.
func refusedByName(t *testing.T, file, kind string, err error) string {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), kind) {
		t.Errorf("%s: want a refusal that names %s, got %v", file, kind, err)
		return "taken"
	}
	reason := err.Error()
	if _, after, ok := strings.Cut(reason, "kind: "); ok {
		reason = after
	} else if _, after, ok := strings.Cut(reason, "apiVersion: "); ok {
		reason = after
	}
	reason, _, _ = strings.Cut(reason, ", which knows")
	return "refused: " + strings.TrimSuffix(reason, "; see docs/supported-fields.md")
}
