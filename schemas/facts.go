package schemas

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// facts.json is written by tools/oracle from Kubernetes' own description of its
// API: what Go types do not say.
//
//go:embed facts.json
var factsJSON []byte

// typeFacts are those of one struct.
type typeFacts struct {
	Required []string              `json:"required"`
	Fields   map[string]fieldFacts `json:"fields"`
	// Enum is every value of a type that is an enumeration.
	Enum []string `json:"enum"`
}

type fieldFacts struct {
	Default     any      `json:"default"`
	ListType    string   `json:"listType"`
	ListMapKeys []string `json:"listMapKeys"`
	MapType     string   `json:"mapType"`
}

// facts are read when the first schema or explanation is asked for.
var facts = sync.OnceValue(func() map[string]typeFacts {
	var out map[string]typeFacts
	if err := json.Unmarshal(factsJSON, &out); err != nil {
		panic(fmt.Sprintf("schemas: facts.json: %v", err))
	}
	return out
})

// factsOf is empty for types that Kubernetes does not describe.
func factsOf(t reflect.Type) typeFacts { return facts()[definitionName(t)] }

// definitionName is a type's name in Kubernetes' description of its API:
// io.k8s.api.core.v1.Pod for k8s.io/api/core/v1.Pod.
func definitionName(t reflect.Type) string {
	pkg, ok := strings.CutPrefix(t.PkgPath(), "k8s.io/")
	if !ok || t.Name() == "" {
		return t.Name()
	}
	return "io.k8s." + strings.ReplaceAll(pkg, "/", ".") + "." + t.Name()
}
